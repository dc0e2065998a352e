"""Keys as each head's queries see them, rotated by the distance, beside the keys before RoPE."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Numbers these moments may have, per square of the hidden size; a decoder layer has over 12.
MOST = 8


@dataclass(frozen=True)
class RotatedKeys:
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

    def to(self, device: torch.device | str) -> "RotatedKeys":
        """The same on another device."""
        return RotatedKeys(*(x.to(device) for x in (self.cross, self.plain, self.pairs)))


def are_small(heads: int, kv_heads: int, d: int, hidden: int) -> bool:
    """Tell whether these moments take less memory than their layer."""
    return 2 * heads * (kv_heads * d) ** 2 <= MOST * hidden**2


class KeysOfWindow:
    """All keys of one window, as every head needs them.

    Args:
        k: keys before rotation  # [kv_heads, keys, d]
        z: their rotary pairs after it, ``e^{i theta n} z_n``  # [keys, kv_heads, d/2]
        turn: ``e^{i theta m}``  # [queries, d/2]
    """

    def __init__(self, k: Tensor, z: Tensor, turn: Tensor) -> None:
        self.k = k.transpose(0, 1).flatten(1)  # [keys, kv_heads * d]
        self.z, self.turn = z, turn
        self.flat = torch.cat((self.k, z.real.flatten(1), z.imag.flatten(1)), dim=1)
        self.back = torch.cat((turn.real, -turn.imag), dim=1)  # e^{-i theta m}  # [queries, d]


class RotatedKeysOfHead:
    """Sums over a head's attention in one window.

    Args:
        keys: of the window.
        heads: shape of the number of heads: ``()`` for one head; of several at once, their number
            leads every shape.

    Attributes:
        keys: of the window.
        received: ``sum_m a``  # [keys]
        back_of_key: ``sum_m a e^{-i theta m}``, real and imaginary parts side by side  # [keys, d]
        averaged: ``sum_n a [k_n ; Re z_n ; Im z_n]``  # [queries, 2 * kv_heads * d]
    """

    def __init__(self, keys: KeysOfWindow, heads: Sequence[int] = ()) -> None:
        self.keys = keys
        self.received = keys.k.new_zeros((*heads, len(keys.k)))
        self.back_of_key = keys.back.new_zeros((*heads, *keys.back.shape))
        self.averaged = keys.flat.new_empty((*heads, *keys.flat.shape))

    def add(self, a: Tensor, start: int) -> None:
        """Count consecutive queries, the first at position ``start``  # [queries, keys so far]"""
        queries, seen = a.shape[-2:]
        block = slice(start, start + queries)
        self.received[..., :seen] += a.sum(-2)
        self.back_of_key[..., :seen, :] += a.mT @ self.keys.back[block]
        self.averaged[..., block, :] = a @ self.keys.flat[:seen]


class RotatedKeysSum:
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

    def add(self, h: int | Tensor, head: "RotatedKeysOfHead") -> None:
        """Count a head in one window, or several, by their numbers.

        Heads may be counted at the same time, windows may not.
        """
        keys, tokens = head.keys, head.received.shape[-1]
        k, z, received = keys.k, keys.z, head.received
        back_of_key = torch.complex(*head.back_of_key.chunk(2, dim=-1))  # [..., keys, d/2]
        seen = _real(back_of_key[..., None, :] * z)
        width = k.shape[1]
        of_k, real, imaginary = head.averaged.tensor_split((width, width * 3 // 2), dim=-1)
        back = keys.turn.conj()
        of_z = back[:, None] * torch.complex(real, imaginary).unflatten(-1, z.shape[1:])
        self._cross[h] += (seen.mT @ k - _real(of_z).mT @ of_k) / tokens
        self._plain[h] += (k.T @ (received[..., None] * k) - of_k.mT @ of_k) / tokens
        both = _moment(z, received) - _moment(of_z, torch.ones_like(received))
        self._pairs[h] += both.to(torch.complex128) / tokens

    def end_window(self) -> None:
        """All heads of a window are counted."""
        self._windows += 1

    def mean(self) -> RotatedKeys:
        """The averages over the windows so far. Uses the sums up: call it once."""
        sums = (self._cross, self._plain, self._pairs)
        return RotatedKeys(*(x.div_(self._windows) for x in sums))


def _real(z: Tensor) -> Tensor:
    """Pairs as the numbers of keys they are  # [..., kv_heads, d/2] -> [..., kv_heads * d]"""
    return torch.cat((z.real, z.imag), dim=-1).flatten(-2)


def _moment(z: Tensor, weight: Tensor) -> Tensor:
    """``sum_n w_n z z^H`` per frequency.

    Args:
        z: rotary pairs  # [..., tokens, kv_heads, d/2]
        weight: ``w``  # [..., tokens]

    Returns:
        # [..., d/2, kv_heads, kv_heads]
    """
    by_frequency = z.movedim(-1, -3)  # [..., d/2, tokens, kv_heads]
    return by_frequency.mT @ (weight[..., None, :, None] * by_frequency.conj())
