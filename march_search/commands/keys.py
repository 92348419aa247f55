"""`march-search keys`: print the keys of a study file, as docs/settings.md lists them."""

import argparse
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from march_search.commands.options import add_examples, add_format

if TYPE_CHECKING:
    from march_search.config.key_reference import Key

WIDTH, INDENT = 100, " " * 4
"""Longest line of a text, and the space in front of it."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "table", metavar="TABLE", nargs="?", help="a table such as training, or one key such as training.tokens"
    )
    add_format(parser, holds="one row per key: table, key, type, default, meaning")
    add_examples(parser, "march-search keys", "march-search keys training", "march-search keys pruner.rungs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the keys of all tables, of one table, or one key."""
    from march_search.commands.output import print_rows
    from march_search.config.key_reference import TABLES, keys_of
    from march_search.display.tables import Column
    from march_search.errors import UsageError, nearest

    every = [key for table in TABLES for key in keys_of(table)]
    asked = (options.table or "").strip("[]")
    found = [key for key in every if not asked or asked in (key.table, key.path)]
    found = found or [key for key in every if key.name == asked]
    if not found:
        known = {*TABLES, *(key.path if "." in asked else key.name for key in every)} - {""}
        raise UsageError(f'no table or key of a study file is called "{asked}". {nearest(asked, known)}')
    if options.format == "table":
        _print_paragraphs(found)
        return 0
    rows = [
        {
            "key": key.path,
            "table": key.table,
            "type": key.kind,
            "default": key.default,
            "text": " ".join(key.text.split()),
        }
        for key in found
    ]
    columns = tuple(
        Column(key=name, heading=name, short=name, left=True) for name in ("key", "type", "default", "text")
    )
    print_rows(options.format, rows, columns, name="keys")
    return 0


def _print_paragraphs(keys: "Sequence[Key]") -> None:
    """Print each key with its default and type, then its meaning, below the table that it belongs to."""
    from rich.text import Text

    from march_search.config.key_reference import table_summary
    from march_search.display.tables import console

    out, table = console(), None
    for key in keys:
        if key.table != table:
            table = key.table
            name, summary = (f"[{table}]", table_summary(table)) if table else ("Keys above all tables", "")
            out.print(Text(f"{name}\n", style="bold"), Text(f"{summary}\n" if summary else ""), sep="")
        default = "required" if key.default is None else f"= {key.default}"
        out.print(Text.assemble((key.path, "bold"), f" {default}", (f"  {key.kind.replace('`', '')}", "dim")))
        out.print(
            textwrap.fill(
                " ".join(key.text.split()), min(out.width, WIDTH), initial_indent=INDENT, subsequent_indent=INDENT
            )
            + "\n"
        )
