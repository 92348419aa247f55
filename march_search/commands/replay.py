"""`march-search replay`: search strategies on recorded learning curves, without training."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from march_search.commands import Verbs

NAMES = ("exhaustive", "median", "percentile", "halving", "hyperband", "rungs")
"""Strategies, as in `replay/strategies.py`, which takes Optuna's import to read."""


def add(verbs: Verbs) -> None:
    """Adds the command to the parser."""
    replay = verbs.add_parser("replay", help="run search strategies on recorded learning curves, without training")
    replay.add_argument(
        "table", metavar="TABLE", help="a table's file, the name of a shipped one, or, to export, a study"
    )
    replay.add_argument("--strategy", choices=("all", *NAMES), default="all", help="default: all of them")
    replay.add_argument("--orders", type=int, default=100, metavar="N", help="random orders (default: 100)")
    replay.add_argument("--workers", default="1", metavar="N,N", help="workers at the same time (default: 1)")
    replay.add_argument(
        "--noise", type=float, default=0.0, metavar="NATS", help="noise added to the curves (default: 0)"
    )
    replay.add_argument(
        "--noise-of", choices=("run", "evaluation"), default="run", help="drawn once a run, as a seed's is"
    )
    replay.add_argument(
        "--proposals", choices=("random", "tpe"), default="random", help="who says which run comes next"
    )
    replay.add_argument("--seed", type=int, default=0)
    replay.add_argument("--format", choices=("table", "json"), default="table")
    replay.add_argument("--export", action="store_true", help="write the complete trials of the study TABLE as a table")
    replay.add_argument("-o", "--output", metavar="FILE", help="where the exported table goes (default: STUDY.json)")
    replay.add_argument("--root", default="runs", metavar="DIR", help="folder of studies (default: runs)")
    replay.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exports a table, or replays one."""
    if options.export:
        return _export(options)
    from march_search.replay.orders import replay
    from march_search.replay.table import read_table

    table = read_table(options.table)
    names = NAMES if options.strategy == "all" else (options.strategy,)
    rows = [
        asdict(
            replay(
                table,
                name,
                orders=options.orders,
                workers=workers,
                noise=options.noise,
                noise_of=options.noise_of,
                proposals=options.proposals,
                seed=options.seed,
            )
        )
        for workers in _workers(options)
        for name in names
    ]
    if options.format == "json":
        print(json.dumps({"schema_version": 1, "table": table.name, "rows": rows}, indent=1))
        return 0
    from march_search.report.tables import Column, console, print_table

    columns = (
        Column("strategy", "strategy", "strategy", left=True),
        Column("workers", "workers", "workers"),
        Column("spent", "tokens spent", "spent", lambda v: f"{v:.1%}"),
        Column("found", "best found", "found", lambda v: f"{v:.1%}"),
        Column("regret", "mean regret", "regret", lambda v: f"{v:.4f}"),
        Column("worst", "worst regret", "worst", lambda v: f"{v:.4f}"),
        Column("busy", "workers busy", "busy", lambda v: f"{v:.0%}"),
    )
    noise = f", noise of {options.noise:g} nats on every {options.noise_of}" if options.noise else ""
    notes = [
        "spent: share of the tokens that all runs take to their ends. "
        "regret: loss of the chosen run minus the best, nats.",
        "busy: share of the workers' time in which they train, all runs being equally fast. "
        "Optuna's pruners have its defaults.",
        f"Curves: {table.source}",
    ]
    title = f"{table.name}: {len(table.architectures)} runs in {options.orders} {_orders(options)} orders{noise}"
    print_table(console(), rows, columns, title, notes)
    return 0


def _orders(options: argparse.Namespace) -> str:
    """What kind of orders they are."""
    return "random" if options.proposals == "random" else "TPE's"


def _workers(options: argparse.Namespace) -> list[int]:
    """The numbers of workers.

    Raises:
        UsageError: one of them, or the orders, the noise or the seed, cannot be meant.
    """
    from march_search.errors import UsageError

    parts = options.workers.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--workers takes numbers above 0, 1,4,8 say, not {options.workers!r}.")
    if options.orders < 1 or not 0 <= options.noise < float("inf") or options.seed < 0:
        raise UsageError("--orders must be at least 1, --noise and --seed not negative.")
    return [int(part) for part in parts]


def _export(options: argparse.Namespace) -> int:
    """Writes a study's complete trials as a table."""
    from march_search.evidence.trials import read_study
    from march_search.files import write_json
    from march_search.replay.table import study_table

    study = read_study(options.table, Path(options.root))
    path = Path(options.output or f"{study.name}.json")
    write_json(path, study_table(study))
    print(f"{path}: replay it with march-search replay {path}")
    return 0
