"""All layers of a model converted, one after the other, with the text that passes through them."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from conversion.allocation.choose import Choices
from conversion.calibration.streams import Streams
from conversion.errors import OutputError
from conversion.layers.converter import LayerConverter
from conversion.layers.held_out_loss import HeldOutLoss
from conversion.runtime.progress import Progress


def converted_layers(
    converter: LayerConverter,
    choices: Choices,
    streams: Streams | None,
    loss: HeldOutLoss | None,
    progress: Progress,
) -> Iterator[dict[str, Tensor]]:
    """Convert all layers, one at a time; their tensors as a checkpoint stores them.

    Args:
        converter: of the source's layers.
        choices: made for every layer.
        streams: the calibration text before the first layer; ``None``: no layer has a use for it.
        loss: moved past every layer; ``None``: not measured.
        progress: told about every layer.

    Raises:
        OutputError: a tensor came out NaN or infinite.
    """

    def keep_layer(layer: Any) -> dict[str, Tensor]:
        if streams is not None:
            converter.layers.push(layer, streams.original, rounded=True)
        if streams is not None and streams.refit is not None:
            converter.layers.push(layer, streams.refit.converted, rounded=True)
        if loss is not None:
            loss.push(layer, None)
        return {}

    def convert_layer(index: int, layer: Any) -> dict[str, Tensor]:
        if index in converter.layers.kept:
            return keep_layer(layer)
        widths, token_weights = choices.layer_widths[index], choices.token_weights[index]
        if streams is not None:
            converter.measurements.measure(layer, index, streams.original)
        tensors = converter.convert(layer, index, widths)
        check_finite(index, tensors)
        tensors = converter.coded(layer, index, tensors, streams)
        stored = converter.stored(layer, tensors)
        if streams is not None and streams.refit is not None:
            solution = converter.refit(layer, index, widths, tensors, token_weights, streams)
            check_finite(index, solution)
            tensors, stored = tensors | solution, stored | solution
        elif streams is not None:
            converter.layers.push(layer, streams.original, rounded=True)
        if loss is not None:
            loss.push(layer, converter.latent_attention(layer, index, widths, tensors))
        return stored

    return converter.layers.for_each_layer(convert_layer, "Converting layers", progress)


def check_finite(index: int, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors of a layer that are not finite.

    Raises:
        OutputError: naming one.
    """
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise OutputError(
                f"layer {index}: {name} came out NaN or infinite; the source's weights may be "
                "damaged, or a recipe's refine_lr too high"
            )
