"""Recipes from a file or a preset, and from options."""

from pathlib import Path
from typing import Any

from conversion.errors import RecipeError
from conversion.recipes.presets import FOLDER, presets
from conversion.recipes.recipe import Recipe
from conversion.runtime.typed_yaml import read_yaml, validated


def make_recipe(file: Path | None, **options: Any) -> Recipe:
    """A recipe from a YAML file or a preset's name, with options that were given on top.

    Raises:
        RecipeError: unreadable file, unknown preset or key, or a value out of range.
    """
    file = None if file is None else _recipe_file(file)
    values = read_yaml(file)
    # An option's mistake is not the file's.
    validated(Recipe, values, file)
    given = {key: value for key, value in options.items() if value is not None}
    # A budget given as an option replaces the file's, in whichever way that one was given.
    if given.keys() & {"cache_fraction", "kv_lora_rank", "rope_dim"}:
        for key in ("cache_fraction", "kv_lora_rank", "rope_dim"):
            values.pop(key, None)
    # So do one split for all layers, and exact widths.
    if given.keys() & {"kv_lora_rank", "split"}:
        values.pop("spread", None)
    return validated(Recipe, values | given, None)


def _recipe_file(recipe: Path) -> Path:
    """The file of a recipe given as a path or as a preset's bare name.

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
