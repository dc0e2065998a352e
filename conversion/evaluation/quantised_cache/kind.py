"""One of vLLM's quantised caches, as the rounding that it is of keys and values."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Rounding = Callable[[Tensor], Tensor]
"""Write heads to the cache and read them back  # [..., head_dim] -> [..., head_dim], float32"""


@dataclass(frozen=True)
class CacheKind:
    """A quantised cache of keys, after RoPE, and values.

    Attributes:
        keys, values: what attention reads of what was written.
        bytes_per_head: bytes of the key and the value of one head and token, scales included, from
            ``head_dim``.
        unsupported_reason: why heads of this ``head_dim`` cannot be kept so; ``None`` if they can.
        exact_layers: so many layers at either end keep keys and values in the model's own dtype.
    """

    keys: Rounding
    values: Rounding
    bytes_per_head: Callable[[int], int]
    unsupported_reason: Callable[[int], str | None] = lambda head_dim: None
    exact_layers: int = 0

    def is_exact(self, layer: int, layers: int) -> bool:
        """True if a layer's cache is not quantised.

        Args:
            layer: index of the layer.
            layers: number of layers.
        """
        # vLLM never leaves more than half of the layers exact.
        edge = min(self.exact_layers, layers // 2)
        return layer < edge or layer >= layers - edge
