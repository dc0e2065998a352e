"""The plugin's entry point: vLLM calls it in every process to learn about our architectures."""

import logging
from multiprocessing import parent_process

from vllm_mha2mla.versions import TESTED, VLLM, untested

# vLLM shows the log lines of loggers below its own name.
logger = logging.getLogger("vllm.mha2mla")

BACKEND = "vllm_mha2mla.models.transformers_backend"
DENSE = f"{BACKEND}:LatentTransformersForCausalLM"
EXPERTS = f"{BACKEND}:LatentTransformersMoEForCausalLM"
VLLM_ARCHITECTURES = {
    "LlamaMLAForCausalLM": "vllm_mha2mla.models.llama:LlamaMLAForCausalLM",
    "CohereMLAForCausalLM": DENSE,
    "GemmaMLAForCausalLM": DENSE,
    "Gemma3MLAForCausalLM": DENSE,
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
    imports them in the worker that builds the model. It never raises, because vLLM calls it for
    other models too: where it cannot register, it makes converted models alone be refused.
    """
    try:
        reason = _register()
    except Exception as error:  # Interfaces of another release may be missing in any way.
        logger.debug("mha2mla: registration failed", exc_info=True)
        reason = f"cannot register with this vLLM ({error}); {VLLM.way_out}"
    if reason is None:
        # Once: not in the processes that this one starts.
        for warning in untested() if parent_process() is None else ():
            logger.warning("mha2mla: %s", warning)
    else:
        try:
            from vllm_mha2mla.refusal import register_refusal

            register_refusal(VLLM_ARCHITECTURES, reason)
        except Exception:  # Too old even for that: vLLM itself refuses architectures.
            logger.warning("mha2mla: converted models are not served: %s", reason)


def _register() -> str | None:
    """Register all there is, or say why converted models cannot be served."""
    for tested in TESTED:
        if (refusal := tested.refusal(tested.installed)) is not None:
            return refusal

    from vllm.model_executor.models.registry import ModelRegistry

    from vllm_mha2mla.engine_config import register_config_hooks

    for architecture, path in VLLM_ARCHITECTURES.items():
        ModelRegistry.register_model(architecture, path)
    register_config_hooks(VLLM_ARCHITECTURES)
    return None
