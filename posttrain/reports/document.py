"""A report as data, written as Markdown with pictures beside it and as one HTML page that holds everything.

All texts are plain; each form escapes them in its own way, so that nothing a model wrote can become markup.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from rich.table import Table as ConsoleTable
from rich.text import Text

from posttrain.reports import markdown
from posttrain.reports.records import write_atomic

LIMIT = 500  # characters of a cell that are shown
# Digits and words without a sign that Markdown knows inside a table cell: left as they are, the source stays readable.
_HARMLESS = re.compile(r"[-+]?\d[A-Za-z0-9 .,%±+-]*")


@dataclass(frozen=True)
class Cell:
    """Text under a short label that stands out, as "correct" over a completion."""

    text: str
    label: str = ""
    tone: str = ""  # "good", "bad" or nothing: the colour of the label on the page


@dataclass(frozen=True)
class Table:
    """A table; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    is_text: bool = False  # columns read from the left and lines break; otherwise numbers, aligned right


@dataclass(frozen=True)
class Image:
    """A picture."""

    name: str  # of its file, without ending
    png: bytes
    alt: str  # what it shows, in words


@dataclass(frozen=True)
class Section:
    """A part with a heading: paragraphs, then a table, points, pictures, and a closing remark."""

    title: str
    paragraphs: Sequence[str] = ()
    table: Table | None = None
    points: Sequence[str] = ()
    images: Sequence[Image] = ()
    remark: str = ""
    is_warning: bool = False


@dataclass(frozen=True)
class Document:
    """A page: its title, the answer a reader came for, and the parts."""

    title: str
    answer: str
    lead: Sequence[str] = ()
    sections: Sequence[Section] = field(default=())

    def write(self, folder: str | Path) -> Path:
        """Write `REPORT.md`, `plots/` and `report.html`, each replaced at once; returns the path of the page."""
        target = Path(folder)
        for section in self.sections:
            for image in section.images:
                write_atomic(target / "plots" / f"{image.name}.png", image.png)
        write_atomic(target / "REPORT.md", to_markdown(self))
        return write_atomic(target / "report.html", to_html(self))


def to_markdown(document: Document) -> str:
    """The document as Markdown; pictures are links to `plots/<name>.png`."""
    parts = [f"# {markdown.escape(document.title)}", "", f"**{markdown.escape(document.answer)}**"]
    parts += [line for text in document.lead for line in ("", markdown.escape(text))]
    for section in document.sections:
        parts += ["", f"## {markdown.escape(section.title)}"]
        parts += [line for text in section.paragraphs for line in ("", markdown.escape(text))]
        if section.table is not None:
            parts += ["", _markdown_table(section.table)]
        if section.points:
            parts += ["", *[f"- {markdown.escape(text)}" for text in section.points]]
        if section.images:
            parts += [""] + [f"![{_alt(image.alt)}](plots/{image.name}.png)" for image in section.images]
        parts += ["", markdown.escape(section.remark)] if section.remark else []
    return "\n".join(parts).rstrip() + "\n"


def to_html(document: Document) -> str:
    """The document as one page that loads nothing: pictures are part of it, and there is no script."""
    source = files("posttrain.reports").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = markdown.visible
    environment.filters["shortened"] = _shortened
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode("ascii")
    environment.tests["cell"] = lambda value: isinstance(value, Cell)
    return environment.from_string(source).render(document=document)


def show(document: Document, console: Any, *, titles: Sequence[str]) -> None:
    """Print the answer, and the tables and points of the sections whose titles begin like one of these.

    Args:
        document: the report.
        console: rich's Console.
        titles: beginnings of section titles.
    """
    for section in document.sections:
        if not section.title.startswith(tuple(titles)):
            continue
        console.print(Text(f"\n{markdown.visible(section.title)}"), style="bold")
        if section.table is not None:
            table = ConsoleTable()
            for name in section.table.header:
                table.add_column(Text(markdown.visible(name)))
            for row in section.table.rows:
                texts = [_shortened(value.text) if isinstance(value, Cell) else value for value in row]
                table.add_row(*[Text(markdown.visible(text)) for text in texts])
            console.print(table)
        for text in section.points:
            console.print(Text(f"- {markdown.visible(text)}"), soft_wrap=True)
    console.print(Text(f"\n{markdown.visible(document.answer)}\n"), soft_wrap=True)


def _markdown_table(table: Table) -> str:
    rows = [[_markdown_cell(value) for value in row] for row in table.rows]
    text = markdown.table([markdown.escape(name) for name in table.header], rows)
    return text.replace("---:", ":---") if table.is_text else text


def _markdown_cell(value: str | Cell) -> str:
    if isinstance(value, str):
        return value if _HARMLESS.fullmatch(value) else markdown.escape(value)
    shown = markdown.cell(value.text, limit=LIMIT)
    return f"**{markdown.escape(value.label)}**<br>{shown}" if value.label else shown


def _alt(text: str) -> str:
    return markdown.escape(text).replace("<br>", " ")


def _shortened(text: str) -> str:
    if not text.strip():
        return "(empty)"
    return text if len(text) <= LIMIT else f"{text[:LIMIT]}… ({len(text) - LIMIT} more characters)"
