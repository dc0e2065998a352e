"""The recipes of a sweep: files, presets, or ``METHOD[+STRATEGY...]@FRACTION``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conversion.errors import RecipeError
from conversion.recipes.make import make_recipe
from conversion.recipes.recipe import CHOICES, Recipe

# One calibration serves all recipes, so all have to want the same.
SHARED = ("calibration", "calibration_tokens", "refit_tokens", "window", "held_out_tokens")


def sweep_recipes(names: Sequence[str], **options: Any) -> dict[str, Recipe]:
    """Recipes by the name they get in a report: a file's without its suffix, others as given.

    Args:
        names: YAML files, presets, or ``mha2mla@0.5`` for a method at a part of the cache, with
            another rotary or low-rank strategy ``mha2mla+high+svd-split@0.5``.
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
    what, _, part = given.partition("@")
    method, *strategies = what.split("+")
    try:
        fraction = float(part)
    except ValueError as error:
        raise RecipeError(
            f"{given}: {part!r} is not a part of the cache; write it as in mha2mla@0.5"
        ) from error
    values = {"method": method, "cache_fraction": fraction} | _strategies(given, strategies)
    try:
        return given, make_recipe(None, **options | values)
    except RecipeError as error:
        raise RecipeError(f"{given}: {error}") from error


def _strategies(given: str, names: Sequence[str]) -> dict[str, str]:
    """Recipe keys for the names of strategies."""
    found: dict[str, str] = {}
    for name in names:
        kinds = [kind for kind in ("rotary", "latent") if name in CHOICES[kind]]
        if len(kinds) == 2:
            raise RecipeError(f"{given}: {name} is a rotary and a low-rank strategy; use a file")
        if not kinds or kinds[0] in found:
            known = " ".join(dict.fromkeys((*CHOICES["rotary"], *CHOICES["latent"])))
            raise RecipeError(
                f"{given}: {name or 'nothing'} after + is not one more rotary or low-rank "
                f"strategy; there are {known}"
            )
        found[kinds[0]] = name
    return found


def _check_shared(recipes: dict[str, Recipe]) -> None:
    first, *others = recipes.items()
    for name, recipe in others:
        for key in SHARED:
            if getattr(recipe, key) != getattr(first[1], key):
                raise RecipeError(
                    f"{name} and {first[0]} differ in {key}; a sweep has one calibration: give it "
                    "as options, or the same in all recipes"
                )
