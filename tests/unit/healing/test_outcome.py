"""Which weights a healing writes, by its figures on held-out text."""

import math
from pathlib import Path

import pytest

from conversion.healing.outcome import judge
from conversion.healing.recipe import HealingRecipe

OUT = Path("out")


@pytest.mark.parametrize(
    ("objective", "after", "kept"),
    [
        # Perplexity is not what distillation trains, divergence not what next tokens do.
        ("distill", {"perplexity": 50.0, "divergence": 0.1}, "end"),
        ("distill", {"perplexity": 30.0, "divergence": 0.3}, "start"),
        ("lm", {"perplexity": 30.0, "divergence": 0.3}, "end"),
        ("lm", {"perplexity": 44.33}, "start"),
        # 0.75 * (0.1 - 0.2) is -0.075; 0.25 * log(44 / 40) is 0.024, 0.25 * log(90 / 40) is 0.203.
        ("mix", {"perplexity": 44.0, "divergence": 0.1}, "end"),
        ("mix", {"perplexity": 90.0, "divergence": 0.1}, "start"),
        # As good as before is not worse.
        ("distill", {"perplexity": 40.0, "divergence": 0.2}, "end"),
        ("distill", {"perplexity": math.inf, "divergence": math.inf}, "start"),
    ],
)
def test_the_trained_loss_decides(objective, after, kept):
    before = {"perplexity": 40.0, "divergence": 0.2}
    before = {name: before[name] for name in after}
    recipe = HealingRecipe(objective=objective, lm_weight=0.25)
    assert judge(recipe, before, after).kept == kept
    # Asked for, the end is written whatever it is like; that it is worse is said all the same.
    asked = judge(HealingRecipe(objective=objective, lm_weight=0.25, keep="end"), before, after)
    assert asked.kept == "end"
    assert asked.worse == (kept == "start")


def test_without_held_out_text_the_end_is_written():
    for objective in ("distill", "lm", "mix"):
        outcome = judge(HealingRecipe(objective=objective), {}, {})
        assert (outcome.kept, outcome.worse) == ("end", False)


def test_the_warning_has_both_figures_and_the_way_out():
    before, after = {"perplexity": 43.08}, {"perplexity": 44.33}
    line = judge(HealingRecipe(objective="lm"), before, after).warning(OUT)
    assert line == (
        "worse than before: perplexity on held-out text 43.0800 to 44.3300; out has the weights "
        "from before the training; train on more --tokens or with a lower --lr, or write the "
        "trained weights with --keep end"
    )
    line = judge(HealingRecipe(objective="lm", keep="end"), before, after).warning(OUT)
    assert line == (
        "worse than before: perplexity on held-out text 43.0800 to 44.3300; out has the trained "
        "weights (keep: end)"
    )
