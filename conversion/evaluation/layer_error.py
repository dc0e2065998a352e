"""The error of every layer's attention output against the original's."""

from typing import Any

import torch
from torch import Tensor

from conversion.families import family_of


@torch.no_grad()
def attention_outputs(model: Any, ids: Tensor) -> list[Tensor]:
    """Record every attention block's output, after ``o_proj``.

    Args:
        model: a transformers causal language model, original or converted.
        ids: token ids of one sequence  # [tokens]

    Returns:
        one tensor per layer, on the CPU  # [tokens, hidden], float32
    """
    outputs: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        outputs.append(output[0][0].float().cpu())

    family = family_of(model.config)
    hooks = [family.attention(layer).register_forward_hook(keep) for layer in family.layers(model)]
    try:
        model(ids.unsqueeze(0).to(model.device), use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def layer_errors(original: list[Tensor], converted: list[Tensor]) -> list[float]:
    """Compute ``||converted - original||^2 / ||original||^2`` per layer, summed over tokens.

    Each model runs on its own residual stream, so a layer's error includes the errors of the
    layers below it.

    Args:
        original: outputs of :func:`attention_outputs`  # num_layers x [tokens, hidden]
        converted: the same of the converted model.
    """
    return [
        float((after - before).square().sum() / before.square().sum())
        for before, after in zip(original, converted, strict=True)
    ]
