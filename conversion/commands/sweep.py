"""``mha2mla sweep``: several recipes beside their original."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from conversion.commands.options import (
    Device,
    Dtype,
    Offload,
    QuantisedCaches,
    ReportFile,
    Source,
    Window,
    Windows,
    recipe_options,
    split_list,
    with_default,
)
from conversion.recipes.methods import METHODS
from conversion.recipes.recipe import Recipe

if TYPE_CHECKING:
    from conversion.evaluation import Report
    from conversion.sweep.results import Finished, SweepResults

RESULTS = "results.json"
FAILED = 1


@recipe_options(Recipe, "calibration", "calibration_tokens", "refit_tokens", "held_out_tokens")
def sweep_command(
    source: Source,
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE",
            help="YAML recipes, presets, or METHOD@FRACTION, such as mha2mla@0.5, with a method "
            f"of {', '.join(METHODS)}. Other strategies go between the two: "
            "mha2mla+high+svd-split@0.5.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the results and for intermediate checkpoints.")
    ],
    text: Annotated[
        Path, typer.Option(help="Measure perplexity on this held-out text, .txt or .jsonl.")
    ],
    window: Window = 1024,
    windows: Windows = None,
    baseline_kv_cache_dtype: QuantisedCaches = None,
    report: ReportFile = None,
    json: Annotated[
        Path | None,
        typer.Option(help=with_default("Keep the figures in this file.", f"OUT/{RESULTS}")),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the converted checkpoints.")] = False,
    device: Device = "cpu",
    offload: Offload = None,
    dtype: Dtype = None,
    **given: Any,
) -> None:
    """Convert SOURCE with every RECIPE and compare the results with it.

    Run again after an interruption, it goes on where it stopped.
    """
    from conversion.evaluation import check_report_path, write_report
    from conversion.pipeline import Options
    from conversion.runtime.device import usable_device
    from conversion.runtime.dtypes import dtype_named
    from conversion.runtime.output_files import check_writable, make_folder
    from conversion.runtime.progress import Progress
    from conversion.source import open_source
    from conversion.sweep.recipes import sweep_recipes
    from conversion.sweep.run import Sweep, run_sweep
    from conversion.text.documents import read_text

    if report is not None:
        check_report_path(report)
    chosen = sweep_recipes(recipes, **given)
    options = Options(
        device=usable_device(device),
        dtype=dtype_named(dtype) if dtype else None,
        overwrite=True,
        offload=offload,
    )
    make_folder(out)
    file = json or out / RESULTS
    check_writable(file)
    original = open_source(source)
    sweep = Sweep(
        source=original,
        recipes=chosen,
        text=read_text(text, original.tokenizer()),
        window=window,
        windows=windows,
        out=out,
        results=file,
        keep=keep,
        kv_cache_dtypes=split_list(baseline_kv_cache_dtype),
    )
    err = Console(stderr=True)
    results = run_sweep(sweep, options, Progress(err))
    Console().print(_table(results))
    for failure in results.failed:
        line = f"failed: {failure.name}: {failure.error}"
        err.print(line, style="red", soft_wrap=True, markup=False, highlight=False)
    if report is not None and results.finished:
        write_report(report, _report(results, text))
    if results.failed:
        raise typer.Exit(FAILED)


def _report(results: "SweepResults", text: Path) -> "Report":
    from conversion.evaluation import Report

    calibration = results.subject.calibration
    failed = [f"Failed: {failure.name} ({failure.error})" for failure in results.failed]
    return Report(
        title=f"Conversions of {results.source}",
        source=results.source,
        entries=[*(one.entry for one in results.finished), *results.rivals],
        notes=[
            f"Calibrated on {calibration.tokens:,} tokens of {', '.join(calibration.files)}, in "
            f"windows of {calibration.window}; measured on {text.name}.",
            *failed,
        ],
    )


def _table(results: "SweepResults") -> Table:
    table = Table(
        Column("recipe", overflow="fold"), "latent + rotary", "cache bytes per token", "kept",
        "perplexity", "ratio", "excess loss",
    )  # fmt: skip
    rows = [(one.name, _widths(one), one.entry) for one in results.finished]
    for name, widths, entry in [*rows, *((rival.name, "", rival) for rival in results.rivals)]:
        cache, figures = entry.cache, entry.perplexity
        assert figures is not None
        table.add_row(
            escape(name),
            widths,
            f"{cache.bytes_per_token:,}",
            f"{cache.fraction:.2%}",
            f"{figures.converted:.3f}",
            f"{figures.ratio:.4f}",
            f"{figures.excess_loss:.4f}",
        )
    if results.finished and (figures := results.finished[0].entry.perplexity) is not None:
        table.caption = f"The original's perplexity: {figures.baseline:.3f}"
    return table


def _widths(one: "Finished") -> str:
    widths = f"{_mean(one.kv_lora_rank)} + {_mean(one.qk_rope_head_dim)}"
    return widths if one.bits is None else f"{widths}, {one.bits:.2f} bits"


def _mean(values: list[int]) -> str:
    return f"{sum(values) / len(values):.4g}"
