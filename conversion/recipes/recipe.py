"""The typed recipe of a conversion, written into every checkpoint it makes."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from conversion.latent import LATENT
from conversion.recipes.fields import optional
from conversion.recipes.methods import METHODS
from conversion.recipes.targets import OFFERED, Target
from conversion.rotary import ROTARY

if TYPE_CHECKING:
    from conversion.latent.factors import LatentMethod
    from conversion.rotary.selection import RotaryMethod

# Part of the cache that is kept where neither a fraction nor widths are given.
DEFAULT_FRACTION = 0.5
# Text for refits as a multiple of that for statistics; a refit takes far less time per window.
REFIT_SHARE = 4
# Tokens to hold out: the metric of coded rows has more numbers than a choice of widths.
HELD_OUT, HELD_OUT_CODED = 2048, 8192
# Pull of a refit. The less is lost, the less there is to repair, and the more of a fit is chance:
# so much more of the bytes wants ten times the pull, for coded rows of mixed bits.
RIDGE, RIDGE_FRACTION, RIDGE_DECADE, MOST_RIDGE = 400.0, 0.16, 0.107, 1e6
Bits = Literal["auto", "16", "8", "4"]
# All that coded rows may have (vllm_mha2mla.coding.codebooks, which imports torch).
MIXED_BITS = (1, 2, 3, 4, 6, 8)
CHOICES: dict[str, Collection[str]] = {"method": METHODS, "rotary": ROTARY, "latent": LATENT}


class Recipe(BaseModel):
    """Settings of a conversion that decide its result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(
        "calibrated",
        description="Method to convert with: calibrated (this project's), or as published: "
        "mha2mla, transmla, care.",
    )
    rotary: str | None = optional(
        "the method's",
        f"Strategy that chooses which rotary components stay: {', '.join(ROTARY)}.",
    )
    latent: str | None = optional(
        "the method's",
        f"Strategy that makes the low-rank factors: {', '.join(LATENT)}.",
    )
    cache_fraction: float | None = optional(
        str(DEFAULT_FRACTION),
        "Part of the bytes of the original's 16-bit cache to keep. Give this, or kv_lora_rank and "
        "rope_dim.",
        gt=0,
        le=1,
    )
    kv_lora_rank: int | None = optional(
        "from cache_fraction", "Latent numbers to cache per token and layer.", ge=1
    )
    rope_dim: int | None = optional(
        "from cache_fraction",
        "Rotary numbers to cache per token and layer, shared by all heads; an even number.",
        ge=0,
    )
    bits: Bits = Field(
        "auto",
        description="Bits of a cached number. 16: rows as the engine computes them. 8 and 4: coded "
        "rows, all in so many bits. auto: coded rows for calibrated, where every eight columns "
        "have 1, 2, 3, 4, 6 or 8 bits, chosen together with the widths; 16 for the published "
        "methods, exact or uniform widths, target: cuda and a whole cache.",
    )
    target: Target = Field(
        "any",
        description="Where rows of the chosen widths are to be fast. cuda offers only those that "
        f"GPU kernels take: {OFFERED} numbers per token and layer, within the cache_fraction.",
    )
    split: Literal["auto", "fixed"] = Field(
        "auto",
        description="Split of a cache_fraction between latent and rotary numbers: auto chooses it "
        "on held-out calibration text, fixed takes the method's published share.",
    )
    held_out_tokens: int | None = optional(
        f"{HELD_OUT}, or {HELD_OUT_CODED} for coded rows",
        "Tokens of calibration text to hold out and choose widths and bits on. At 16 bits and less "
        f"than a quarter of the cache, {HELD_OUT_CODED} give better widths.",
        ge=2,
    )
    spread: bool | None = optional(
        "on for calibrated",
        "Give each layer its own widths, chosen on held-out calibration text. Off: the same widths "
        "in every layer.",
    )
    q_lora_rank: int | None = optional(
        "one matrix", "Factorise the query projection through so many numbers.", ge=1
    )
    key_weight: float = Field(
        1.0,
        gt=0,
        description="Weight of errors of keys against errors of values in the calibrated factors.",
    )
    refit: bool | None = optional(
        "on for calibrated",
        "Refit each layer's output projection by least squares to what the converted layers before "
        "it produce. Off: it stays as it was assembled.",
    )
    refit_tokens: int | None = optional(
        f"{REFIT_SHARE} times calibration_tokens",
        "Tokens of calibration text to refit on, at least calibration_tokens.",
        ge=2,
    )
    ridge: float | None = optional(
        f"{RIDGE:g}; for coded rows of mixed bits above {RIDGE_FRACTION:.0%} of the bytes more",
        "Pull of a refit towards the weights before it, as strong as so many tokens.",
        gt=0,
    )
    weigh_tokens: bool = Field(
        True,
        description="Weight each token in a refit by how strongly predictions depend on it, "
        "measured on held-out calibration text. Off: all tokens weigh the same.",
    )
    refit_sinks: bool = Field(
        True,
        description="Refit also on one window of single-token sequences, because the first token "
        "of a text becomes the attention sink. Off: on running text alone.",
    )
    refine_steps: int = Field(
        0,
        ge=0,
        description="Steps of a short distillation of the attention weights from the original, "
        "each on one window of calibration text; needs the whole model in memory. 0: none.",
    )
    refine_lr: float = Field(1e-4, gt=0, description="Learning rate of that distillation.")
    refine_window: int = Field(512, ge=2, description="Tokens per window of that distillation.")
    calibration: list[str] = Field(
        default_factory=list,
        description="Calibration texts, .txt or .jsonl.",
        json_schema_extra={"unset": "Python's documentation"},
    )
    calibration_tokens: int = Field(
        10240, ge=2, description="Tokens of calibration text to measure attention on."
    )
    window: int = Field(1024, ge=2, description="Tokens per calibration window.")
    repeats: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the calibration windows that repeat their own beginning, which keeps "
        "attention to single earlier tokens. 0.1 restores most of a model's copying and costs some "
        "per cent on other text. 0: none.",
    )

    @field_validator(*CHOICES)
    @classmethod
    def _is_known(cls, value: str | None, info: ValidationInfo) -> str | None:
        choices = CHOICES[str(info.field_name)]
        if value is not None and value not in choices:
            raise ValueError(f"choose one of {', '.join(choices)}")
        return value

    @field_validator("bits", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        # YAML reads 8 as a number.
        return str(value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _budget_is_whole(self) -> "Recipe":
        exact = (self.kv_lora_rank is not None, self.rope_dim is not None)
        if any(exact) and not all(exact):
            raise ValueError("kv_lora_rank and rope_dim go together")
        if any(exact) and self.cache_fraction is not None:
            raise ValueError("give cache_fraction, or kv_lora_rank and rope_dim, not both")
        if self.spread and (any(exact) or self.split == "fixed"):
            raise ValueError("spread chooses every layer's widths; leave it, or what fixes them")
        if self.rope_dim is not None and self.rope_dim % 2:
            raise ValueError(f"rope_dim {self.rope_dim} is odd; rotary pairs need an even number")
        if self.bits in ("8", "4") and self.target != "any":
            raise ValueError("coded rows need no such widths; leave target, or give bits: 16")
        if self.bits in ("8", "4") and not any(exact) and self._same_in_all_layers:
            raise ValueError(
                "coded rows have widths of their own in every layer; leave spread and split, or "
                "give bits: 16"
            )
        return self

    @property
    def _same_in_all_layers(self) -> bool:
        return self.spread is False or self.split == "fixed"

    @property
    def row_bits(self) -> tuple[int, ...] | None:
        """Bits that columns of coded rows may have, rising; ``None``: rows are not coded."""
        if self.bits == "auto":
            plain = self.kv_lora_rank is not None or self._same_in_all_layers
            plain = plain or self.target != "any" or self.cache_fraction == 1
            return MIXED_BITS if METHODS[self.method].coded and not plain else None
        return None if self.bits == "16" else (int(self.bits),)

    @property
    def held_out(self) -> int:
        """Tokens of calibration text to hold out."""
        return self.held_out_tokens or (HELD_OUT if self.row_bits is None else HELD_OUT_CODED)

    @property
    def spreads(self) -> bool:
        """True if layers get widths of their own."""
        wanted = METHODS[self.method].spread if self.spread is None else self.spread
        fixed = self.split != "auto" or self.kv_lora_rank is not None or self.cache_fraction == 1
        return wanted and self.row_bits is None and not fixed

    @property
    def refits(self) -> bool:
        """True if output projections are refitted."""
        if self.refit is not None:
            return self.refit
        # A refit of what lost nothing would only add rounding.
        loses = self.cache_fraction != 1 or self.row_bits is not None
        return METHODS[self.method].refit and loses

    @property
    def refit_ridge(self) -> float:
        """Pull of a refit, in tokens."""
        if self.ridge is not None:
            return self.ridge
        if self.row_bits != MIXED_BITS:
            return RIDGE
        more = (self.cache_fraction or DEFAULT_FRACTION) - RIDGE_FRACTION
        decades = float(max(0.0, more) / RIDGE_DECADE)
        return min(MOST_RIDGE, RIDGE * 10**decades)

    @property
    def weighs_tokens(self) -> bool:
        """True if refits need token weights."""
        return self.refits and self.weigh_tokens

    @property
    def text_tokens(self) -> int:
        """Tokens of calibration text to take, of which refits use all and statistics a part.

        They are the same without a refit, so that methods are compared on the same text.
        """
        return max(
            self.calibration_tokens, self.refit_tokens or REFIT_SHARE * self.calibration_tokens
        )

    def strategies(self) -> "tuple[RotaryMethod, LatentMethod]":
        """The rotary and the low-rank strategy: the method's, or those that the recipe names."""
        method = METHODS[self.method]
        return ROTARY[self.rotary or method.rotary], LATENT[self.latent or method.latent]
