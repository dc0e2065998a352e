"""Sink tokens: sequences of one token, on which a refit learns to keep the attention sinks.

The first token of a text sees only itself, and early layers turn it into the sink that all others
attend to ("massive activations", arXiv:2402.17762). A small error can undo that: the sink does not
appear, and every later token of the text is lost. Running text hardly guards against it, since a
window of a thousand tokens has one first token, and few different ones occur.
"""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

# Share of the special tokens, which begin chats and, in many models, every text.
SPECIAL_SHARE = 1 / 16


def sink_tokens(tokenizer: PreTrainedTokenizerBase, ids: Tensor, vocab_size: int) -> Tensor:
    """Choose as many tokens as a window has: special ones in turn, the others evenly from the text.

    Args:
        tokenizer: the source's.
        ids: the calibration text  # [windows, window], int64
        vocab_size: of the source; special tokens beyond it are not the model's.

    Returns:
        # [window], int64
    """
    window = ids.shape[1]
    special = sorted(token for token in set(tokenizer.all_special_ids) if token < vocab_size)
    room = int(window * SPECIAL_SHARE) if special else 0
    first = torch.tensor(special, dtype=ids.dtype).repeat(room)[:room]
    text = ids.flatten()
    places = torch.linspace(0, len(text) - 1, window - room).long()
    return torch.cat((first, text[places]))
