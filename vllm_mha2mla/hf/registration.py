"""One line per converted model family for transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from vllm_mha2mla.hf.llama import LlamaMLAConfig, LlamaMLAForCausalLM
from vllm_mha2mla.hf.qwen2 import Qwen2MLAConfig, Qwen2MLAForCausalLM
from vllm_mha2mla.hf.qwen3 import Qwen3MLAConfig, Qwen3MLAForCausalLM
from vllm_mha2mla.hf.qwen3_moe import Qwen3MoeMLAConfig, Qwen3MoeMLAForCausalLM

MODELS = {
    LlamaMLAConfig: LlamaMLAForCausalLM,
    Qwen2MLAConfig: Qwen2MLAForCausalLM,
    Qwen3MLAConfig: Qwen3MLAForCausalLM,
    Qwen3MoeMLAConfig: Qwen3MoeMLAForCausalLM,
}


def register_with_transformers() -> None:
    """Let the Auto classes load every converted family. Idempotent."""
    for config_class, model_class in MODELS.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class.decoder_class, exist_ok=True)
        AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
        # Checkpoints hold each expert by itself, and the classes all of them in one tensor.
        mapping = get_checkpoint_conversion_mapping(config_class.source_type)
        if mapping is not None:
            register_checkpoint_conversion_mapping(config_class.model_type, mapping, True)
