"""Least squares from what a converted layer caches to the keys that its queries should see."""

import torch
from torch import Tensor

from conversion.calibration.statistics import AttentionWeights
from conversion.latent import LatentFactors
from conversion.rotary import RotarySelection
from vllm_mha2mla.rope import apply_rotary

# Queries of every window whose attention is looked at.
QUERIES = 16
# Keys that receive less do not count: most of them, for a fraction of a thousandth of the whole.
LEAST_ATTENTION = 1e-5
# Pull towards the maps so far, relative to each cached number's own power.
RIDGE = 3e-2
# The same relative to their mean power: for numbers that never change.
LEAST = 1e-6
SEED = 0


class KeyRefit:
    """Every head's rotary query and key up-projection, fitted together; fed window by window.

    A query at ``m`` should meet the original's key ``R(n - m) k_n``. It finds the cached rotary
    keys ``y_n``, turned with their own frequencies ``phi``, and the latents ``c_n``:

        min_S  E_m sum_n a[m, n] |R(n - m) k_n - S [R_phi(n - m) y_n ; c_n] - s_m|^2
               + ridge * sum_i E_m Var_n[i] |S_i - S_0i|^2

    with the original's attention ``a`` and a constant ``s_m`` that cancels in the softmax. The
    strategies take rotary and latent part one after the other; together, a rotary key also stands
    in for others of about its frequency, and latents of values for keys. ``y`` and ``c`` are those
    of the converted stream, so it repairs what layers before have changed of them.

    Limitation: it keeps ``heads (rope + rank)^2`` floats, 128 MiB of Llama-3-8B at half the cache
    and 2 GiB of Llama-2-7B, more than a layer has.

    Args:
        weights: the source's attention.
        selection: what stays in RoPE.
        factors: the low-rank maps of the rest.
    """

    def __init__(
        self, weights: AttentionWeights, selection: RotarySelection, factors: LatentFactors
    ) -> None:
        heads, d, _ = weights.query.shape
        kv_heads = len(weights.key)
        self._weights = weights
        self._value_up = factors.value_up.view(kv_heads, d, -1)
        self._inv_freq = selection.inv_freq.float()
        key = weights.key.double().flatten(0, 1)
        self._rope = len(selection.key_rope)
        self._cached = torch.cat((selection.key_rope @ key, factors.down)).float()
        self._bias = (selection.key_rope @ weights.key_bias.double().flatten()).float()
        key_up = factors.key_up.view(kv_heads, d, -1).repeat_interleave(weights.group, dim=0)
        unturned = selection.query_nope.transpose(1, 2) @ key_up  # [heads, d, rank]
        # S_0  # [heads, d, rope + rank]
        self._before = torch.cat((selection.query_rope.transpose(1, 2), unturned), dim=-1)
        width = self._before.shape[2]
        self._gram = weights.query.new_zeros(heads, width, width)
        self._cross = weights.query.new_zeros(heads, d, width)
        self._generator = torch.Generator().manual_seed(SEED)

    def add(self, original: Tensor, converted: Tensor) -> None:
        """Count one window.

        Args:
            original: the layer's normed input in the source, float32  # [tokens, hidden]
            converted: and in the converted model  # [tokens, hidden]
        """
        weights = self._weights
        tokens, device = len(original), original.device
        q = torch.einsum("te,hde->htd", original, weights.query) + weights.query_bias[:, None]
        k = torch.einsum("te,gde->gtd", original, weights.key) + weights.key_bias[:, None]
        y, c = (converted @ self._cached.T).split((self._rope, len(self._cached) - self._rope), 1)
        # One query in each of as many stretches of the window.
        stretch = max(1, tokens // QUERIES)
        chosen = torch.arange(0, tokens - stretch + 1, stretch, device=device)
        chosen += int(torch.randint(stretch, (1,), generator=self._generator))
        ahead = torch.arange(tokens, device=device) - chosen[:, None]  # n - m  # [queries, tokens]
        future = torch.zeros_like(ahead, dtype=q.dtype).masked_fill_(ahead > 0, float("-inf"))
        cached = torch.cat(
            (_turned(y + self._bias, ahead, self._inv_freq), c.expand(len(chosen), -1, -1)), dim=-1
        )  # [queries, tokens, rope + rank]
        for g in range(len(k)):
            keys = _turned(k[g], ahead, weights.inv_freq)  # [queries, tokens, d]
            for h in range(g * weights.group, (g + 1) * weights.group):
                scores = (keys @ q[h, chosen, :, None])[..., 0]  # [queries, tokens]
                a = (weights.scale * scores + future).softmax(-1)
                seen = a > LEAST_ATTENTION
                root = a[seen].sqrt()[:, None]
                P = root * _centred(cached, a)[seen]  # [seen, rope + rank]
                self._gram[h] += P.T @ P
                self._cross[h] += (root * _centred(keys, a)[seen]).T @ P

    def solve(self) -> dict[str, Tensor]:
        """``q_proj.weight``, its bias if the source has one, and ``kv_b_proj.weight``; float32."""
        weights = self._weights
        query, up, bias = [], [], []
        for h in range(len(weights.query)):
            gram, S_0 = self._gram[h].double(), self._before[h]
            power = gram.diagonal()
            pull = (RIDGE * power + LEAST * power.mean()).clamp_min(torch.finfo(gram.dtype).tiny)
            S = torch.linalg.solve(
                gram + torch.diag(pull), (self._cross[h].double() + S_0 * pull).T
            ).T  # [d, rope + rank]
            rotary, latent = S.split((self._rope, S.shape[1] - self._rope), dim=1)
            W, b = weights.query[h].double(), weights.query_bias[h].double()
            query.append(torch.cat((W, rotary.T @ W)))
            bias.append(torch.cat((b, rotary.T @ b)))
            up.append(torch.cat((latent, self._value_up[h // weights.group])))
        tensors = {"q_proj.weight": torch.cat(query), "kv_b_proj.weight": torch.cat(up)}
        if bool(weights.query_bias.any()):
            tensors["q_proj.bias"] = torch.cat(bias)
        return {name: tensor.float().contiguous() for name, tensor in tensors.items()}


def _turned(x: Tensor, distance: Tensor, inv_freq: Tensor) -> Tensor:
    """Keys as queries meet them  # [tokens, d], [queries, tokens] -> [queries, tokens, d]"""
    angles = distance[..., None] * inv_freq
    return apply_rotary(x.expand(len(distance), -1, -1), angles.cos(), angles.sin())


def _centred(x: Tensor, a: Tensor) -> Tensor:
    """Less what each query sees on average  # [queries, tokens, n], [queries, tokens]"""
    return x - a[:, None] @ x
