"""`march-search completion SHELL`: print a script that completes commands and options."""

import argparse

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

    print(shtab.complete(options.whole_parser(), options.shell))
    return 0
