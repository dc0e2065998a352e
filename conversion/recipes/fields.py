"""Type, default and bounds of a recipe's fields in words, for ``--help`` and the reference."""

from types import NoneType
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field
from pydantic.fields import FieldInfo

NAMES = {
    int: "integer",
    float: "number",
    bool: "on or off",
    str: "name",
    list[str]: "list of files",
}


def optional(unset: str, description: str, **bounds: Any) -> Any:
    """Declare a field that is ``None`` where a recipe leaves it out.

    Args:
        unset: the effect of leaving it out, shown as its default.
        description: the effect of the field.
        bounds: bounds of its value, as pydantic's ``Field`` takes them.
    """
    return Field(None, description=description, json_schema_extra={"unset": unset}, **bounds)


def default_text(field: FieldInfo) -> str:
    """A field's default in words."""
    if isinstance(field.json_schema_extra, dict) and "unset" in field.json_schema_extra:
        return str(field.json_schema_extra["unset"])
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    return str(field.default)


def value_type(field: FieldInfo) -> Any:
    """A field's type, apart from ``None``."""
    types = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    is_optional = NoneType in get_args(field.annotation)
    return types[0] if is_optional else field.annotation


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The values of a field that takes only some; none for others."""
    kind = value_type(field)
    return get_args(kind) if get_origin(kind) is Literal else ()


def type_text(field: FieldInfo) -> str:
    """A field's type and bounds in words: ``integer, at least 2``."""
    if choices(field):
        return " or ".join(choices(field))
    return ", ".join((NAMES[value_type(field)], *map(_bound, field.metadata)))


def _bound(bound: Any) -> str:
    match bound:
        case Ge(ge=value):
            return f"at least {value}"
        case Gt(gt=value):
            return f"above {value}"
        case Le(le=value):
            return f"at most {value}"
        case Lt(lt=value):
            return f"below {value}"
    raise TypeError(f"no words for {bound!r}")
