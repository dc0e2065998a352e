"""The outcome of a healing: write the trained weights, or those it began with."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from conversion.healing.recipe import HealingRecipe


class Outcome(NamedTuple):
    """The comparison of start and end on held-out text, and the choice that follows from it.

    Attributes:
        kept: the weights to write.
        figure: name of the figure that was compared.
        before: its value at the start; NaN if nothing was held out.
        after: its value at the end; likewise.
    """

    kept: Literal["start", "end"]
    figure: str
    before: float
    after: float

    @property
    def worse(self) -> bool:
        """True if the training ended worse than it began."""
        return self.after > self.before

    def warning(self, out: Path) -> str:
        """The last line of a healing that ended worse, with the way out."""
        change = f"{self.figure} on held-out text {self.before:.4f} to {self.after:.4f}"
        if self.kept == "end":
            return f"worse than before: {change}; {out} has the trained weights (keep: end)"
        return (
            f"worse than before: {change}; {out} has the weights from before the training; train "
            "on more --tokens or with a lower --lr, or write the trained weights with --keep end"
        )


def judge(
    recipe: HealingRecipe, before: Mapping[str, float], after: Mapping[str, float]
) -> Outcome:
    """Compare start and end by the loss that was trained, and choose the weights to write.

        (1 - w) divergence + w log(perplexity),    w = recipe.next_token_weight

    Distillation is judged by the divergence: perplexity can improve while predictions leave the
    teacher's. The error of hidden states is not measured on held-out text and has no say.

    Args:
        recipe: its objective and ``keep``.
        before: figures of :meth:`HealingTrainer.measure`, empty if nothing was held out.
        after: the same of the trained weights.
    """
    names = {"distill": "divergence", "lm": "perplexity", "mix": "loss"}
    name = names[recipe.objective]
    start, end = (
        _with_loss(figures, recipe.next_token_weight).get(name, math.nan)
        for figures in (before, after)
    )
    kept: Literal["start", "end"] = "start" if recipe.keep == "better" and end > start else "end"
    return Outcome(kept, name, start, end)


def _with_loss(figures: Mapping[str, float], w: float) -> dict[str, float]:
    if "divergence" not in figures:
        return dict(figures)
    loss = (1 - w) * figures["divergence"] + w * math.log(figures["perplexity"])
    return {**figures, "loss": loss}
