"""The conversion: one layer at a time, from source to checkpoint."""

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conversion.allocation.choose import Choices, choose
from conversion.allocation.coded_widths import width_grid
from conversion.calibration.store import StatisticsStore
from conversion.calibration.streams import Streams, embedded_text
from conversion.checkpoint.card import model_card
from conversion.checkpoint.config import converted_config
from conversion.checkpoint.dtypes import written_dtype
from conversion.checkpoint.staging import check_output, staged_folder
from conversion.checkpoint.writer import CheckpointWriter
from conversion.errors import OutputError
from conversion.healing.launch import training_device
from conversion.healing.refine import refine, refinement_windows
from conversion.layers.converter import LayerConverter
from conversion.layers.held_out_loss import HeldOutLoss
from conversion.layers.measurements import Measurements
from conversion.layers.original import SourceLayers
from conversion.recipes.recipe import Recipe
from conversion.recipes.widths import cache_widths, query_rank
from conversion.runtime.memory import return_freed_memory
from conversion.runtime.memory_errors import memory_errors
from conversion.runtime.numbers import ceil_div
from conversion.runtime.progress import Progress
from conversion.source import SourceCheckpoint
from conversion.text.sinks import sink_tokens
from conversion.text.tokens import check_vocabulary
from conversion.text.windows import Windows, calibration_windows
from vllm_mha2mla.config import (
    CONSTANTS,
    LatentWidths,
    Provenance,
    SourceInfo,
)
from vllm_mha2mla.version import __version__

# Name of the figure, in the provenance, that tells what the whole conversion lost.
HELD_OUT_DIVERGENCE = "held_out_divergence"
WAY_OUT = (
    "lower window, held_out_tokens or calibration_tokens in the recipe, keep activations in files "
    "with --offload, or take --device cpu"
)
# Tensors a converted layer has at most, above what its source's attention had.
CONVERTED_TENSORS = 8


@dataclass(frozen=True)
class Options:
    """The way a conversion runs, as opposed to its recipe.

    Attributes:
        device: where layers are computed, one at a time. A GPU also keeps the activations and
            statistics that it has room for.
        dtype: of the written weights; ``None`` gives the source's if that has 16 bits, else
            bfloat16 (``checkpoint.dtypes.written_dtype``).
        overwrite: whether an existing checkpoint may be replaced.
        offload: folder whose disk holds the calibration activations; ``None``: memory does.
    """

    device: str = "cpu"
    dtype: torch.dtype | None = None
    overwrite: bool = False
    offload: Path | None = None


def convert(
    source: SourceCheckpoint,
    out: Path,
    recipe: Recipe,
    options: Options,
    progress: Progress,
    statistics: StatisticsStore | None = None,
) -> Provenance:
    """Convert ``source`` and write the checkpoint to ``out``.

    1. Push the calibration text through the source, layer by layer.
    2. Measure each layer's attention on it (``calibration.statistics``).
    3. Choose every layer's cache widths on held-out text, unless they are given, and measure there
       how much tokens count in a refit (``allocation.choose``).
    4. Choose what stays in RoPE (``rotary``), factorise the rest (``latent``), assemble.
    5. Refit the output projection on the converted stream if the recipe says so.
    6. Refine all layers together if the recipe says so (``healing.refine``), or measure what is
       lost on the held-out text; write.

    Memory: the activations of the calibration text, and of the held-out text before every layer,
    unless they are offloaded, and one layer.

    Args:
        source: the checkpoint to convert.
        out: the folder to create.
        recipe: what to make.
        options: how to run.
        progress: told about every layer.
        statistics: of the same source and text, from a conversion before; what is missing is
            measured and put there. When nothing is missing and nothing is refitted, the text is
            not pushed through the source at all.

    Raises:
        OutputError, SourceError, TextError, RecipeError, OffloadError, TrainingError,
            DeviceMemoryError: with the way out.
    """
    device = torch.device(options.device)
    if recipe.refine_steps:
        training_device(options.device)
    return_freed_memory()
    originals = (source.name, *recipe.calibration)
    check_output(out, options.overwrite, *originals)
    source.check_assets()
    dtype = written_dtype(source, options.dtype)
    config = source.config
    widths = _possible_widths(recipe, source)
    q_lora_rank = query_rank(recipe, config.hidden_size, source.family.qk_norm(config))
    windows = calibration_text(source, recipe)
    to_refine = None
    if recipe.refine_steps:
        to_refine = refinement_windows(source, _files(recipe), recipe)
    provenance = _provenance(source, recipe, windows)
    with (
        staged_folder(out, options.overwrite, *originals) as folder,
        progress.whole(f"Converting {source.name}", stage_shares(recipe)),
        memory_errors(WAY_OUT),
    ):
        # On disk, or memory would grow with the number of layers.
        store = StatisticsStore(folder, device) if statistics is None else statistics
        shape = "x".join(map(str, windows.measured.shape))
        store.claim(f"{provenance.source.fingerprint} {windows.fingerprint} {shape}")
        measured, tokens = windows.measured.shape
        source_layers = SourceLayers(source, tokens, device)
        uniform = source_layers.in_all(widths)
        converted = converted_config(source, uniform, q_lora_rank, dtype, provenance)
        measurements = Measurements(source_layers, measured, store)
        converter = LayerConverter(measurements, converted, recipe)
        with CheckpointWriter(folder, _shard_sizes(source)) as writer:
            choices = choose(recipe, converter, windows, options.offload, progress)
            layer_widths, figures = choices.layer_widths, dict(choices.figures)
            if choices.codes is not None:
                converter.code_rows(choices.codes)
            converted = converted_config(
                source, layer_widths, q_lora_rank, dtype, provenance, choices.codes
            )
            streams = _streams(measurements, converted, recipe, windows, options)
            loss = None
            if len(windows.held_out) and to_refine is None:
                loss = HeldOutLoss(source_layers, windows.held_out, options.offload)
            layers = _converted_layers(converter, choices, streams, loss, progress)
            if to_refine is not None:
                refined = refine(
                    source, converted, list(layers), to_refine, recipe, device, progress
                )
                layers = iter(refined)
            _write_layers(source, writer, layers, dtype)
            if loss is not None:
                figures[HELD_OUT_DIVERGENCE] = loss.divergence()
            if statistics is None:
                store.clear()
            _write_rest(source, writer, dtype, source_layers.kept)
            source.write_assets(folder)
            provenance = provenance.model_copy(update={"figures": figures})
            converted = converted_config(
                source, layer_widths, q_lora_rank, dtype, provenance, choices.codes
            )
            card = model_card(provenance, converted)
            writer.finish(converted, card)
    return provenance


def stage_shares(recipe: Recipe) -> dict[str, float]:
    """Processor time of every stage of a conversion, up to a common factor.

    Measured on SmolLM2-135M with the default recipe, per layer.
    """
    text = recipe.calibration_tokens / 10240
    coded = recipe.row_bits is not None
    converting = 4.5 if coded else 4.0
    shares = {
        "Converting layers": converting * recipe.text_tokens / 40960 if recipe.refits else 0.5
    }
    if coded or recipe.spreads or recipe.weighs_tokens:
        shares["Measuring attention"] = 2.3 * text
        shares["Measuring what layers lose"] = 2.6 if recipe.spreads else 0.6
    else:
        shares["Converting layers"] += 2.3 * text
    if coded:
        shares["Measuring what layers lose"] = 2.6 + 4.0 * recipe.held_out / 8192
    elif recipe.split == "auto" and recipe.kv_lora_rank is None:
        shares["Choosing widths"] = 1.1
    if recipe.refine_steps:
        shares["Refining"] = 0.09 * recipe.refine_steps
    return shares


def calibration_text(source: SourceCheckpoint, recipe: Recipe) -> Windows:
    """The calibration text as a recipe takes it, and what it holds out.

    Raises:
        TextError: it cannot be used, or the tokenizer is not this model's.
    """
    window = source.window(recipe.window)
    windows = calibration_windows(
        source.tokenizer(), _files(recipe), recipe.text_tokens, window, recipe.held_out
    )
    windows = windows.measured_first(ceil_div(recipe.calibration_tokens, window))
    windows = windows.repeated(recipe.repeats)
    check_vocabulary(source.name, source.config.vocab_size, windows.ids, windows.held_out)
    return windows


def _possible_widths(recipe: Recipe, source: SourceCheckpoint) -> LatentWidths:
    """Widths that a layer may have, before any are chosen.

    Raises:
        RecipeError: the recipe does not fit the source.
    """
    config = source.config
    shape = config.num_key_value_heads, config.head_dim
    if recipe.row_bits is None:
        return cache_widths(recipe, *shape)
    grid = width_grid(recipe, *shape, source.family.input_width(config))
    return LatentWidths(grid.ranks(grid.ropes[0])[0], grid.ropes[0])


def _files(recipe: Recipe) -> list[Path]:
    return [Path(name).expanduser() for name in recipe.calibration]


def _streams(
    measurements: Measurements,
    converted: Any,
    recipe: Recipe,
    windows: Windows,
    options: Options,
) -> Streams | None:
    """The embedded calibration text; ``None`` if no layer has a use for it."""
    source, device = measurements.layers.source, measurements.layers.device
    if not recipe.refits and measurements.complete:
        return None
    if not recipe.refits:
        return embedded_text(source, windows.measured, None, options.offload, device)
    width = converted.num_attention_heads * converted.v_head_dim
    sinks = None
    if recipe.refit_sinks:
        sinks = sink_tokens(source.tokenizer(), windows.ids, source.config.vocab_size)
    return embedded_text(source, windows.ids, width, options.offload, device, sinks)


def _converted_layers(
    converter: LayerConverter,
    choices: Choices,
    streams: Streams | None,
    loss: HeldOutLoss | None,
    progress: Progress,
) -> Iterator[dict[str, Tensor]]:
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
        _check_finite(index, tensors)
        tensors = converter.coded(layer, index, tensors, streams)
        stored = converter.stored(layer, tensors)
        if streams is not None and streams.refit is not None:
            solution = converter.refit(layer, index, widths, tensors, token_weights, streams)
            _check_finite(index, solution)
            tensors, stored = tensors | solution, stored | solution
        elif streams is not None:
            converter.layers.push(layer, streams.original, rounded=True)
        if loss is not None:
            loss.push(layer, converter.latent_attention(layer, index, widths, tensors))
        return stored

    return converter.layers.for_each_layer(convert_layer, "Converting layers", progress)


def _write_layers(
    source: SourceCheckpoint,
    writer: CheckpointWriter,
    layers: Iterable[dict[str, Tensor]],
    dtype: torch.dtype,
) -> None:
    for index, tensors in enumerate(layers):
        _check_finite(index, tensors)
        prefix = source.family.attention_prefix(index)
        origin = source.attention(index)
        for name in list(tensors):
            tensor = tensors.pop(name)
            kept = torch.float32 if name in CONSTANTS else dtype
            shape = tuple(tensor.shape)
            writer.write_pieces(prefix + name, (tensor,), shape, kept, origin.shard)


def _check_finite(index: int, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise OutputError(
                f"layer {index}: {name} came out NaN or infinite; the source's weights may be "
                "damaged, or a recipe's refine_lr too high"
            )


def _write_rest(
    source: SourceCheckpoint, writer: CheckpointWriter, dtype: torch.dtype, kept: Collection[int]
) -> None:
    for name, info in source.tensors.items():
        if not source.family.in_attention(name, kept):
            pieces = source.pieces(name)
            writer.write_pieces(name, pieces, info.shape, dtype, info.shard)


def _shard_sizes(source: SourceCheckpoint) -> dict[str, int]:
    sizes = Counter(info.shard for info in source.tensors.values())
    for index in range(source.config.num_hidden_layers):
        sizes[source.attention(index).shard] += CONVERTED_TENSORS
    return dict(sizes)


def _provenance(source: SourceCheckpoint, recipe: Recipe, windows: Windows) -> Provenance:
    versions = {
        package: importlib.metadata.version(package) for package in ("torch", "transformers")
    }
    return Provenance(
        source=SourceInfo(
            name=source.name,
            model_type=source.config.model_type,
            fingerprint=source.fingerprint(),
            num_key_value_heads=source.config.num_key_value_heads,
            head_dim=source.config.head_dim,
        ),
        recipe=recipe.model_dump(exclude_none=True),
        calibration=windows.info,
        versions={"vllm-mha2mla": __version__, "python": platform.python_version()} | versions,
    )
