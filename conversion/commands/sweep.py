"""``mha2mla sweep``: several recipes beside their original."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from conversion.checkpoint.dtypes import dtype_named
from conversion.commands.options import (
    CalibrationFiles,
    CalibrationTokens,
    Device,
    Dtype,
    HeldOutTokens,
    Offload,
    RefitTokens,
    ReportFile,
    Source,
    Window,
    Windows,
    usable_device,
)
from conversion.evaluation import Report, check_report_path, write_report
from conversion.pipeline import Options
from conversion.recipes.methods import METHODS
from conversion.runtime.output_files import check_writable, make_folder
from conversion.runtime.progress import Progress
from conversion.source import open_source
from conversion.sweep.recipes import sweep_recipes
from conversion.sweep.results import SweepResults
from conversion.sweep.run import Sweep, run_sweep
from conversion.text.documents import read_text

RESULTS = "results.json"
FAILED = 1


def sweep_command(
    source: Source,
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE...",
            help="YAML recipes, presets, or METHOD@FRACTION, such as mha2mla@0.5, with a method "
            f"of {', '.join(METHODS)}, and other strategies after it: mha2mla+high+svd-split@0.5.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results and what leads to them.")],
    text: Annotated[Path, typer.Option(help="Held-out text for perplexity, .txt or .jsonl.")],
    window: Window = 1024,
    windows: Windows = None,
    calibration: CalibrationFiles = None,
    calibration_tokens: CalibrationTokens = None,
    refit_tokens: RefitTokens = None,
    held_out_tokens: HeldOutTokens = None,
    report: ReportFile = None,
    json: Annotated[
        Path | None, typer.Option(help=f"Keep the figures in this file. Default: OUT/{RESULTS}.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the converted checkpoints.")] = False,
    device: Device = "cpu",
    offload: Offload = None,
    dtype: Dtype = None,
) -> None:
    """Convert SOURCE with every RECIPE and compare the results with it.

    Run again after an interruption, it goes on where it stopped.
    """
    if report is not None:
        check_report_path(report)
    chosen = sweep_recipes(
        recipes,
        calibration=[str(path) for path in calibration] if calibration else None,
        calibration_tokens=calibration_tokens,
        refit_tokens=refit_tokens,
        held_out_tokens=held_out_tokens,
    )
    options = Options(usable_device(device), dtype_named(dtype), overwrite=True, offload=offload)
    make_folder(out)
    where = json or out / RESULTS
    check_writable(where)
    original = open_source(source)
    what = Sweep(
        source=original,
        recipes=chosen,
        text=read_text(text, original.tokenizer()),
        window=window,
        windows=windows,
        out=out,
        results=where,
        keep=keep,
    )
    found = run_sweep(what, options, Progress(Console(stderr=True)))
    Console().print(_table(found))
    for failure in found.failed:
        Console(stderr=True).print(
            f"failed: {failure.name}: {failure.error}", style="red", soft_wrap=True, markup=False,
            highlight=False,
        )  # fmt: skip
    if report is not None and found.finished:
        write_report(report, _report(found, text))
    if found.failed:
        raise typer.Exit(FAILED)


def _report(found: SweepResults, text: Path) -> Report:
    calibration = found.subject.calibration
    failed = [f"Failed: {failure.name} ({failure.error})" for failure in found.failed]
    return Report(
        title=f"Conversions of {found.source}",
        source=found.source,
        entries=[one.entry for one in found.finished],
        notes=[
            f"Calibrated on {calibration.tokens:,} tokens of {', '.join(calibration.files)}, in "
            f"windows of {calibration.window}; measured on {text.name}.",
            *failed,
        ],
    )


def _table(found: SweepResults) -> Table:
    table = Table(
        Column("recipe", overflow="fold"), "latent + rotary", "cache bytes per token", "kept",
        "perplexity", "ratio", "excess loss",
    )  # fmt: skip
    for one in found.finished:
        cache, figures = one.entry.cache, one.entry.perplexity
        assert figures is not None
        table.add_row(
            one.name,
            f"{_mean(one.kv_lora_rank)} + {_mean(one.qk_rope_head_dim)}",
            f"{cache.bytes_per_token:,}",
            f"{cache.fraction:.2%}",
            f"{figures.converted:.3f}",
            f"{figures.ratio:.4f}",
            f"{figures.excess_loss:.4f}",
        )
    if found.finished and (figures := found.finished[0].entry.perplexity) is not None:
        table.caption = f"The original's perplexity: {figures.baseline:.3f}"
    return table


def _mean(values: list[int]) -> str:
    return f"{sum(values) / len(values):.4g}"
