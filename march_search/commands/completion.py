"""`march-search completion SHELL`: print a script that completes commands and options."""

import argparse
from collections.abc import Iterator, Mapping

from march_search.commands.options import add_examples

SHELLS = ("bash", "zsh", "fish")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")
    add_examples(
        parser,
        "march-search completion bash > ~/.local/share/bash-completion/completions/march-search",
        "march-search completion zsh > ~/.zfunc/_march-search",
        "march-search completion fish > ~/.config/fish/completions/march-search.fish",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    parser = options.whole_parser()
    for action in _actions(parser):
        if (action.metavar or "") in ("DIR", "FILE", "PATH", "STUDY", "LADDER", "CURVES", "NAME|FILE"):
            action.complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments and options of a parser and of all its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action.choices, Mapping):
            for inner in action.choices.values():
                yield from _actions(inner)
