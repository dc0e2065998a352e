"""A converted layer made ready for the code of its rows."""

from typing import Any

import torch
from torch import Tensor

from conversion.calibration.streams import Streams
from conversion.coding.fold import folded
from conversion.coding.row_maps import row_statistics
from conversion.layers.measurements import Measurements
from vllm_mha2mla.coding.row_code import RowCode


@torch.no_grad()
def coded_tensors(
    measurements: Measurements,
    layer: Any,
    index: int,
    tensors: dict[str, Tensor],
    code: RowCode,
    streams: Streams | None,
) -> dict[str, Tensor]:
    """Converted tensors of one layer with the basis of its coded rows folded into them.

    Args:
        measurements: of the source's layers; the metric of the layer's rows is in their store.
        layer: as ``layers`` loads it.
        index: which layer it is.
        tensors: its converted ones.
        code: of its rows.
        streams: hidden states before the layer; those of single tokens, if there are any, tell
            what begins a text.
    """
    statistics = measurements.load(index)
    down, rope = tensors["kv_a_proj_with_mqa.weight"], code.widths.qk_rope_head_dim
    rows = row_statistics(
        down,
        tensors.get("kv_a_proj_with_mqa.bias"),
        rope,
        measurements.store.metric(index, rope),
        *statistics.of_later_tokens(),
    )
    layers = measurements.layers
    first = statistics.first_inputs.mean(0)
    if streams is not None and streams.refit is not None and streams.refit.sinks:
        alone = streams.refit.converted[slice(-streams.refit.sinks, None)].to(layers.device)
        first = layers.inputs(layer, layers.normed(layer, alone)).mean((0, 1))
        # With QK-norm, rows are maps of a part of it.
        first = first[-down.shape[1] :]
    return folded(tensors, rows, code, layers.config.num_attention_heads, first)
