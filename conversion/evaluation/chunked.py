"""Running a model over long inputs a chunk at a time, through its own cache.

The logits of 8192 tokens over a vocabulary of 49,152 are 1.6 GB in float32, and an attention
matrix of that length is as large per four heads. With a cache, only a chunk of rows of either
exists at once; every layer still sees every earlier token.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

CHUNK = 512


@torch.no_grad()
def token_losses(model: Any, ids: Tensor, chunk: int = CHUNK) -> Tensor:
    """Negative log-likelihood, in nats, of every token but the first  # [tokens - 1], float64

    Args:
        model: a transformers causal language model.
        ids: token ids of one sequence  # [tokens]
        chunk: tokens whose logits exist at once.
    """
    cache = DynamicCache(config=model.config)
    losses = []
    for part, target in zip(ids[:-1].split(chunk), ids[1:].split(chunk), strict=True):
        output = model(part.unsqueeze(0), past_key_values=cache, use_cache=True)
        logits = output.logits[0].float()  # [<= chunk, vocabulary]
        losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
    return torch.cat(losses).double()


@torch.no_grad()
def greedy(model: Any, ids: Tensor, stop: set[int], limit: int, chunk: int = CHUNK) -> list[int]:
    """The most likely continuation, token by token, whatever the checkpoint's generation config.

    Args:
        model: a transformers causal language model.
        ids: token ids of the prompt  # [tokens]
        stop: token ids that end it; not part of the result.
        limit: tokens at most.
        chunk: tokens of the prompt whose attention exists at once.
    """
    cache = DynamicCache(config=model.config)
    logits = torch.empty(0)
    for part in ids.split(chunk):
        output = model(part.unsqueeze(0), past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = output.logits[0, -1]
    found: list[int] = []
    while len(found) < limit:
        token = int(logits.argmax())
        if token in stop:
            break
        found.append(token)
        step = torch.tensor([[token]], device=ids.device)
        logits = model(step, past_key_values=cache, use_cache=True).logits[0, -1]
    return found
