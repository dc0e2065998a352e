"""Attention over latents in plain PyTorch: ``attn_implementation="eager"``."""

from typing import Any

import torch
from torch import Tensor, nn


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attend to one head of keys and values, which every query head shares.

    The arguments are those of transformers' attention functions.

    Args:
        module: the attention, for whether it trains.
        query: absorbed queries  # [batch, heads, tokens, width]
        key: cached rows  # [batch, 1, context, width]
        value: the same or others  # [batch, 1, context, v]
        attention_mask: added to the scores  # [batch, 1, tokens, context]
        scaling: factor of the scores.
        dropout: of the probabilities, in training.

    Returns:
        output and probabilities  # [batch, tokens, heads, v], [batch, heads, tokens, context]
    """
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights
