"""``fp8``, ``fp8_e4m3``: 8-bit floating point, one scale for the whole model.

The scale is 1 unless a checkpoint brings another, as in vLLM, and rounding is to the nearest, as on
GPUs (vLLM's CPU kernels round towards zero). Source:
``vllm/v1/attention/ops/triton_reshape_and_cache_flash.py``, ``reshape_and_cache_kernel_flash``.
"""

import torch
from torch import Tensor

from conversion.evaluation.quantised_cache.kind import CacheKind

LARGEST = torch.finfo(torch.float8_e4m3fn).max


def e4m3(x: Tensor) -> Tensor:
    """Round to ``float8_e4m3fn``; what is too large becomes its largest number."""
    # torch's own cast makes NaN of it.
    return x.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).to(x.dtype)


def _bytes_per_head(head_dim: int) -> int:
    return 2 * head_dim


KIND = CacheKind(e4m3, e4m3, _bytes_per_head)
