"""Subcommands of march-search. Each module adds its arguments to the parser and prints its results."""

from typing import Any

Verbs = Any
"""Type of the object that argparse's `add_subparsers` returns."""
