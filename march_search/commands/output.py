"""Print the results of a command, in the format that `--format` asks for."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.commands.options import root_option
from march_search.display.tables import Column, Row, console, csv_text, markdown_text, print_table
from march_search.errors import visible
from march_search.files.atomic import write_output

if TYPE_CHECKING:
    from march_search.storage.study_folder import StudyFolder
    from march_search.study.runner import Summary


def print_rows(
    output_format: str,
    rows: Sequence[Row],
    columns: Sequence[Column],
    *,
    title: str = "",
    notes: Sequence[str] = (),
    legend: str = "",
    head: dict[str, Any] | None = None,
    name: str = "rows",
) -> None:
    """Print rows to stdout.

    Args:
        output_format: `table`, `json`, `csv` or `markdown`.
        rows: Rows; JSON and CSV contain all of their keys.
        columns: Columns of the table and of the Markdown table.
        title: Line above the table.
        notes: Lines below the table.
        legend: Meaning of the short headings of the table.
        head: Keys of the JSON object besides `schema_version` and the rows.
        name: Key of the rows in the JSON object.
    """
    if output_format == "json":
        print_json((head or {}) | {name: list(rows)})
    elif output_format == "csv":
        keys = list(dict.fromkeys(key for row in rows for key in row)) or [column.key for column in columns]
        print_text(csv_text(rows, keys))
    elif output_format == "markdown":
        parts = [title, markdown_text(rows, columns), "\n".join(f"- {note}" for note in notes)]
        print_text("\n\n".join(part.strip() for part in parts if part) + "\n")
    else:
        print_table(console(), rows, columns, title, notes, legend)


def print_text(text: str) -> None:
    """Print text that may come from outside to stdout, without control characters other than line breaks and tabs."""
    sys.stdout.write(visible(text, lines=True))


def print_or_write(path: str, text: str) -> bool:
    """Write a file that the user named with -o, or print it if that is `-` or the standard output by another name.

    Returns:
        Whether a file was written, so that its path can be printed.

    Raises:
        StorageError: If the file cannot be written.
    """
    is_stdout = path == "-"
    with suppress(OSError, ValueError):  # a file that does not exist yet, or no standard output
        is_stdout = is_stdout or os.path.samestat(Path(path).stat(), os.fstat(sys.stdout.fileno()))
    if is_stdout:
        print_text(text)
    else:
        write_output(Path(path), text)
    return not is_stdout


def print_json(value: dict[str, Any], schema_version: int = 1) -> None:
    """Print a JSON object with its `schema_version` to stdout."""
    print(json.dumps({"schema_version": schema_version} | value, indent=1, allow_nan=False))


def print_pairs(out: Any, title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print (label, text) pairs as a table of two columns without headings."""
    from rich.table import Table

    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
    )
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def print_plan(out: Any, title: str, warnings: Sequence[str], rows: Sequence[tuple[str, str]]) -> None:
    """Print the plan of a study: its warnings, which are highlighted, then its rows."""
    from rich.text import Text

    out.print(Text(visible(title), style="bold"))
    for warning in warnings:
        out.print(Text(visible(f"WARNING: {warning}"), style="bold yellow"))
    print_pairs(out, "", rows)


def report_summary(summary: "Summary", folder: "StudyFolder") -> int:
    """Print to stderr how the run of a study ended, and return the exit code."""
    name, root = folder.path.name, root_option(folder.path.parent)
    counts = f"{summary.complete} complete, {summary.pruned} pruned, {summary.failed} failed, {summary.left} left"
    print(f"{name}: {counts}. Ranking: march-search rank {name}{root}", file=sys.stderr)
    for note in summary.notes:
        print(visible(f"{name}: {note}"), file=sys.stderr)
    if summary.signum:
        print(f"{name}: interrupted; run the same command again to resume.", file=sys.stderr)
        return 128 + summary.signum
    return 1 if summary.failed else 0
