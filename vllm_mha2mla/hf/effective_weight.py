"""The matrix that a linear layer multiplies by, with all that is attached to the layer.

Absorbed projections are read and never called. An adapter (PEFT), a quantised layer
(bitsandbytes) or a hook that fetches offloaded weights (accelerate) acts where a layer is called.
"""

from typing import Any

import torch
from torch import Tensor, nn


def effective_weight(layer: Any, inputs: int, like: Tensor) -> Tensor:
    """The weight of a layer without bias, adapters and the like included.

    Args:
        layer: ``nn.Linear``, or whatever has taken its place.
        inputs: the layer's number of inputs.
        like: hidden states, for their dtype and device.

    Returns:
        # [outputs, inputs]
    """
    hooks = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    if type(layer) is nn.Linear and not hooks:
        return layer.weight
    # Row i of the product is the layer's answer to the unit vector e_i, column i of its weight.
    product: Tensor = layer(torch.eye(inputs, dtype=like.dtype, device=like.device))
    return product.T
