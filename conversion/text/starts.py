"""Tokens alone, as the first of a text is: what a refit has to keep of attention sinks.

The first token of a text sees only itself, and early layers turn it into the sink that all others
attend to ("massive activations", arXiv:2402.17762). It is made of little: where a converted layer
says too much else of a token, no sink appears, and the whole text after it is lost. Windows of text
hold one such token in a thousand, and few different ones.
"""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

# Part of the starts that go to special tokens, which begin chats and, in many models, every text.
SPECIAL_SHARE = 1 / 16


def start_tokens(tokenizer: PreTrainedTokenizerBase, ids: Tensor, vocab_size: int) -> Tensor:
    """As many tokens as a window has: special ones in turn, the others evenly from the text.

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
