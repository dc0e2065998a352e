"""``int8_per_token_head``, ``fp8_per_token_head``: a float32 scale for every head of a token.

    scale = max |x| / largest,   stored = round(x / scale)

Source: ``vllm/v1/attention/ops/triton_reshape_and_cache_flash.py``,
``_reshape_cache_per_token_head``.
"""

from torch import Tensor

from conversion.evaluation.quantised_cache.fp8 import LARGEST as FP8_MAX
from conversion.evaluation.quantised_cache.fp8 import e4m3
from conversion.evaluation.quantised_cache.kind import CacheKind

INT8_MIN, INT8_MAX = -128.0, 127.0
SMALLEST_SCALE = 1e-6
SCALE_BYTES = 4


def _scale(x: Tensor, largest: float) -> Tensor:
    return (x.abs().amax(-1, keepdim=True) / largest).clamp_min(SMALLEST_SCALE)  # [..., 1]


def _int8(x: Tensor) -> Tensor:
    scale = _scale(x, INT8_MAX)
    scaled = x * (1 / scale)
    # Halves are rounded away from zero.
    return (scaled + scaled.sign() * 0.5).clamp(INT8_MIN, INT8_MAX).trunc() * scale


def _fp8(x: Tensor) -> Tensor:
    scale = _scale(x, FP8_MAX)
    return e4m3(x * (1 / scale)) * scale


def _bytes_per_head(head_dim: int) -> int:
    return 2 * (head_dim + SCALE_BYTES)


INT8 = CacheKind(_int8, _int8, _bytes_per_head)
FP8 = CacheKind(_fp8, _fp8, _bytes_per_head)
