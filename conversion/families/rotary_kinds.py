"""Rotary embeddings that turn layers of every kind by frequencies of its own."""

from typing import Any

from torch import Tensor

from conversion.families.limits import FULL


def of_full_attention(embedding: type[Any]) -> type[Any]:
    """A rotary embedding whose frequencies are those of the layers that see everything.

    Args:
        embedding: of transformers, with frequencies for each of ``layer_types``.
    """

    class OfFullAttention(embedding):  # type: ignore[misc] # transformers is not typed
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.inv_freq: Tensor = getattr(self, f"{FULL}_inv_freq")
            self.attention_scaling: float = getattr(self, f"{FULL}_attention_scaling")

    return OfFullAttention


def angles_of_layer(
    rotary: Any, config: Any, index: int, x: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of one layer  # each [1, tokens, rotary]

    Args:
        rotary: the source's rotary embedding.
        config: the source's.
        index: which layer it is.
        x: of the dtype and device wanted.
        positions: # [1, tokens]
    """
    kinds = (config.layer_types[index],) if hasattr(rotary, f"{FULL}_inv_freq") else ()
    cos, sin = rotary(x, positions, *kinds)
    return cos, sin
