"""What the converter measures of one layer's attention on the calibration text.

Notation, per layer: u[h, f] and z[g, f] are the rotary pairs of query head h and KV head g before
rotation, written as complex numbers; a[h, m, n] is the attention of query position m on key
position n; D = m - n. The first tokens of a text are attention sinks: few tokens, most of the
attention. So keys and values are averaged with the attention they receive, not by token.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conversion.calibration.probes import head_gradients
from conversion.calibration.turned_keys import TurnedKeys, TurnedKeysSum, are_small
from conversion.families import AttentionWeights
from conversion.text.windows import EVERY
from vllm_mha2mla.rope import apply_rotary

PROBE_SEED = 0


@dataclass
class LayerStatistics:
    """Averages over the calibration text; float64 where nothing else is said.

    Attributes:
        query_moment: ``E[q q^T]`` over tokens  # [heads, d, d]
        query_norm: ``E|u[h, f]|`` over tokens  # [heads, d/2]
        key_norm: ``E|z[g, f]|`` over tokens  # [kv_heads, d/2]
        rho: mean rotation ``E[exp(i theta_f D)]`` over each head's attention  # [heads, d/2]
        input_mean: mean of the layer's normed input, weighted by attention received  # [hidden]
        input_covariance: its covariance under the same weights  # [hidden, hidden]
        token_moment: ``E[x x^T]`` of that input over tokens, not centred  # [hidden, hidden]
        gamma: value variance each head's output sees, ``E sum_n a ||W_O (v_n - o)||^2``  # [heads]
        gradient_moment: ``E g g^T`` over tokens, ``g`` the gradient of ``sum_m r_m . o_m`` for
            standard normal ``r``: for unrotated keys of every query head, then for values of every
            KV head (``calibration.probes``); float32
            # [(heads + kv_heads) * d, (heads + kv_heads) * d]
        distance: ``E a[m, m - D]``, the attention of each distance  # [heads, tokens]
        token_mean: mean of the normed input over tokens  # [hidden]
        turned: keys as queries see them; ``None`` with so many KV heads that they would be larger
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
    turned: TurnedKeys | None

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
        inputs: its normed input, at least one window, all as long as the first; taken one after
            the other, so that a generator needs memory for one  # each [tokens, hidden]
    """
    heads, d, hidden = weights.query.shape
    kv_heads = weights.key.shape[0]
    device = weights.query.device

    def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    query_moment = zeros(heads, d, d)
    query_norm, key_norm = zeros(heads, d // 2), zeros(kv_heads, d // 2)
    rho = zeros(heads, d // 2, dtype=torch.complex128)
    first, second = zeros(hidden), zeros(hidden, hidden)
    token_moment = zeros(hidden, hidden)
    gamma = zeros(heads)
    both = (heads + kv_heads) * d
    gradient_moment = zeros(both, both, dtype=torch.float32)
    generator = torch.Generator().manual_seed(PROBE_SEED)
    probed = 0
    small = are_small(heads, kv_heads, d, hidden)
    turned = TurnedKeysSum(heads, kv_heads, d, device) if small else None

    remaining = iter(inputs)
    first_window = next(remaining)
    windows, tokens = 0, len(first_window)
    distance = zeros(heads, tokens)
    token_mean = zeros(hidden)
    positions = torch.arange(tokens, device=device)
    angles = positions[:, None] * weights.inv_freq  # [tokens, d/2]
    cos, sin = angles.cos(), angles.sin()
    turn = torch.polar(torch.ones_like(angles), angles)  # e^{i theta m}  # [tokens, d/2]
    # Added to the scores: one pass over them less than filling a mask.
    causal = angles.new_full((tokens, tokens), float("-inf")).triu_(1)
    gram = torch.einsum("hed,hef->hdf", weights.output, weights.output)  # W_O^T W_O

    for window in itertools.chain((first_window,), remaining):
        windows += 1
        x = window.float()
        q = torch.einsum("te,hde->htd", x, weights.query) + weights.query_bias[:, None]
        k = torch.einsum("te,gde->gtd", x, weights.key) + weights.key_bias[:, None]
        v = torch.einsum("te,gde->gtd", x, weights.value) + weights.value_bias[:, None]
        query_moment += torch.einsum("htd,hte->hde", q, q).double() / tokens
        query_norm += as_pairs(q).abs().mean(1).double()
        key_norm += as_pairs(k).abs().mean(1).double()
        k_turned = apply_rotary(k, cos, sin)
        received = torch.zeros(tokens, device=x.device)
        probe = None
        if windows % EVERY == 1:
            probed += 1
            probe = torch.randn(tokens, hidden, generator=generator).to(x)
            gradients = x.new_zeros(tokens, heads + kv_heads, d)
            flat_keys = k.transpose(0, 1).flatten(1)  # [tokens, kv_heads * d]
            turned_pairs = as_pairs(k_turned.transpose(0, 1))  # [tokens, kv_heads, d/2]
        for h in range(heads):
            g = h // weights.group
            a = torch.addmm(
                causal, apply_rotary(q[h], cos, sin), k_turned[g].T, alpha=weights.scale
            ).softmax(-1)  # [queries, keys]
            received += a.sum(0)
            if probe is not None:
                of_keys, of_values = head_gradients(
                    a, q[h], v[g], probe @ weights.output[h], weights.scale
                )
                gradients[:, h] = of_keys
                gradients[:, heads + g] += of_values
                if turned is not None:
                    turned.add(h, a, flat_keys, turned_pairs, turn)
            distance[h] += by_distance(a).double()
            # E e^{i theta (m - n)} = mean_m e^{i theta m} conj(sum_n a e^{i theta n})
            size = ((v[g] @ gram[h]) * v[g]).sum(1, keepdim=True)  # ||W_O v_n||^2
            averaged = a @ torch.cat((turn.real, turn.imag, v[g], size), dim=1)
            real, imaginary, o, mean_of_size = averaged.split((d // 2, d // 2, d, 1), dim=1)
            rho[h] += (turn * torch.complex(real, -imaginary)).mean(0).to(torch.complex128)
            size_of_mean = ((o @ gram[h]) * o).sum(1)
            gamma[h] += (mean_of_size[:, 0] - size_of_mean).mean().double()
        if probe is not None:
            flat = gradients.flatten(1)
            gradient_moment.addmm_(flat.T, flat, alpha=1 / tokens)
        w = received / received.sum()
        token_mean += x.mean(0).double()
        first += (w @ x).double()
        # One window's products in float32, which is exact enough for a thousand terms and twice
        # as fast; windows add up in float64.
        second += (x.T @ (w[:, None] * x)).double()
        token_moment += (x.T @ x).double() / tokens

    mean = first / windows
    return LayerStatistics(
        query_moment=query_moment / windows,
        query_norm=query_norm / windows,
        key_norm=key_norm / windows,
        rho=rho / windows,
        input_mean=mean,
        input_covariance=second / windows - torch.outer(mean, mean),
        token_moment=token_moment / windows,
        gamma=gamma / windows,
        gradient_moment=gradient_moment / probed,
        distance=distance / windows,
        token_mean=token_mean / windows,
        turned=None if turned is None else turned.mean(),
    )


def by_distance(a: Tensor) -> Tensor:
    """Causal attention summed by distance, averaged over queries  # [tokens, tokens] -> [tokens]"""
    tokens = len(a)
    # Rows one element longer than they are: column tokens - 1 - D of row m is a[m, m - D], and
    # what wraps in from the row before is its future, zero. Row 0 would start before the storage.
    shifted = a.contiguous().as_strided((tokens - 1, tokens), (tokens + 1, 1), 2)
    total = shifted.sum(0).flip(0)
    total[0] += a[0, 0]
    return total / tokens
