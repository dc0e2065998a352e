"""The plugin's entry point: vLLM calls it in every process to learn about our architectures."""

VLLM_ARCHITECTURES = {"LlamaMLAForCausalLM": "vllm_mha2mla.models.llama:LlamaMLAForCausalLM"}


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
