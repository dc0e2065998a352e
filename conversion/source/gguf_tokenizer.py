"""The tokenizer, the chat templates and the end tokens that a GGUF file holds."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from conversion.errors import SourceError, first_line

# Ends of an answer: of a text, a turn, a message.
END_TOKENS = tuple(f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom"))
# llama.cpp takes control tokens of these spellings for end tokens, whatever the metadata say.
END_SPELLINGS = {
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"),
    *("< EOT >", "_<EOT>", "<|return|>", "<|call|>"),
}
CONTROL = 3
# general.sampling.KEY -> key of a generation config.
SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
TEMPLATE = "tokenizer.chat_template"


def end_tokens(metadata: dict[str, Any]) -> list[int]:
    """Every token at which llama.cpp ends an answer, the file's ``eos`` first."""
    named = [int(metadata[key]) for key in END_TOKENS if metadata.get(key) is not None]
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    types = metadata.get("tokenizer.ggml.token_type") or []
    spelled = [
        token
        for token, (text, kind) in enumerate(zip(tokens, types, strict=False))
        if kind == CONTROL and text in END_SPELLINGS
    ]
    return list(dict.fromkeys(named + spelled))


def generation_config(metadata: dict[str, Any]) -> GenerationConfig:
    """The file's special tokens and its sampling, as a generation config."""
    ends = end_tokens(metadata)
    sampling = {
        key: metadata[f"general.sampling.{name}"]
        for name, key in SAMPLING.items()
        if f"general.sampling.{name}" in metadata
    }
    return GenerationConfig(
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=ends if len(ends) > 1 else next(iter(ends), None),
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
        **(sampling | {"do_sample": True} if sampling else {}),
    )


def gguf_tokenizer(path: Path, metadata: dict[str, Any], name: str) -> PreTrainedTokenizerBase:
    """The tokenizer inside a file, with all of its chat templates.

    Raises:
        SourceError: there is none, or transformers cannot read it.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name
        )
    except (ValueError, KeyError, OSError, TypeError, ImportError) as error:
        raise SourceError(
            f"{name}: its tokenizer cannot be read ({first_line(error)}); convert from the model's "
            "Hugging Face folder"
        ) from error
    named = {
        key.removeprefix(f"{TEMPLATE}."): template
        for key, template in metadata.items()
        if key.startswith(f"{TEMPLATE}.")
    }
    if named:
        default = {"default": metadata[TEMPLATE]} if TEMPLATE in metadata else {}
        tokenizer.chat_template = default | named
    return tokenizer
