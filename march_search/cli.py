"""Command line of march-search: parse the arguments, then run one command.

Results go to stdout, progress and errors to stderr. Only the module of the command that is run is imported.
"""

from __future__ import annotations

import io
import os
import sys

from march_search.errors import MarchSearchError, StorageError, visible

TYPE_CHECKING = False  # importing typing and argparse takes longer than everything else here
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

COMMANDS = {
    "solve": "list every architecture that meets a budget",
    "explain": "print the parameters of one architecture by group, and its cost",
    "study": "run, watch, stop and resume studies, or list the shipped ones",
    "keys": "print the keys of a study file, with types and defaults",
    "rank": "rank the architectures of a study, with ties and uncertainty",
    "forecast": "write down a ladder's forecast before its size is trained",
    "pareto": "print the Pareto-optimal architectures of a study",
    "report": "write a report of a study: one HTML file with figures, or text",
    "export": "write a trained trial, or all learning curves, for other programs",
    "replay": "evaluate search strategies on recorded curves, without training",
    "data": "prepare or inspect the text of a study",
    "doctor": "check libraries, devices, DeepSpeed and disk; train a tiny trial",
    "completion": "print a script that completes commands and options in a shell",
}
"""Help text of every command. The function `add` of the module of the same name adds its arguments."""

PURPOSE = "Architecture search for transformers inside a parameter budget."

OPTIONS = {"-h, --help": "show this help message and exit", "--version": "print the version and exit"}


def help_text() -> str:
    """Return the help of `march-search`. It is written here, because argparse takes longer to load than all of it."""
    width = max(map(len, (*COMMANDS, *OPTIONS)))
    commands, options = (
        "".join(f"  {name:<{width}}  {text}\n" for name, text in table.items()) for table in (COMMANDS, OPTIONS)
    )
    return (
        f"usage: march-search [-h] [--version] COMMAND ...\n\n{PURPOSE}\n\ncommands:\n{commands}\noptions:\n{options}\n"
        "To see the options of a command and an example, run march-search COMMAND --help.\n"
    )


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Args:
        command: The command whose arguments are needed, so that the others are not imported; None for all of them.
    """
    from importlib import import_module

    from march_search.commands.parser import Parser

    top = Parser(prog="march-search", description=PURPOSE)
    top.add_argument("--version", action="store_true", help=OPTIONS["--version"])
    verbs = top.add_subparsers(dest="verb", metavar="COMMAND", parser_class=Parser)
    for name, text in COMMANDS.items():
        is_needed = command in (None, name)
        verb = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", add_help=is_needed)
        if is_needed:
            import_module(f"march_search.commands.{name}").add(verb)
    top.set_defaults(whole_parser=parser)
    top.fixed_help = help_text()
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `march_search.errors`; 130 or 143 after an interruption)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as in `march-search keys >&-`
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w")))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # print "?" where the terminal lacks Unicode
    words = sys.argv[1:] if arguments is None else list(arguments)
    return _guarded(words)


def _parsed(words: Sequence[str]) -> Any:
    """Return the parsed command line."""
    top = parser(next((word for word in words if not word.startswith("-")), ""))
    options = top.parse_args(words)
    if options.version:
        options.run = _print_version
    elif options.verb is None:
        options.run = _print_help
    return options


def _print_version(_: Any = None) -> None:
    """Print the version of the package."""
    from march_search import __version__

    print(__version__)


def _print_help(_: Any = None) -> None:
    """Print the help of all commands."""
    print(help_text(), end="")


AT_ONCE = {(): _print_help, ("-h",): _print_help, ("--help",): _print_help, ("--version",): _print_version}
"""What runs without argparse, by the words of the command line."""


def _guarded(words: Sequence[str]) -> int:
    """Parse the arguments and run the chosen command; print errors that the user can fix as one line."""
    try:
        if at_once := AT_ONCE.get(tuple(words)):
            at_once()
            code = 0
        else:
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
