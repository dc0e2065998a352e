"""Runs a model over long inputs in chunks, through its own cache.

The logits of 8192 tokens over a vocabulary of 49,152 take 1.6 GB in float32, and an attention
matrix of that length takes as much per six heads. With a cache, only one chunk of their rows
exists at a time, and every layer still sees every earlier token.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

CHUNK = 512


@torch.no_grad()
def token_losses(model: Any, ids: Tensor, chunk: int = CHUNK) -> Tensor:
    """Compute the negative log-likelihood of every token but the first.

    Args:
        model: a transformers causal language model.
        ids: token ids of one sequence  # [tokens]
        chunk: tokens per forward pass.

    Returns:
        losses in nats  # [tokens - 1], float64, on the CPU
    """
    ids = ids.to(model.device)
    cache = DynamicCache(config=model.config)
    losses = []
    for part, target in zip(ids[:-1].split(chunk), ids[1:].split(chunk), strict=True):
        output = model(part.unsqueeze(0), past_key_values=cache, use_cache=True)
        logits = output.logits[0].float()  # [<= chunk, vocabulary]
        losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
    return torch.cat(losses).double().cpu()


@torch.no_grad()
def greedy(model: Any, ids: Tensor, stop: set[int], limit: int, chunk: int = CHUNK) -> list[int]:
    """Decode greedily; the checkpoint's generation config has no influence.

    Args:
        model: a transformers causal language model.
        ids: token ids of the prompt  # [tokens]
        stop: token ids that end the text; not part of the result.
        limit: largest number of new tokens.
        chunk: tokens of the prompt per forward pass.

    Returns:
        the new token ids.
    """
    ids = ids.to(model.device)
    cache = DynamicCache(config=model.config)
    logits = torch.empty(0)
    for part in ids.split(chunk):
        output = model(part.unsqueeze(0), past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = output.logits[0, -1]
    generated: list[int] = []
    while len(generated) < limit:
        token = int(logits.argmax())
        if token in stop:
            break
        generated.append(token)
        next_input = torch.tensor([[token]], device=ids.device)
        logits = model(next_input, past_key_values=cache, use_cache=True).logits[0, -1]
    return generated
