"""The conversion: one layer at a time, from source to checkpoint."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from conversion.allocation.choose import choose
from conversion.allocation.coded_widths import width_grid
from conversion.calibration.store import StatisticsStore
from conversion.checkpoint.card import model_card
from conversion.checkpoint.config import converted_config
from conversion.checkpoint.dtypes import written_dtype
from conversion.checkpoint.staging import check_output, staged_folder
from conversion.checkpoint.writer import CheckpointWriter
from conversion.healing.launch import training_device
from conversion.healing.refine import refine, refinement_windows
from conversion.layers.converter import LayerConverter
from conversion.layers.held_out_loss import HeldOutLoss
from conversion.layers.measurements import Measurements
from conversion.layers.original import SourceLayers
from conversion.pipeline.layers import converted_layers
from conversion.pipeline.provenance import HELD_OUT_DIVERGENCE, provenance_of
from conversion.pipeline.stages import stage_shares
from conversion.pipeline.text import calibration_files, calibration_streams, calibration_text
from conversion.pipeline.write import shard_sizes, write_layers, write_rest
from conversion.recipes.recipe import Recipe
from conversion.recipes.widths import cache_widths, query_rank
from conversion.runtime.memory import return_freed_memory
from conversion.runtime.memory_errors import memory_errors
from conversion.runtime.progress import Progress
from conversion.source import SourceCheckpoint
from vllm_mha2mla.config import LatentWidths, Provenance

WAY_OUT = (
    "lower window, held_out_tokens or calibration_tokens in the recipe, keep activations in files "
    "with --offload, or take --device cpu"
)


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
    widths = _possible_widths(recipe, source)
    rank = query_rank(recipe, source.config.hidden_size, source.family.qk_norm(source.config))
    config_of = partial(converted_config, source, q_lora_rank=rank, dtype=dtype)
    windows = calibration_text(source, recipe)
    to_refine = None
    if recipe.refine_steps:
        to_refine = refinement_windows(source, calibration_files(recipe), recipe)
    provenance = provenance_of(source, recipe, windows)
    with (
        staged_folder(out, options.overwrite, *originals) as folder,
        progress.whole(f"Converting {source.name}", stage_shares(recipe)),
        memory_errors(WAY_OUT),
    ):
        # On disk, or memory would grow with the number of layers.
        store = StatisticsStore(folder, device) if statistics is None else statistics
        measured, tokens = windows.measured.shape
        store.claim(f"{provenance.source.fingerprint} {windows.fingerprint} {measured}x{tokens}")
        layers = SourceLayers(source, tokens, device)
        measurements = Measurements(layers, measured, store)
        converted = config_of(layers.in_all(widths), provenance=provenance)
        converter = LayerConverter(measurements, converted, recipe)
        with CheckpointWriter(folder, shard_sizes(source)) as writer:
            choices = choose(recipe, converter, windows, options.offload, progress)
            if choices.codes is not None:
                converter.code_rows(choices.codes)
            converted = config_of(choices.layer_widths, provenance=provenance, codes=choices.codes)
            streams = calibration_streams(measurements, converted, recipe, windows, options.offload)
            loss = None
            if len(windows.held_out) and to_refine is None:
                loss = HeldOutLoss(layers, windows.held_out, options.offload)
            tensors = converted_layers(converter, choices, streams, loss, progress)
            if to_refine is not None:
                refined = refine(
                    source, converted, list(tensors), to_refine, recipe, device, progress
                )
                tensors = iter(refined)
            write_layers(source, writer, tensors, dtype)
            figures = dict(choices.figures)
            if loss is not None:
                figures[HELD_OUT_DIVERGENCE] = loss.divergence()
            if statistics is None:
                store.clear()
            write_rest(source, writer, dtype, layers.kept)
            source.write_assets(folder)
            provenance = provenance.model_copy(update={"figures": figures})
            converted = config_of(choices.layer_widths, provenance=provenance, codes=choices.codes)
            writer.finish(converted, model_card(provenance, converted))
    return provenance


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
