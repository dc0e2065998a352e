"""Token ids of a text, and what identifies and checks them."""

import hashlib

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from conversion.errors import TextError


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """Token ids of a whole text, with the tokenizer's own start token if it has one  # [tokens]"""
    # A text longer than the model's context is cut into windows later: no warning wanted.
    ids: Tensor = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"]
    return ids[0]


def fingerprint(*ids: Tensor) -> str:
    """Of token windows, one set after the other: SHA-256 as hexadecimal digits."""
    return hashlib.sha256(b"".join(windows.numpy().tobytes() for windows in ids)).hexdigest()


def check_vocabulary(name: str, vocab_size: int, *ids: Tensor) -> None:
    """Whether a model has an embedding for every token.

    Args:
        name: of the model, for the error.
        vocab_size: how many embeddings it has.
        ids: tokens of any shape.

    Raises:
        TextError: it does not.
    """
    if any(int(some.max()) >= vocab_size for some in ids if some.numel()):
        raise TextError(
            f"{name}: the tokenizer makes ids beyond the vocabulary of {vocab_size}; it belongs to "
            "another model"
        )
