"""``mha2mla heal``: a short training that gives back what a conversion took."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from conversion.commands.options import Checkpoint, Original, Output, Overwrite
from conversion.healing import Healing, HealingRecipe, heal, make_healing_recipe
from conversion.runtime.progress import Progress


def _help(field: str) -> str:
    description = HealingRecipe.model_fields[field].description or ""
    return f"{description} Default: {HealingRecipe.model_fields[field].default}."


def heal_command(
    checkpoint: Checkpoint,
    output: Output,
    teacher: Original,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text to train on, .txt or .jsonl; records with messages go through the model's "
            "chat template. Repeatable. Default: one that Python carries."
        ),
    ] = None,
    tokens: Annotated[int | None, typer.Option(help=_help("tokens"))] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML recipe; options given here win over it.")
    ] = None,
    objective: Annotated[str | None, typer.Option(help=_help("objective"))] = None,
    train: Annotated[str | None, typer.Option(help=_help("train"))] = None,
    lr: Annotated[float | None, typer.Option(help=_help("lr"))] = None,
    batch_size: Annotated[int | None, typer.Option(help=_help("batch_size"))] = None,
    window: Annotated[int | None, typer.Option(help=_help("window"))] = None,
    keep: Annotated[str | None, typer.Option(help=_help("keep"))] = None,
    cache_teacher: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps the teacher's likeliest predictions for later runs."),
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Folder for a TensorBoard log of the training.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Drop what an interrupted healing left.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train CHECKPOINT for a short while, with its original as teacher, and write OUTPUT.

    Interrupted or killed, the same command goes on from the last saved state.
    """
    what = make_healing_recipe(
        recipe,
        tokens=tokens,
        objective=objective,
        train=train,
        lr=lr,
        batch_size=batch_size,
        window=window,
        keep=keep,
    )
    asked = Healing(
        checkpoint=checkpoint,
        out=output,
        teacher=teacher,
        text=tuple(text or ()),
        cache_teacher=cache_teacher,
        tensorboard=tensorboard,
        restart=restart,
        overwrite=overwrite,
    )
    heal(asked, what, Progress(Console(stderr=True)))
