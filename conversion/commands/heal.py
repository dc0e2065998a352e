"""``mha2mla heal``: a short training that regains a part of what a conversion lost."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from conversion.commands.options import (
    Checkpoint,
    Original,
    Output,
    Overwrite,
    recipe_options,
    with_default,
)
from conversion.healing.recipe import HealingRecipe


@recipe_options(HealingRecipe, "tokens", "objective", "train", "lr", "batch_size", "window", "keep")
def heal_command(
    checkpoint: Checkpoint,
    output: Output,
    teacher: Original,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help=with_default(
                "Train on this text, .txt or .jsonl; records with messages go through the model's "
                "chat template. Repeatable.",
                "Python's documentation",
            ),
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Read recipe keys from this YAML file. Options given here win over it."),
    ] = None,
    cache_teacher: Annotated[
        Path | None,
        typer.Option(
            help=with_default(
                "Keep the teacher's likeliest predictions in this folder, for this run and later "
                "ones.",
                "ask the teacher at every step",
            )
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Write a TensorBoard log of the training to this folder.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="cpu|cuda",
            help=with_default("Device to train on.", "GPUs where there are any"),
        ),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Start anew and drop what an interrupted healing left."),
    ] = False,
    overwrite: Overwrite = False,
    **given: Any,
) -> None:
    """Train CHECKPOINT for a short while, with its original as teacher, and write OUTPUT.

    Interrupted or killed, the same command goes on from the last training checkpoint.
    """
    from conversion.healing.run import Healing, heal
    from conversion.runtime.progress import Progress
    from conversion.runtime.typed_yaml import from_yaml

    request = Healing(
        checkpoint=checkpoint,
        out=output,
        teacher=teacher,
        text=tuple(text or ()),
        cache_teacher=cache_teacher,
        tensorboard=tensorboard,
        device=device,
        restart=restart,
        overwrite=overwrite,
    )
    heal(request, from_yaml(HealingRecipe, recipe, **given), Progress(Console(stderr=True)))
