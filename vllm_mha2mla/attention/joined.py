"""Several projections of the same input as one product.

In a decode step each product takes about as long as its launch. The layers keep their parameters,
under their names; these become views of one tensor.
"""

from collections.abc import Sequence
from typing import Any

import torch
import vllm.envs as envs
from torch import Tensor, nn
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.offloader.base import NoopOffloader, get_offloader
from vllm.platforms import current_platform


class JoinedProducts(nn.Module):
    """The products of hidden states with several layers, on GPUs one product where that may be.

    Args:
        owner: the enclosing module, which has the layers.
        names: of linear layers of vLLM there; with ``--enable-lora`` others take their places.
        widths: of each layer's output on this rank.
    """

    def __init__(self, owner: nn.Module, names: Sequence[str], widths: Sequence[int]) -> None:
        super().__init__()
        # In a tuple, because this module is a part of it, and not the reverse.
        self.owner, self.names, self.widths = (owner,), tuple(names), list(widths)
        self.joined: Tensor | None
        self.joined_bias: Tensor | None
        self.register_buffer("joined", None, persistent=False)
        self.register_buffer("joined_bias", None, persistent=False)
        self.vllm_config = get_current_vllm_config()

    @property
    def layers(self) -> list[Any]:
        """The layers as they are now."""
        return [getattr(self.owner[0], name) for name in self.names]

    def weights_loaded(self) -> None:
        """Join the layers; called again when weights are exchanged."""
        if current_platform.is_cpu() or any(width % 8 for width in self.widths):
            return
        if may_be_joined(self.layers, self.vllm_config):
            self.joined = join([layer.weight for layer in self.layers], self.joined)
            if any(layer.bias is not None for layer in self.layers):
                biases = [
                    nn.Parameter(layer.weight.new_zeros(len(layer.weight)), requires_grad=False)
                    if layer.bias is None
                    else layer.bias
                    for layer in self.layers
                ]
                self.joined_bias = join(biases, self.joined_bias)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """The output of each layer  # [tokens, hidden] -> [tokens, width] of each"""
        if self.joined is None:
            return tuple(layer(hidden_states)[0] for layer in self.layers)
        together = nn.functional.linear(hidden_states, self.joined, self.joined_bias)
        return tuple(together.split(self.widths, dim=-1))


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
