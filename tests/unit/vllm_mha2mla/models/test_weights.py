"""Weights that vLLM would take and serve wrongly."""

import pytest
import torch

pytest.importorskip("vllm")

from vllm_mha2mla.errors import CheckpointError, UnsupportedEngineError
from vllm_mha2mla.models.weights import refuse_quantised

ATTENTION = "model.layers.0.self_attn"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("kv_b_proj.weight", torch.int8),
        ("kv_b_proj.weight", torch.float8_e4m3fn),
        ("kv_b_proj.weight_packed", torch.int32),
        ("q_head_proj.weight_scale", torch.float32),
    ],
)
def test_quantised_projections_of_heads_are_refused(name, dtype):
    weights = [(f"{ATTENTION}.{name}", torch.ones(2).to(dtype))]
    with pytest.raises(UnsupportedEngineError, match="quantise the converted model again"):
        list(refuse_quantised(weights))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_integers_of_a_plain_checkpoint_are_refused(dtype):
    weights = [("model.layers.0.mlp.up_proj.weight", torch.ones(2).to(dtype))]
    with pytest.raises(CheckpointError, match=r"up_proj.weight is stored in .* convert the model"):
        list(refuse_quantised(weights, plain=True))


def test_all_others_pass():
    weights = [
        (f"{ATTENTION}.kv_b_proj.weight", torch.ones(2, dtype=torch.bfloat16)),
        (f"{ATTENTION}.q_proj.weight", torch.ones(2, dtype=torch.int8)),
        (f"{ATTENTION}.q_proj.weight_scale", torch.ones(2)),
    ]
    assert list(refuse_quantised(weights)) == weights
    plain = [(f"{ATTENTION}.q_proj.weight", torch.ones(2, dtype=torch.bfloat16))]
    assert list(refuse_quantised(plain, plain=True)) == plain
