"""The recipes of a sweep: files, presets, or ``METHOD[+STRATEGY...]@FRACTION``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conversion.errors import RecipeError
from conversion.recipes.make import make_recipe
from conversion.recipes.recipe import CHOICES, Recipe

# Keys that all recipes of a sweep must share, because one calibration serves them all.
SHARED = ("calibration", "calibration_tokens", "refit_tokens", "window", "held_out_tokens")


def sweep_recipes(names: Sequence[str], **options: Any) -> dict[str, Recipe]:
    """Make the recipes of a sweep.

    Args:
        names: YAML files, presets, or ``METHOD@FRACTION`` for a method at a share of the cache,
            such as ``mha2mla@0.5``; ``mha2mla+high+svd-split@0.5`` replaces its rotary and
            low-rank strategies.
        options: recipe keys that win over every recipe; ``None`` leaves a recipe's own value.

    Returns:
        recipes by their names in the report: a file's name without its suffix, others as given.

    Raises:
        RecipeError: a recipe cannot be read, two have one name, or they differ in their
            calibration.
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
    left, _, share = given.partition("@")
    method, *strategies = left.split("+")
    try:
        fraction = float(share)
    except ValueError as error:
        raise RecipeError(
            f"{given}: {share!r} is not a share of the cache; write it as in mha2mla@0.5"
        ) from error
    values = {"method": method, "cache_fraction": fraction} | _strategies(given, strategies)
    try:
        return given, make_recipe(None, **options | values)
    except RecipeError as error:
        raise RecipeError(f"{given}: {error}") from error


def _strategies(given: str, names: Sequence[str]) -> dict[str, str]:
    """Find the recipe keys, ``rotary`` or ``latent``, of strategies by their names."""
    chosen: dict[str, str] = {}
    for name in names:
        kinds = [kind for kind in ("rotary", "latent") if name in CHOICES[kind]]
        if len(kinds) == 2:
            raise RecipeError(f"{given}: {name} is a rotary and a low-rank strategy; use a file")
        if not kinds or kinds[0] in chosen:
            known = " ".join(dict.fromkeys((*CHOICES["rotary"], *CHOICES["latent"])))
            raise RecipeError(
                f"{given}: {name or 'nothing'} after + is not one more rotary or low-rank "
                f"strategy; there are {known}"
            )
        chosen[kinds[0]] = name
    return chosen


def _check_shared(recipes: dict[str, Recipe]) -> None:
    first, *others = recipes.items()
    for name, recipe in others:
        for key in SHARED:
            if getattr(recipe, key) != getattr(first[1], key):
                raise RecipeError(
                    f"{name} and {first[0]} differ in {key}; a sweep has one calibration: give it "
                    "as options, or the same in all recipes"
                )
