"""Recipes: the product's reading beside YAML's."""

from pathlib import Path
from random import Random

import yaml

from conversion.recipes.make import make_recipe
from tests.fuzz.read_source import refusal
from tests.fuzz.sandbox import Watch


def check(case: Path, watch: Watch, rng: Random) -> str:
    """The verdict on a recipe: refused in one line, or every value as in the file."""
    path = case / "model" / "recipe.yaml"
    try:
        recipe = make_recipe(path)
    except Exception as error:
        return refusal(error)
    watch.on = False
    values = yaml.safe_load(path.read_text("utf-8")) or {}
    for key, value in values.items():
        found = getattr(recipe, key)
        same = found == value or str(found) == str(value)
        if isinstance(found, int | float) and isinstance(value, str | int):
            # A text of a number is that number.
            same = same or found == float(value)
        if value is not None and not same:
            return f"wrong {key} is {value!r}, not {found!r}"
    return "right every value as in the file"
