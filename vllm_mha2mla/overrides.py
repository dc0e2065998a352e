"""Options of the engine that change a model's config: ``--hf-overrides`` and its like."""

from typing import Any

from vllm.transformers_utils.config import get_config

from vllm_mha2mla.config import FIXED_KEYS, LATENT_KEYS
from vllm_mha2mla.errors import UnsupportedEngineError
from vllm_mha2mla.fixed_rope import longest_context, other_rope, too_long


def refuse_overrides(model: Any) -> None:
    """Refuse what would have no effect on a converted model, and a context that it is not for.

    Args:
        model: vLLM's configuration of the model.

    Raises:
        UnsupportedEngineError: RoPE is overridden, or the context is too long.
    """
    config = model.hf_config
    stored = config.to_dict()
    if model.hf_overrides or model.hf_config_path:
        # The overrides are a part of the config by now, and may be a function.
        plain = get_config(model.model, model.trust_remote_code, revision=model.revision)
        stored = plain.to_dict() | _fixed(plain)
        words = other_rope(stored, _fixed(config))
        if words is not None:
            raise UnsupportedEngineError(f"--hf-overrides: {words}")
        for key in LATENT_KEYS:
            if getattr(config, key, None) != getattr(plain, key, None):
                raise UnsupportedEngineError(
                    f"--hf-overrides: {key} describes the weights of the checkpoint; leave it out"
                )
    longest = longest_context(stored)
    if longest is not None and model.max_model_len > longest:
        raise UnsupportedEngineError(
            f"a context of {model.max_model_len} tokens (--max-model-len, --hf-overrides): "
            + too_long(longest)
        )


def _fixed(config: Any) -> dict[str, Any]:
    """Attributes, because old names of keys are attributes alone."""
    return {key: getattr(config, key, None) for key in FIXED_KEYS}
