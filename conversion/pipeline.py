"""The conversion: one layer at a time, from source to checkpoint."""

import copy
import importlib.metadata
import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conversion.calibration.activations import Activations
from conversion.calibration.store import StatisticsStore
from conversion.calibration.text import Windows, calibration_windows
from conversion.errors import CalibrationError
from conversion.layer import LayerConverter, RefitStreams, Streams
from conversion.model_card import model_card
from conversion.progress import Progress
from conversion.recipe import Recipe
from conversion.source import SourceCheckpoint
from conversion.writer import CheckpointWriter, check_output, staged_folder
from vllm_mha2mla.config import (
    ROPE_INV_FREQ,
    CalibrationInfo,
    LatentLayout,
    Provenance,
    SourceInfo,
    layer_layouts,
)
from vllm_mha2mla.version import __version__

ATTENTION = "self_attn."
EMBEDDING = "model.embed_tokens.weight"
# Tensors a converted layer has at most, above what its source's attention had.
CONVERTED_TENSORS = 8


@dataclass(frozen=True)
class Options:
    """How to run a conversion, as opposed to what it makes.

    Attributes:
        device: where a layer is computed; only the current layer moves there.
        dtype: of the written weights; the source's if ``None``.
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
    3. Choose what stays in RoPE (``rotary``), factorise the rest (``latent``), assemble.
    4. Refit the output projection on the converted stream if the recipe says so, write, go on.

    Memory: the activations of the calibration text, unless they are offloaded, and one layer.

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
        OutputError, SourceError, CalibrationError, RecipeError, OffloadError: with the way out.
    """
    check_output(out, options.overwrite)
    config = source.config
    layout = recipe.layout(config.num_key_value_heads, config.head_dim)
    q_lora_rank = recipe.query_rank(config.hidden_size)
    files = [Path(name).expanduser() for name in recipe.calibration]
    limit = getattr(config, "max_position_embeddings", recipe.window)
    windows = calibration_windows(
        source.tokenizer(), files, recipe.calibration_tokens, min(recipe.window, limit)
    )
    if int(windows.ids.max()) >= config.vocab_size:
        raise CalibrationError(
            f"{source.name}: the tokenizer makes ids beyond the vocabulary of "
            f"{config.vocab_size}; it belongs to another model"
        )
    provenance = _provenance(source, recipe, windows)
    converted = converted_config(source, layout, q_lora_rank, options.dtype, provenance)
    if statistics is not None:
        shape = "x".join(map(str, windows.ids.shape))
        statistics.claim(f"{provenance.source.fingerprint} {windows.fingerprint} {shape}")
    with staged_folder(out, options.overwrite) as folder:
        writer = CheckpointWriter(folder, _shard_sizes(source))
        try:
            streams = _streams(source, converted, recipe, windows.ids, options, statistics)
            converter = _converter(source, converted, recipe, windows, options, statistics)
            _write_layers(source, writer, converter, converted, streams, options, progress)
            _write_rest(source, writer, options.dtype)
            source.write_assets(folder)
            card = model_card(provenance, layer_layouts(converted), converted.dtype)
            writer.finish(converted, card)
        except BaseException:
            writer.abandon()
            raise
    return provenance


def _streams(
    source: SourceCheckpoint,
    converted: Any,
    recipe: Recipe,
    ids: Tensor,
    options: Options,
    statistics: StatisticsStore | None,
) -> Streams | None:
    """The embedded calibration text, and room for what a refit needs; ``None`` if nothing does."""
    layers = range(source.config.num_hidden_layers)
    if not recipe.refit and statistics is not None and all(i in statistics for i in layers):
        return None
    windows, tokens = ids.shape
    width = source.config.hidden_size
    original = Activations(windows, tokens, width, options.offload)
    refitted = None
    if recipe.refit:
        heads = converted.num_attention_heads * converted.v_head_dim
        refitted = RefitStreams(
            converted=Activations(windows, tokens, width, options.offload),
            heads=Activations(windows, tokens, heads, options.offload),
        )
    # As stored, and only the rows in use: the whole table in float32 can be larger than a layer.
    used, rows = ids.unique(return_inverse=True)  # rows: [windows, tokens]
    table = torch.empty(len(used), width, dtype=source.tensors[EMBEDDING].dtype)
    start = 0
    for piece in source.pieces(EMBEDDING):
        here = (used >= start) & (used < start + len(piece))
        table[here] = piece[used[here] - start]
        start += len(piece)
    for window in range(windows):
        x = table[rows[window]].float()  # [tokens, hidden]
        original[window] = x
        if refitted is not None:
            refitted.converted[window] = x
    return Streams(original, refitted)


def _converter(
    source: SourceCheckpoint,
    converted: Any,
    recipe: Recipe,
    windows: Windows,
    options: Options,
    statistics: StatisticsStore | None,
) -> LayerConverter:
    config, converted = _for_calibration(source.config), _for_calibration(converted)
    rotary = source.family.rotary_embedding(config)
    device, tokens = torch.device(options.device), windows.ids.shape[1]
    return LayerConverter(config, converted, rotary, recipe, tokens, device, statistics)


def _for_calibration(config: Any) -> Any:
    config = copy.deepcopy(config)
    # Calibration windows are dense and causal, so no implementation needs a mask here.
    config._attn_implementation = "sdpa"
    return config


def _write_layers(
    source: SourceCheckpoint,
    writer: CheckpointWriter,
    converter: LayerConverter,
    converted: Any,
    streams: Streams | None,
    options: Options,
    progress: Progress,
) -> None:
    config, layouts = _for_calibration(source.config), layer_layouts(converted)
    device = torch.device(options.device)
    with progress.task("Converting layers", len(layouts)) as advance:
        for index, layout in enumerate(layouts):
            layer = _load_layer(source, config, index, device)
            tensors = converter.convert(layer, index, layout, streams)
            prefix = f"model.layers.{index}.{ATTENTION}"
            origin = source.tensors[f"{prefix}q_proj.weight"]
            for name, tensor in tensors.items():
                dtype = torch.float32 if name == ROPE_INV_FREQ else options.dtype or origin.dtype
                writer.write(prefix + name, tensor.to(dtype), origin.shard)
            # Else they would be there until the next layer has been loaded and converted.
            del layer, tensors, tensor
            advance()


def _load_layer(source: SourceCheckpoint, config: Any, index: int, device: torch.device) -> Any:
    with torch.device("meta"):
        layer = source.family.decoder_layer(config, index)
    layer.load_state_dict(source.layer(index, torch.float32), assign=True)
    return layer.to(device).eval()


def _write_rest(
    source: SourceCheckpoint, writer: CheckpointWriter, dtype: torch.dtype | None
) -> None:
    for name, info in source.tensors.items():
        if f".{ATTENTION}" not in name:
            pieces = source.pieces(name)
            writer.write_pieces(name, pieces, info.shape, dtype or info.dtype, info.shard)


def _shard_sizes(source: SourceCheckpoint) -> dict[str, int]:
    sizes = Counter(info.shard for info in source.tensors.values())
    for name, info in source.tensors.items():
        if name.endswith(f"{ATTENTION}q_proj.weight"):
            sizes[info.shard] += CONVERTED_TENSORS
    return dict(sizes)


def converted_config(
    source: SourceCheckpoint,
    layout: LatentLayout,
    q_lora_rank: int | None,
    dtype: torch.dtype | None,
    provenance: Provenance,
) -> Any:
    """The converted model's config: the source's, with the keys of ``vllm_mha2mla.config``."""
    values = source.config.to_dict()
    for key in ("architectures", "model_type", "transformers_version", "quantization_config"):
        values.pop(key, None)
    rope = values.get("rope_parameters") or {}
    scaling = _rope_attention_scaling(source)
    head_dim = source.config.head_dim
    stored = source.tensors["model.layers.0.self_attn.q_proj.weight"].dtype
    config = source.family.config_class(
        **values
        | {
            "rope_parameters": rope,
            "kv_lora_rank": layout.kv_lora_rank,
            "qk_rope_head_dim": layout.qk_rope_head_dim,
            "q_lora_rank": q_lora_rank,
            "qk_nope_head_dim": head_dim,
            "v_head_dim": head_dim,
            "attention_scale": head_dim**-0.5 * scaling**2,
            "mha2mla": provenance.model_dump(mode="json"),
        }
    )
    config.architectures = [source.family.converted_causal_lm.__name__]
    config.dtype = dtype or stored
    return config


def _rope_attention_scaling(source: SourceCheckpoint) -> float:
    return float(source.family.rotary_embedding(source.config).attention_scaling)


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
        calibration=CalibrationInfo(
            files=windows.files,
            fingerprint=windows.fingerprint,
            tokens=windows.tokens,
            window=windows.ids.shape[1],
        ),
        versions={"vllm-mha2mla": __version__, "python": platform.python_version()} | versions,
    )
