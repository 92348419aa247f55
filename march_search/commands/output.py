"""Print the results of a command, in the format that `--format` asks for."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from march_search.commands.options import root_option
from march_search.display.tables import Column, Row, console, csv_text, markdown_text, print_table

if TYPE_CHECKING:
    from march_search.study.runner import Summary
    from march_search.study.study_folder import StudyFolder


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
        sys.stdout.write(csv_text(rows, keys))
    elif output_format == "markdown":
        parts = [title, markdown_text(rows, columns), "\n".join(f"- {note}" for note in notes)]
        sys.stdout.write("\n\n".join(part.strip() for part in parts if part) + "\n")
    else:
        print_table(console(), rows, columns, title, notes, legend)


def print_json(value: dict[str, Any], schema_version: int = 1) -> None:
    """Print a JSON object with its `schema_version` to stdout."""
    print(json.dumps({"schema_version": schema_version} | value, indent=1, allow_nan=False))


def print_pairs(out: Any, title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print (label, text) pairs as a table of two columns without headings."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def report_summary(summary: "Summary", folder: "StudyFolder") -> int:
    """Print to stderr how the run of a study ended, and return the exit code."""
    name, root = folder.path.name, root_option(folder.path.parent)
    counts = f"{summary.complete} complete, {summary.pruned} pruned, {summary.failed} failed, {summary.left} left"
    print(f"{name}: {counts}. Ranking: march-search rank {name}{root}", file=sys.stderr)
    for note in summary.notes:
        print(f"{name}: {note}", file=sys.stderr)
    if summary.signum:
        print(f"{name}: interrupted; run the same command again to resume.", file=sys.stderr)
        return 128 + summary.signum
    return 1 if summary.failed else 0
