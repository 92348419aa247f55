"""The commands: each module adds its options to the parser and prints what it finds."""

from typing import Any

Verbs = Any
"""What `argparse`'s `add_subparsers` returns."""
