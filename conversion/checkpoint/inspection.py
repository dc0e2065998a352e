"""The description of a converted checkpoint: source, method, widths and cache."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError

from conversion.checkpoint.cache_size import cache_figures
from conversion.checkpoint.loading import read_converted_config
from conversion.errors import first_line
from conversion.source.quantised import quantisation
from vllm_mha2mla.coding.row_code import UNIT, RowCode, row_codes
from vllm_mha2mla.config import latent_widths, read_provenance, refuse_no_numbers, refuse_rounded
from vllm_mha2mla.errors import CheckpointError
from vllm_mha2mla.hf.loading import stored_dtypes


class RowBits(BaseModel):
    """The coded rows of one layer.

    Attributes:
        latent: latent columns by their bits, falling.
        rotary: rotary columns by their bits, falling.
        bytes: of a row, its scales included.
    """

    latent: dict[int, int]
    rotary: dict[int, int]
    bytes: int


class Inspection(BaseModel):
    """The description of a checkpoint that ``mha2mla inspect`` shows.

    Lists of widths and bits have an entry per layer, zeros for those that keep their attention.
    """

    source: str
    source_fingerprint: str
    model_type: str
    method: str
    dtype: str
    layers: int
    kept_layers: list[int]
    kv_lora_rank: list[int]
    qk_rope_head_dim: list[int]
    row_bits: list[RowBits] | None = None
    q_lora_rank: int | None
    cache_bytes_per_token: int
    gpu_cache_bytes_per_token: int
    baseline_bytes_per_token: int
    cache_fraction: float
    recipe: dict[str, Any]
    versions: dict[str, str]
    figures: dict[str, float]
    healed_tokens: int


def inspect(folder: Path) -> Inspection:
    """Read a converted checkpoint's config, and the dtypes of its tensors.

    Raises:
        CheckpointError: ``folder`` is not a converted checkpoint, has a newer format, its
            constants have been rounded, or its weights are integers.
    """
    config = read_converted_config(folder)
    try:
        stored = dict(stored_dtypes(sorted(str(file) for file in folder.glob("*.safetensors"))))
    except (SafetensorError, OSError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{folder}: weights cannot be read ({reason})") from error
    refuse_rounded(stored.items())
    if quantisation(config) is None:
        refuse_no_numbers(stored.items())
    provenance = read_provenance(config)
    layer_widths = latent_widths(config)
    cache, codes = cache_figures(config), row_codes(config)
    return Inspection(
        source=provenance.source.name,
        source_fingerprint=provenance.source.fingerprint,
        model_type=config.model_type,
        method=str(provenance.recipe.get("method", "")),
        dtype=str(config.dtype).removeprefix("torch."),
        layers=len(layer_widths),
        kept_layers=[index for index, widths in enumerate(layer_widths) if widths.kept],
        kv_lora_rank=[widths.kv_lora_rank for widths in layer_widths],
        qk_rope_head_dim=[widths.qk_rope_head_dim for widths in layer_widths],
        row_bits=None if codes is None else [_row_bits(code) for code in codes],
        q_lora_rank=config.q_lora_rank,
        cache_bytes_per_token=cache.bytes_per_token,
        gpu_cache_bytes_per_token=cache_figures(config, "cuda").bytes_per_token,
        baseline_bytes_per_token=cache.baseline_bytes_per_token,
        cache_fraction=cache.fraction,
        recipe=provenance.recipe,
        versions=provenance.versions,
        figures=provenance.figures,
        healed_tokens=sum(done.tokens for done in provenance.healing if done.kept == "end"),
    )


def _row_bits(code: RowCode) -> RowBits:
    rotary = [bits for half in code.rotary_units for bits in half]
    return RowBits(
        latent=_columns(code.latent_units), rotary=_columns(rotary), bytes=code.row_bytes
    )


def _columns(units: Sequence[int]) -> dict[int, int]:
    """Columns by their bits, falling."""
    return {bits: UNIT * count for bits, count in sorted(Counter(units).items(), reverse=True)}
