"""Recipes named in one word, ``METHOD[+STRATEGY...]@FRACTION``."""

import pytest

from conversion.errors import RecipeError
from conversion.sweep.recipes import sweep_recipes


def test_strategies_after_a_method_take_the_place_of_its_own():
    found = sweep_recipes(["mha2mla@0.5", "mha2mla+svd-split@0.25", "transmla+whitened+high@0.25"])
    described = [
        (name, recipe.cache_fraction, recipe.method, recipe.rotary, recipe.latent)
        for name, recipe in found.items()
    ]
    assert described == [
        ("mha2mla@0.5", 0.5, "mha2mla", None, None),
        ("mha2mla+svd-split@0.25", 0.25, "mha2mla", None, "svd-split"),
        ("transmla+whitened+high@0.25", 0.25, "transmla", "high", "whitened"),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mha2mla+highest@0.5", "highest after + is not one more rotary or low-rank strategy"),
        ("mha2mla+high+low@0.5", "low after + is not one more"),
        ("mha2mla+@0.5", "nothing after + is not one more"),
        ("mha2mla+calibrated@0.5", "calibrated is a rotary and a low-rank strategy; use a file"),
    ],
)
def test_strategies_that_are_none(name, message):
    with pytest.raises(RecipeError) as refused:
        sweep_recipes([name])
    assert str(refused.value).startswith(f"{name}: {message}")
