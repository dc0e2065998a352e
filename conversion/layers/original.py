"""The source's layers, one at a time, and what they do to text window by window."""

import copy
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor

from conversion.calibration.activations import Activations, batches
from conversion.families import AttentionWeights
from conversion.families.around import attention_input, past_attention
from conversion.families.limits import kept_layers
from conversion.families.qk_norm import normed_inputs
from conversion.families.rotary_kinds import angles_of_layers
from conversion.runtime.dense_attention import NAME as DENSE_ATTENTION
from conversion.runtime.memory import keep_freed_memory, trim_memory
from conversion.runtime.precision import bfloat16_products
from conversion.runtime.progress import Progress
from conversion.source import SourceCheckpoint
from vllm_mha2mla.config import KEPT, LatentWidths
from vllm_mha2mla.hf.attention import LatentAttention

Result = TypeVar("Result")

# A float32 layer up to this size is small. Every product first puts its weights in order, which
# takes longer than one window of a small layer: several go through it together, and what they free
# stays for the next ones. Of large layers and their windows, memory is the matter.
SMALL_LAYER_BYTES = 48 << 20
# Intermediate results of the windows that go through a small layer together, and through any on a
# GPU.
AT_ONCE_BYTES, AT_ONCE_BYTES_ON_GPU = 128 << 20, 1 << 30
# Of the MLP's width, at its widest moment.
MLP_TENSORS = 3


class SourceLayers:
    """Layers of one source as they compute windows of one length.

    One layer at a time is on the device, with a few windows; hidden states are where
    :class:`Activations` keep them.

    Args:
        source: the original.
        tokens: per window.
        device: where a layer is computed.

    Attributes:
        source: the original.
        family: its family.
        config: the source's, with attention as calibration computes it.
        device: where a layer is computed.
        qk_norm: whether its queries and keys are normed.
        kept: the layers that keep their attention.
        converted: all others.
        at_once: windows that are computed together.
        rotary: the source's rotary embedding, on the device.
    """

    def __init__(self, source: SourceCheckpoint, tokens: int, device: torch.device) -> None:
        self.source = source
        self.device = device
        self.config = for_calibration(source.config)
        self.family = source.family
        self.qk_norm = self.family.qk_norm(self.config)
        self.kept = kept_layers(self.config)
        layers = range(self.config.num_hidden_layers)
        self.converted = [index for index in layers if index not in self.kept]
        self.rotary = self.family.rotary_embedding(self.config).to(device)
        self._positions = torch.arange(tokens, device=device).unsqueeze(0)
        self.at_once = 1
        if device.type != "cpu":
            self.at_once = windows_at_once(self.config, tokens, AT_ONCE_BYTES_ON_GPU)
        elif _layer_bytes(source) <= SMALL_LAYER_BYTES:
            self.at_once = windows_at_once(self.config, tokens)
            keep_freed_memory()
        x = torch.zeros(1, device=device)
        self._angles = angles_of_layers(self.rotary, self.config, x, self._positions)

    def load(self, index: int) -> Any:
        """One of the source's layers, float32, on the device."""
        layer = self.source.layer(index, torch.float32, self.device, self.config)
        layer.angles = self._angles[index]
        return layer.to(self.device).eval()

    def with_kept(self, converted: Sequence[Result], filler: Result) -> list[Result]:
        """One item per layer, from those of the converted layers.

        Args:
            converted: of the layers that are converted, in their order.
            filler: of every layer that keeps its attention.
        """
        items = dict(zip(self.converted, converted, strict=True))
        return [items.get(index, filler) for index in range(self.config.num_hidden_layers)]

    def in_all(self, widths: LatentWidths) -> list[LatentWidths]:
        """The same widths in every layer that is converted."""
        return self.with_kept([widths] * len(self.converted), KEPT)

    def for_each_layer(
        self,
        visit: Callable[[int, Any], Result],
        description: str,
        progress: Progress,
        backwards: bool = False,
    ) -> Iterator[Result]:
        """Load the layers one after the other, and give each to ``visit``.

        One source layer is in memory at a time, and one result: ``visit`` keeps no layer, and a
        caller that keeps results keeps their memory.

        Args:
            visit: called with a layer's number and the layer.
            description: of the work, for the progress.
            progress: told about every layer.
            backwards: from the last layer to the first.
        """
        num_layers = self.config.num_hidden_layers
        order = reversed(range(num_layers)) if backwards else range(num_layers)
        with progress.task(description, num_layers) as advance:
            for index in order:
                # In one expression: a name would keep the layer, or the last result, for too long.
                yield visit(index, self.load(index))
                trim_memory()
                advance()

    @torch.no_grad()
    def push(self, layer: Any, hidden: Activations, rounded: bool = False) -> None:
        """Move hidden states past a layer with whatever attention it has, window by window.

        ``rounded``, for text that only averages are taken of, allows products in bfloat16.
        """
        for batch in batches(len(hidden), self.at_once):
            x = hidden[batch].to(self.device)
            with bfloat16_products(self.device.type, rounded):
                hidden[batch] = self.run(layer, x)

    def run(self, layer: Any, x: Tensor) -> Tensor:
        """Texts moved past a layer  # [texts, tokens, hidden] -> [texts, tokens, hidden]"""
        output: Tensor = layer(x, **self._places(layer, x))
        return output

    def attention_weights(self, layer: Any) -> AttentionWeights:
        """The maps of a layer's attention, split by head."""
        attention = self.family.attention(layer)
        return self.family.attention_weights(attention, self.config, self.rotary)

    def normed(self, layer: Any, x: Tensor) -> Tensor:
        """The hidden states that a layer's attention reads  # [texts, tokens, hidden]"""
        return attention_input(self.family, layer, self.run, x)

    def inputs(self, layer: Any, normed: Tensor) -> Tensor:
        """The inputs of the maps of ``attention_weights``  # [..., hidden] -> [..., inputs]"""
        attention = self.family.attention(layer)
        return normed_inputs(attention, normed) if self.qk_norm else normed

    def attend(self, layer: Any, normed: Tensor) -> Tensor:
        """The output of a layer's attention, given what it reads (``normed``).

        [texts, tokens, hidden] -> [texts, tokens, hidden]
        """
        output: Tensor = self.family.attention(layer)(normed, **self._places(layer, normed))[0]
        return output

    def head_outputs(self, attention: LatentAttention, normed: Tensor) -> Tensor:
        """The outputs of a converted attention's heads.

        [texts, tokens, hidden] -> [texts, tokens, heads * v]
        """
        positions = self._positions[:, : normed.shape[1]]
        return attention.attend(normed, position_ids=positions)[0]

    def past_attention(self, layer: Any, x: Tensor, attended: Tensor) -> Tensor:
        """The output of a layer, given its attention's.

        Args:
            layer: as ``load`` returns it.
            x: before the layer  # [texts, tokens, hidden]
            attended: the output of an attention  # [texts, tokens, hidden]
        """
        return past_attention(self.family, layer, self.run, x, attended)

    def stream(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual stream with the attention's output added  # [..., hidden]

        Where a norm stands between the two, the stream before it.
        """
        factor = self.family.residual_factor(self.config)
        return x if factor is None else x + factor * attended

    def _places(self, layer: Any, x: Tensor) -> dict[str, Any]:
        """Arguments that tell a layer the positions of texts  # [texts, tokens, hidden]"""
        tokens = x.shape[1]
        cos, sin = layer.angles
        return {
            "position_embeddings": (cos[:, :tokens], sin[:, :tokens]),
            "position_ids": self._positions[:, :tokens],
            "attention_mask": None,
        }


def _layer_bytes(source: SourceCheckpoint) -> int:
    """Size of the source's first layer in float32."""
    prefix = source.family.layer_prefix(0)
    sizes = (prod(info.shape) for name, info in source.tensors.items() if name.startswith(prefix))
    return sum(sizes) * torch.float32.itemsize


def windows_at_once(config: Any, tokens: int, nbytes: int = AT_ONCE_BYTES) -> int:
    """The number of windows whose intermediate results take ``nbytes`` together."""
    widest = max(int(config.hidden_size), int(getattr(config, "intermediate_size", 0)))
    return max(1, nbytes // (MLP_TENSORS * tokens * widest * torch.float32.itemsize))


def for_calibration(config: Any) -> Any:
    """A copy of a model's configuration whose attention is the one calibration computes with."""
    config = copy.deepcopy(config)
    config._attn_implementation = DENSE_ATTENTION
    return config
