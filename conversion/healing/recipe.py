"""The typed recipe of a healing, written into every checkpoint it makes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class HealingRecipe(BaseModel):
    """Settings of a healing that decide its result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objective: Literal["distill", "lm", "mix"] = Field(
        "distill",
        description="Loss to train. distill: divergence from the teacher's predictions; lm: next "
        "tokens of the text, as in MHA2MLA; mix: both.",
    )
    lm_weight: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of the next-token loss with objective mix; the rest is the divergence.",
    )
    hidden_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the hidden states' relative squared error, the mean over layers and "
        "tokens. 0 leaves it out.",
    )
    train: Literal["attention", "all"] = Field(
        "attention",
        description="Weights to train. attention: the converted attention; all: everything.",
    )
    tokens: int = Field(
        500_000,
        ge=2,
        description="Tokens to train on. A shorter text is repeated; from a longer one, windows "
        "are taken evenly.",
    )
    window: int = Field(512, ge=2, description="Tokens per window.")
    repeats: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Share of the windows whose second half repeats the first. They train "
        "attention to one particular earlier token.",
    )
    batch_size: int = Field(1, ge=1, description="Windows per batch on each device.")
    accumulation: int = Field(1, ge=1, description="Batches per optimiser step.")
    stride: int = Field(
        2,
        ge=1,
        description="Compare every stride-th position, with an offset that rotates from step to "
        "step. The language-model head is a quarter of a small model's cost, and neighbouring "
        "positions carry nearly the same signal.",
    )
    lr: float = Field(1e-4, gt=0, description="Peak learning rate, between warm-up and decay.")
    warmup: float = Field(0.02, ge=0, le=1, description="Share of the steps for the warm-up.")
    decay: float = Field(
        0.9, ge=0, le=1, description="Share of the steps for the 1 - sqrt decay at the end."
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Norm that gradients are clipped to.")
    gradient_checkpointing: bool = Field(
        False, description="Save memory: recompute activations in the backward pass."
    )
    teacher_top_k: int = Field(
        64,
        ge=1,
        description="Likeliest tokens stored per position with --cache-teacher; the mass of the "
        "others is stored as one number.",
    )
    held_out_tokens: int = Field(
        8192,
        ge=0,
        description="Tokens held out from training, to measure before and after it; at most a "
        "fifth of the text.",
    )
    keep: Literal["better", "end"] = Field(
        "better",
        description="Weights to write. better: the trained ones, or those from before the training "
        "if they do better on held-out text; end: always the trained ones.",
    )
    save_steps: int = Field(
        100, ge=1, description="Save a training checkpoint, to resume from, every so many steps."
    )
    save_minutes: float = Field(
        5.0, gt=0, description="Save one also when the last is older than this many minutes."
    )
    seed: int = Field(0, ge=0, description="Seed of the order of the windows.")

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
        """True if the divergence from a teacher is trained."""
        return self.objective != "lm"

    @property
    def needs_teacher(self) -> bool:
        """True if training compares anything with a teacher."""
        return self.distills or self.hidden_weight > 0
