"""Format rows as a rich table, CSV or Markdown. A row is a dict; a missing value is left blank or shown as a dash."""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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


MARKS = ("?", "~", "!")
"""Marks after a number: assumed noise, a rough speed, a rate at the edge of the list."""


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
    whole: bool = False
    """Whether no cell is folded, as that of names and numbers; other text is folded where a table is too wide."""
    wide_only: bool = False
    """Whether to omit the column on a narrow terminal."""
    in_name: bool = False
    """Whether the architecture's name contains the value; the column is omitted if the table does not fit otherwise."""
    drop: int = 0
    """Order of omission if the table still does not fit, 1 first; columns with 0 always stay."""
    derive: Callable[[Row], Any] | None = None
    """Function that derives the value from the whole row; None takes `row[key]`."""
    style: Callable[[Any], str] | None = None
    """Function that returns the colour of a value on a terminal; None prints it uncoloured."""
    suffix: Callable[[Row], str] | None = None
    """Function that returns what follows the value in the cell, such as a mark; None for nothing."""
    narrow: Callable[[Row], str] | None = None
    """Function that returns the whole cell on a narrow terminal; None prints it as on a wide one."""

    def value(self, row: Row) -> Any:
        """Return the value of the cell; None if it is missing."""
        return row.get(self.key) if self.derive is None else self.derive(row)

    def text(self, row: Row, wide: bool = True) -> str:
        """Return the text of the cell, without control characters, or a dash if the value is missing."""
        value = self.value(row)
        if value is None:
            return "–"
        if self.narrow and not wide:
            return visible(self.narrow(row))
        return visible(self.show(value) + (self.suffix(row) if self.suffix else ""))

    def cell(self, row: Row, wide: bool = True) -> "Text":
        """Return the cell as it is printed to a terminal."""
        from rich.text import Text

        value = self.value(row)
        return Text(self.text(row, wide), style="" if self.style is None or value is None else self.style(value))


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

        def on_broken_pipe(self) -> None:
            """Leave a closed pipe to the caller; without this, rich exits with 1."""
            raise BrokenPipeError from None

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
    breaks: Mapping[int, str] | None = None,
) -> None:
    """Print a table that fits the console.

    If the table is too wide, it is shortened step by step: the common ending of all architecture names moves to a note,
    columns that are only for wide terminals are omitted, headings become short, columns whose values are part of the
    name are omitted, then the columns with `drop`.

    Args:
        out: Console to print to.
        rows: Rows of the table.
        columns: Columns of the table.
        title: Line above the table.
        notes: Lines below the table.
        legend: Meaning of the short headings, printed only if they are used.
        warnings: Highlighted lines between the table and the notes.
        breaks: Text of the rule above a row, by the row's index.
    """
    shown, wide, layout_notes, legend_note = list(columns), True, [], ""
    tail = common_tail([str(row["name"]) for row in rows if "name" in row])
    if tail and not _fits(out, _table(rows, shown, wide, breaks)):
        rows = [dict(row) | {"name": str(row["name"]).removesuffix(tail)} for row in rows]
        layout_notes.append(f"All names end in {tail}.")
    if not _fits(out, _table(rows, shown, wide, breaks)):
        shown = [column for column in columns if not column.wide_only]
    if not _fits(out, _table(rows, shown, wide, breaks)):
        wide, legend_note = False, legend
    if not _fits(out, _table(rows, shown, wide, breaks)):
        shown = [column for column in shown if not column.in_name]
    dropped: list[Column] = []
    while not _fits(out, _table(rows, shown, wide, breaks)) and any(column.drop for column in shown):
        dropped.append(min((column for column in shown if column.drop), key=lambda column: column.drop))
        shown.remove(dropped[-1])
    if dropped:
        layout_notes.append(f"Not shown at this width: {', '.join(column.heading for column in dropped)}.")
    table = _table(rows, shown, wide, breaks)
    notes = [*([legend_note] if legend_note else []), *([" ".join(layout_notes)] if layout_notes else []), *notes]
    if title:
        out.print(title, style="bold")
    if rows:
        out.print(table)
    for warning in warnings:
        out.print(warning, style="yellow")
    for note in notes:
        out.print(note, style="dim")
    if notes or warnings:
        out.print()


def print_labelled(out: "Console", lines: Sequence[tuple[str, str]]) -> None:
    """Print (name, text) pairs as paragraphs, `Name: text`, then an empty line."""
    from rich.text import Text

    for name, text in lines:
        out.print(Text.assemble((f"{name}: ", "bold"), visible(text)))
    if lines:
        out.print()


def print_notes(out: "Console", notes: Sequence[tuple[str, bool]]) -> None:
    """Print notes as a list, those with True highlighted, then an empty line."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1, 0, 0))
    for text, is_warning in notes:
        style = "yellow" if is_warning else "dim"
        grid.add_row(Text("!" if is_warning else "·", style=style), Text(visible(text, lines=True), style=style))
    if notes:
        out.print(grid)
        out.print()


def fits(out: "Console", rows: Sequence[Row], columns: Sequence[Column]) -> bool:
    """Return whether a table fits the console in its wide layout."""
    return _fits(out, _table(rows, columns, True, None))


def _fits(out: "Console", table: "Table") -> bool:
    """Return whether the table fits without folding any cell."""
    from rich.measure import Measurement

    return Measurement.get(out, out.options.update(width=10_000), table).maximum <= out.width


def _table(rows: Sequence[Row], columns: Sequence[Column], wide: bool, breaks: Mapping[int, str] | None) -> "Table":
    """Build the table in its wide or its narrow layout."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    style = box.Box("    \n    \n ── \n    \n ── \n ── \n    \n    \n") if breaks else box.SIMPLE_HEAD
    table = Table(box=style, pad_edge=False, padding=(0, 1 if wide else 0), collapse_padding=True)
    cells_by_column = []
    for column in columns:
        heading, cells = column.heading if wide else column.short, [column.cell(row, wide) for row in rows]
        is_marked = not column.left and any(cell.plain.endswith(MARKS) for cell in cells)
        if is_marked:  # rich drops spaces at the end of what it aligns right
            heading = _align_marked(heading, cells)
        side = "left" if column.left or is_marked else "right"
        keeps = column.whole or not column.left or column.key == "name"  # other text is folded first
        table.add_column(heading, justify=side, overflow="fold", no_wrap=keeps)  # type: ignore[arg-type]
        cells_by_column.append(cells)
    for index in range(len(rows)):
        if breaks and index in breaks:
            table.add_section()
            label = Text(visible(breaks[index]), style="italic")
            table.add_row(*(label if column.key == "name" else "" for column in columns))
        table.add_row(*(cells[index] for cells in cells_by_column))
    return table


def _align_marked(heading: str, cells: Sequence["Text"]) -> str:
    """Pad the cells of a column so that numbers with and without a mark end at the same place; return its heading."""
    for cell in cells:
        cell.pad_right(not cell.plain.endswith(MARKS))
    width = max(len(heading), *(len(cell.plain) for cell in cells))
    for cell in cells:
        cell.pad_left(width - len(cell.plain))
    return heading.rjust(width)


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
    """Return the rows as comma-separated values with a header line; missing values are empty.

    A table inside a row becomes one column per value, named `key.inner`; a list becomes JSON.
    """
    flat = [dict(_cells({key: row.get(key) for key in keys})) for row in rows]
    inner = {key: dict.fromkeys(name for row in flat for name in row if name.startswith(f"{key}.")) for key in keys}
    names = [name for key in keys for name in (inner[key] or [key])]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue()


def _cells(row: Row, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each cell of a CSV row."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _cells(value, f"{where}{key}.")
        else:
            text = json.dumps(value) if isinstance(value, list | tuple) else value
            yield f"{where}{key}", "" if text is None else text


def markdown_text(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Return the rows as a Markdown table with long headings."""
    lines = [_markdown_line(c.heading for c in columns), _markdown_line("---" if c.left else "---:" for c in columns)]
    lines += [_markdown_line(c.text(row).replace("|", "\\|") for c in columns) for row in rows]
    return "\n".join(lines) + "\n"


def _markdown_line(cells: Any) -> str:
    """Return one line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
