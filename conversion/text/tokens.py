"""Token ids of a text, their fingerprint, and their fit to a vocabulary."""

import hashlib

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from conversion.errors import TextError


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """Tokenise a whole text, with the tokenizer's own start token if it has one  # [tokens]"""
    # verbose would warn of a text longer than the model's context; it is cut into windows later.
    ids: Tensor = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"]
    return ids[0]


def fingerprint(*ids: Tensor) -> str:
    """SHA-256 of token windows, one set after the other, in hexadecimal digits."""
    return hashlib.sha256(b"".join(windows.numpy().tobytes() for windows in ids)).hexdigest()


def check_vocabulary(name: str, vocab_size: int, *ids: Tensor) -> None:
    """Make sure that a model has an embedding for every token.

    Args:
        name: the model's, for the error.
        vocab_size: the number of its embeddings.
        ids: token ids of any shape.

    Raises:
        TextError: it has not.
    """
    if any(int(some.max()) >= vocab_size for some in ids if some.numel()):
        raise TextError(
            f"{name}: the tokenizer makes ids beyond the vocabulary of {vocab_size}; it belongs to "
            "another model"
        )
