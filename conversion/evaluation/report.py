"""The report: one page of tables and plots over one or several converted checkpoints."""

from collections.abc import Sequence
from pathlib import Path

from conversion.errors import OutputError, UsageError
from conversion.evaluation.render import Page, Section, to_html, to_markdown
from conversion.evaluation.results import Report
from conversion.runtime.extras import require
from conversion.runtime.output_files import check_writable

HTML, MARKDOWN = ".html", ".md"


def check_report_path(path: Path) -> None:
    """Check that a report can be written to ``path``, before the long work that fills it.

    Raises:
        UsageError: the name ends in neither ``.html`` nor ``.md``.
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    if path.suffix not in (HTML, MARKDOWN):
        raise UsageError(f"--report {path}: give a name that ends in {HTML} or {MARKDOWN}")
    require("matplotlib", "--report")
    check_writable(path)


def write_report(path: Path, report: Report) -> None:
    """Write a report.

    Args:
        path: a name that ends in ``.html`` for one self-contained file, or in ``.md`` for a file
            with its plots beside it as PNG files, named after it.
        report: the figures to show; figures that were not measured are left out.

    Raises:
        UsageError, MissingExtraError, OutputError: as for :func:`check_report_path`.
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
