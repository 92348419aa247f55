"""Options that say how a trial would run, for commands that price architectures."""

import argparse
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from march_search.cost import Setup


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the options to a command."""
    group = parser.add_argument_group("price of a trial")
    group.add_argument("--device", metavar="D", help="8xA5000, H100, cpu, ...: adds memory, tokens/s and hours")
    group.add_argument(
        "--tokens", default="1_048_576_000", metavar="N", help="data budget (default: 1000 steps of 2^20)"
    )
    group.add_argument(
        "--sequence-length", type=natural, default=512, metavar="N", help="tokens an example (default: 512)"
    )
    group.add_argument(
        "--micro-batch", type=natural, default=8, metavar="N", help="examples a device takes at once (default: 8)"
    )
    group.add_argument(
        "--precision", choices=("fp32", "bf16"), default="bf16", help="of weights and activations (default: bf16)"
    )
    group.add_argument(
        "--zero", type=int, choices=range(4), default=0, help="ZeRO stage (default: 0; bf16 takes at least 1)"
    )
    group.add_argument("--checkpointing", action="store_true", help="compute layers again in the backward pass")


def setup_of(options: argparse.Namespace) -> "Setup":
    """How a trial would run, as the options say.

    Raises:
        UsageError: no such device.
        BudgetError: a data budget that cannot be read.
        ConfigError: examples that cannot be made.
    """
    from march_search.budget import parse_count
    from march_search.cost import Setup
    from march_search.devices import parse_device

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


def notes(setup: "Setup") -> list[str]:
    """What a reader of a price has to know."""
    from march_search.report.tables import count, si

    device = setup.device
    zero = f"ZeRO {setup.stage}, micro batch {setup.micro_batch}{', checkpointing' if setup.checkpointing else ''}"
    room = f" of {device.memory_bytes / 1e9:.3g} GB" if device.memory_bytes else ""
    return [
        f"hours: {count(setup.tokens)} tokens on {device}, {device.basis}.",
        f"memory: each device's{room}, {setup.precision}, {zero}; {si(setup.sequence_length)} tokens a sequence.",
    ]


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'"{text}" must be a whole number of at least 1')
    return int(text)


def amount(text: str) -> float:
    """A finite number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'"{text}" must be a number above 0')
    return value


def natural(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f'"{text}" must be a whole number of at least 0')
    return int(text)
