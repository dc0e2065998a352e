"""One line per converted model family for transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from vllm_mha2mla.hf.llama import LlamaMLAConfig, LlamaMLAForCausalLM

MODELS = {LlamaMLAConfig: LlamaMLAForCausalLM}


def register_with_transformers() -> None:
    """Let the Auto classes load every converted family. Idempotent."""
    for config_class, model_class in MODELS.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
