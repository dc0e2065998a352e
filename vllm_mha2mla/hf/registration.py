"""One line per converted model family for transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from vllm_mha2mla.hf.cohere import CohereMLAConfig, CohereMLAForCausalLM
from vllm_mha2mla.hf.gemma import GemmaMLAConfig, GemmaMLAForCausalLM
from vllm_mha2mla.hf.gemma3 import Gemma3MLAConfig, Gemma3MLAForCausalLM
from vllm_mha2mla.hf.granite import GraniteMLAConfig, GraniteMLAForCausalLM
from vllm_mha2mla.hf.llama import LlamaMLAConfig, LlamaMLAForCausalLM
from vllm_mha2mla.hf.ministral import MinistralMLAConfig, MinistralMLAForCausalLM
from vllm_mha2mla.hf.mistral import MistralMLAConfig, MistralMLAForCausalLM
from vllm_mha2mla.hf.mixtral import MixtralMLAConfig, MixtralMLAForCausalLM
from vllm_mha2mla.hf.olmo2 import Olmo2MLAConfig, Olmo2MLAForCausalLM
from vllm_mha2mla.hf.olmo3 import Olmo3MLAConfig, Olmo3MLAForCausalLM
from vllm_mha2mla.hf.olmoe import OlmoeMLAConfig, OlmoeMLAForCausalLM
from vllm_mha2mla.hf.phi3 import Phi3MLAConfig, Phi3MLAForCausalLM
from vllm_mha2mla.hf.qwen2 import Qwen2MLAConfig, Qwen2MLAForCausalLM
from vllm_mha2mla.hf.qwen3 import Qwen3MLAConfig, Qwen3MLAForCausalLM
from vllm_mha2mla.hf.qwen3_moe import Qwen3MoeMLAConfig, Qwen3MoeMLAForCausalLM
from vllm_mha2mla.hf.smollm3 import SmolLM3MLAConfig, SmolLM3MLAForCausalLM

MODELS = {
    LlamaMLAConfig: LlamaMLAForCausalLM,
    CohereMLAConfig: CohereMLAForCausalLM,
    GemmaMLAConfig: GemmaMLAForCausalLM,
    Gemma3MLAConfig: Gemma3MLAForCausalLM,
    GraniteMLAConfig: GraniteMLAForCausalLM,
    MinistralMLAConfig: MinistralMLAForCausalLM,
    MistralMLAConfig: MistralMLAForCausalLM,
    MixtralMLAConfig: MixtralMLAForCausalLM,
    Olmo2MLAConfig: Olmo2MLAForCausalLM,
    Olmo3MLAConfig: Olmo3MLAForCausalLM,
    OlmoeMLAConfig: OlmoeMLAForCausalLM,
    Phi3MLAConfig: Phi3MLAForCausalLM,
    Qwen2MLAConfig: Qwen2MLAForCausalLM,
    Qwen3MLAConfig: Qwen3MLAForCausalLM,
    Qwen3MoeMLAConfig: Qwen3MoeMLAForCausalLM,
    SmolLM3MLAConfig: SmolLM3MLAForCausalLM,
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
