"""Options for the setup of a trial, shared by the commands that estimate the cost of architectures."""

import argparse
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from march_search.cost.setup import Setup


def add_price_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of a command."""
    group = parser.add_argument_group("cost of a trial")
    group.add_argument("--device", metavar="D", help="8xA5000, H100, cpu, ...; adds memory, tokens/s and hours")
    group.add_argument(
        "--tokens", default="1_048_576_000", metavar="N", help="tokens per trial (default: 1000 steps of 2^20)"
    )
    group.add_argument(
        "--sequence-length", type=natural, default=512, metavar="N", help="tokens per example (default: 512)"
    )
    group.add_argument(
        "--micro-batch", type=natural, default=8, metavar="N", help="examples per device and forward pass (default: 8)"
    )
    group.add_argument(
        "--precision", choices=("fp32", "bf16"), default="bf16", help="of weights and activations (default: bf16)"
    )
    group.add_argument(
        "--zero", type=int, choices=range(4), default=0, help="ZeRO stage (default: 0; bf16 uses at least 1)"
    )
    group.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")


def price_setup(options: argparse.Namespace) -> "Setup":
    """Return the setup of a trial from the options.

    Raises:
        UsageError: If the device is unknown.
        BudgetError: If the data budget is not a valid count.
        ConfigError: If the sequence length does not allow any example.
    """
    from march_search.cost.devices import parse_device
    from march_search.cost.setup import Setup
    from march_search.space.budget import parse_count

    default = Setup()
    return Setup(
        device=parse_device(options.device) if options.device is not None else default.device,
        tokens=parse_count(options.tokens, "data budget"),
        sequence_length=options.sequence_length,
        micro_batch=options.micro_batch,
        precision=options.precision,
        zero_stage=options.zero,
        checkpointing=options.checkpointing,
    )


def price_notes(setup: "Setup") -> list[str]:
    """Return notes on the assumptions behind the predicted time and memory."""
    from march_search.display.tables import count, si

    device = setup.device
    zero = f"ZeRO {setup.stage}, micro batch {setup.micro_batch}{', checkpointing' if setup.checkpointing else ''}"
    room = f" of {device.memory_bytes / 1e9:.3g} GB" if device.memory_bytes else ""
    return [
        f"hours: {count(setup.tokens)} tokens on {device}, {device.basis}.",
        f"memory: per device{room}, {setup.precision}, {zero}; {si(setup.sequence_length)} tokens per sequence.",
    ]


def positive(text: str) -> int:
    """Parse a whole number of at least 1, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'"{text}" must be a whole number of at least 1')
    return int(text)


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
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f'"{text}" must be a whole number of at least 0')
    return int(text)
