"""How far every layer's attention output is from the original's."""

from typing import Any

import torch
from torch import Tensor

from conversion.families import family_of


@torch.no_grad()
def attention_outputs(model: Any, ids: Tensor) -> list[Tensor]:
    """Every attention block's output, after ``o_proj``, one per layer  # [tokens, hidden]

    Args:
        model: a transformers causal language model, original or converted.
        ids: token ids of one sequence  # [tokens]
    """
    outputs: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        outputs.append(output[0][0].float())

    family = family_of(model.config)
    hooks = [family.attention(layer).register_forward_hook(keep) for layer in family.layers(model)]
    try:
        model(ids.unsqueeze(0), use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def layer_errors(original: list[Tensor], converted: list[Tensor]) -> list[float]:
    """``||converted - original||^2 / ||original||^2`` per layer, summed over tokens.

    Each model runs on its own residual stream, so a layer's error holds what the layers below
    lost too.

    Args:
        original: as :func:`attention_outputs` gives them  # [tokens, hidden] per layer
        converted: the same of the converted model.
    """
    return [
        float((ours - theirs).square().sum() / theirs.square().sum())
        for theirs, ours in zip(original, converted, strict=True)
    ]
