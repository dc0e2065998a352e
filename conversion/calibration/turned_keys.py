"""Keys as each head's queries see them: turned by the distance, beside what they are before."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Numbers these moments may have, per square of the hidden size; a decoder layer has over 12.
MOST = 8


@dataclass(frozen=True)
class TurnedKeys:
    """Covariances within each query's attention, averaged over queries.

    ``k`` are the keys of all KV heads side by side, ``R(n - m) k_n`` the same as the query at ``m``
    meets them, ``z`` their rotary pairs. ``Cov_n`` is under a head's attention ``a[m, n]``.

    Attributes:
        cross: ``E_m Cov_n[R(n - m) k_n, k_n]``, float32  # [heads, kv_heads * d, kv_heads * d]
        plain: ``E_m Cov_n[k_n]``, float32  # [heads, kv_heads * d, kv_heads * d]
        pairs: ``E_m Cov_n[R z] = E_m (E_n[z z^H] - E_n[R z] E_n[R z]^H)`` of the same frequency,
            complex128  # [heads, d/2, kv_heads, kv_heads]
    """

    cross: Tensor
    plain: Tensor
    pairs: Tensor

    def to(self, device: torch.device | str) -> "TurnedKeys":
        """The same on another device."""
        return TurnedKeys(*(x.to(device) for x in (self.cross, self.plain, self.pairs)))


def are_small(heads: int, kv_heads: int, d: int, hidden: int) -> bool:
    """Whether these moments take less memory than the layer they are of."""
    return 2 * heads * (kv_heads * d) ** 2 <= MOST * hidden**2


class TurnedKeysSum:
    """The moments of one layer, added up head by head and window by window.

    Args:
        heads: query heads.
        kv_heads: KV heads.
        d: numbers per head.
        device: of the layer.
    """

    def __init__(self, heads: int, kv_heads: int, d: int, device: torch.device) -> None:
        n = kv_heads * d
        self._cross = torch.zeros(heads, n, n, device=device)
        self._plain = torch.zeros(heads, n, n, device=device)
        shape = (heads, d // 2, kv_heads, kv_heads)
        self._pairs = torch.zeros(shape, dtype=torch.complex128, device=device)
        self._windows = 0

    def add(self, h: int, a: Tensor, k: Tensor, z: Tensor, turn: Tensor) -> None:
        """Count one head in one window; heads in order.

        Args:
            h: the query head.
            a: its attention  # [queries, keys]
            k: keys before rotation  # [keys, kv_heads * d]
            z: the pairs of keys after it, ``e^{i theta n} z_n``  # [keys, kv_heads, d/2]
            turn: ``e^{i theta m}``  # [queries, d/2]
        """
        tokens, kv_heads, pairs = z.shape
        back = turn.conj()
        # sum_m a R(n - m) k_n, for every n, and sum_n a R(n - m) k_n, for every m
        back_of_key = torch.complex(a.T @ back.real, a.T @ back.imag)  # [keys, d/2]
        seen = _real(back_of_key[:, None] * z)  # [keys, kv_heads * d]
        flat = torch.cat((k, z.real.flatten(1), z.imag.flatten(1)), dim=1)
        of_k, real, imaginary = (a @ flat).tensor_split((k.shape[1], k.shape[1] * 3 // 2), dim=1)
        of_z = back[:, None] * torch.complex(real, imaginary).view(tokens, kv_heads, pairs)
        received = a.sum(0)
        self._cross[h] += (seen.T @ k - _real(of_z).T @ of_k) / tokens
        self._plain[h] += (k.T @ (received[:, None] * k) - of_k.T @ of_k) / tokens
        both = _moment(z, received) - _moment(of_z, torch.ones_like(received))
        self._pairs[h] += both.to(torch.complex128) / tokens
        self._windows += h == 0

    def mean(self) -> TurnedKeys:
        """The averages over the windows so far. Uses the sums up: call it once."""
        sums = (self._cross, self._plain, self._pairs)
        return TurnedKeys(*(x.div_(self._windows) for x in sums))


def _real(z: Tensor) -> Tensor:
    """Pairs as the numbers of keys they are  # [tokens, kv_heads, d/2] -> [tokens, kv_heads * d]"""
    return torch.cat((z.real, z.imag), dim=-1).flatten(1)


def _moment(z: Tensor, weight: Tensor) -> Tensor:
    """``sum_n w_n z z^H`` per frequency  # [tokens, kv_heads, d/2] -> [d/2, kv_heads, kv_heads]"""
    by_frequency = z.permute(2, 0, 1)  # [d/2, tokens, kv_heads]
    return by_frequency.transpose(1, 2) @ (weight[:, None] * by_frequency.conj())
