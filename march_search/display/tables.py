"""Format rows as a rich table, CSV or Markdown. A row is a dict; a missing value is left blank or shown as a dash."""

import csv
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from march_search.errors import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


Row = Mapping[str, Any]

WIDE = 120
"""Terminal width, in characters, from which progress lines are written in full."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """Column of a printed table."""

    key: str
    """Key of the value in a row."""
    heading: str
    """Heading on a wide terminal."""
    short: str
    """Heading on a narrow terminal."""
    show: Callable[[Any], str] = str
    """Function that formats a value."""
    left: bool = False
    """Whether to align left, as for text; numbers are aligned right."""
    wide_only: bool = False
    """Whether to omit the column on a narrow terminal."""
    in_name: bool = False
    """Whether the architecture's name contains the value; the column is omitted if the table does not fit otherwise."""
    derive: Callable[[Row], Any] | None = None
    """Function that derives the value from the whole row; None takes `row[key]`."""
    style: Callable[[Any], str] | None = None
    """Function that returns the colour of a value on a terminal; None prints it uncoloured."""

    def value(self, row: Row) -> Any:
        """Return the value of the cell; None if it is missing."""
        return row.get(self.key) if self.derive is None else self.derive(row)

    def text(self, row: Row) -> str:
        """Return the text of the cell, without control characters, or a dash if the value is missing."""
        value = self.value(row)
        return "–" if value is None else visible(self.show(value))

    def cell(self, row: Row) -> "Text":
        """Return the cell as it is printed to a terminal."""
        from rich.text import Text

        value = self.value(row)
        return Text(self.text(row), style="" if self.style is None or value is None else self.style(value))


def console(stderr: bool = False) -> "Console":
    """Return a console for stdout or stderr: the terminal's width and colours, or plain text 200 wide if piped.

    What it prints may come from outside: brackets are not markup, and control characters do not reach the terminal.
    """
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        """Console to which every string is text."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(visible(text, lines=True), **options)

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else 200
    return PlainConsole(file=stream, width=width, highlight=False, markup=False, emoji=False)


def print_table(
    out: "Console",
    rows: Sequence[Row],
    columns: Sequence[Column],
    title: str,
    notes: Sequence[str] = (),
    legend: str = "",
    warnings: Sequence[str] = (),
) -> None:
    """Print a table that fits the console.

    If the table is too wide, it is shortened step by step: the common ending of all architecture names moves to a note,
    headings become short, and columns whose values are part of the name are omitted.

    Args:
        out: Console to print to.
        rows: Rows of the table.
        columns: Columns of the table.
        title: Line above the table.
        notes: Lines below the table.
        legend: Meaning of the short headings, printed only if they are used.
        warnings: Highlighted lines between the table and the notes.
    """
    table, layout_notes = _table(rows, columns, wide=True), []
    tail = common_tail([str(row["name"]) for row in rows if "name" in row])
    if tail and not _fits(out, table):
        rows = [dict(row) | {"name": str(row["name"]).removesuffix(tail)} for row in rows]
        table, layout_notes = _table(rows, columns, wide=True), [f"All names end in {tail}."]
    if not _fits(out, table):
        table, layout_notes = _table(rows, columns, wide=False), [*([legend] if legend else []), *layout_notes]
    if not _fits(out, table):
        table = _table(rows, [column for column in columns if not column.in_name], wide=False)
    notes = [*layout_notes, *notes]
    if title:
        out.print(title, style="bold")
    out.print(table)
    for warning in warnings:
        out.print(warning, style="yellow")
    for note in notes:
        out.print(note, style="dim")
    if notes or warnings:
        out.print()


def _fits(out: "Console", table: "Table") -> bool:
    """Return whether the table fits without folding any cell."""
    from rich.measure import Measurement

    return Measurement.get(out, out.options.update(width=10_000), table).maximum <= out.width


def _table(rows: Sequence[Row], columns: Sequence[Column], wide: bool) -> "Table":
    """Build the table in its wide or its narrow layout."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1 if wide else 0), collapse_padding=True)
    shown = [c for c in columns if wide or not c.wide_only]
    for column in shown:
        heading, side = column.heading if wide else column.short, "left" if column.left else "right"
        table.add_column(heading, justify=side, overflow="fold", no_wrap=not column.left)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(column.cell(row) for column in shown))
    return table


_FEED_FORWARD = ("gelu", "silu", "reglu", "geglu", "swiglu")
"""Parts of a name that are never moved to the common ending, because they belong to the shape."""


def common_tail(names: Sequence[str]) -> str:
    """Return the ending, with its hyphens, that several architecture names share after the shape; empty if none."""
    if len(names) < 2:
        return ""
    tail: list[str] = []
    for words in zip(*(name.split("-")[:3:-1] for name in names), strict=False):
        if len(set(words)) > 1 or words[0] in _FEED_FORWARD:
            break
        tail.insert(0, f"-{words[0]}")
    return "".join(tail)


def csv_text(rows: Sequence[Row], keys: Sequence[str]) -> str:
    """Return the rows as comma-separated values with a header line; missing values are empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows([{k: "" if row.get(k) is None else row[k] for k in keys} for row in rows])
    return buffer.getvalue()


def markdown_text(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Return the rows as a Markdown table with long headings."""
    lines = [_markdown_line(c.heading for c in columns), _markdown_line("---" if c.left else "---:" for c in columns)]
    lines += [_markdown_line(c.text(row).replace("|", "\\|") for c in columns) for row in rows]
    return "\n".join(lines) + "\n"


def _markdown_line(cells: Any) -> str:
    """Return one line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def count(value: float) -> str:
    """Format a whole number with separators: `222,903,552`."""
    return f"{value:,.0f}"


def plural(number: int, noun: str) -> str:
    """Format a number with its noun: `1 seed`, `3 seeds`."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def percent(value: float) -> str:
    """Format a signed percentage: `+1.32%`."""
    return f"{value:+.2f}%"


def chance(value: float) -> str:
    """Format an estimated probability: `46%`, but `<1%` and `>99%` at the ends, because no estimate is certain."""
    return "<1%" if value < 0.005 else ">99%" if value > 0.995 else f"{value:.0%}"


def si(value: float) -> str:
    """Format a number with three significant digits and an SI prefix: `1.05M`."""
    for limit, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def size(value: float) -> str:
    """Format a size in bytes with three significant digits: `7.02GB`."""
    return f"{si(value)}B"


def duration(seconds: float) -> str:
    """Format seconds as `48s`, `3m05s` or `2h07m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
