"""Query compression: one low-rank product in place of ``q_proj`` (``q_lora_rank``)."""

import torch
from torch import Tensor

from conversion.calibration.statistics import LayerStatistics
from conversion.families import AttentionWeights
from conversion.runtime.linalg import cholesky, with_floor
from vllm_mha2mla.config import ROPE_INV_FREQ, LatentWidths

# Relative to the mean eigenvalue: directions never seen in the text, or that no key answers, still
# get factors, in an order that does not depend on rounding.
FLOOR = 1e-8


@torch.no_grad()
def compress_query(
    tensors: dict[str, Tensor],
    weights: AttentionWeights,
    statistics: LayerStatistics,
    widths: LatentWidths,
    q_lora_rank: int,
) -> dict[str, Tensor]:
    """Replace a converted layer's ``q_proj`` by ``q_a_proj`` and ``q_b_proj``.

    The form is DeepSeek-V2's (arXiv:2405.04434, eqs. 37-38) without the norm between the factors.
    The factors minimise what they change in the scores, seen through the attention output:

        min_{A, B} sum_h E ||M_h^(1/2) (W_h - B_h A) x||^2  =  ||M^(1/2) (W - B A) C^(1/2)||_F^2

    with ``C = E[x x^T]`` over tokens and ``M_h`` from :func:`query_metric`. By Eckart-Young under
    a weighted norm (reduced-rank regression), ``B A`` is the truncated SVD of
    ``M^(1/2) W C^(1/2)``, undone on both sides. With ``C = L L^T`` and ``V`` the top eigenvectors
    of ``L^T (sum_h W_h^T M_h W_h) L``:

        B = W L V        A = V^T L^(-1)

    so at ``q_lora_rank = hidden`` the product is ``W`` whatever the metric. A bias of the source
    stays as it is, after the product, which is why ``C`` is not centred: the mean input is part of
    what the product must get right. Of the equal pairs ``(B R, R^(-1) A)`` the one with
    orthonormal rows of ``A`` is stored: neither factor then has larger numbers than their product.

    Args:
        tensors: the layer's ``self_attn`` tensors as ``balanced`` returns them.
        weights: the source's attention, for its frequencies and scale.
        statistics: the layer's.
        widths: its cache widths.
        q_lora_rank: numbers per token in the query latent, at most ``hidden``.

    Returns:
        ``tensors`` with ``q_a_proj.weight  # [q_lora_rank, hidden]``,
        ``q_b_proj.weight  # [heads * (nope + rope), q_lora_rank]``, float32, and ``q_b_proj.bias``
        where there was a ``q_proj.bias``.
    """
    W = tensors["q_proj.weight"].double()  # [heads * (nope + rope), hidden]
    M = with_floor(query_metric(tensors, weights, statistics, widths), FLOOR)
    L = cholesky(statistics.token_moment, FLOOR)
    per_head = W.view(*M.shape[:2], -1)
    cost = (per_head.transpose(1, 2) @ M @ per_head).sum(0)  # [hidden, hidden]
    _, vectors = torch.linalg.eigh(L.T @ cost @ L)
    V = vectors[:, -q_lora_rank:].flip(-1)
    A_T = torch.linalg.solve_triangular(L.T, V, upper=True)  # [hidden, q_lora_rank]
    orthonormal, R = torch.linalg.qr(A_T)
    compressed = {
        "q_a_proj.weight": orthonormal.T,
        "q_b_proj.weight": W @ L @ V @ R.T,
    }
    if "q_proj.bias" in tensors:
        compressed["q_b_proj.bias"] = tensors["q_proj.bias"]
    kept = {name: x for name, x in tensors.items() if not name.startswith("q_proj.")}
    return kept | {name: x.float().contiguous() for name, x in compressed.items()}


def query_metric(
    tensors: dict[str, Tensor],
    weights: AttentionWeights,
    statistics: LayerStatistics,
    widths: LatentWidths,
) -> Tensor:
    """``M_h``, what an error in a head's query costs  # [heads, nope + rope, nope + rope]

        M_h = gamma_h scale^2 Cov[k]        gamma_h = E sum_n a ||W_O (v_n - o)||^2

    A query error ``e`` changes the scores by ``scale e . k_n``; what all keys share cancels in
    the softmax, the rest moves the output along the values' spread. ``Cov[k]`` is over the keys the
    converted head meets, weighted by attention received, in two blocks:

    - latent: the up-projected ``W_UK[h] c``;
    - rotary: RoPE turns a pair by angles that change with the distance, so each pair's block is
      replaced by its rotation-invariant part, half its trace times the identity. Of the mean of
      pair ``z`` of frequency ``f`` the keys share what is left of it under the head's mean
      rotation, so that trace is ``E|z|^2 - |rho[h, f]|^2 |E z|^2``.

    Limitation: products of different rotary pairs, and of rotary with latent keys, are taken to
    average out over the rotation.

    Args and shapes as for :func:`compress_query`; units: squared attention output per squared
    query component.
    """
    rank, rope, pairs = widths.kv_lora_rank, widths.qk_rope_head_dim, widths.qk_rope_head_dim // 2
    heads, nope, _ = weights.query.shape
    C, mean = statistics.input_covariance, statistics.input_mean
    down, key_rope = tensors["kv_a_proj_with_mqa.weight"].double().split((rank, rope))
    up = tensors["kv_b_proj.weight"].double().view(weights.key.shape[0], -1, rank)[:, :nope]
    metric = torch.zeros(heads, nope + rope, nope + rope, dtype=C.dtype, device=C.device)
    latent = up @ (down @ C @ down.T) @ up.transpose(1, 2)  # [kv_heads, nope, nope]
    metric[:, :nope, :nope] = latent.repeat_interleave(weights.group, dim=0)

    mean_key = key_rope @ mean
    if "kv_a_proj_with_mqa.bias" in tensors:
        mean_key = mean_key + tensors["kv_a_proj_with_mqa.bias"][rank:].double()
    variance = (key_rope @ C @ key_rope.T).diagonal().view(2, pairs).sum(0)
    shared = mean_key.square().view(2, pairs).sum(0)  # |E z|^2  # [pairs]
    inv_freq = tensors[ROPE_INV_FREQ].double()
    # Kept frequencies are the source's, so the nearest one is the same one.
    f = (weights.inv_freq.double()[:, None] - inv_freq).abs().argmin(0)
    turned = 1 - statistics.rho.abs().square()[:, f].clamp_max(1)  # [heads, pairs]
    power = (variance + turned * shared) / 2
    metric[:, nope:, nope:] = torch.diag_embed(power.repeat(1, 2))
    return metric * (statistics.gamma * weights.scale**2)[:, None, None]
