"""The metadata of a GGUF file, whose writer may have put anything there, or left it out."""

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


GGML, TOKEN = "tokenizer.ggml.", "_token_id"
# Values of its key "model".
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
BY_KEY: dict[str, Check] = {
    "general.architecture": _text,
    "general.type": _text,
    "general.alignment": _count,
    "general.sampling.sequence": _text,
    "split.count": _count,
    "split.tensors.count": _count,
    "tokenizer.ggml.model": lambda value: value in (BYTE_LEVEL, SENTENCEPIECE),
    "tokenizer.ggml.pre": _text,
    "tokenizer.ggml.tokens": _list_of(str),
    "tokenizer.ggml.token_type": _list_of(int),
    "tokenizer.ggml.merges": _list_of(str),
    "tokenizer.ggml.scores": _list_of(float),
    "tokenizer.ggml.add_bos_token": lambda value: isinstance(value, bool),
    "tokenizer.ggml.add_eos_token": lambda value: isinstance(value, bool),
    "tokenizer.ggml.add_space_prefix": lambda value: isinstance(value, bool),
    "tokenizer.chat_template": _text,
    "tokenizer.chat_templates": _list_of(str),
}
BY_BEGINNING: dict[str, Check] = {
    "tokenizer.chat_template.": _text,
    "general.sampling.": _number,
}
LISTS = (f"{GGML}eos_token_ids", f"{GGML}suppress_tokens")
# Of tokenizers that are not read, or of pairs of texts.
SAYS_NOTHING = {
    *("token_type_count", "remove_extra_whitespaces", "precompiled_charsmap", "add_sep_token"),
    *("add_padding_token", "add_mask_token", "add_unknown_token"),
}
# llama.cpp's, where a SentencePiece file does not say.
USUAL_TOKENS = {"unknown": 0, "bos": 1, "eos": 2}


def check_metadata(metadata: dict[str, Any], name: str) -> None:
    """Refuse values of other types than their keys', tokens that do not exist, and unknown keys.

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
        check = BY_KEY.get(key)
        if check is None and key.startswith(GGML):
            check = _check_of_text(key, len(tokens) if isinstance(tokens, list) else 0)
        for start in BY_BEGINNING:
            if check is None and key.startswith(start):
                check = BY_BEGINNING[start]
        if check is not None and not check(value):
            raise SourceError(
                f"{name}: GGUF metadata: {key} is {str(value)[:80]!r}; convert from the model's "
                "Hugging Face folder"
            )


def _check_of_text(key: str, tokens: int) -> Check:
    """The check of a key of the tokenizer that is not in ``BY_KEY``."""

    def token(value: Any) -> bool:
        return _count(value) and (not tokens or value < tokens)

    if key.endswith(TOKEN):
        return token
    if key in LISTS:
        return lambda value: isinstance(value, list) and all(map(token, value))
    known = key.removeprefix(GGML) in SAYS_NOTHING
    return lambda value: known or value is False


def with_usual_tokens(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata with the special tokens that a SentencePiece file leaves unsaid."""
    tokens = metadata.get(f"{GGML}tokens") or []
    if metadata.get(f"{GGML}model") != SENTENCEPIECE:
        return metadata
    usual = {f"{GGML}{kind}{TOKEN}": id_ for kind, id_ in USUAL_TOKENS.items() if id_ < len(tokens)}
    return usual | metadata
