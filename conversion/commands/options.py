"""Options that several commands share: their types, and what they mean."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from conversion.checkpoint.dtypes import DTYPES
from conversion.errors import RecipeError, first_line
from conversion.recipes.recipe import Recipe


def recipe_help(field: str) -> str:
    """What a recipe's key means."""
    return Recipe.model_fields[field].description or ""


Source = Annotated[
    str, typer.Argument(help="Model folder, .gguf file, or demo:smollm2-135m.", show_default=False)
]
Output = Annotated[Path, typer.Argument(help="Folder to create.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")]
Checkpoint = Annotated[
    Path, typer.Argument(help="Folder of a converted checkpoint.", show_default=False)
]
Original = Annotated[str, typer.Option(help="The original, as the converter takes it.")]
Device = Annotated[str, typer.Option(help="Where a layer is computed: cpu, cuda, ...")]
Dtype = Annotated[
    str | None,
    typer.Option(
        help=f"Of the written weights: {', '.join(DTYPES)}. Default: the source's if that has 16 "
        "bits, else bfloat16."
    ),
]
Offload = Annotated[
    Path | None,
    typer.Option(help="Folder on a disk that holds the calibration activations instead of memory."),
]

CalibrationFiles = Annotated[
    list[Path] | None, typer.Option(help=recipe_help("calibration") + " Repeatable.")
]
CalibrationTokens = Annotated[
    int | None, typer.Option(help=recipe_help("calibration_tokens") + " Default: 20480.")
]
RefitTokens = Annotated[int | None, typer.Option(help=recipe_help("refit_tokens"))]
HeldOutTokens = Annotated[
    int | None, typer.Option(help=recipe_help("held_out_tokens") + " Default: 2048.")
]
Window = Annotated[int, typer.Option(min=2, help="Tokens per window of --text.")]
Windows = Annotated[int | None, typer.Option(min=1, help="How many windows at most. Default: all.")]
ReportFile = Annotated[
    Path | None, typer.Option(help="Write tables and plots to this .html or .md file.")
]


def usable_device(name: str) -> str:
    """What ``--device`` names.

    Raises:
        RecipeError: not usable here.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise RecipeError(f"--device {name}: not usable here ({reason}); try cpu") from error
    return name
