"""`march-search replay`: evaluate search strategies on recorded learning curves, without training."""

import argparse
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.commands import Verbs
from march_search.errors import UsageError

if TYPE_CHECKING:
    from march_search.replay.learning_curves import LearningCurves
    from march_search.replay.strategies import Replay


def add(verbs: Verbs) -> None:
    """Add the command to the parser."""
    replay = verbs.add_parser("replay", help="evaluate search strategies on recorded learning curves, without training")
    replay.add_argument(
        "table", metavar="TABLE", help="name of a shipped table, or a JSON file; with --export, a study"
    )
    replay.add_argument(
        "--strategy",
        action="append",
        metavar="NAME[:KEY=NUMBER,..]",
        help="exhaustive, median, percentile, halving, hyperband, rungs or all (default); repeatable",
    )
    replay.add_argument("--orders", type=int, default=100, metavar="N", help="random orders of the runs (default: 100)")
    replay.add_argument("--workers", default="1", metavar="N,..", help="parallel trials (default: 1)")
    replay.add_argument(
        "--noise", type=float, default=0.0, metavar="NATS", help="deviation of the normal shift of a curve"
    )
    replay.add_argument(
        "--evaluation-noise", type=float, default=0.0, metavar="NATS", help="the same for each evaluation"
    )
    replay.add_argument(
        "--proposals", choices=("random", "tpe"), default="random", help="how the next run is chosen (default: random)"
    )
    replay.add_argument("--step", type=int, default=1, metavar="N", help="Optuna steps per evaluation (default: 1)")
    replay.add_argument("--seed", type=int, default=0, help="seed of the orders and the noise (default: 0)")
    replay.add_argument("--format", choices=("table", "json"), default="table")
    replay.add_argument("--export", action="store_true", help="write the complete trials of a study as a table")
    replay.add_argument("-o", "--output", metavar="FILE", help="output file of --export (default: standard output)")
    replay.add_argument(
        "--root", default="runs", metavar="DIR", help="folder of the studies, for --export (default: runs)"
    )
    replay.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the results of every strategy, or export a study."""
    if options.export:
        return _export(options)
    if options.output:
        raise UsageError("-o needs --export; to save results, redirect standard output with > FILE.")
    how, workers = _settings(options)
    import optuna

    from march_search.replay.learning_curves import read_curves
    from march_search.replay.strategies import NAMES, parse, replay

    optuna.logging.set_verbosity(logging.ERROR)
    table = read_curves(options.table)
    texts = [t for given in options.strategy or ["all"] for t in (NAMES if given == "all" else (given,))]
    strategies = [parse(text) for text in texts]
    rows = [replay(table, strategy, many, how) for many in workers for strategy in strategies]
    if options.format == "json":
        value = {"schema_version": 1, "table": options.table, "source": table.source, "unit": table.unit}
        settings = {name: getattr(how, name) for name in ("orders", "seed", "noise", "evaluation_noise", "step")}
        value |= {"runs": len(table.runs), **settings, "proposals": options.proposals, "strategies": rows}
        print(json.dumps(value, indent=1))
    else:
        _print(options.table, table, rows, how)
    return 0


def _settings(options: argparse.Namespace) -> tuple["Replay", list[int]]:
    """Return the replay settings and the numbers of workers.

    Raises:
        UsageError: If a number is out of range.
    """
    words = options.workers.split(",")
    if not all(word.strip().isascii() and word.strip().isdigit() and 1 <= int(word) <= 10_000 for word in words):
        raise UsageError(f'--workers must be whole numbers from 1 to 10,000, such as 1,4,8, not "{options.workers}".')
    for name in ("orders", "step"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} must be at least 1, not {getattr(options, name)}.")
    for name in ("noise", "evaluation_noise"):
        if not (math.isfinite(getattr(options, name)) and getattr(options, name) >= 0):
            raise UsageError(f"--{name.replace('_', '-')} must be 0 or more, not {getattr(options, name)}.")
    if options.seed < 0:
        raise UsageError(f"--seed must be 0 or more, not {options.seed}.")
    from march_search.replay.strategies import Replay

    tpe = options.proposals == "tpe"
    how = Replay(options.orders, options.seed, options.noise, options.evaluation_noise, tpe, options.step)
    return how, [int(word) for word in words]


def _print(name: str, table: "LearningCurves", rows: list[dict[str, Any]], how: "Replay") -> None:
    """Print the results as a table."""
    from march_search.display import tables

    columns = (
        tables.Column("strategy", "strategy", "strategy", left=True),
        tables.Column("workers", "workers", "W"),
        tables.Column("spent", "tokens spent", "spent", "{:.1%}".format),
        tables.Column("spent_max", "at most", "max", "{:.1%}".format),
        tables.Column("found", "best found", "found"),
        tables.Column("as_exhaustive", "as exhaustive", "same"),
        tables.Column("regret", "mean regret", "regret", "{:.4f}".format),
        tables.Column("regret_max", "worst regret", "worst", "{:.4f}".format),
        tables.Column("time", "time", "time", "{:.0%}".format),
        tables.Column("idle", "idle", "idle", "{:.0%}".format),
    )
    noise = f", noise {how.noise:g} per curve and {how.evaluation_noise:g} per evaluation"
    title = f"{name}: {len(table.runs)} runs in {tables.plural(how.orders, 'random order')}"
    notes = [
        f"tokens spent: relative to training every run to the end. Regret: in {table.unit}, by the recorded losses.",
        "best found: orders that found the lowest recorded loss. as exhaustive: orders that chose as exhaustive does.",
        "time: relative to training every run with the same number of workers. idle: share of the workers' time.",
        "Optuna's pruners start the next trial at once; a rung waits until all of its candidates reach it.",
    ]
    if how.tpe:
        notes.append("TPE chose the next run, except with rungs, which start every run.")
    title += noise if how.noise or how.evaluation_noise else ""
    legend = "W: workers, max: most tokens spent, same: as exhaustive"
    tables.print_table(tables.console(), rows, columns, title, notes, legend)


def _export(options: argparse.Namespace) -> int:
    """Write the learning curves of a study as a table."""
    from march_search.analysis.study_record import read_study
    from march_search.files import json_text, write_json
    from march_search.replay.learning_curves import study_curves

    value = study_curves(read_study(options.table, Path(options.root)))
    if options.output:
        write_json(Path(options.output), value)
    else:
        print(json_text(value), end="")
    return 0
