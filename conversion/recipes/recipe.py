"""What to do: the typed recipe, written into every checkpoint it makes."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from conversion.latent import LATENT
from conversion.recipes.methods import METHODS
from conversion.rotary import ROTARY

if TYPE_CHECKING:
    from conversion.latent.factors import LatentMethod
    from conversion.rotary.selection import RotaryMethod

# Part of the cache that is kept where neither a fraction nor widths are given.
DEFAULT_FRACTION = 0.5
# Text for refits over text for statistics: a window of it takes a fraction of the time.
REFIT_SHARE = 3
CHOICES: dict[str, Collection[str]] = {"method": METHODS, "rotary": ROTARY, "latent": LATENT}


class Recipe(BaseModel):
    """How a checkpoint is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(
        "calibrated",
        description="calibrated (ours), or as published: mha2mla, transmla, care.",
    )
    rotary: str | None = Field(
        None,
        description=f"Which rotary components stay: {', '.join(ROTARY)}. None: the method's.",
    )
    latent: str | None = Field(
        None, description=f"Low-rank factors: {', '.join(LATENT)}. None: the method's."
    )
    cache_fraction: float | None = Field(
        None, gt=0, le=1, description="Part of the original's cache to keep, above 0 and up to 1."
    )
    kv_lora_rank: int | None = Field(None, ge=1, description="Latent numbers per token and layer.")
    rope_dim: int | None = Field(
        None, ge=0, description="Rotary numbers per token and layer, even; shared by all heads."
    )
    split: Literal["auto", "fixed"] = Field(
        "auto",
        description="How a cache_fraction is split between the two: auto chooses on held-out "
        "calibration text, fixed takes the method's own share.",
    )
    held_out_tokens: int = Field(
        2048, ge=2, description="Tokens of calibration text to choose on, never calibrated on."
    )
    spread: bool | None = Field(
        None,
        description="Spread a cache_fraction over layers by what each loses on held-out "
        "calibration text, rotary and latent widths together. None: calibrated does.",
    )
    q_lora_rank: int | None = Field(
        None, ge=1, description="Factorise queries through this many numbers; none: one matrix."
    )
    key_weight: float = Field(
        1.0, gt=0, description="Weight of key errors against value errors in the joint metric."
    )
    refit: bool | None = Field(
        None,
        description="Refit the output projection by least squares on the converted stream. "
        "None: calibrated does.",
    )
    refit_tokens: int | None = Field(
        None,
        ge=2,
        description="Tokens of calibration text to refit on, at least calibration_tokens: refits "
        "gain from more text than statistics do. None: three times calibration_tokens.",
    )
    ridge: float = Field(
        400.0,
        gt=0,
        description="Pull of a refit towards the unrefitted weights: as that of so many tokens.",
    )
    weigh_tokens: bool = Field(
        True,
        description="Refits count errors at each token by how much predictions depend on them, "
        "measured through gradients on held-out calibration text; false: all the same.",
    )
    refit_starts: bool = Field(
        True,
        description="Refits also see a window of tokens alone, as the first of a text is, whose "
        "attention sink the whole text depends on; false: only text.",
    )
    refine_steps: int = Field(
        0,
        ge=0,
        description="Steps of distillation of the attention weights from the original, one window "
        "of calibration text each; needs the whole model in memory.",
    )
    refine_lr: float = Field(1e-4, gt=0, description="Learning rate of the distillation.")
    refine_window: int = Field(512, ge=2, description="Tokens per window of the distillation.")
    calibration: list[str] = Field(
        default_factory=list, description="Texts, .txt or .jsonl; none: one that Python carries."
    )
    calibration_tokens: int = Field(20480, ge=2, description="Tokens of calibration text to use.")
    window: int = Field(1024, ge=2, description="Tokens per calibration window.")
    repeats: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the calibration windows that hold their beginning again and again, "
        "to keep attention to certain earlier tokens. 0.1 brings copies most of the way back, and "
        "costs other text some per cent.",
    )

    @field_validator(*CHOICES)
    @classmethod
    def _is_known(cls, value: str | None, info: ValidationInfo) -> str | None:
        choices = CHOICES[str(info.field_name)]
        if value is not None and value not in choices:
            raise ValueError(f"choose one of {', '.join(choices)}")
        return value

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
        return self

    @property
    def spreads(self) -> bool:
        """Whether layers get different widths."""
        asked = METHODS[self.method].spread if self.spread is None else self.spread
        whole = self.cache_fraction == 1
        return asked and self.split == "auto" and self.kv_lora_rank is None and not whole

    @property
    def refits(self) -> bool:
        """Whether output projections are refitted."""
        if self.refit is not None:
            return self.refit
        # Where nothing is lost a refit would only round.
        return METHODS[self.method].refit and self.cache_fraction != 1

    @property
    def weighs_tokens(self) -> bool:
        """Whether refits need to know how much tokens count."""
        return self.refits and self.weigh_tokens

    @property
    def text_tokens(self) -> int:
        """Tokens of calibration text to take: to calibrate on, and the rest to refit on.

        The same with and without a refit: methods that are compared calibrate on the same text.
        """
        return max(
            self.calibration_tokens, self.refit_tokens or REFIT_SHARE * self.calibration_tokens
        )

    def strategies(self) -> "tuple[RotaryMethod, LatentMethod]":
        """The rotary and the low-rank strategy: the method's, unless the recipe names others."""
        method = METHODS[self.method]
        return ROTARY[self.rotary or method.rotary], LATENT[self.latent or method.latent]
