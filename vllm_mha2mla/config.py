"""The checkpoint contract: the keys of a converted ``config.json``.

``conversion`` writes them and ``vllm_mha2mla`` serves by them. Of this package, ``conversion``
imports this file, errors, version, free memory, rotary embedding and the transformers models;
``vllm_mha2mla`` imports nothing of ``conversion``. The names follow DeepSeek-V2's MLA.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from vllm_mha2mla.errors import CheckpointError

FORMAT_VERSION = 3
"""Version of the contract, written into every checkpoint.

A release reads this version and older ones and refuses newer ones. It goes up when an older release
would serve a new checkpoint wrongly, not when a key is added that it may ignore.
"""

ROPE_INV_FREQ = "rope_inv_freq"
"""Name, under ``self_attn.``, of the float32 frequencies of the kept rotary pairs."""

ROTARY_MEAN = "rotary_mean"
"""Name of the mean of a coded row's rotary columns before the turn, float32."""

FIRST_ROW = "first_row"
"""Name of the row that a text's first row is coded against, float32."""

CONSTANTS = (ROPE_INV_FREQ, ROTARY_MEAN, FIRST_ROW)
"""The tensors of a layer that stay in float32 and are never trained."""

EXACT = ("F32", "F64", "float32", "float64")
"""Dtypes that hold them."""

NUMBERS = (*EXACT, "F16", "BF16", "float16", "bfloat16")
"""Dtypes of weights that are not quantised."""

FIXED_KEYS = (
    *("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor"),
    *("no_rope_layers", "no_rope_layer_interval", "attention_multiplier"),
)
"""Keys of the source that a conversion has worked into the weights: others have no effect."""

LATENT_KEYS = (
    *("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    *("kv_b_proj_groups", "kv_lora_rank_per_layer", "qk_rope_head_dim_per_layer"),
    *("row_bits_per_layer", "attention_scale", "attention_bias", "mha2mla"),
)
"""Keys that only a converted model has: they describe its weights."""


FULL, SLIDING = "full_attention", "sliding_attention"
"""The kinds, in ``layer_types``, of layers that attend to everything before, or to a window."""


@dataclass(frozen=True)
class LatentWidths:
    """Widths of the row ``[c ; k_rope]`` that one layer caches per token, for all heads.

    Both are 0 in a layer that keeps the source's attention, and its cache.
    """

    kv_lora_rank: int
    qk_rope_head_dim: int

    @property
    def kept(self) -> bool:
        """Tell if the layer keeps the source's attention."""
        return self.kv_lora_rank == 0

    @property
    def width(self) -> int:
        """Numbers per token in this layer's cache."""
        return self.kv_lora_rank + self.qk_rope_head_dim


KEPT = LatentWidths(0, 0)
"""The widths of a layer that keeps the source's attention."""


class LatentConfig(Protocol):
    """The keys a model config of any family carries once it is converted."""

    num_hidden_layers: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_rope_head_dim: int
    num_attention_heads: int
    kv_b_proj_groups: int | None
    kv_lora_rank_per_layer: list[int] | None
    qk_rope_head_dim_per_layer: list[int] | None
    row_bits_per_layer: list[list[int]] | None
    mha2mla: dict[str, Any] | None


class SourceInfo(BaseModel):
    """The checkpoint a conversion started from."""

    model_config = ConfigDict(extra="forbid")

    name: str
    model_type: str
    fingerprint: str
    num_key_value_heads: int
    head_dim: int

    @property
    def cache_width(self) -> int:
        """Numbers the source caches per token and layer: keys and values of every KV head."""
        return 2 * self.num_key_value_heads * self.head_dim


class CalibrationInfo(BaseModel):
    """The text the statistics came from."""

    model_config = ConfigDict(extra="forbid")

    files: list[str]
    fingerprint: str
    tokens: int
    window: int


class HealingInfo(BaseModel):
    """A training of the converted checkpoint."""

    model_config = ConfigDict(extra="forbid")

    recipe: dict[str, Any]
    teacher: str
    teacher_fingerprint: str
    files: list[str]
    fingerprint: str
    tokens: int
    rates: dict[int, float] = {}
    """Peak learning rates by the step from which each held, where a resumed run was given another
    than the recipe's; empty: the recipe's throughout."""
    stored_top_k: int | None = None
    """Predictions stored per position; ``None`` where the teacher itself was run in training."""
    versions: dict[str, str] = {}
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    kept: Literal["start", "end"] = "end"
    """Weights of the checkpoint: those before the training, if the trained ones did worse."""


class Provenance(BaseModel):
    """The ``mha2mla`` block of ``config.json``: how the checkpoint came to be."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    source: SourceInfo
    recipe: dict[str, Any]
    calibration: CalibrationInfo | None = None
    versions: dict[str, str] = {}
    figures: dict[str, float] = {}
    healing: list[HealingInfo] = []


def refuse_rounded(stored: Iterable[tuple[str, str]]) -> None:
    """Refuse a checkpoint whose constants have been cast to fewer bits than float32 has.

    Args:
        stored: name and dtype of its tensors, the dtype as torch or safetensors write it.

    Raises:
        CheckpointError: a constant is rounded.
    """
    for name, dtype in stored:
        written = dtype.removeprefix("torch.")
        if name.endswith(CONSTANTS) and written not in EXACT:
            raise CheckpointError(
                f"{name} is stored in {written}: rounded, it is wrong in long contexts; take the "
                "checkpoint from before it was cast, and cast it with transformers' model.to(dtype)"
            )


def refuse_no_numbers(stored: Iterable[tuple[str, str]]) -> None:
    """Refuse a checkpoint that is not quantised, and holds integers or numbers of 8 bits.

    Args:
        stored: name and dtype of its tensors, the dtype as torch or safetensors write it.

    Raises:
        CheckpointError: a tensor is of such a dtype; loaded, it would be cast to other numbers.
    """
    for name, dtype in stored:
        written = dtype.removeprefix("torch.")
        if written not in NUMBERS:
            raise CheckpointError(
                f"{name} is stored in {written}, and config.json does not call the model "
                "quantised; convert the model again"
            )


def check_format_version(block: dict[str, Any] | None) -> None:
    """Refuse a checkpoint this release cannot read.

    Raises:
        CheckpointError: the ``mha2mla`` block names a newer format, or none.
    """
    if block is None:
        return
    version = block.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(
            f"config.json: mha2mla.format_version is {version!r}; convert the model again"
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"config.json: format_version {version} is newer than this release reads "
            f"({FORMAT_VERSION}); upgrade with: pip install -U vllm-mha2mla"
        )


def check_scale(scale: float) -> None:
    """Refuse a factor of the scores that no attention has.

    Raises:
        CheckpointError: not a positive number.
    """
    if not 0 < scale < math.inf:
        raise CheckpointError(f"config.json: attention_scale is {scale}; convert the model again")


def source_head_dim(config: Any) -> int:
    """Width of a head of the source, by its config or a converted model's."""
    found: int | None = getattr(config, "head_dim", None)
    return found or int(config.hidden_size // config.num_attention_heads)


def read_provenance(config: LatentConfig) -> Provenance:
    """The typed provenance block of a converted model's config.

    Raises:
        CheckpointError: the block is missing or malformed.
    """
    check_format_version(config.mha2mla)
    if config.mha2mla is None:
        raise CheckpointError("config.json has no mha2mla block; convert the model again")
    try:
        return Provenance.model_validate(config.mha2mla)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"config.json: mha2mla.{where}: {first['msg']}") from error


def latent_widths(config: LatentConfig) -> list[LatentWidths]:
    """Cache widths of every layer, from the per-layer lists or the uniform keys.

    A layer that slides over a window (``layer_types``) may be kept.

    Raises:
        CheckpointError: a per-layer list has the wrong length, or a width is impossible.
    """
    num_layers = config.num_hidden_layers
    ranks = _per_layer(
        config.kv_lora_rank_per_layer, config.kv_lora_rank, num_layers, "kv_lora_rank_per_layer"
    )
    ropes = _per_layer(
        config.qk_rope_head_dim_per_layer,
        config.qk_rope_head_dim,
        num_layers,
        "qk_rope_head_dim_per_layer",
    )
    kinds = [*(getattr(config, "layer_types", None) or ()), *[None] * num_layers]
    for rank, rope, kind in zip(ranks, ropes, kinds, strict=False):
        kept = kind == SLIDING and (rank, rope) == (0, 0)
        if not kept and (rank < 1 or rope < 0 or rope % 2):
            raise CheckpointError(
                f"config.json: kv_lora_rank {rank} must be at least 1 and qk_rope_head_dim "
                f"{rope} even and not negative; convert the model again"
            )
    return [LatentWidths(rank, rope) for rank, rope in zip(ranks, ropes, strict=True)]


def _per_layer(values: Sequence[int] | None, uniform: int, num_layers: int, key: str) -> list[int]:
    if values is None:
        return [uniform] * num_layers
    if len(values) != num_layers:
        raise CheckpointError(
            f"config.json: {key} has {len(values)} entries for {num_layers} layers; "
            "convert the model again"
        )
    return list(values)


def up_projection_groups(config: LatentConfig) -> int:
    """Number of groups of query heads that share their ``W_UK`` and ``W_UV``.

    Heads of one KV head of the source read the same keys and values, so ``kv_b_proj`` holds each
    KV head's up-projections once: query head ``h`` reads group ``h * groups // heads``.
    Checkpoints of format 1 hold them once per query head.

    Raises:
        CheckpointError: the groups do not divide the heads.
    """
    heads, groups = config.num_attention_heads, config.kv_b_proj_groups
    if groups is None:
        return heads
    if groups < 1 or heads % groups:
        raise CheckpointError(
            f"config.json: kv_b_proj_groups {groups} does not divide num_attention_heads {heads}; "
            "convert the model again"
        )
    return groups
