"""Families that are not converted, each with its reason."""

from typing import Any

LATENT = "its attention is latent already, and vLLM serves it as it is"
REASONS = {
    "bloom": "its attention has ALiBi in place of RoPE",
    "cohere2": "three of four layers slide over a window",
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "gemma2": "its scores are capped, and every other layer slides over a window",
    "gpt2": "its positions are embeddings, not RoPE",
    "gpt_neox": "its queries, keys and values are interleaved in one projection, which is not read",
    "gpt_oss": "its attention has sinks, and every other layer slides over a window",
    "llama4_text": "three of four layers attend within chunks",
    "mpt": "its attention has ALiBi in place of RoPE",
    "opt": "its positions are embeddings, not RoPE",
    "qwen3_next": "three of four layers are linear attention",
}
"""``model_type`` -> why a latent cache does not serve it exactly, or why it has no need of one."""

OTHER_INPUTS = ("vision_config", "audio_config")


def reason_of(config: Any) -> str | None:
    """Say why a config of no registered family is refused; ``None`` where nobody added it yet."""
    if any(getattr(config, key, None) is not None for key in OTHER_INPUTS):
        return "it reads images or sound"
    return REASONS.get(config.model_type)
