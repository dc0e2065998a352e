"""Rotary embeddings that turn layers of every kind by frequencies of its own."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vllm_mha2mla.config import FULL


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


Angles = tuple[Tensor, Tensor]
"""Cosines and sines  # each [1, tokens, rotary]"""


def angles_of_layers(rotary: Any, config: Any, x: Tensor, positions: Tensor) -> Sequence[Angles]:
    """Cosines and sines of every layer; layers of a kind share theirs.

    Args:
        rotary: the source's rotary embedding.
        config: the source's.
        x: of the dtype and device wanted.
        positions: # [1, tokens]
    """
    if not hasattr(rotary, f"{FULL}_inv_freq"):
        return [rotary(x, positions)] * config.num_hidden_layers
    of_kind = {kind: rotary(x, positions, kind) for kind in set(config.layer_types)}
    return [of_kind[kind] for kind in config.layer_types]
