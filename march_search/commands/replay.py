"""`march-search replay`: evaluate search strategies on recorded learning curves, without training."""

import argparse
import logging
import math
from typing import TYPE_CHECKING, Any

from march_search import units
from march_search.commands.options import add_examples, add_format, add_root
from march_search.errors import UsageError

if TYPE_CHECKING:
    from march_search.display.tables import Row
    from march_search.replay.learning_curves import LearningCurves
    from march_search.replay.pools import Replay


def add(replay: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    replay.add_argument("curves", metavar="CURVES", help="a shipped table of curves, a JSON file, a study, or a ladder")
    replay.add_argument(
        "--strategy",
        action="append",
        metavar="NAME[:KEY=NUMBER,..]",
        help="exhaustive, median, percentile, halving, hyperband, rungs, asha, sizes (of a ladder) or all (default); "
        "repeatable",
    )
    replay.add_argument(
        "--pool",
        type=int,
        metavar="N",
        help="draw N of the runs, or arms of a ladder, at random for every replay (default: all)",
    )
    replay.add_argument(
        "--replays",
        type=int,
        default=100,
        metavar="N",
        help="replays, each with its own pool, noise and order (default: 100)",
    )
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
    replay.add_argument("--seed", type=int, default=0, help="seed of pools, noise and orders (default: 0)")
    add_format(replay, holds="one row per strategy; json also the settings")
    add_examples(
        replay,
        "march-search replay march-2023 --strategy rungs --strategy asha --workers 1,8",
        "march-search replay cpu-demo --pool 8",
    )
    add_root(replay)
    replay.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the results of every strategy."""
    how, workers = _settings(options)
    import optuna

    from march_search.config.halving import SizeHalving
    from march_search.replay.pools import candidates, replay
    from march_search.replay.strategies import all_names, parse

    optuna.logging.set_verbosity(logging.ERROR)
    curves = _curves(options)
    most, kind = candidates(curves), "arms" if curves.sizes else "runs"
    if how.pool is not None and not 2 <= how.pool <= most:
        raise UsageError(f"--pool must be from 2 to {most}, the number of {kind}, not {how.pool}.")
    names = all_names(len(curves.sizes) > 1)
    texts = [t for given in options.strategy or ["all"] for t in (names if given == "all" else (given,))]
    strategies = [parse(text) for text in texts]
    for strategy in strategies:
        if isinstance(strategy.make, SizeHalving) and len(curves.sizes) < 2:
            raise UsageError(f"{strategy.text} needs curves at several sizes, such as those of a ladder.")
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
    from march_search.replay.learning_curves import read_curves
    from march_search.replay.study_curves import ladder_study_curves, study_curves

    tables = shipped_names("tables")
    if options.curves in tables or options.curves.endswith(".json"):
        return read_curves(options.curves)
    try:
        study = named_study(options.curves, options.root)
    except UsageError as error:
        raise UsageError(f"{error} Shipped tables of curves: {', '.join(tables)}.") from None
    study.refuse_isoflop("replay")
    if ladder := study.ladder():
        return ladder_study_curves(ladder, study.folder.path.parent)
    return study_curves(study.record())


def _settings(options: argparse.Namespace) -> tuple["Replay", list[int]]:
    """Return the replay settings and the numbers of workers.

    Raises:
        UsageError: If a number is out of range.
    """
    words = options.workers.split(",")
    if not all(word.strip().isascii() and word.strip().isdigit() and 1 <= int(word) <= 10_000 for word in words):
        raise UsageError(f'--workers must be whole numbers from 1 to 10,000, such as 1,4,8, not "{options.workers}".')
    for name in ("replays", "step"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} must be at least 1, not {getattr(options, name)}.")
    for name in ("noise", "evaluation_noise"):
        if not (math.isfinite(getattr(options, name)) and getattr(options, name) >= 0):
            raise UsageError(f"--{name.replace('_', '-')} must be 0 or more, not {getattr(options, name)}.")
    if options.seed < 0:
        raise UsageError(f"--seed must be 0 or more, not {options.seed}.")
    from march_search.replay.pools import Replay

    tpe = options.proposals == "tpe"
    how = Replay(
        replays=options.replays,
        pool=options.pool,
        seed=options.seed,
        noise=options.noise,
        evaluation_noise=options.evaluation_noise,
        tpe=tpe,
        step=options.step,
    )
    return how, [int(word) for word in words]


def _found(row: "Row") -> str:
    """Return the share of replays that found the best, with its interval."""
    return f"{row['found']:.0%} ({100 * row['found_low']:.0f}-{100 * row['found_high']:.0f})"


def _print(options: argparse.Namespace, curves: "LearningCurves", rows: list[dict[str, Any]], how: "Replay") -> None:
    """Print one row per strategy and number of workers."""
    from march_search.commands.output import print_rows
    from march_search.display import tables
    from march_search.replay.pools import candidates

    unit = "FLOPs" if curves.sizes else "tokens"
    columns = (
        tables.Column(key="strategy", heading="strategy", short="strategy", left=True),
        tables.Column(key="workers", heading="workers", short="W"),
        tables.Column(key="replays", heading="replays", short="n"),
        tables.Column(key="spent", heading=f"{unit} spent", short="spent", show="{:.1%}".format),
        tables.Column(key="spent_max", heading="at most", short="max", show="{:.1%}".format),
        tables.Column(key="found", heading="best found", short="found", derive=_found),
        tables.Column(key="as_exhaustive", heading="as exhaustive", short="same", show="{:.0%}".format),
        tables.Column(key="regret", heading="mean regret", short="regret", show="{:.4f}".format),
        tables.Column(key="regret_max", heading="worst regret", short="worst", show="{:.4f}".format, wide_only=True),
        tables.Column(key="time", heading="time", short="time", show="{:.0%}".format),
        tables.Column(key="idle", heading="idle", short="idle", show="{:.0%}".format),
    )
    many = candidates(curves)
    pools, runs = how.pools(curves), units.plural(many, "arm" if curves.sizes else "run")
    runs += f" at {', '.join(curves.sizes)}" if curves.sizes else ""
    title = f"{options.curves}: "
    if how.pool in (None, many):
        title += runs if pools == 1 else f"{runs}, {pools} draws of the noise"
    else:
        title += f"{units.plural(pools, 'random pool')} of {how.pool} of {runs}"
    if how.noise or how.evaluation_noise:
        title += f", noise {how.noise:g} per curve and {how.evaluation_noise:g} per evaluation"
    notes = [
        f"{unit} spent: relative to training every run to the end. Regret: in {curves.unit}, by the recorded losses.",
        "best found: replays that found the lowest recorded loss, with the 95% interval of this share. as exhaustive: "
        "replays that chose as exhaustive does.",
        "time: relative to training every run with the same number of workers. idle: share of the workers' time.",
        "Optuna's pruners and asha use free workers at once; a rung waits until all of its candidates reach it.",
        "exhaustive and rungs ignore the order of the runs: all orders of a pool are one observation, replayed once.",
    ]
    if curves.sizes:
        left = sorted({run.arm for run in curves.runs if run.arm} - set(curves.arms))
        notes[0] = notes[0].replace("every run", f"every arm at {curves.sizes[-1]}")
        notes.append(
            f"All strategies choose an arm at {curves.sizes[-1]}; sizes ranks the arms at smaller sizes first, the "
            "others train there only. Each replay draws a seed per arm and size; recorded losses are means over seeds."
        )
        notes += [f"Left out, because they lack a size: {', '.join(left)}."] if left else []
    if pools == 1 and how.replays > 1:
        notes.append(
            "The other strategies are replayed in several orders of one pool; --pool or noise draws new pools."
        )
    if how.tpe:
        notes.append("TPE chose the next run, except with rungs, which start every run.")
    legend = "W: workers, n: replays, max: most tokens spent, same: as exhaustive"
    head = {"table": options.curves, "source": curves.source, "unit": curves.unit, "runs": len(curves.runs)}
    head |= {"sizes": list(curves.sizes), "cost_unit": unit}
    head |= {name: getattr(how, name) for name in ("pool", "replays", "seed", "noise", "evaluation_noise", "step")}
    head |= {"proposals": options.proposals}
    print_rows(options.format, rows, columns, title=title, notes=notes, legend=legend, head=head, name="strategies")
