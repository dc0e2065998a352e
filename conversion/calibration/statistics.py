"""The statistics of one layer's attention on the calibration text.

Notation, per layer: u[h, f] and z[g, f] are the rotary pairs of query head h and KV head g before
rotation, written as complex numbers; a[h, m, n] is the attention of query position m on key
position n; D = m - n. The first tokens of a text are attention sinks: few tokens, most of the
attention. So keys and values are averaged with the attention they receive, not by token.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conversion.calibration.head_sums import HeadSums
from conversion.calibration.probes import head_gradients
from conversion.calibration.rotated_keys import (
    KeysOfWindow,
    RotatedKeys,
    RotatedKeysOfHead,
    RotatedKeysSum,
    are_small,
)
from conversion.families import AttentionWeights
from conversion.runtime.parallel import side_by_side
from conversion.text.windows import EVERY
from vllm_mha2mla.rope import apply_rotary

PROBE_SEED = 0
# Queries whose attention exists at once: what is masked is a small part of their rows, and the rows
# stay in a core's cache.
QUERIES = 128
# On a GPU all heads' attention exists at once, of as many queries as take this together.
ATTENTION_BYTES = 256 << 20
# Attention below this is none: what it adds is below rounding, and products with numbers smaller
# than float32 holds exactly take ten times as long.
NEGLIGIBLE = 1e-30


@dataclass
class LayerStatistics:
    """Averages over the calibration text; float64 where nothing else is said.

    Attributes:
        query_moment: ``E[q q^T]`` over tokens  # [heads, d, d]
        query_norm: ``E|u[h, f]|`` over tokens  # [heads, d/2]
        key_norm: ``E|z[g, f]|`` over tokens  # [kv_heads, d/2]
        rho: mean rotation ``E[exp(i theta_f D)]`` over each head's attention  # [heads, d/2]
        input_mean: mean of the attention's inputs, weighted by attention received  # [inputs]
        input_covariance: their covariance under the same weights  # [inputs, inputs]
        token_moment: ``E[x x^T]`` of the inputs over tokens, not centred  # [inputs, inputs]
        gamma: value variance each head's output sees, ``E sum_n a ||W_O (v_n - o)||^2``  # [heads]
        gradient_moment: ``E g g^T`` over tokens, ``g`` the gradient of ``sum_m r_m . o_m`` for
            standard normal ``r``: for unrotated keys of every query head, then for values of every
            KV head (``calibration.probes``); float32
            # [(heads + kv_heads) * d, (heads + kv_heads) * d]
        distance: ``E a[m, m - D]``, the attention of each distance  # [heads, tokens]
        token_mean: mean of the inputs over tokens  # [inputs]
        first_inputs: the inputs of each window's first token, float32  # [windows, inputs]
        rotated: keys as queries see them; ``None`` with so many KV heads that they would be larger
            than the layer.
    """

    query_moment: Tensor
    query_norm: Tensor
    key_norm: Tensor
    rho: Tensor
    input_mean: Tensor
    input_covariance: Tensor
    token_moment: Tensor
    gamma: Tensor
    gradient_moment: Tensor
    distance: Tensor
    token_mean: Tensor
    first_inputs: Tensor
    rotated: RotatedKeys | None

    @property
    def nbytes(self) -> int:
        """Size of all of them in bytes."""
        own = (x for x in vars(self).values() if isinstance(x, Tensor))
        rotated = () if self.rotated is None else vars(self.rotated).values()
        return sum(x.nbytes for x in (*own, *rotated))

    def of_later_tokens(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the inputs over tokens, each window's first one aside.

        Returns:
            # [inputs], [inputs, inputs]
        """
        first = self.first_inputs.double()
        windows, tokens = len(first), self.distance.shape[1]
        count = windows * (tokens - 1)
        mean = (self.token_mean * windows * tokens - first.sum(0)) / count
        moment = (self.token_moment * windows * tokens - first.T @ first) / count
        return mean, moment - torch.outer(mean, mean)

    def to(self, device: torch.device | str) -> "LayerStatistics":
        """The same statistics on another device."""
        moved: dict[str, Any] = {
            name: None if value is None else value.to(device) for name, value in vars(self).items()
        }
        return LayerStatistics(**moved)


def as_pairs(x: Tensor) -> Tensor:
    """Rotary pairs ``(x[f], x[f + d/2])`` as complex numbers  # [..., d] -> [..., d/2]"""
    real, imaginary = x.chunk(2, dim=-1)
    return torch.complex(real.contiguous(), imaginary.contiguous())


@torch.no_grad()
def layer_statistics(weights: AttentionWeights, inputs: Iterable[Tensor]) -> LayerStatistics:
    """Measure one layer.

    Args:
        weights: the layer's attention.
        inputs: what its maps act on, at least one window, all as long as the first; taken one after
            the other, so that a generator needs memory for one (``AttentionWeights.parts``)
    """
    remaining = iter(inputs)
    first = next(remaining)
    total = StatisticsSum(weights, len(first))
    total.add(first)
    for window in remaining:
        total.add(window)
    return total.mean()


class StatisticsSum:
    """The statistics of one layer, added up window by window.

    Products within a window are float32, which is exact enough for a thousand terms and twice as
    fast as float64; windows add up in float64 where :class:`LayerStatistics` says so.

    Args:
        weights: the layer's attention.
        tokens: of every window.
    """

    def __init__(self, weights: AttentionWeights, tokens: int) -> None:
        self._weights, self._tokens, self._windows, self._probed = weights, tokens, 0, 0
        heads = len(weights.query)
        kv_heads, d, inputs = weights.key.shape
        device = weights.query.device

        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._query_moment = zeros(heads, d, d)
        self._query_norm, self._key_norm = zeros(heads, d // 2), zeros(kv_heads, d // 2)
        self._rho = zeros(heads, d // 2, dtype=torch.complex128)
        self._first, self._second = zeros(inputs), zeros(inputs, inputs)
        self._token_mean, self._token_moment = zeros(inputs), zeros(inputs, inputs)
        self._gamma, self._distance = zeros(heads), zeros(heads, tokens)
        self._first_inputs: list[Tensor] = []
        both = (heads + kv_heads) * d
        self._gradient_moment = zeros(both, both, dtype=torch.float32)
        self._generator = torch.Generator().manual_seed(PROBE_SEED)
        small = are_small(heads, kv_heads, d, weights.output.shape[1])
        self._rotated = RotatedKeysSum(heads, kv_heads, d, device) if small else None
        angles = torch.arange(tokens, device=device)[:, None] * weights.inv_freq  # [tokens, d/2]
        self._cos, self._sin = angles.cos(), angles.sin()
        self._turn = torch.polar(torch.ones_like(angles), angles)  # e^{i theta m}
        # W_O^T W_O  # [heads, d, d]
        self._output_gram = weights.output.transpose(1, 2) @ weights.output

    def add(self, window: Tensor) -> None:
        """Count one window, of what all maps act on (``AttentionWeights.parts``)"""
        weights, tokens = self._weights, self._tokens
        heads, kv_heads = len(weights.query), len(weights.key)
        of_queries, x = weights.parts(window.float())  # [tokens, query inputs], [tokens, inputs]
        q = torch.einsum("te,hde->htd", of_queries, weights.query) + weights.query_bias[:, None]
        k = torch.einsum("te,gde->gtd", x, weights.key) + weights.key_bias[:, None]
        v = torch.einsum("te,gde->gtd", x, weights.value) + weights.value_bias[:, None]
        self._query_moment += torch.einsum("htd,hte->hde", q, q).double() / tokens
        self._query_norm += as_pairs(q).abs().mean(1).double()
        self._key_norm += as_pairs(k).abs().mean(1).double()
        k_rotated = apply_rotary(k, self._cos, self._sin)
        probe = None
        if self._windows % EVERY == 0:
            shape = len(x), self._weights.output.shape[1]
            probe = torch.randn(shape, generator=self._generator).to(x)  # [tokens, hidden]
        self._windows += 1
        keys = None
        if probe is not None and self._rotated is not None:
            keys = KeysOfWindow(k, as_pairs(k_rotated.transpose(0, 1)), self._turn)

        def of_heads(h: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Attention received by keys, and gradients for keys and values.

            Of one head by its number, or of several, which then lead every shape.
            """
            g = h // weights.group
            of_q, of_k, of_v, output = q[h], k_rotated[g], v[g], weights.output[h]
            q_rotated = apply_rotary(of_q, self._cos, self._sin)
            sums = HeadSums(self._turn, of_v, self._output_gram[h])
            rotated = None if keys is None else RotatedKeysOfHead(keys, of_v.shape[:-2])
            of_keys, of_values = torch.zeros_like(of_v), torch.zeros_like(of_v)
            queries = self._queries_at_once()
            for start in range(0, tokens, queries):
                block = slice(start, min(start + queries, tokens))
                a = self._attention(q_rotated[..., block, :], of_k[..., : block.stop, :])
                sums.add(a, start)
                if rotated is not None:
                    rotated.add(a, start)
                if probe is not None:
                    R = probe[block] @ output  # [..., queries, d]
                    seen = of_v[..., : block.stop, :]
                    found = head_gradients(a, of_q[..., block, :], seen, R, weights.scale)
                    of_keys[..., : block.stop, :] += found[0]
                    of_values[..., : block.stop, :] += found[1]
            self._distance[h] += sums.distance.double() / tokens
            self._rho[h] += sums.rho.to(torch.complex128) / tokens
            self._gamma[h] += sums.gamma.double() / tokens
            if rotated is not None and self._rotated is not None:
                self._rotated.add(h, rotated)
            return sums.received, of_keys, of_values

        received = x.new_zeros(tokens)
        gradients = x.new_zeros(tokens, heads + kv_heads, weights.query.shape[1])
        of_every_head = (
            side_by_side(of_heads, range(heads))
            if x.device.type == "cpu"
            else zip(*of_heads(torch.arange(heads, device=x.device)), strict=True)
        )
        for h, (of_head_received, of_keys, of_values) in enumerate(of_every_head):
            received += of_head_received
            gradients[:, h] = of_keys
            gradients[:, heads + h // weights.group] += of_values
        if keys is not None and self._rotated is not None:
            self._rotated.end_window()
        if probe is not None:
            self._probed += 1
            flat = gradients.flatten(1)
            self._gradient_moment.addmm_(flat.T, flat, alpha=1 / tokens)
        w = received / received.sum()
        self._first_inputs.append(x[0].clone())
        self._token_mean += x.mean(0).double()
        self._first += (w @ x).double()
        self._second += (x.T @ (w[:, None] * x)).double()
        self._token_moment += (x.T @ x).double() / tokens

    def mean(self) -> LayerStatistics:
        """The averages over the windows so far. Uses the sums up: call it once."""
        windows = self._windows
        mean = self._first / windows
        return LayerStatistics(
            query_moment=self._query_moment / windows,
            query_norm=self._query_norm / windows,
            key_norm=self._key_norm / windows,
            rho=self._rho / windows,
            input_mean=mean,
            input_covariance=self._second / windows - torch.outer(mean, mean),
            token_moment=self._token_moment / windows,
            gamma=self._gamma / windows,
            gradient_moment=self._gradient_moment / self._probed,
            distance=self._distance / windows,
            token_mean=self._token_mean / windows,
            first_inputs=torch.stack(self._first_inputs),
            rotated=None if self._rotated is None else self._rotated.mean(),
        )

    def _queries_at_once(self) -> int:
        """Consecutive queries whose attention exists at the same time."""
        heads = len(self._weights.query)
        if self._weights.query.device.type == "cpu":
            return QUERIES
        return max(QUERIES, ATTENTION_BYTES // (heads * self._tokens * torch.float32.itemsize))

    def _attention(self, q: Tensor, k: Tensor) -> Tensor:
        """Causal attention of consecutive queries, the last one at the last key.

        Args:
            q: rotated queries of a head  # [..., queries, d]
            k: rotated keys  # [..., keys, d]

        Returns:
            # [..., queries, keys]
        """
        queries, keys = q.shape[-2], k.shape[-2]
        scores = (q @ k.mT).mul_(self._weights.scale)
        future = torch.ones(queries, queries, dtype=torch.bool, device=q.device).triu_(1)
        scores[..., keys - queries :].masked_fill_(future, float("-inf"))
        return torch.threshold(scores.softmax(-1), NEGLIGIBLE, 0)
