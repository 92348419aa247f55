"""The argument parser of all commands: errors in one line that suggest what was meant, and the help to read."""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from march_search.errors import nearest, shown, visible


class Parser(argparse.ArgumentParser):
    """Argument parser that reports errors in one line, and accepts TRIAL after options."""

    fixed_help = ""
    """Help to print instead of the one that argparse composes."""
    _has_commands = False
    _is_parsing = False

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | settings)

    def format_help(self) -> str:
        """Return the help."""
        return self.fixed_help or super().format_help()

    def add_subparsers(self, **settings: Any) -> Any:
        """Add the parsers of commands."""
        self._has_commands = True
        return super().add_subparsers(**settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments. Without this, optional ones are refused after an option: `export STUDY --root DIR TRIAL`.

        Unknown options are refused here, so that the error names the help of the command that was meant.
        """
        if self._has_commands or self._is_parsing:
            return super().parse_known_args(args, namespace)
        self._is_parsing = True  # parse_known_intermixed_args calls this method
        try:
            known, others = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_parsing = False
        if others:
            self.error(_unexpected(others[0], re.findall(r"--[\w-]+", self.format_usage())))
        return known, others

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is not one of the choices of its argument, with the nearest one."""
        if action.choices is not None and value not in action.choices:
            is_command = isinstance(action.choices, Mapping)
            words = f"{'unknown command' if is_command else 'cannot be'} {shown(value)}"
            near = nearest(str(value), map(str, action.choices))
            raise argparse.ArgumentError(None if is_command else action, f"{words}. {near}")

    def error(self, message: str) -> NoReturn:
        """Print an error with the help to read, and exit with 2."""
        end = "" if message.endswith((".", "?")) else "."
        print(f"{self.prog}: {visible(message)}{end} Try: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def _unexpected(word: str, options: Iterable[str]) -> str:
    """Return the error for an argument that the command does not take."""
    if not word.startswith("-"):
        return f"unexpected argument {shown(word)}"
    name = word.partition("=")[0]
    return f"unknown option {shown(name)}. {nearest(name, options)}"
