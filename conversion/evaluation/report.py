"""The report: one page of tables and plots over one or several converted checkpoints."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from conversion.errors import EvaluationError, OutputError
from conversion.evaluation.extra import require
from conversion.evaluation.render import Page, Section, to_html, to_markdown
from conversion.evaluation.results import Report

HTML, MARKDOWN = ".html", ".md"


def check_report_path(path: Path) -> None:
    """Whether a report can be written to ``path``, before the long work that fills it.

    Raises:
        EvaluationError: neither ``.html`` nor ``.md``, or matplotlib is not installed.
        OutputError: there is no such folder.
    """
    if path.suffix not in (HTML, MARKDOWN):
        raise EvaluationError(f"--report {path}: give a name that ends in {HTML} or {MARKDOWN}")
    require("matplotlib", "--report")
    check_folder(path)


def check_folder(path: Path) -> None:
    """Whether a file can be made at ``path``.

    Raises:
        OutputError: its folder is not there, or it is a folder itself.
    """
    if not path.parent.is_dir():
        raise OutputError(f"{path}: no folder {path.parent}; create it first")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file")


def write_json(path: Path, figures: BaseModel) -> None:
    """Write figures for other programs.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.write_text(figures.model_dump_json(indent=2) + "\n", "utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


def write_report(path: Path, report: Report) -> None:
    """Write a report.

    Args:
        path: ``.html`` for one file that needs no other, or ``.md`` with its plots as PNG files
            beside it, named after it.
        report: what to show; of each entry, what was measured.

    Raises:
        EvaluationError, OutputError: as for :func:`check_report_path`, or it cannot be written.
    """
    check_report_path(path)
    from conversion.evaluation.sections import sections

    kind = "svg" if path.suffix == HTML else "png"
    page = Page(
        report.title,
        [f"Source: {report.source}", *report.notes],
        sections(report.entries, kind),
    )
    try:
        if path.suffix == HTML:
            path.write_text(to_html(page), "utf-8")
        else:
            path.write_text(to_markdown(page, _write_images(path, page.sections)), "utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


def _write_images(path: Path, parts: Sequence[Section]) -> dict[str, str]:
    names = {}
    for section in parts:
        for plot in section.plots:
            names[plot.name] = f"{path.stem}-{plot.name}.png"
            path.with_name(names[plot.name]).write_bytes(plot.image)
    return names
