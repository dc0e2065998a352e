"""Matrix products in bfloat16 where the device multiplies them faster."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def bfloat16_is_fast(device: str = "cpu") -> bool:
    """Tell whether a device multiplies bfloat16 matrices faster than float32 ones.

    Args:
        device: its type, such as ``cuda``.
    """
    if device == "cuda":
        on_gpu: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return on_gpu
    if device != "cpu":
        return False
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.backends.mkldnn.is_available() and supported


@contextmanager
def bfloat16_products(device: str, enabled: bool = True) -> Iterator[None]:
    """Within it, linear layers and products compute in bfloat16 where the device is fast at it.

    Their inputs are rounded and their sums are not; what is added up, such as a residual stream,
    stays float32.
    """
    if not enabled or not bfloat16_is_fast(device):
        yield
        return
    # Without the cache of rounded weights, half a layer that would be used once.
    with torch.autocast(device, torch.bfloat16, cache_enabled=False):
        yield


def round_linear_weights(module: torch.nn.Module) -> None:
    """Round the weights of a module's linear layers once, where products are rounded anyway.

    Within ``bfloat16_products`` every product would round them again. The module is then good for
    nothing else.
    """
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear) and bfloat16_is_fast(layer.weight.device.type):
            layer.weight.data = layer.weight.data.to(torch.bfloat16)
