"""Command line of march-search: parse the arguments, then run one command.

Results go to stdout, progress and errors to stderr. Only the module of the command that is run is imported.
"""

import argparse
import io
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

from march_search.errors import MarchSearchError, StorageError, nearest, shown, visible

COMMANDS = {
    "solve": "list every architecture inside a parameter budget",
    "explain": "print the parameters of one architecture by group, and its cost",
    "study": "run, watch, stop and resume studies, or list the shipped ones",
    "keys": "print the keys of a study file, with types and defaults",
    "rank": "rank the architectures of a study, with ties and uncertainty",
    "pareto": "print the Pareto-optimal architectures of a study",
    "report": "write a report of a study: one HTML file with figures, or text",
    "export": "write a trained trial, or all learning curves, for other programs",
    "replay": "evaluate search strategies on recorded learning curves, without training",
    "data": "prepare or inspect the text of a study",
    "doctor": "check the installation: libraries, devices, DeepSpeed, disk, a tiny trial",
    "completion": "print a script that completes commands and options in a shell",
}
"""Help text of every command. The function `add` of the module of the same name adds its arguments."""


class _Parser(argparse.ArgumentParser):
    """Argument parser that reports errors in one line, and accepts TRIAL after options."""

    _has_commands = False
    _is_parsing = False

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | settings)

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
        end = "" if message.endswith((".", "?")) else "."
        print(f"{self.prog}: {visible(message)}{end} Try: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def _unexpected(word: str, options: Iterable[str]) -> str:
    """Return the error for an argument that the command does not take."""
    if not word.startswith("-"):
        return f"unexpected argument {shown(word)}"
    name = word.partition("=")[0]
    return f"unknown option {shown(name)}. {nearest(name, options)}"


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Args:
        command: The command whose arguments are needed, so that the others are not imported; None for all of them.
    """
    top = _Parser(prog="march-search", description="Architecture search for transformers inside a parameter budget.")
    top.add_argument("--version", action="store_true", help="print the version and exit")
    verbs = top.add_subparsers(dest="verb", metavar="COMMAND", parser_class=_Parser)
    for name, text in COMMANDS.items():
        verb = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if command in (None, name):
            import_module(f"march_search.commands.{name}").add(verb)
    top.set_defaults(whole_parser=parser)
    top.epilog = "To see the options of a command and an example, run march-search COMMAND --help."
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `march_search.errors`; 130 or 143 after an interruption)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # print "?" where the terminal lacks Unicode
    words = sys.argv[1:] if arguments is None else list(arguments)
    return _guarded(words)


def _parsed(words: Sequence[str]) -> Any:
    """Return the parsed command line."""
    first = next((word for word in words if not word.startswith("-")), "")
    top = parser(first)
    options = top.parse_args(words)
    if options.version:
        options.run = _print_version
    elif options.verb is None:
        options.run = lambda _: top.print_help()
    return options


def _print_version(_: Any) -> None:
    """Print the version of the package."""
    from march_search import __version__

    print(__version__)


def _guarded(words: Sequence[str]) -> int:
    """Parse the arguments and run the chosen command; print errors that the user can fix as one line."""
    try:
        options = _parsed(words)
        code = int(options.run(options) or 0)
        sys.stdout.flush()
        return code
    except MarchSearchError as error:
        print(f"march-search: {visible(str(error), lines=True)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("march-search: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, for example `head`, closed the pipe
        _discard_output()
        return 0
    except OSError as error:
        where = error.filename or "the output"
        print(visible(f"march-search: {where}: {error.strerror or error}."), file=sys.stderr)
        _discard_output()
        return StorageError.exit_code


def _discard_output() -> None:
    """Send what is left to print nowhere, so that Python's exit does not fail on it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
