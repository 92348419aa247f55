"""Command line of march-search: parse the arguments, then run one command.

Results go to stdout, progress and errors to stderr.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from march_search.errors import MarchSearchError, StorageError, visible


class _Parser(argparse.ArgumentParser):
    """Argument parser that reports errors in one line, and accepts TRIAL after options."""

    _has_commands = False
    _is_parsing = False

    def add_subparsers(self, **settings: Any) -> Any:
        """Add the parsers of commands."""
        self._has_commands = True
        return super().add_subparsers(**settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments. Without this, optional ones are refused after an option: `export STUDY --root DIR TRIAL`."""
        if self._has_commands or self._is_parsing:
            return super().parse_known_args(args, namespace)
        self._is_parsing = True  # parse_known_intermixed_args calls this method
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_parsing = False

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {visible(message)}. Try: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    from march_search.commands import data, doctor, explain, export, pareto, rank, replay, report, solve, study

    top = _Parser(prog="march-search", description="Architecture search for transformers inside a parameter budget.")
    top.add_argument("--version", action="store_true", help="print the version and exit")
    verbs = top.add_subparsers(
        dest="verb",
        metavar="COMMAND",
        parser_class=_Parser,
    )
    for command in (solve, explain, study, rank, pareto, report, export, replay, data, doctor):
        command.add(verbs)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `march_search.errors`; 130 or 143 after an interruption)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # print "?" where the terminal lacks Unicode
    top = parser()
    options = top.parse_args(arguments)
    if options.version:
        from march_search import __version__

        print(__version__)
        return 0
    if options.verb is None:
        top.print_help()
        return 2
    return _guarded(options)


def _guarded(options: Any) -> int:
    """Run the chosen command; print errors that the user can fix as one line."""
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except MarchSearchError as error:
        print(f"march-search: {visible(str(error), lines=True)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("march-search: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, for example `head`, closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = error.filename or "the output"
        print(visible(f"march-search: {where}: {error.strerror or error}."), file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return StorageError.exit_code
