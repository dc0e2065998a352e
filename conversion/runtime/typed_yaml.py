"""Values of a recipe of any kind: from a YAML file, checked, with errors that name the key."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from conversion.errors import RecipeError, first_line

Kind = TypeVar("Kind", bound=BaseModel)


def from_yaml(kind: type[Kind], file: Path | None, **options: Any) -> Kind:
    """A recipe from a YAML file, with options that were given on top.

    Raises:
        RecipeError: unreadable file, unknown key, or a value out of range.
    """
    values = read_yaml(file)
    # An option's mistake is not the file's.
    validated(kind, values, file)
    given = {key: value for key, value in options.items() if value is not None}
    return validated(kind, values | given, None)


def read_yaml(file: Path | None) -> dict[str, Any]:
    """The mapping in a recipe's file; empty without one.

    Raises:
        RecipeError: unreadable, or not a mapping.
    """
    if file is None:
        return {}
    try:
        values = yaml.safe_load(file.read_text("utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = first_line(error)
        raise RecipeError(f"{file}: cannot be read as YAML ({reason})") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{file}: not a YAML mapping of recipe keys")
    return values


def validated(kind: type[Kind], values: dict[str, Any], file: Path | None) -> Kind:
    """A recipe of some kind from its values.

    Raises:
        RecipeError: an unknown key, or a value out of range.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        name = key if file is not None else f"--{key.replace('_', '-')}"
        what = f"{name}: " if key else ""
        place = f"{file}: " if file is not None else ""
        message = first["msg"].removeprefix("Value error, ")
        got = f" (got {first['input']!r})" if key else ""
        raise RecipeError(f"{place}{what}{message}{got}") from error
