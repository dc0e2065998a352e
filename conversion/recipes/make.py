"""Recipes made from a file or a preset, and from options."""

from pathlib import Path
from typing import Any

from conversion.errors import RecipeError
from conversion.recipes.presets import FOLDER, presets
from conversion.recipes.recipe import Recipe
from conversion.runtime.typed_yaml import read_yaml, validated

BUDGET = {"cache_fraction", "kv_lora_rank", "rope_dim"}
# Keys of rows that are not coded.
PLAIN_ROWS = {"spread", "split", "target"}


def make_recipe(file: Path | None, **options: Any) -> Recipe:
    """Make a recipe from a YAML file or a preset and from options, which win over it.

    Args:
        file: the YAML file, or a preset's name; ``None`` for the defaults.
        options: values by key; ``None`` leaves a key as it is.

    Raises:
        RecipeError: unreadable file, unknown preset or key, or a value out of range.
    """
    file = None if file is None else _recipe_file(file)
    values = read_yaml(file)
    # First the file alone: a mistake in an option must not be reported as the file's.
    validated(Recipe, values, file)
    given = {key: value for key, value in options.items() if value is not None}
    # A budget given as an option replaces the file's, even if that one is given by other keys.
    if given.keys() & BUDGET:
        values = {key: value for key, value in values.items() if key not in BUDGET}
    # Exact widths and a split for all layers exclude the file's spread.
    if given.keys() & {"kv_lora_rank", "split"}:
        values.pop("spread", None)
    # Coded rows exclude what a file says of plain ones.
    if str(given.get("bits", "16")) != "16":
        values = {key: value for key, value in values.items() if key not in PLAIN_ROWS}
    return validated(Recipe, values | given, None)


def _recipe_file(recipe: Path) -> Path:
    """Find the file of a recipe that is given as a path or as a preset's bare name.

    A file of that name wins; anything with a suffix or a folder is a path.

    Raises:
        RecipeError: a bare name that is neither a file nor a preset.
    """
    if recipe.is_file() or recipe.suffix or len(recipe.parts) != 1:
        return recipe
    if recipe.name not in presets():
        raise RecipeError(
            f"--recipe {recipe}: neither a file nor one of {', '.join(presets())}; give a file's "
            "path or one of these names"
        )
    return FOLDER / f"{recipe.name}.yaml"
