"""`march-search explain NAME`: the parameters of one architecture by group, and the cost of training it."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from march_search import units
from march_search.commands.options import (
    COST_OPTIONS,
    add_examples,
    add_format,
    add_price_options,
    price_notes,
    price_setup,
    refuse_without_effect,
)

if TYPE_CHECKING:
    from march_search.architecture.architecture import Architecture
    from march_search.cost.setup import Setup
    from march_search.cost.speed import Seconds


def add(explain: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    explain.add_argument(
        "name",
        metavar="NAME|FILE",
        help="architecture, e.g. L12-D768-H12x64-F3072, a config.json, or a public model such as gpt2",
    )
    explain.add_argument("--space", metavar="SPACE", help="space whose [model] names the block in NAME")
    add_format(explain, holds="the parameters of each group; json also the cost of training")
    add_examples(
        explain,
        "march-search explain L12-D768-H12x64-F3072",
        "march-search explain L12-D768-H12x64-F3072 --device 8xA100 --tokens 10B",
        "march-search explain qwen3-0.6b",
    )
    add_price_options(explain)
    explain.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the parameters of one architecture by group; with a device, also its memory and training time."""
    from march_search.architecture.checkpoints import read_architecture
    from march_search.commands.output import print_rows
    from march_search.cost.memory import memory
    from march_search.cost.speed import flops_per_token, seconds_per_token
    from march_search.display import architectures, tables

    if options.device is None:
        others = [name for name in COST_OPTIONS if name != "tokens"]
        refuse_without_effect(options, others, "without --device D, which adds memory, tokens/s and hours")
    setup = price_setup(options)
    a = read_architecture(options.name)
    if options.space is not None:
        _load_block(options.space, a)
    rows = [
        {"group": group, "parameters": number, "share_percent": round(100 * number / a.num_params, 3)}
        for group, number in a.param_groups().items()
    ]
    flops = float(flops_per_token(a, setup))
    columns = (
        tables.Column(key="group", heading="group", short="group", left=True),
        tables.Column(key="parameters", heading="parameters", short="parameters", show=units.count),
        tables.Column(key="share_percent", heading="share", short="share", show="{:.1f}%".format),
    )
    notes = [
        f"{a.num_params:,} parameters, {a.num_params_non_embedding:,} of them non-embedding",
        f"{units.si(flops)} FLOPs per token of text, forward and backward, at {setup.sequence_length} tokens per "
        f"sequence; {units.si(flops * setup.tokens)} for {units.count(setup.tokens)} tokens",
    ]
    head: dict[str, Any] = {"name": a.name, "num_params": a.num_params, "flops_per_token": flops}
    if options.device is not None:
        parts = {kind: round(size) for kind, size in memory(a, setup)._asdict().items()}
        seconds = seconds_per_token(a, setup)
        head |= {"setup": setup_table(setup), "memory": parts, **architectures.price(a, setup)}
        head |= {"seconds_per_token": {part: float(time) for part, time in seconds._asdict().items()}}
    print_rows(options.format, rows, columns, title=a.name, notes=notes, head=head, name="groups")
    if options.device is not None and options.format in ("table", "markdown"):
        _print_price(options.format, parts, architectures.price(a, setup), setup, seconds)
    return 0


def _load_block(space: str, a: "Architecture") -> None:
    """Load the block of an architecture from the file that a space names.

    Raises:
        UsageError: If the architecture or the space has no block.
        ConfigError: If the space is not valid.
    """
    from march_search.errors import UsageError
    from march_search.space.space import SearchSpace

    if a.block is None:
        raise UsageError(f"--space has no effect on {a.name}, which has no block.")
    if SearchSpace.load(space).block is None:
        raise UsageError(f"--space: {space} has no block: name its file as module in [model].")


def _print_price(
    output_format: str, parts: dict[str, int], price: dict[str, float], setup: "Setup", seconds: "Seconds"
) -> None:
    """Print the memory by kind, and the speed and training time in the notes."""
    from march_search.commands.output import print_rows
    from march_search.display import tables

    rows = [{"kind": kind, "bytes": size} for kind, size in parts.items()]
    columns = (
        tables.Column(key="kind", heading="on each device", short="on each device", left=True),
        tables.Column(key="bytes", heading="memory", short="memory", show=units.size),
    )
    speed = f"{units.si(price['tokens_per_second'])} tokens/s, {price['hours']:.3g} hours"
    total = f"{units.size(price['memory_bytes'])} in total, excluding the device context; {speed}"
    shares = {part: time / sum(seconds) for part, time in seconds._asdict().items()}
    spent = ", ".join(f"{part} {share:.0%}" for part, share in shares.items() if share >= 0.005)
    print_rows(output_format, rows, columns, notes=[total, f"of the time: {spent}.", *price_notes(setup)])


def setup_table(setup: "Setup") -> dict[str, Any]:
    """Return the setup of a trial as a dict for JSON."""
    return asdict(setup) | {"zero_stage": setup.stage, "device": asdict(setup.device)}
