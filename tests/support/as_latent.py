"""A model written as latent attention that computes the same: every key and value in the row.

The row holds the rotary components of all KV heads' keys side by side, and the latent the others
and the values. A query head is zero beside those of its own KV head. Nothing here is a conversion's
code.
"""

from typing import Any

import torch
from torch import Tensor

from vllm_mha2mla.config import CONSTANTS, SLIDING
from vllm_mha2mla.hf.attention import LatentAttention


@torch.no_grad()
def as_latent(original: Any, converted_class: Any, interleaved: bool = False) -> Any:
    """The same function with latent attention in every layer without a sliding window.

    Args:
        original: a causal language model of transformers.
        converted_class: the converted family's.
        interleaved: rotary pairs are neighbours in the original.
    """
    config = original.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    first = original.model.layers[0].self_attn
    d, rotary = first.head_dim, original.model.rotary_emb
    full = "full_attention_" if hasattr(rotary, "full_attention_inv_freq") else ""
    inv_freq = getattr(rotary, f"{full}inv_freq")
    turned = 2 * len(inv_freq)
    kinds = getattr(config, "layer_types", None) or [None] * config.num_hidden_layers
    sizes = {"kv_lora_rank": kv_heads * (2 * d - turned), "qk_rope_head_dim": kv_heads * turned}
    if SLIDING in kinds:
        for key, size in list(sizes.items()):
            sizes[f"{key}_per_layer"] = [0 if kind == SLIDING else size for kind in kinds]
    values = config.to_dict()
    for key in ("architectures", "model_type", "transformers_version"):
        values.pop(key, None)
    converted = converted_class(
        converted_class.config_class(
            **values
            | sizes
            | {
                "attention_bias": getattr(first, "q_proj", first.o_proj).bias is not None,
                "attention_scale": first.scaling * getattr(rotary, f"{full}attention_scaling") ** 2,
                "qk_nope_head_dim": d,
                "v_head_dim": d,
                "kv_b_proj_groups": kv_heads,
            }
        )
    ).eval()
    state = converted.state_dict()
    for name, tensor in original.state_dict().items():
        if name in state and state[name].shape == tensor.shape:
            state[name].copy_(tensor)
    for layer, new in zip(original.model.layers, converted.model.layers, strict=True):
        attention = layer.self_attn
        if not isinstance(new.self_attn, LatentAttention):
            continue
        tensors = _attention(attention, heads, kv_heads, d, turned, interleaved)
        turns = inv_freq if getattr(attention, "use_rope", True) else torch.zeros_like(inv_freq)
        tensors["rope_inv_freq"] = turns.repeat(kv_heads)
        tensors["o_proj.weight"] = attention.o_proj.weight
        new.self_attn.load_state_dict(tensors, strict=False)
        missing = set(new.self_attn.state_dict()) - set(tensors) - {"o_proj.bias", *CONSTANTS}
        assert not missing
        new.self_attn.o_proj.bias.zero_()
        if attention.o_proj.bias is not None:
            new.self_attn.o_proj.bias.copy_(attention.o_proj.bias)
    return converted


def _attention(
    attention: Any, heads: int, kv_heads: int, d: int, turned: int, interleaved: bool
) -> dict[str, Tensor]:
    pairs, still = turned // 2, d - turned
    ordered = torch.arange(turned)
    ordered = ordered.view(-1, 2).T.flatten() if interleaved else ordered
    rope = 2 * kv_heads * pairs

    # Of keys and values, side by side for all KV heads, the row  # [rank + rope, 2 * kv_heads * d]
    down = torch.zeros(kv_heads * (still + d) + rope, 2 * kv_heads * d)
    # Of a head's query, with room for every KV head's turned components  # [heads, d + rope, d]
    maps = torch.zeros(heads, d + rope, d)
    up = torch.zeros(kv_heads, 2 * d, kv_heads * (still + d))  # [groups, nope + v, rank]
    for g in range(kv_heads):
        latent = g * (still + d) + torch.arange(still + d)
        down[latent[:still], g * d + turned + torch.arange(still)] = 1
        down[latent[still:], (kv_heads + g) * d + torch.arange(d)] = 1
        up[g, torch.arange(still), latent[:still]] = 1
        up[g, d + torch.arange(d), latent[still:]] = 1
        halves = torch.arange(pairs) + g * pairs
        halves = torch.cat((halves, halves + rope // 2))  # where this head's pairs are
        down[kv_heads * (still + d) + halves, g * d + ordered] = 1
        own = torch.arange(heads) // (heads // kv_heads) == g
        maps[own, :still, turned:] = torch.eye(still)
        turn = torch.zeros(rope, d)
        turn[halves, ordered] = 1
        maps[own, d:] = turn

    tensors = {"kv_b_proj.weight": up.flatten(0, 1)}
    if getattr(attention, "q_norm", None) is not None:
        state = attention.state_dict()
        kept = {name: state[name] for name in state if not name.startswith("o_proj")}
        tensors |= {"kv_a_proj_with_mqa.weight": down, "q_head_proj.weight": maps.flatten(0, 1)}
        return tensors | kept
    if hasattr(attention, "qkv_proj"):
        parts = attention.qkv_proj.weight.split((heads * d, kv_heads * d, kv_heads * d))
        biases = [None] * 3
    else:
        linears = (attention.q_proj, attention.k_proj, attention.v_proj)
        parts, biases = [x.weight for x in linears], [x.bias for x in linears]
    tensors["q_proj.weight"] = (maps @ parts[0].unflatten(0, (heads, d))).flatten(0, 1)
    tensors["kv_a_proj_with_mqa.weight"] = down @ torch.cat(list(parts[1:]))
    if biases[0] is not None:
        by_head = biases[0].view(heads, d, 1)
        tensors["q_proj.bias"] = (maps @ by_head).flatten()
        tensors["kv_a_proj_with_mqa.bias"] = down @ torch.cat(biases[1:])
    return tensors
