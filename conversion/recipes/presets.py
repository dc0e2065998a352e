"""Recipes that come with the package: ``--recipe half``."""

from pathlib import Path

from conversion.errors import RecipeError

FOLDER = Path(__file__).parent


def presets() -> list[str]:
    """Names of the presets, by the cache they keep: most first."""
    order = ["half", "third", "quarter", "eighth"]
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    return [name for name in order if name in names] + [n for n in names if n not in order]


def recipe_file(recipe: Path) -> Path:
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
