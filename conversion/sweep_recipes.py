"""The recipes of a sweep: files, presets, or ``METHOD@FRACTION``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conversion.errors import RecipeError
from conversion.recipe import Recipe, make_recipe

# One calibration serves all recipes, so all have to want the same.
SHARED = ("calibration", "calibration_tokens", "refit_tokens", "window", "held_out_tokens")


def sweep_recipes(names: Sequence[str], **options: Any) -> dict[str, Recipe]:
    """Recipes by the name they get in a report: a file's without its suffix, others as given.

    Args:
        names: YAML files, presets, or ``mha2mla@0.5`` for a method at a part of the cache.
        options: recipe keys that win in all of them; ``None`` leaves a recipe its own.

    Raises:
        RecipeError: one cannot be read, two have one name, or they differ in their calibration.
    """
    recipes: dict[str, Recipe] = {}
    for given in names:
        name, recipe = _read(given, options)
        if name in recipes:
            raise RecipeError(f"{given}: a second recipe named {name}; give every one its own name")
        recipes[name] = recipe
    _check_shared(recipes)
    return recipes


def _read(given: str, options: dict[str, Any]) -> tuple[str, Recipe]:
    path = Path(given)
    if "@" not in given or path.is_file() or len(path.parts) != 1:
        return path.stem if path.suffix else path.name, make_recipe(path, **options)
    method, _, part = given.partition("@")
    try:
        fraction = float(part)
    except ValueError as error:
        raise RecipeError(
            f"{given}: {part!r} is not a part of the cache; write it as in mha2mla@0.5"
        ) from error
    try:
        return given, make_recipe(None, **options | {"method": method, "cache_fraction": fraction})
    except RecipeError as error:
        raise RecipeError(f"{given}: {error}") from error


def _check_shared(recipes: dict[str, Recipe]) -> None:
    first, *others = recipes.items()
    for name, recipe in others:
        for key in SHARED:
            if getattr(recipe, key) != getattr(first[1], key):
                raise RecipeError(
                    f"{name} and {first[0]} differ in {key}; a sweep has one calibration: give it "
                    "as options, or the same in all recipes"
                )
