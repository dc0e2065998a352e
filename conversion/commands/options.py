"""Options that several commands share, and those that are fields of a recipe."""

import inspect
from collections.abc import Callable
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from conversion.recipes.fields import choices, default_text, value_type
from conversion.runtime.dtypes import DTYPES

Command = TypeVar("Command", bound=Callable[..., None])


def with_default(text: str, default: str) -> str:
    """An option's help with its default in words, as typer shows a value."""
    return rf"{text} [dim]\[default: {default}][/]"


Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Model folder, .gguf file, model of the hub (org/name), or demo:smollm2-135m.",
        show_default=False,
    ),
]
Output = Annotated[
    Path, typer.Argument(metavar="OUTPUT", help="Folder to create.", show_default=False)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")]
Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT", help="Folder of a converted checkpoint.", show_default=False
    ),
]
Original = Annotated[
    str,
    typer.Option(metavar="SOURCE", help="The original: folder, .gguf file, or demo:smollm2-135m."),
]
Device = Annotated[str, typer.Option(help="Device that computes a layer: cpu, cuda, ...")]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(DTYPES),
        help=with_default(
            "Data type of the written weights.", "the source's if that has 16 bits, else bfloat16"
        ),
    ),
]
Offload = Annotated[
    Path | None,
    typer.Option(
        help=with_default(
            "Keep the activations of the calibration text in this folder.", "in memory"
        )
    ),
]
Window = Annotated[int, typer.Option(min=2, help="Tokens per window of --text.")]
Windows = Annotated[
    int | None, typer.Option(min=1, help=with_default("Use at most so many windows.", "all"))
]
QuantisedCaches = Annotated[
    list[str] | None,
    typer.Option(
        "--baseline-kv-cache-dtype",
        metavar="DTYPE[,DTYPE...]",
        help="Measure the original in this quantised cache of vLLM too, such as "
        "int4_per_token_head or turboquant_4bit_nc. Repeatable.",
    ),
]
ReportFile = Annotated[
    Path | None, typer.Option(help="Write tables and plots to this .html or .md file.")
]
JsonFile = Annotated[Path | None, typer.Option(help="Write the figures to this file.")]


def split_list(values: list[str] | None) -> tuple[str, ...]:
    """Split the values of a repeatable option at their commas; each part once, in order."""
    parts = (part.strip() for value in values or () for part in value.split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def recipe_options(recipe: type[BaseModel], *names: str) -> Callable[[Command], Command]:
    """Give a command an option for each of these fields of a recipe, in its ``**given``.

    Type, meaning and default are the field's. The value of an option that was not given is
    ``None``, so that a recipe's file can decide.
    """

    def with_options(command: Command) -> Command:
        signature = inspect.signature(command)
        own = [one for one in signature.parameters.values() if one.kind != Parameter.VAR_KEYWORD]
        options = [_parameter(name, recipe.model_fields[name]) for name in names]
        # typer reads a command's options from its signature.
        command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        return command

    return with_options


def _parameter(name: str, field: FieldInfo) -> Parameter:
    # Values are checked when the recipe is made, for all of its keys in one place.
    kind = str if choices(field) else value_type(field)
    repeatable = get_origin(kind) is list
    text = f"{field.description} Repeatable." if repeatable else field.description or ""
    option = typer.Option(
        help=with_default(text, default_text(field)),
        metavar="FILE" if repeatable else "|".join(choices(field)) or None,
        rich_help_panel="Recipe",
    )
    annotation: Any = Annotated[kind | None, option]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
