"""Matrix products in bfloat16 where the processor has them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def bfloat16_is_fast() -> bool:
    """Tell whether this processor multiplies bfloat16 matrices faster than float32 ones."""
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.backends.mkldnn.is_available() and supported


@contextmanager
def bfloat16_products(enabled: bool = True) -> Iterator[None]:
    """Within it, linear layers and products on a fast CPU compute in bfloat16.

    Their inputs are rounded and their sums are not; what is added up, such as a residual stream,
    stays float32.
    """
    # Without the cache of rounded weights, half a layer that would be used once.
    with torch.autocast(
        "cpu", torch.bfloat16, enabled=enabled and bfloat16_is_fast(), cache_enabled=False
    ):
        yield


def round_linear_weights(module: torch.nn.Module) -> None:
    """Round the weights of a module's linear layers once, where products are rounded anyway.

    Within ``bfloat16_products`` every product would round them again. The module is then good for
    nothing else.
    """
    if not bfloat16_is_fast():
        return
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear) and layer.weight.device.type == "cpu":
            layer.weight.data = layer.weight.data.to(torch.bfloat16)
