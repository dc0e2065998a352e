"""The splits of text before byte-level merges that GGUF files name (``tokenizer.ggml.pre``).

transformers knows some of the names and splits as GPT-2 for all others, in silence. The groups are
llama.cpp's.
"""

from typing import Any

try:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
except ImportError:
    GGUF_PRE_TOKENIZER_SPLITS = None

KNOWN_SPLITS: Any = GGUF_PRE_TOKENIZER_SPLITS
"""By name; ``None`` before transformers 5.18, with which no tokenizer is read from GGUF."""

# Split as GPT-2 does.
LIKE_GPT2 = {
    *("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0"),
    *("mellum", "modern-bert", "roberta-bpe", "mpt", "olmo", "jais", "trillion"),
}
# Split every digit off, then as GPT-2 does.
DIGITS_FIRST = {
    *("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"),
}
# A word that is a token is that token, whatever its merges are; texts begin with BOS.
WHOLE_WORDS = {
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    "tekken",
}


def set_split(backend: dict[str, Any], pre: str | None) -> None:
    """Make a byte-level tokenizer split text as its GGUF file says.

    Args:
        backend: the tokenizer's JSON, which is changed.
        pre: ``tokenizer.ggml.pre``.

    Raises:
        ValueError: the split is not known.
    """
    if pre in DIGITS_FIRST:
        digits = {"type": "Digits", "individual_digits": True}
        rest = backend["pre_tokenizer"]
        backend["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, rest]}
    elif pre not in LIKE_GPT2 and pre not in KNOWN_SPLITS:
        raise ValueError(f"its split of text, tokenizer.ggml.pre {pre!r}, is not known")
    if pre in WHOLE_WORDS:
        backend["model"]["ignore_merges"] = True
