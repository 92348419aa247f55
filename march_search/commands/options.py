"""Options and arguments that several commands share."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.commands import Verbs
from march_search.errors import UsageError, shown

if TYPE_CHECKING:
    from march_search.cost.setup import Setup

DEFAULT_ROOT = "runs"
"""Default root folder of all studies, relative to the current directory."""

STUDY_HELP = "a shipped study, a TOML file, or a started study by name or folder"

FORMATS = ("table", "json", "csv", "markdown")


def add_study(parser: argparse.ArgumentParser) -> None:
    """Add the STUDY argument and `--root`."""
    parser.add_argument("study", metavar="STUDY", help=STUDY_HELP)
    add_root(parser)


def add_root(parser: argparse.ArgumentParser) -> None:
    """Add `--root`."""
    parser.add_argument(
        "--root", type=Path, default=Path(DEFAULT_ROOT), metavar="DIR", help="folder of the studies (default: runs)"
    )


def add_format(parser: argparse.ArgumentParser, holds: str) -> None:
    """Add `--format`.

    Args:
        parser: Parser of the command.
        holds: What the rows are, for the help.
    """
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0],
        help=f"{holds}. table: what fits the terminal; csv and json: all values; markdown: the table with its notes "
        f"(default: {FORMATS[0]})",
    )


def add_examples(parser: argparse.ArgumentParser, *commands: str) -> None:
    """Add examples to the end of the help."""
    parser.epilog = "\n  ".join(["example:" if len(commands) == 1 else "examples:", *commands])


def add_actions(parser: argparse.ArgumentParser, metavar: str) -> Verbs:
    """Add the parsers of a command's actions. Without an action, the command prints its help."""
    parser.set_defaults(run=lambda _: parser.print_help())
    return parser.add_subparsers(dest="action", metavar=metavar, parser_class=type(parser))


def root_option(root: Path) -> str:
    """Return the `--root` of a suggested command, with a space in front; empty for the default."""
    return "" if root.resolve() == Path(DEFAULT_ROOT).resolve() else f" --root {root}"


def refuse_without_effect(options: argparse.Namespace, names: Sequence[str], because: str) -> None:
    """Refuse options that were given but would change nothing.

    Args:
        options: The parsed command line, in which an option that was not given is None or False.
        names: Names of options, as attributes of `options`.
        because: Why they have no effect, and what to do.

    Raises:
        UsageError: If one of the options was given.
    """
    for name in names:
        value: Any = getattr(options, name)
        if value is not None and value is not False and value != []:
            raise UsageError(f"--{name.replace('_', '-')} has no effect {because}.")


COST_OPTIONS = ("tokens", "micro_batch", "precision", "zero", "checkpointing")
"""Options that only change memory, speed or hours."""


def add_price_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the setup of a trial, for commands that estimate the cost of architectures."""
    group = parser.add_argument_group("cost of a trial")
    group.add_argument(
        "--device", metavar="D", help="8xA5000, H100, 8x312TFLOPs,80GB, cpu, ...; adds memory, tokens/s and hours"
    )
    group.add_argument("--tokens", metavar="N", help="tokens per trial (default: 1000 steps of 2^20)")
    group.add_argument("--sequence-length", type=natural, metavar="N", help="tokens per example (default: 512)")
    group.add_argument(
        "--micro-batch", type=natural, metavar="N", help="examples per device and forward pass (default: 8)"
    )
    group.add_argument("--precision", choices=("fp32", "bf16"), help="of weights and activations (default: bf16)")
    group.add_argument("--zero", type=int, choices=range(4), help="ZeRO stage (default: 0; bf16 uses at least 1)")
    group.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")


def price_setup(options: argparse.Namespace) -> "Setup":
    """Return the setup of a trial from the options; see `price_settings` for errors.

    Raises:
        ConfigError: If the sequence length does not allow any example.
    """
    from march_search.cost.setup import Setup

    return Setup(**price_settings(options))


def price_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `Setup` that the options set.

    Raises:
        UsageError: If the device is unknown.
        BudgetError: If the data budget is not a valid count.
    """
    from march_search.config.counts import parse_count
    from march_search.cost.devices import parse_device

    given: dict[str, Any] = {
        "device": parse_device(options.device) if options.device is not None else None,
        "tokens": parse_count(options.tokens, "data budget") if options.tokens is not None else None,
        "sequence_length": options.sequence_length,
        "micro_batch": options.micro_batch,
        "precision": options.precision,
        "zero_stage": options.zero,
        "checkpointing": options.checkpointing or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def price_notes(setup: "Setup") -> list[str]:
    """Return notes on the assumptions behind the predicted time and memory."""
    from march_search.units import count, si

    device = setup.device
    zero = f"ZeRO {setup.stage}, micro batch {setup.micro_batch}{', checkpointing' if setup.checkpointing else ''}"
    together = "" if device.count == 1 else "; the speeds of the devices add up, and communication is not counted"
    room = f" of {device.memory_bytes / 1e9:.3g} GB" if device.memory_bytes else ""
    return [
        f"hours: {count(setup.tokens)} tokens on {device}, {device.basis}{together}.",
        f"memory: per device{room}, {setup.precision}, {zero}; {si(setup.sequence_length)} tokens per sequence.",
    ]


def positive(text: str) -> int:
    """Parse a whole number of at least 1, for argparse."""
    return _whole(text, 1)


def amount(text: str) -> float:
    """Parse a finite number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'"{text}" must be a number above 0')
    return value


def natural(text: str) -> int:
    """Parse a whole number of at least 0, for argparse."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    """Parse a whole number of at least `least` and below 10^15, for argparse."""
    if not text.isascii() or not text.isdigit() or len(text) > 15 or int(text) < least:
        raise argparse.ArgumentTypeError(f"{shown(text)} must be a whole number of at least {least}, below 10^15")
    return int(text)


def add_action(actions: Verbs, name: str, text: str) -> argparse.ArgumentParser:
    """Add one action to a command and return its parser; `text` is its help."""
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    return parser
