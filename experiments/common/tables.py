"""A table of cells, written as text, Markdown, CSV or HTML.

    table = Table(("arm", "gIoU"), [["rings", "0.8123"]])
    print(table.text()); write_atomic(folder / "ablation.md", table.markdown()); write_html(…, table=table)

A template shows it by `{{ table.html() }}`.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header, all of one length."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    align: str = "<>"
    """< (left) or > (right) for each column from the first; the last sign holds for the columns that are left"""

    def text(self, indent: str = "") -> str:
        """The table in columns for a terminal."""
        lines = [[str(cell) for cell in line] for line in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        cells = [[f"{cell:{self._sign(k)}{widths[k]}}" for k, cell in enumerate(line)] for line in lines]
        return "\n".join((indent + "  ".join(line)).rstrip() for line in cells)

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)

    def csv(self) -> str:
        """The table as comma-separated values; None is an empty cell."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.header, *self.rows])
        return buffer.getvalue()

    def html(self, title: str | None = None) -> Markup:
        """The table for a page, every cell escaped. A first cell that begins with a blank marks a row of details;
        `title` replaces the header's first cell."""
        head = self._html_row("th", [self.header[0] if title is None else title, *self.header[1:]])
        body = []
        for row in self.rows:
            soft = ' class="soft"' if str(row[0]).startswith(" ") else ""
            body.append(f"<tr{soft}>{self._html_row('td', row)}</tr>\n")
        return Markup(f"<table>\n<thead><tr>{head}</tr></thead>\n{''.join(body)}</table>")

    def _html_row(self, tag: str, cells: Sequence[Any]) -> str:
        names = [tag if k else "th" for k in range(len(cells))]
        classes = [' class="number"' if self._sign(k) == ">" else "" for k in range(len(cells))]
        return "".join(
            f"<{name}{kind}>{escape(cell)}</{name}>" for name, kind, cell in zip(names, classes, cells, strict=True)
        )

    def _sign(self, column: int) -> str:
        return self.align[min(column, len(self.align) - 1)]


def number(value: float | None, digits: int = 4, sign: str = "") -> str:
    """A number as a cell; – for None and NaN."""
    return "–" if value is None or value != value else f"{value:{sign}.{digits}f}"


def interval(ends: Sequence[float | None] | None, digits: int = 4, sign: str = "") -> str:
    """An interval as a cell; empty where there is none."""
    return "" if ends is None or None in ends else " – ".join(number(end, digits, sign) for end in ends)
