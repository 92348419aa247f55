"""`march-search solve --explain`: the parameters of one architecture by group, and the cost of training it."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from march_search.commands.options import price_notes

if TYPE_CHECKING:
    from march_search.cost.setup import Setup


PRICES = ("memory_bytes", "tokens_per_second", "hours")
"""Keys of the columns that need a device."""


def run(options: argparse.Namespace, setup: "Setup") -> int:
    """Print the parameters of one architecture by group; with a device, also its memory and training time."""
    from march_search.architecture.architecture import Architecture
    from march_search.cost.memory import memory
    from march_search.cost.speed import flops_per_token
    from march_search.display import architectures, tables

    a = Architecture.parse(options.explain)
    groups = a.param_groups()
    rows = [
        {"group": group, "parameters": count, "share_percent": round(100 * count / a.num_params, 3)}
        for group, count in groups.items()
    ]
    flops = float(flops_per_token(a, setup))
    parts = {kind: round(size) for kind, size in memory(a, setup)._asdict().items()}
    if options.format == "csv":
        sys.stdout.write(tables.csv_text(rows, list(rows[0])))
    elif options.format == "json":
        value: dict[str, Any] = {"schema_version": 1, "name": a.name, "num_params": a.num_params, "groups": groups}
        value["flops_per_token"] = flops
        if options.device is not None:
            value |= {"setup": setup_table(setup), "memory": parts, **architectures.price(a, setup)}
        print(json.dumps(value, indent=1))
    else:
        columns = (
            tables.Column("group", "group", "group", left=True),
            tables.Column("parameters", "parameters", "parameters", tables.count),
            tables.Column("share_percent", "share", "share", "{:.1f}%".format),
        )
        notes = [
            f"{a.num_params:,} parameters, {a.num_params_non_embedding:,} of them non-embedding",
            f"{tables.si(flops)} FLOPs per token of text, forward and backward, at {setup.sequence_length} tokens per "
            f"sequence; {tables.si(flops * setup.tokens)} for {tables.count(setup.tokens)} tokens",
        ]
        tables.print_table(tables.console(), rows, columns, a.name, notes if options.device is None else notes[:1])
        if options.device is not None:
            _print_price(parts, architectures.price(a, setup), notes[1:], setup)
    return 0


def _print_price(parts: dict[str, int], price: dict[str, float], notes: list[str], setup: "Setup") -> None:
    """Print the memory by kind, and the speed and training time in the notes."""
    from march_search.display import tables

    rows = [{"kind": kind, "bytes": size} for kind, size in parts.items()]
    columns = (
        tables.Column("kind", "on each device", "on each device", left=True),
        tables.Column("bytes", "memory", "memory", tables.size),
    )
    speed = f"{tables.si(price['tokens_per_second'])} tokens/s, {price['hours']:.3g} hours"
    total = f"{tables.size(price['memory_bytes'])} in total, excluding the device context; {speed}"
    tables.print_table(tables.console(), rows, columns, "", [total, *notes, *price_notes(setup)])


def setup_table(setup: "Setup") -> dict[str, Any]:
    """Return the setup of a trial as a dict for JSON."""
    return asdict(setup) | {"zero_stage": setup.stage, "device": asdict(setup.device)}
