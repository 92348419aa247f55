"""`march-search replay`: evaluate search strategies on recorded learning curves, without training."""

import argparse
import logging
import math
from typing import TYPE_CHECKING, Any

from march_search.commands import Verbs
from march_search.commands.options import add_format, add_root
from march_search.errors import UsageError

if TYPE_CHECKING:
    from march_search.replay.learning_curves import LearningCurves
    from march_search.replay.strategies import Replay


def add(verbs: Verbs) -> None:
    """Add the command to the parser."""
    replay = verbs.add_parser("replay", help="evaluate search strategies on recorded learning curves, without training")
    replay.add_argument("curves", metavar="CURVES", help="a shipped table of curves, a JSON file, or a study")
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
    add_format(replay)
    add_root(replay)
    replay.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the results of every strategy."""
    how, workers = _settings(options)
    import optuna

    from march_search.replay.strategies import NAMES, parse, replay

    optuna.logging.set_verbosity(logging.ERROR)
    curves = _curves(options)
    texts = [t for given in options.strategy or ["all"] for t in (NAMES if given == "all" else (given,))]
    strategies = [parse(text) for text in texts]
    rows = [replay(curves, strategy, many, how) for many in workers for strategy in strategies]
    _print(options, curves, rows, how)
    return 0


def _curves(options: argparse.Namespace) -> "LearningCurves":
    """Return the curves of a shipped table, of a file, or of the complete trials of a study.

    Raises:
        ConfigError: If the file is invalid or the study has too few complete trials.
        UsageError: If nothing has that name.
    """
    from march_search.commands.studies import named_study
    from march_search.config.shipped import shipped_names
    from march_search.replay.learning_curves import read_curves, study_curves

    tables = shipped_names("tables")
    if options.curves in tables or options.curves.endswith(".json"):
        return read_curves(options.curves)
    try:
        study = named_study(options.curves, options.root)
    except UsageError as error:
        raise UsageError(f"{error} Shipped tables of curves: {', '.join(tables)}.") from None
    return study_curves(study.record())


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
    how = Replay(
        orders=options.orders,
        seed=options.seed,
        noise=options.noise,
        evaluation_noise=options.evaluation_noise,
        tpe=tpe,
        step=options.step,
    )
    return how, [int(word) for word in words]


def _print(options: argparse.Namespace, curves: "LearningCurves", rows: list[dict[str, Any]], how: "Replay") -> None:
    """Print one row per strategy and number of workers."""
    from march_search.commands.output import print_rows
    from march_search.display import tables

    columns = (
        tables.Column(key="strategy", heading="strategy", short="strategy", left=True),
        tables.Column(key="workers", heading="workers", short="W"),
        tables.Column(key="spent", heading="tokens spent", short="spent", show="{:.1%}".format),
        tables.Column(key="spent_max", heading="at most", short="max", show="{:.1%}".format),
        tables.Column(key="found", heading="best found", short="found"),
        tables.Column(key="as_exhaustive", heading="as exhaustive", short="same"),
        tables.Column(key="regret", heading="mean regret", short="regret", show="{:.4f}".format),
        tables.Column(key="regret_max", heading="worst regret", short="worst", show="{:.4f}".format),
        tables.Column(key="time", heading="time", short="time", show="{:.0%}".format),
        tables.Column(key="idle", heading="idle", short="idle", show="{:.0%}".format),
    )
    noise = f", noise {how.noise:g} per curve and {how.evaluation_noise:g} per evaluation"
    title = f"{options.curves}: {len(curves.runs)} runs in {tables.plural(how.orders, 'random order')}"
    notes = [
        f"tokens spent: relative to training every run to the end. Regret: in {curves.unit}, by the recorded losses.",
        "best found: orders that found the lowest recorded loss. as exhaustive: orders that chose as exhaustive does.",
        "time: relative to training every run with the same number of workers. idle: share of the workers' time.",
        "Optuna's pruners start the next trial at once; a rung waits until all of its candidates reach it.",
    ]
    if how.tpe:
        notes.append("TPE chose the next run, except with rungs, which start every run.")
    title += noise if how.noise or how.evaluation_noise else ""
    legend = "W: workers, max: most tokens spent, same: as exhaustive"
    head = {"table": options.curves, "source": curves.source, "unit": curves.unit, "runs": len(curves.runs)}
    head |= {name: getattr(how, name) for name in ("orders", "seed", "noise", "evaluation_noise", "step")}
    head |= {"proposals": options.proposals}
    print_rows(options.format, rows, columns, title=title, notes=notes, legend=legend, head=head, name="strategies")
