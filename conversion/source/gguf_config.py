"""From a GGUF file's metadata to a transformers config.

transformers' own reading leaves out whatever it does not know. Here every key of the architecture
is used, known to say nothing of the function, or refused.
"""

from typing import Any

from torch import Tensor
from transformers import AutoConfig

from conversion.errors import SourceError, first_line
from conversion.families import Family
from conversion.source.checkpoint import CONFIG_ERRORS
from conversion.source.gguf_rope import rope_parameters

# Metadata, without the architecture -> config key.
REQUIRED = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
}
OPTIONAL = {
    "feed_forward_length": "intermediate_size",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window",
}
EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
# The tensors' shapes say it, or it says nothing of the function.
SAYS_NOTHING = {"vocab_size", "tensor_data_layout"}
# With these values the function is as without the keys.
NEUTRAL: dict[str, Any] = {
    "attention.causal": True,
    "use_parallel_residual": False,
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.sliding_window": 0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
}


def gguf_config(
    metadata: dict[str, Any],
    family: Family,
    shapes: dict[str, tuple[int, ...]],
    freqs: Tensor | None,
    name: str,
) -> Any:
    """The transformers config of a GGUF file.

    Args:
        metadata: every key of the file with its value.
        family: of the architecture.
        shapes: of the file's tensors, under transformers' names.
        freqs: ``rope_freqs.weight``, if the file has it  # [rotary / 2]
        name: how the user named the file.

    Raises:
        SourceError: a key is missing, or would change the function and is not known.
    """
    assert family.gguf is not None
    prefix = f"{family.gguf.architecture}."
    stated = {
        key.removeprefix(prefix): value
        for key, value in metadata.items()
        if key.startswith(prefix) and key.removeprefix(prefix) not in SAYS_NOTHING
    }
    try:
        values = _values(stated, family, freqs)
        config = AutoConfig.for_model(family.model_type, **values)
    except KeyError as error:
        raise _refusal(name, f"{prefix}{error.args[0]} is missing") from error
    except CONFIG_ERRORS as error:
        raise _refusal(name, first_line(error)) from error
    config.vocab_size = shapes.get(family.embedding, (0,))[0]
    # GGUF files leave the head out when it is the embedding.
    config.tie_word_embeddings = family.head not in shapes
    config.bos_token_id = metadata.get("tokenizer.ggml.bos_token_id")
    config.eos_token_id = metadata.get("tokenizer.ggml.eos_token_id")
    config.pad_token_id = metadata.get("tokenizer.ggml.padding_token_id")
    biased = [tensor for tensor in shapes if tensor.endswith(".bias")]
    for key, part in (("attention_bias", family.names.attention), ("mlp_bias", family.names.mlp)):
        if hasattr(config, key):
            setattr(config, key, any(f".{part}." in tensor for tensor in biased))
    if hasattr(config, "use_qk_norm"):
        config.use_qk_norm = any(".q_norm." in tensor for tensor in shapes)
    return config


def _values(stated: dict[str, Any], family: Family, freqs: Tensor | None) -> dict[str, Any]:
    """Config values from metadata without the architecture, which are used up.

    Raises:
        KeyError: a key is missing; holds its name.
        ValueError: a key is not known; says which.
    """
    assert family.gguf is not None
    for key in list(stated):
        stated[key] = _same_in_all_layers(key, stated[key])
        if key in NEUTRAL and stated[key] == NEUTRAL[key]:
            del stated[key]
    rope = rope_parameters(stated, freqs)
    required = {**REQUIRED, **family.gguf.config}
    values = {config: stated.pop(key) for key, config in required.items()}
    for key, config in OPTIONAL.items():
        if key in stated:
            values[config] = stated.pop(key)
    for key in EPSILONS:
        # Transformers has a default, llama.cpp has none.
        if hasattr(family.config_class, OPTIONAL[key]) and OPTIONAL[key] not in values:
            raise KeyError(key)
    heads = values["num_attention_heads"]
    values["num_key_value_heads"] = stated.pop("attention.head_count_kv", heads)
    head_dim = stated.pop("attention.key_length", values["hidden_size"] // heads)
    if stated.pop("attention.value_length", head_dim) != head_dim:
        raise ValueError("attention.value_length differs from attention.key_length")
    turned = stated.pop("rope.dimension_count", head_dim)
    if turned != head_dim:
        if family.gguf.interleaved:
            raise ValueError(f"rope.dimension_count {turned} is not attention.key_length")
        rope["partial_rotary_factor"] = turned / head_dim
    if stated:
        key, value = next(iter(stated.items()))
        raise ValueError(f"{family.gguf.architecture}.{key} = {value} is not known")
    values |= {"head_dim": head_dim, "rope_parameters": rope}
    return {**values, **family.gguf.values}


def _same_in_all_layers(key: str, value: Any) -> Any:
    """One value of a list with an entry for every layer, which must all be the same."""
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise ValueError(f"{key} differs between layers")
    return value[0]


def _refusal(name: str, reason: str) -> SourceError:
    return SourceError(
        f"{name}: GGUF metadata: {reason}; convert from the model's Hugging Face folder"
    )
