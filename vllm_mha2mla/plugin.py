"""The plugin's entry point: vLLM calls it in every process to learn about our architectures."""

BACKEND = "vllm_mha2mla.models.transformers_backend"
DENSE = f"{BACKEND}:LatentTransformersForCausalLM"
EXPERTS = f"{BACKEND}:LatentTransformersMoEForCausalLM"
VLLM_ARCHITECTURES = {
    "LlamaMLAForCausalLM": "vllm_mha2mla.models.llama:LlamaMLAForCausalLM",
    "CohereMLAForCausalLM": DENSE,
    "GemmaMLAForCausalLM": DENSE,
    "GraniteMLAForCausalLM": DENSE,
    "MinistralMLAForCausalLM": DENSE,
    "MistralMLAForCausalLM": DENSE,
    "MixtralMLAForCausalLM": EXPERTS,
    "Olmo2MLAForCausalLM": DENSE,
    "Olmo3MLAForCausalLM": DENSE,
    "OlmoeMLAForCausalLM": EXPERTS,
    "Phi3MLAForCausalLM": DENSE,
    "Qwen2MLAForCausalLM": DENSE,
    "Qwen3MLAForCausalLM": DENSE,
    "Qwen3MoeMLAForCausalLM": EXPERTS,
    "SmolLM3MLAForCausalLM": DENSE,
}


def register() -> None:
    """Entry point ``vllm.general_plugins``.

    Cheap, idempotent and safe without a GPU: the model classes are named, not imported; vLLM
    imports them in the worker that builds the model.
    """
    from vllm.model_executor.models.registry import ModelRegistry

    from vllm_mha2mla.engine_config import register_config_hooks

    for architecture, path in VLLM_ARCHITECTURES.items():
        ModelRegistry.register_model(architecture, path)
    register_config_hooks(VLLM_ARCHITECTURES)
