"""A Llama written as another family's model computes the same function."""

import runpy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny import tiny_llama

SCRIPT = runpy.run_path(
    str(Path(__file__).parents[3] / "examples" / "benchmarks" / "other_clothes.py")
)


@pytest.mark.parametrize("model_type", SCRIPT["CLOTHES"])
def test_dressed_model_is_the_same_function(tmp_path, model_type):
    model = tiny_llama()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    state = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    SCRIPT["dress"](state, model.config, model_type, tmp_path / "dressed")
    dressed = AutoModelForCausalLM.from_pretrained(tmp_path / "dressed", dtype=torch.float32)
    assert dressed.config.model_type == model_type
    ids = torch.arange(40)[None]
    with torch.no_grad():
        # Factors are undone in another place: float32 rounding.
        torch.testing.assert_close(dressed(ids).logits, model(ids).logits, atol=1e-4, rtol=0)
