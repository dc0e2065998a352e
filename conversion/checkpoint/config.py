"""The config of a converted checkpoint."""

from collections.abc import Sequence
from typing import Any

import torch

from conversion.source import SourceCheckpoint
from vllm_mha2mla.coding.row_code import RowCode
from vllm_mha2mla.config import LatentWidths, Provenance

NOT_THE_SOURCES = (
    *("architectures", "model_type", "auto_map"),
    *("transformers_version", "quantization_config"),
)


def converted_config(
    source: SourceCheckpoint,
    layer_widths: Sequence[LatentWidths],
    q_lora_rank: int | None,
    dtype: torch.dtype,
    provenance: Provenance,
    codes: Sequence[RowCode] | None = None,
) -> Any:
    """The converted model's config: the source's, with the keys of ``vllm_mha2mla.config``.

    Layers of different widths are listed; the uniform keys then hold the largest of each.

    Args:
        source: the original.
        layer_widths: the widths of every layer.
        q_lora_rank: rank of the queries' factorisation; ``None`` for none.
        dtype: of the written weights.
        provenance: how the checkpoint came to be.
        codes: of every layer's rows; ``None`` where they are not coded.
    """
    values = source.config.to_dict()
    for key in NOT_THE_SOURCES:
        values.pop(key, None)
    rope = values.get("rope_parameters") or {}
    head_dim = source.config.head_dim
    attention = _attention(source)
    ranks = [widths.kv_lora_rank for widths in layer_widths]
    ropes = [widths.qk_rope_head_dim for widths in layer_widths]
    differ = len(set(layer_widths)) > 1
    config = source.family.config_class(
        **values
        | {
            "rope_parameters": rope,
            "kv_lora_rank": max(ranks),
            "qk_rope_head_dim": max(ropes),
            "kv_lora_rank_per_layer": ranks if differ else None,
            "qk_rope_head_dim_per_layer": ropes if differ else None,
            "row_bits_per_layer": [list(code.unit_bits) for code in codes] if codes else None,
            "q_lora_rank": q_lora_rank,
            "kv_b_proj_groups": source.config.num_key_value_heads,
            "qk_nope_head_dim": head_dim,
            "v_head_dim": head_dim,
            "attention_bias": source.family.projections(attention, source.config).biased,
            "attention_scale": float(attention.scaling),
            "mha2mla": provenance.model_dump(mode="json"),
        }
    )
    config.architectures = [source.family.converted_causal_lm.__name__]
    config.dtype = dtype
    return config


def _attention(source: SourceCheckpoint) -> Any:
    """The attention of the source's first layer, without weights."""
    with torch.device("meta"):
        return source.family.attention(source.family.decoder_layer(source.config, 0))
