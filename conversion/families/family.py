"""What the converter must know about a family of decoder models."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """A source architecture whose attention the converter understands.

    Attributes:
        model_type: ``model_type`` of the source's config.
        config_class: config class of the converted model.
        causal_lm: the source's transformers model, for expected tensor names and evaluation.
        converted_causal_lm: the converted transformers model; vLLM's architecture has its name.
        decoder_layer: its decoder layer, to push calibration activations on.
        rotary_embedding: its rotary embedding, for frequencies.
        gguf_architecture: ``general.architecture`` of its GGUF files, if the converter reads them.
        refuse: returns why a config of the family cannot be converted, or ``None``.
    """

    model_type: str
    config_class: type[Any]
    causal_lm: type[Any]
    converted_causal_lm: type[Any]
    decoder_layer: Callable[[Any, int], Any]
    rotary_embedding: Callable[[Any], Any]
    gguf_architecture: str | None
    refuse: Callable[[Any], str | None]
