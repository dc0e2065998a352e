"""Recipes of any kind: read from YAML, checked, with errors that name the key."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from conversion.errors import RecipeError, first_line

Kind = TypeVar("Kind", bound=BaseModel)


def from_yaml(kind: type[Kind], file: Path | None, **options: Any) -> Kind:
    """Make a recipe from a YAML file and options, which win over the file.

    Args:
        kind: the recipe's model.
        file: the YAML file; ``None`` for the defaults.
        options: values by key; ``None`` leaves a key as it is.

    Raises:
        RecipeError: unreadable file, unknown key, or a value out of range.
    """
    values = read_yaml(file)
    # First the file alone: a mistake in an option must not be reported as the file's.
    validated(kind, values, file)
    given = {key: value for key, value in options.items() if value is not None}
    return validated(kind, values | given, None)


def read_yaml(file: Path | None) -> dict[str, Any]:
    """Read the mapping in a recipe's file; without a file it is empty.

    Raises:
        RecipeError: unreadable, or not a mapping.
    """
    if file is None:
        return {}
    try:
        values = yaml.safe_load(file.read_text("utf-8")) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = first_line(error)
        raise RecipeError(f"{file}: cannot be read as YAML ({reason})") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{file}: not a YAML mapping of recipe keys")
    return values


def validated(kind: type[Kind], values: dict[str, Any], file: Path | None) -> Kind:
    """Make a recipe from its values.

    Args:
        kind: the recipe's model.
        values: by key.
        file: where they come from, for the error; ``None`` for options of the command line.

    Raises:
        RecipeError: an unknown key, or a value out of range.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if key:
            name = key if file is not None else f"--{key.replace('_', '-')}"
            message = f"{name}: {message} (got {first['input']!r})"
        place = f"{file}: " if file is not None else ""
        raise RecipeError(place + message) from error
