"""The configuration under which vLLM's own MLA layer serves a model of ours."""

from typing import Any

from vllm.transformers_utils.model_arch_config_convertor import (
    MODEL_ARCH_CONFIG_CONVERTORS,
    ModelArchConfigConvertorBase,
)

from vllm_mha2mla.config import LatentWidths, latent_widths
from vllm_mha2mla.errors import UnsupportedEngineError
from vllm_mha2mla.kernels.cuda.choose import OPTION, option_of

WIDTHS = LatentWidths(kv_lora_rank=512, qk_rope_head_dim=64)
HEAD = 128


class NativeConvertor(ModelArchConfigConvertorBase):
    """Tells vLLM that a model of ours has MLA layers where it is asked to use its own."""

    def is_deepseek_mla(self) -> bool:
        """Tell if vLLM's own layer was asked for."""
        return option_of(self.hf_config) == "vllm"


def register_convertor(model_type: str) -> None:
    """Attach the convertor to a model type. Idempotent."""
    MODEL_ARCH_CONFIG_CONVERTORS[model_type] = NativeConvertor


def refuse_other_sizes(config: Any) -> None:
    """Refuse a checkpoint that vLLM's layer cannot serve.

    Raises:
        UnsupportedEngineError: its sizes are not DeepSeek's.
    """
    widths = set(latent_widths(config))
    heads = (config.qk_nope_head_dim, config.v_head_dim)
    if widths != {WIDTHS} or heads != (HEAD, HEAD):
        found = ", ".join(sorted(f"{w.kv_lora_rank}+{w.qk_rope_head_dim}" for w in widths))
        raise UnsupportedEngineError(
            f"{OPTION} vllm: vLLM's MLA layer serves 512+64 in every layer and heads of 128, and "
            f"this checkpoint has {found} and {heads[0]}, {heads[1]}; leave the option out"
        )
