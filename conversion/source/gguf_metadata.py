"""The types of a GGUF file's metadata, whose writer may have put anything there."""

from collections.abc import Callable
from typing import Any

from conversion.errors import SourceError

Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _list_of(kind: type) -> Check:
    return lambda value: isinstance(value, list) and all(isinstance(one, kind) for one in value)


BY_KEY: dict[str, Check] = {
    "general.architecture": _text,
    "general.type": _text,
    "general.alignment": _count,
    "split.count": _count,
    "split.tensors.count": _count,
    "tokenizer.ggml.model": _text,
    "tokenizer.ggml.pre": _text,
    "tokenizer.ggml.tokens": _list_of(str),
    "tokenizer.ggml.token_type": _list_of(int),
    "tokenizer.ggml.merges": _list_of(str),
    "tokenizer.ggml.scores": _list_of(float),
    "tokenizer.ggml.add_bos_token": lambda value: isinstance(value, bool),
    "tokenizer.ggml.add_eos_token": lambda value: isinstance(value, bool),
    "tokenizer.ggml.add_space_prefix": lambda value: isinstance(value, bool),
}
BY_BEGINNING: dict[str, Check] = {
    "tokenizer.chat_template": _text,
    "general.sampling.": _number,
}
TOKEN = "_token_id"


def check_metadata(metadata: dict[str, Any], name: str) -> None:
    """Refuse values of other types than their keys', and special tokens that do not exist.

    Args:
        metadata: every key of a file with its value.
        name: how the user named the file.

    Raises:
        SourceError: with the key.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len({str(token) for token in tokens}) < len(tokens):
        raise SourceError(
            f"{name}: GGUF metadata: a token is there twice (tokenizer.ggml.tokens); convert from "
            "the model's Hugging Face folder"
        )
    for key, value in metadata.items():
        checks = [check for start, check in BY_BEGINNING.items() if key.startswith(start)]
        if key in BY_KEY:
            checks.append(BY_KEY[key])
        if key.startswith("tokenizer.ggml.") and key.endswith(TOKEN):
            checks.append(lambda value: _count(value) and (not tokens or value < len(tokens)))
        if not all(check(value) for check in checks):
            raise SourceError(
                f"{name}: GGUF metadata: {key} is {str(value)[:80]!r}; convert from the model's "
                "Hugging Face folder"
            )
