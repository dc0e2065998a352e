"""A page of sections as one self-contained HTML file, or as Markdown with image files."""

import base64
import html
from dataclasses import dataclass, field

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.75rem; border-bottom: 1px solid #ccc; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
"""


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Plot:
    """An image with its alternative text. ``name`` becomes part of a file name."""

    name: str
    alt: str
    image: bytes


@dataclass(frozen=True)
class Section:
    """One part of a page, under its own heading."""

    heading: str
    text: str
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """A page to render. All texts are plain; this module escapes them."""

    title: str
    paragraphs: list[str]
    sections: list[Section]


def with_error(value: float, error: float | None) -> str:
    """Format a figure with its standard error, to as many digits as a reader can use."""
    digits = 3 if abs(value) < 10 else 2
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def to_html(page: Page) -> str:
    """Render a page as one self-contained HTML file; its plots have to be SVG."""
    parts = [f"<h1>{html.escape(page.title)}</h1>", *map(_paragraph, page.paragraphs)]
    for section in page.sections:
        parts += [f"<h2>{html.escape(section.heading)}</h2>", _paragraph(section.text)]
        parts += map(_html_table, section.tables)
        for plot in section.plots:
            data = base64.b64encode(plot.image).decode()
            alt = html.escape(plot.alt)
            parts.append(f'<p><img alt="{alt}" src="data:image/svg+xml;base64,{data}"></p>')
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(page.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _html_table(table: Table) -> str:
    def row(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    rows = "\n".join(row(cells, "td") for cells in table.rows)
    head = row(table.header, "th")
    return f"<table>\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


def to_markdown(page: Page, images: dict[str, str]) -> str:
    """Render a page as Markdown that links its images.

    Args:
        page: the page to render.
        images: relative path of every plot, by its name.
    """
    parts = [f"# {_plain(page.title)}", *map(_plain, page.paragraphs)]
    for section in page.sections:
        parts += [f"## {_plain(section.heading)}", _plain(section.text)]
        parts += map(_markdown_table, section.tables)
        parts += [f"![{_plain(plot.alt)}](<{images[plot.name]}>)" for plot in section.plots]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    def row(cells: list[str]) -> str:
        return "| " + " | ".join(map(_plain, cells)) + " |"

    rule = "|---|" + "---:|" * (len(table.header) - 1)
    return "\n".join([row(table.header), rule, *map(row, table.rows)])


def _plain(text: str) -> str:
    for special in "\\`*_[]<>|#":
        text = text.replace(special, "\\" + special)
    return text.replace("\n", " ")
