"""RoPE as the source means it, written as RoPE of every pair of a head.

A source turns the pairs ``(x[f], x[f + r/2])`` of the first ``r`` dimensions of a head (partial
rotary), or neighbours, or nothing in some layers. Scores do not change when queries and keys are
permuted alike, so the dimensions are put into the order in which the pairs are ``(x[f],
x[f + d/2])``; those that do not turn have frequency 0.
"""

from typing import Any

import torch
from torch import Tensor


def head_order(rotary: Any, d: int, interleaved: bool) -> Tensor:
    """The order of a head's dimensions in which RoPE turns ``(x[f], x[f + d/2])``.

    Args:
        rotary: the source's rotary embedding.
        d: dimensions of a head.
        interleaved: whether the source turns neighbours ``(x[2f], x[2f + 1])``.

    Returns:
        ``order``, so that ``x[order]`` has the pairs ``(f, f + d/2)``, the turned ones first
            # [d]
    """
    turned = 2 * len(rotary.inv_freq)
    first = torch.arange(turned // 2)
    pairs = torch.stack((2 * first, 2 * first + 1) if interleaved else (first, first + turned // 2))
    rest = torch.arange(turned, d).view(2, -1)
    return torch.cat((pairs, rest), dim=1).flatten()


def inverse_frequencies(attention: Any, rotary: Any, d: int) -> Tensor:
    """The angle per position of every pair of ``head_order``, float32  # [d/2]

    Args:
        attention: the source's module.
        rotary: the source's rotary embedding.
        d: dimensions of a head.
    """
    turned = rotary.inv_freq.float()
    if not _turns(attention):
        turned = torch.zeros_like(turned)
    return torch.nn.functional.pad(turned, (0, d // 2 - len(turned)))


def turn_factors(attention: Any, rotary: Any, d: int) -> Tensor:
    """Factors of a head's dimensions, in the order of ``head_order``, of queries and of keys.

    YaRN multiplies cosine and sine, and so what turns and nothing else  # [d]

    Args:
        attention: the source's module.
        rotary: the source's rotary embedding.
        d: dimensions of a head.
    """
    factors = torch.ones(2, d // 2)
    if _turns(attention):
        factors[:, : len(rotary.inv_freq)] = float(rotary.attention_scaling)
    return factors.flatten()


def _turns(attention: Any) -> bool:
    """Some layers of SmolLM3 do not turn anything."""
    return bool(getattr(attention, "use_rope", True))
