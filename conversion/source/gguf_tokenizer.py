"""The tokenizer, the chat templates and the end tokens that a GGUF file holds."""

import json
import logging
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from conversion.errors import SourceError, first_line
from conversion.source.gguf_metadata import BYTE_LEVEL, GGML, SENTENCEPIECE
from conversion.source.gguf_split import KNOWN_SPLITS, WHOLE_WORDS, set_split

logger = logging.getLogger(__name__)

# Ends of an answer: of a text, a turn, a message, and of what is filled in between two texts.
ENDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
END_TOKENS = tuple(f"tokenizer.ggml.{kind}_token_id" for kind in ENDS)
# llama.cpp takes tokens of these spellings for end tokens, whatever the metadata say of them.
END_SPELLINGS = {
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"),
    *("< EOT >", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|return|>", "<|call|>", "<|end_of_text|>"),
    *("<end_of_utterance>", "<|flush|>", "<|calls|>", "</s>", "<eos>", "<turn|>"),
}
SAID_OF_SAMPLING = "general.sampling."
# Key of these -> key of a generation config.
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
    # Ollama's files list them.
    named += metadata.get(f"{GGML}eos_token_ids") or []
    tokens = metadata.get(f"{GGML}tokens") or []
    spelled = [token for token, text in enumerate(tokens) if text in END_SPELLINGS]
    return list(dict.fromkeys(named + spelled))


def generation_config(metadata: dict[str, Any], name: str) -> GenerationConfig:
    """The file's special tokens and its sampling, as a generation config.

    Args:
        metadata: of the file.
        name: how the user named it, for the warning about sampling that cannot be carried over.
    """
    ends = end_tokens(metadata)
    said = {
        key.removeprefix(SAID_OF_SAMPLING): value
        for key, value in metadata.items()
        if key.startswith(SAID_OF_SAMPLING)
    }
    sampling = {SAMPLING[key]: said.pop(key) for key in SAMPLING if key in said}
    if said:
        logger.warning(
            "%s recommends sampling that a generation_config.json cannot hold: %s",
            *(name, ", ".join(f"{SAID_OF_SAMPLING}{key}" for key in said)),
        )
    return GenerationConfig(
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=ends if len(ends) > 1 else next(iter(ends), None),
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
        suppress_tokens=metadata.get(f"{GGML}suppress_tokens"),
        **(sampling | {"do_sample": True} if sampling else {}),
    )


def gguf_tokenizer(path: Path, metadata: dict[str, Any], name: str) -> PreTrainedTokenizerBase:
    """The tokenizer inside a file, with all of its chat templates.

    transformers reads the vocabulary. It leaves out the tokens that begin and end every text, the
    space before a text and most splits, and adds tokens that the model does not have.

    Raises:
        SourceError: there is none, or it cannot be read.
    """
    if KNOWN_SPLITS is None:
        raise SourceError(
            f"{name}: tokenizers in GGUF files are read with transformers 5.18 or newer; "
            'pip install "transformers>=5.18", or convert from the model\'s Hugging Face folder'
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name
        )
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        _complete(backend, metadata)
        rebuilt = Tokenizer.from_str(json.dumps(backend))
    except Exception as error:  # The package tokenizers raises nothing more special.
        raise SourceError(
            f"{name}: its tokenizer cannot be read ({first_line(error)}); convert from the model's "
            "Hugging Face folder"
        ) from error
    kind, pre = metadata.get(f"{GGML}model"), metadata.get(f"{GGML}pre")
    tokens = metadata[f"{GGML}tokens"]

    def special(name: str) -> str | None:
        token = metadata.get(f"{GGML}{name}_token_id")
        return None if token is None else tokens[token]

    begins = metadata.get(f"{GGML}add_bos_token", kind == SENTENCEPIECE or pre in WHOLE_WORDS)
    return PreTrainedTokenizerFast(
        tokenizer_object=rebuilt,
        bos_token=special("bos"),
        eos_token=special("eos"),
        unk_token=special("unknown"),
        pad_token=special("padding"),
        add_bos_token=bool(begins) and special("bos") is not None,
        add_eos_token=bool(metadata.get(f"{GGML}add_eos_token", False)),
        chat_template=_chat_template(metadata),
    )


def _complete(backend: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Put into a tokenizer's JSON what the file says and transformers left out.

    Raises:
        ValueError: the file splits text in a way that nobody knows.
    """
    count = len(metadata[f"{GGML}tokens"])
    backend["added_tokens"] = [one for one in backend["added_tokens"] if one["id"] < count]
    kind = metadata.get(f"{GGML}model")
    if kind == BYTE_LEVEL:
        set_split(backend, metadata.get(f"{GGML}pre"))
    if kind == SENTENCEPIECE and not metadata.get(f"{GGML}add_space_prefix", True):
        split = backend.get("pre_tokenizer") or {}
        if split.get("type") == "Metaspace":
            split["prepend_scheme"] = "never"
            decoders = backend["decoder"]["decoders"]
            backend["decoder"]["decoders"] = [d for d in decoders if d["type"] != "Strip"]


def _chat_template(metadata: dict[str, Any]) -> str | dict[str, str] | None:
    """The chat template; by name where there are several."""
    named = {
        key.removeprefix(f"{TEMPLATE}."): template
        for key, template in metadata.items()
        if key.startswith(f"{TEMPLATE}.")
    }
    default = metadata.get(TEMPLATE)
    if not named:
        return default
    return named if default is None else {"default": default} | named
