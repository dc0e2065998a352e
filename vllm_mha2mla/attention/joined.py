"""Two projections of the same input as one product.

In a decode step each product takes about as long as its launch. The layers keep their parameters,
under their names; these become views of one tensor.
"""

from collections.abc import Sequence

import torch
import vllm.envs as envs
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.offloader.base import NoopOffloader, get_offloader


def may_be_joined(layers: Sequence[nn.Module], vllm_config: VllmConfig) -> bool:
    """Tell if nothing else computes these layers, or moves their weights, in a way of its own."""
    plain = all(
        isinstance(layer, LinearBase)
        and isinstance(layer.quant_method, UnquantizedLinearMethod)
        and layer.weight.is_cuda
        for layer in layers
    )
    return (
        plain
        and vllm_config.lora_config is None
        and vllm_config.kernel_config.linear_backend == "auto"
        and isinstance(get_offloader(), NoopOffloader)
        and not envs.VLLM_BATCH_INVARIANT
    )


def join(parameters: Sequence[nn.Parameter], before: Tensor | None = None) -> Tensor:
    """Move parameters into one tensor, one behind the other.

    Args:
        parameters: of equal width, or vectors  # [outputs, inputs] or [outputs]
        before: the tensor of an earlier call, which captured graphs read; it is filled again.
    """
    whole = torch.cat([parameter.data for parameter in parameters])
    if before is not None:
        whole = before.copy_(whole)
    views = whole.split([len(parameter) for parameter in parameters])
    for parameter, view in zip(parameters, views, strict=True):
        parameter.data = view
    return whole
