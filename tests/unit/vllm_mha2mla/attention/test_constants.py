"""The constants that vLLM loads."""

import pytest
import torch

pytest.importorskip("vllm")

from vllm_mha2mla.attention.constants import constant, refuse_not_loaded
from vllm_mha2mla.errors import CheckpointError


def test_loads_float32_and_refuses_what_is_rounded():
    parameter = constant("model.layers.0.self_attn.rope_inv_freq", 4)
    exact = torch.rand(4)
    # By name, as vLLM does where it exchanges weights.
    parameter.weight_loader(param=parameter, loaded_weight=exact)
    assert torch.equal(parameter.data, exact)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(CheckpointError, match=r"layers\.0\S+ is stored in b?float16: rounded"):
            parameter.weight_loader(parameter, exact.to(dtype))
    assert torch.equal(parameter.data, exact)


def test_what_was_not_loaded_is_refused():
    parameter = constant("rope_inv_freq", 4)
    with pytest.raises(CheckpointError, match="rope_inv_freq is not in the checkpoint"):
        refuse_not_loaded("rope_inv_freq", parameter)
    parameter.weight_loader(parameter, torch.rand(4))
    refuse_not_loaded("rope_inv_freq", parameter)
    # Of a layer without rotary columns, and while vLLM exchanges weights.
    refuse_not_loaded("rope_inv_freq", constant("rope_inv_freq", 0))
    refuse_not_loaded("rope_inv_freq", parameter.to("meta"))
