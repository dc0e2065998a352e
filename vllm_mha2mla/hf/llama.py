"""Converted Llama models in transformers."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from vllm_mha2mla.coding.row_code import row_codes
from vllm_mha2mla.config import CONSTANTS, check_format_version, latent_widths
from vllm_mha2mla.hf.attention import LatentAttention
from vllm_mha2mla.hf.auto_classes import FindsPackage


@strict
class LlamaMLAConfig(FindsPackage, LlamaConfig):
    """A Llama config whose attention is latent; see ``vllm_mha2mla.config`` for the keys."""

    model_type = "llama_mla"
    causal_lm: ClassVar[str] = "LlamaMLAForCausalLM"

    kv_lora_rank: int = 512
    q_lora_rank: int | None = None
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    kv_b_proj_groups: int | None = None
    kv_lora_rank_per_layer: list[int] | None = None
    qk_rope_head_dim_per_layer: list[int] | None = None
    row_bits_per_layer: list[list[int]] | None = None
    attention_scale: float = 128**-0.5
    mha2mla: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        check_format_version(self.mha2mla)
        super().__post_init__(**kwargs)


class LlamaMLAModel(LlamaModel):
    """Llama's decoder with latent attention in every layer."""

    config: LlamaMLAConfig
    _supports_flash_attn = False
    _supports_flex_attn = False
    _can_record_outputs = {"hidden_states": LlamaDecoderLayer, "attentions": LatentAttention}
    # In 16 bits, rotary angles of long contexts would be wrong by whole turns.
    _keep_in_fp32_modules_strict = set(CONSTANTS)

    def __init__(self, config: LlamaMLAConfig) -> None:
        super().__init__(config)
        codes = row_codes(config)
        for index, widths in enumerate(latent_widths(config)):
            code = None if codes is None else codes[index]
            self.layers[index].self_attn = LatentAttention(config, index, widths, code)
        self.post_init()


class LlamaMLAForCausalLM(LlamaForCausalLM):
    """Llama with latent attention and a language-model head."""

    config: LlamaMLAConfig
    _supports_flash_attn = False
    _supports_flex_attn = False
    _keep_in_fp32_modules_strict = set(CONSTANTS)

    def __init__(self, config: LlamaMLAConfig) -> None:
        super().__init__(config)
        self.model = LlamaMLAModel(config)
        self.post_init()
