"""The ``mha2mla`` command."""

import logging
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import transformers
import typer
from rich.console import Console
from rich.table import Table

from conversion.bench_command import bench_command
from conversion.command_options import (
    CalibrationFiles,
    CalibrationTokens,
    Checkpoint,
    Device,
    Dtype,
    HeldOutTokens,
    Offload,
    Output,
    Overwrite,
    RefitTokens,
    Source,
    dtype_named,
    recipe_help,
    usable_device,
)
from conversion.eval_command import eval_command
from conversion.export import export
from conversion.heal_command import heal_command
from conversion.inspection import Inspection, inspect
from conversion.interruption import interruption
from conversion.pipeline import Options, convert
from conversion.presets import presets
from conversion.progress import Progress
from conversion.recipe import make_recipe
from conversion.source import open_source
from conversion.sweep_command import sweep_command
from vllm_mha2mla.errors import MHA2MLAError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Convert MHA, GQA and MQA models to multi-head latent attention.",
)
out = Console()
err = Console(stderr=True)

USAGE_ERROR = 2
INTERRUPTED = 130


@app.command("convert")
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
        err.print(
            "No --calibration text given: using Python's own documentation. Text like the "
            "model's real input gives better checkpoints.",
            soft_wrap=True,
        )
    convert(open_source(source), output, what, options, Progress(err))
    out.print(_inspection_table(inspect(output)))


@app.command("inspect")
def inspect_command(
    checkpoint: Checkpoint,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a converted checkpoint is and what it caches."""
    found = inspect(checkpoint)
    if json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        out.print(_inspection_table(found))


app.command("eval")(eval_command)
app.command("sweep")(sweep_command)
app.command("bench")(bench_command)
app.command("heal")(heal_command)


@app.command("export")
def export_command(
    source: Source, output: Output, dtype: Dtype = None, overwrite: Overwrite = False
) -> None:
    """Write SOURCE unconverted as a model folder, for engines that cannot read its format."""
    export(open_source(source), output, dtype_named(dtype), overwrite, Progress(err))


def _inspection_table(found: Inspection) -> Table:
    table = Table(show_header=False, box=None)
    table.add_row("source", f"{found.source} ({found.source_fingerprint[:12]})")
    table.add_row("method", found.method)
    table.add_row("layers", str(found.layers))
    table.add_row("kv_lora_rank", _range(found.kv_lora_rank))
    table.add_row("qk_rope_head_dim", _range(found.qk_rope_head_dim))
    if found.q_lora_rank is not None:
        table.add_row("q_lora_rank", str(found.q_lora_rank))
    if found.healed_tokens:
        table.add_row("healed", f"on {found.healed_tokens:,} tokens")
    table.add_row(
        "cache",
        f"{found.cache_bytes_per_token:,} bytes per token in {found.dtype}, "
        f"{found.cache_fraction:.2%} of the original's {found.baseline_bytes_per_token:,}",
    )
    return table


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return (
        str(low) if low == high else f"{low} to {high}, {sum(values) / len(values):.1f} on average"
    )


def main() -> None:
    """Run the command; our errors become one line and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("accelerate", "httpx", "transformers", "gguf", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    interruption.listen()
    try:
        app()
    except MHA2MLAError as error:
        if interruption.came:
            _end_interrupted()
        err.print(f"error: {error}", style="red", soft_wrap=True, markup=False, highlight=False)
        raise SystemExit(USAGE_ERROR) from None
    except SystemExit as stop:
        # What typer makes of a KeyboardInterrupt.
        if stop.code == INTERRUPTED:
            _end_interrupted()
        raise
    except Exception:
        if interruption.came:
            _end_interrupted()
        raise


def _end_interrupted() -> NoReturn:
    err.print("interrupted; nothing half-written was left behind")
    raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
