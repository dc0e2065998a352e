"""``mha2mla convert``: a model to a checkpoint with latent attention."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from conversion.checkpoint.dtypes import dtype_named
from conversion.checkpoint.inspection import inspect
from conversion.commands.inspect import inspection_table
from conversion.commands.options import (
    CalibrationFiles,
    CalibrationTokens,
    Device,
    Dtype,
    HeldOutTokens,
    Offload,
    Output,
    Overwrite,
    RefitTokens,
    Source,
    recipe_help,
    usable_device,
)
from conversion.pipeline import Options, convert
from conversion.recipes.make import make_recipe
from conversion.recipes.presets import presets
from conversion.runtime.progress import Progress
from conversion.source import open_source


def convert_command(
    source: Source,
    output: Output,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help=f"YAML recipe, or one of {', '.join(presets())}; options given here win over it."
        ),
    ] = None,
    cache_fraction: Annotated[
        float | None, typer.Option(help=recipe_help("cache_fraction") + " Default: 0.5.")
    ] = None,
    kv_lora_rank: Annotated[int | None, typer.Option(help=recipe_help("kv_lora_rank"))] = None,
    rope_dim: Annotated[int | None, typer.Option(help=recipe_help("rope_dim"))] = None,
    split: Annotated[
        str | None, typer.Option(help=recipe_help("split") + " Default: auto.")
    ] = None,
    spread: Annotated[bool | None, typer.Option(help=recipe_help("spread"))] = None,
    refit: Annotated[bool | None, typer.Option(help=recipe_help("refit"))] = None,
    refine_steps: Annotated[
        int | None, typer.Option(help=recipe_help("refine_steps") + " Default: 0.")
    ] = None,
    q_lora_rank: Annotated[int | None, typer.Option(help=recipe_help("q_lora_rank"))] = None,
    method: Annotated[
        str | None, typer.Option(help=recipe_help("method") + " Default: calibrated.")
    ] = None,
    rotary: Annotated[str | None, typer.Option(help=recipe_help("rotary"))] = None,
    latent: Annotated[str | None, typer.Option(help=recipe_help("latent"))] = None,
    calibration: CalibrationFiles = None,
    calibration_tokens: CalibrationTokens = None,
    refit_tokens: RefitTokens = None,
    held_out_tokens: HeldOutTokens = None,
    device: Device = "cpu",
    offload: Offload = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert SOURCE to a checkpoint with latent attention in OUTPUT."""
    what = make_recipe(
        recipe,
        cache_fraction=cache_fraction,
        kv_lora_rank=kv_lora_rank,
        rope_dim=rope_dim,
        split=split,
        spread=spread,
        refit=refit,
        refine_steps=refine_steps,
        q_lora_rank=q_lora_rank,
        method=method,
        rotary=rotary,
        latent=latent,
        calibration=[str(path) for path in calibration] if calibration else None,
        calibration_tokens=calibration_tokens,
        refit_tokens=refit_tokens,
        held_out_tokens=held_out_tokens,
    )
    options = Options(usable_device(device), dtype_named(dtype), overwrite, offload)
    if not what.calibration:
        Console(stderr=True).print(
            "No --calibration text given: using Python's own documentation. Text like the "
            "model's real input gives better checkpoints.",
            soft_wrap=True,
        )
    convert(open_source(source), output, what, options, Progress(Console(stderr=True)))
    Console().print(inspection_table(inspect(output)))
