import pytest

pytest.importorskip("vllm")

from vllm.transformers_utils.model_arch_config_convertor import MODEL_ARCH_CONFIG_CONVERTORS

from vllm_mha2mla import plugin
from vllm_mha2mla.attention.native_config import refuse_other_sizes
from vllm_mha2mla.errors import UnsupportedEngineError
from vllm_mha2mla.hf.llama import LlamaMLAConfig


def config(**changes):
    return LlamaMLAConfig(num_hidden_layers=2, **changes)


def test_vllm_is_told_of_mla_only_where_its_layer_is_asked_for():
    plugin.register()
    for option, expected in ((None, False), ("triton", False), ("vllm", True)):
        one = config()
        if option:
            # As --hf-overrides does it.
            one.update({"mha2mla_attention": option})
        converted = MODEL_ARCH_CONFIG_CONVERTORS["llama_mla"](one, one).convert()
        assert converted.is_deepseek_mla is expected
        assert converted.head_size == (576 if expected else one.head_dim)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"kv_lora_rank": 448}, "448\\+64 and 128, 128"),
        ({"kv_lora_rank_per_layer": [512, 448]}, "448\\+64, 512\\+64 and"),
        ({"qk_nope_head_dim": 64, "v_head_dim": 64}, "512\\+64 and 64, 64"),
    ],
)
def test_other_sizes_are_refused(changes, found):
    refuse_other_sizes(config())
    with pytest.raises(UnsupportedEngineError, match=f"this checkpoint has {found}"):
        refuse_other_sizes(config(**changes))
