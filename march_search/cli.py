"""The command line: parse, call one function, print rows. Tables go to stdout, progress and errors to stderr."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from march_search.errors import MarchSearchError, StorageError


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}. Try: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from march_search.commands import data, doctor, export, pareto, rank, replay, report, solve, study, worker

    top = _Parser(prog="march-search", description="Which shape should this transformer have?")
    top.add_argument("--version", action="store_true", help="print the version and stop")
    verbs = top.add_subparsers(
        dest="verb",
        metavar="solve | study | worker | storage-proxy | rank | pareto | report | replay | data | export | doctor",
        parser_class=_Parser,
    )
    for command in (solve, study, worker, rank, pareto, report, replay, data, export, doctor):
        command.add(verbs)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (see `march_search.errors`; 130 and 143 after an interruption)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows a "?" rather than a traceback
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
    """Runs the chosen command; what a person can mend becomes one line."""
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except MarchSearchError as error:
        print(f"march-search: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("march-search: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = error.filename or "the output"
        print(f"march-search: {where}: {error.strerror or error}.", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return StorageError.exit_code
