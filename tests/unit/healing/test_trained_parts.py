"""The parameters that a healing trains."""

import pytest

from conversion.healing.models import choose_trainable
from tests.support.convert import convert_tiny
from tests.support.tiny import tiny_tokenizer
from tests.support.tiny_families import FAMILIES

UNITS = {"Qwen2": "kv_a_proj_with_mqa", "Qwen3": "kv_a_proj_with_mqa k_proj k_norm v_proj"}


@pytest.mark.parametrize("name", UNITS)
def test_nothing_that_writes_coded_rows_learns(tmp_path, name):
    FAMILIES[name].original().save_pretrained(tmp_path / "source")
    tiny_tokenizer().save_pretrained(tmp_path / "source")
    model = convert_tiny(tmp_path / "source", tmp_path / "out", cache_fraction=0.3)
    assert model.config.row_bits_per_layer is not None
    names = {parameter.split(".self_attn.")[-1] for parameter in choose_trainable(model, False)}
    modules = {name.split(".")[0] for name in names}
    assert modules.isdisjoint(UNITS[name].split())
    assert {"q_proj", "kv_b_proj", "o_proj"} <= modules


def test_what_writes_plain_rows_learns():
    original = FAMILIES["Qwen3"].original()
    model = FAMILIES["Qwen3"].latent(original)
    names = {name.split(".")[-2] for name in choose_trainable(model, False)}
    assert {"kv_a_proj_with_mqa", "k_proj", "k_norm", "v_proj", "q_head_proj"} <= names
