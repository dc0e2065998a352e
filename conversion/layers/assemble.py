"""From a rotary selection and low-rank factors to the tensors of a converted layer."""

import torch
from torch import Tensor

from conversion.calibration.statistics import LayerStatistics
from conversion.families import AttentionWeights
from conversion.latent.factors import LatentFactors
from conversion.rotary.selection import RotarySelection
from conversion.runtime.linalg import head_groups
from vllm_mha2mla.config import ROPE_INV_FREQ


def assemble(
    weights: AttentionWeights,
    statistics: LayerStatistics,
    selection: RotarySelection,
    factors: LatentFactors,
    bias: bool,
) -> dict[str, Tensor]:
    """The converted layer's ``self_attn`` tensors, float32.

    A constant in the unrotated keys cancels in the softmax, so key biases matter to the rotary
    part only. Attention sums to one, so a constant in the values is a constant in the output:

        o_proj.bias = b_O + sum_h W_O[h] (W_V mu + b_V - B_V A mu)[g(h)]

    with ``mu`` the attention-weighted mean input for centred factors, 0 for others.

    Args:
        weights: the source's attention.
        statistics: the layer's, for the mean input.
        selection: what stays in RoPE.
        factors: the low-rank maps of the rest.
        bias: whether the source's query and key projections have biases.
    """
    heads, d, inputs = weights.query.shape
    hidden = weights.output.shape[1]
    kv_heads = weights.key.shape[0]
    key = weights.key.double().flatten(0, 1)
    query_map = torch.cat((selection.query_nope, selection.query_rope), dim=1)
    up = torch.cat(
        (factors.key_up.view(kv_heads, d, -1), factors.value_up.view(kv_heads, d, -1)), dim=1
    )  # [kv_heads, nope + v, rank]

    # The largest tensor of a converted layer: in float64 for some heads at a time only.
    query = weights.query.new_empty(heads, query_map.shape[1], inputs)
    for h in head_groups(heads, query.device):
        query[h] = (query_map[h] @ weights.query[h].double()).float()

    value_constant = weights.value_bias.double().flatten()
    if factors.centred:
        lost = weights.value.double().flatten(0, 1) - factors.value_up @ factors.down
        value_constant = value_constant + lost @ statistics.input_mean
    per_head = value_constant.view(kv_heads, d).repeat_interleave(weights.group, dim=0)
    output_bias = weights.output_bias.double() + torch.einsum(
        "hed,hd->e", weights.output.double(), per_head
    )
    tensors = {
        "q_proj.weight": query.flatten(0, 1),  # [heads * (nope + rope), inputs]
        "kv_a_proj_with_mqa.weight": torch.cat((factors.down, selection.key_rope @ key)),
        "kv_b_proj.weight": up.flatten(0, 1),  # [kv_heads * (nope + v), rank]
        "o_proj.weight": weights.output.permute(1, 0, 2).reshape(hidden, heads * d),
        "o_proj.bias": output_bias,
        ROPE_INV_FREQ: selection.inv_freq,
    }
    if bias:
        tensors["q_proj.bias"] = torch.einsum(
            "hrd,hd->hr", query_map, weights.query_bias.double()
        ).flatten()
        rotary = selection.key_rope @ weights.key_bias.double().flatten()
        tensors["kv_a_proj_with_mqa.bias"] = torch.cat(
            (rotary.new_zeros(factors.down.shape[0]), rotary)
        )
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}
