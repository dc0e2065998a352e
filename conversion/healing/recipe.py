"""How a checkpoint is healed: the typed recipe, written into every checkpoint it makes."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from conversion.runtime.typed_yaml import read_yaml, validated


class HealingRecipe(BaseModel):
    """How a checkpoint is healed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objective: Literal["distill", "lm", "mix"] = Field(
        "distill",
        description="distill: divergence from the teacher's predictions; lm: next tokens of the "
        "text, as MHA2MLA; mix: both.",
    )
    lm_weight: float = Field(
        0.5, gt=0, lt=1, description="Share of the next-token loss in a mix; the rest distils."
    )
    hidden_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the relative squared error of hidden states, the mean over layers "
        "and tokens, beside the divergence.",
    )
    train: Literal["attention", "all"] = Field(
        "attention", description="attention: only the converted attention learns; all: everything."
    )
    tokens: int = Field(
        500_000,
        ge=2,
        description="Tokens to train on. Of a longer text as many are taken, of a shorter one all "
        "of them, several times.",
    )
    window: int = Field(512, ge=2, description="Tokens per window.")
    repeats: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Share of the windows whose second half repeats the first, to train attention "
        "to certain earlier tokens.",
    )
    batch_size: int = Field(1, ge=1, description="Windows at once on each device.")
    accumulation: int = Field(1, ge=1, description="Batches whose gradients make one step.")
    stride: int = Field(
        2,
        ge=1,
        description="Every how manieth position is compared, in turn: of a small model the "
        "language-model head is a quarter of the work, and neighbours tell nearly the same.",
    )
    lr: float = Field(1e-4, gt=0, description="Learning rate between warm-up and decay.")
    warmup: float = Field(0.02, ge=0, le=1, description="Share of the steps that warm up.")
    decay: float = Field(
        0.9, ge=0, le=1, description="Share of the steps, the last, that decay as 1 - sqrt."
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    gradient_checkpointing: bool = Field(
        False, description="Compute activations twice instead of keeping them."
    )
    teacher_top_k: int = Field(
        64,
        ge=1,
        description="With --cache-teacher: predictions kept per position, beside the remaining "
        "mass.",
    )
    held_out_tokens: int = Field(
        8192, ge=0, description="Tokens of the text never trained on: before and after."
    )
    keep: Literal["better", "end"] = Field(
        "better",
        description="better: write the trained weights unless they do worse on held-out text than "
        "those before the training, which are written then; end: write the trained weights.",
    )
    save_steps: int = Field(
        100, ge=1, description="Every how many steps the state is saved, to go on from."
    )
    save_minutes: float = Field(
        5.0, gt=0, description="It is also saved when the last state is so many minutes old."
    )
    seed: int = Field(0, ge=0, description="Of the order of the windows.")

    @model_validator(mode="after")
    def _shares_fit(self) -> "HealingRecipe":
        if self.warmup + self.decay > 1:
            raise ValueError("warmup and decay are shares of the same steps: at most 1 together")
        if self.stride >= self.window:
            raise ValueError("stride must be less than window, or nothing of a window is compared")
        return self

    @property
    def next_token_weight(self) -> float:
        """Share of the next-token loss: 0 to 1."""
        return {"distill": 0.0, "lm": 1.0, "mix": self.lm_weight}[self.objective]

    @property
    def distills(self) -> bool:
        """Whether a teacher's predictions are compared."""
        return self.objective != "lm"

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is asked anything in training."""
        return self.distills or self.hidden_weight > 0


def make_healing_recipe(file: Path | None, **options: Any) -> HealingRecipe:
    """A recipe from a YAML file, with options that were given on top.

    Raises:
        RecipeError: unreadable file, unknown key, or a value out of range.
    """
    given = {key: value for key, value in options.items() if value is not None}
    values = read_yaml(file)
    # An option's mistake is not the file's.
    validated(HealingRecipe, values, file)
    return validated(HealingRecipe, values | given, None)
