import pytest

from vllm_mha2mla.config import (
    LatentWidths,
    latent_widths,
    read_provenance,
    up_projection_groups,
)
from vllm_mha2mla.errors import CheckpointError
from vllm_mha2mla.hf.llama import LlamaMLAConfig


def config(**values):
    return LlamaMLAConfig(
        **{"num_hidden_layers": 3, "kv_lora_rank": 24, "qk_rope_head_dim": 8} | values
    )


def test_uniform_widths_apply_to_every_layer():
    assert latent_widths(config()) == [LatentWidths(24, 8)] * 3


def test_per_layer_widths_win():
    layer_widths = latent_widths(
        config(kv_lora_rank_per_layer=[10, 20, 30], qk_rope_head_dim_per_layer=[2, 0, 4])
    )
    assert [widths.width for widths in layer_widths] == [12, 20, 34]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kv_lora_rank_per_layer": [1, 2]}, "2 entries for 3 layers"),
        ({"kv_lora_rank": 0}, "at least 1"),
        (
            {"kv_lora_rank_per_layer": [8, 0, 8], "qk_rope_head_dim_per_layer": [2, 0, 2]},
            "kv_lora_rank 0 must be at least 1",
        ),
        ({"qk_rope_head_dim": 7}, "even"),
    ],
)
def test_impossible_widths_are_refused(values, message):
    with pytest.raises(CheckpointError, match=message):
        latent_widths(config(**values))


def test_heads_share_up_projections_where_the_checkpoint_says_so():
    assert up_projection_groups(config(num_attention_heads=8)) == 8  # format 1
    assert up_projection_groups(config(num_attention_heads=8, kv_b_proj_groups=2)) == 2
    with pytest.raises(CheckpointError, match="kv_b_proj_groups 3 does not divide"):
        up_projection_groups(config(num_attention_heads=8, kv_b_proj_groups=3))


def test_a_newer_format_is_refused_when_the_config_is_read():
    with pytest.raises(CheckpointError, match="newer than this release"):
        config(mha2mla={"format_version": 99})


def test_a_malformed_provenance_names_the_key():
    with pytest.raises(CheckpointError, match="source"):
        read_provenance(config(mha2mla={"format_version": 1}))
