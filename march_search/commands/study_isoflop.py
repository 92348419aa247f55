"""`march-search study run` on a ladder with compute budgets: one study per budget, size and arm."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.commands.options import refuse_without_effect, root_option
from march_search.commands.study_ladder import PriceOne, RunOne, again, study_of_size, total

if TYPE_CHECKING:
    from march_search.commands.studies import LoadedStudy, NamedStudy
    from march_search.planning.isoflop_points import IsoflopPoint


def run_isoflop(
    study: "NamedStudy", loaded: "LoadedStudy", options: argparse.Namespace, run_one: RunOne, priced: PriceOne
) -> int:
    """Run the study of each point, smallest budget first, or print the plans.

    Learning rates are tried at one size of one budget: the smallest when the ladder is started. The rate that is best
    there for all arms is carried to the others.

    Raises:
        ConfigError: If the ladder is not valid.
        UsageError: If `--up-to` does not name a budget.
    """
    from march_search.errors import UsageError, nearest
    from march_search.planning.isoflop_points import isoflop_points, keep_isoflop, started_first

    refuse_without_effect(options, ("extend",), "on a ladder: add a budget to its file and run it again")
    first = started_first(study.folder.path)
    points = isoflop_points(loaded.config, loaded.base, study.name, study.overrides, first)
    budgets = list(dict.fromkeys(point.budget for point in points))
    if options.up_to is not None and options.up_to not in budgets:
        raise UsageError(f"--up-to {options.up_to}: the ladder has no such budget. {nearest(options.up_to, budgets)}")
    if options.dry_run:
        return _plan(study, loaded, points, options, priced)
    keep_isoflop(study.folder.path, loaded.config, points, study.overrides)
    wanted = budgets[: budgets.index(options.up_to) + 1] if options.up_to else budgets
    root, failed = study.folder.path.parent, 0
    for point in sorted(points, key=lambda point: not point.is_first):
        if point.budget not in wanted and not point.is_first:
            continue
        if options.create and not point.is_first:
            rest = f"the others follow when it is complete: {again(study, root)}"
            print(f"{study.name}: created the size at which learning rates are tried; {rest}.", file=sys.stderr)
            return 0
        rate = None if point.is_first else _carried(study.folder.path, root, loaded)
        code = run_one(study_of_size(study, point.study, root, rate), options)
        if code > 1:
            return code
        failed = failed or code
    ended = f"{', '.join(wanted)} FLOPs ended. Ladder: march-search rank {study.name}{root_option(root)}"
    print(f"{study.name}: {ended}", file=sys.stderr)
    return failed


def _carried(folder: Path, root: Path, loaded: "LoadedStudy") -> float | None:
    """Return the learning rate that the size at which rates are tried hands on; None if only one was tried.

    Raises:
        StorageError: If that size has no complete trial.
    """
    from march_search.errors import StorageError
    from march_search.ladders.isoflop_record import chosen_rate, find_isoflop, point_studies

    if len(loaded.config.search.learning_rates) < 2:
        return None
    record = find_isoflop(folder)
    rate = chosen_rate(record, point_studies(record, root)) if record else None
    if rate is None:
        raise StorageError(
            f"{folder.name} has no complete trial where its learning rates are tried, so none can be carried: retry it "
            "first."
        )
    return rate


def _plan(
    study: "NamedStudy",
    loaded: "LoadedStudy",
    points: "tuple[IsoflopPoint, ...]",
    options: argparse.Namespace,
    priced: PriceOne,
) -> int:
    """Print the points and the price of each compute budget, then the sum."""
    from march_search.commands.output import print_pairs
    from march_search.data import corpora, vocabulary
    from march_search.display.tables import console
    from march_search.planning.isoflop_points import refuse_changed_points
    from march_search.units import plural

    config, out = loaded.config, console()
    refuse_changed_points(study.folder.path, points)
    rates, first = config.search.learning_rates, next(point for point in points if point.is_first)
    structure = points[0].study.arms[0].architecture.structure
    tokens = vocabulary.check(config.data, loaded.base, structure)
    data = f"{corpora.check(config.data, loaded.base)}; {tokens}"
    tuned = f"; {len(rates)} learning rates at {first.study.size}, the best one after that" if len(rates) > 1 else ""
    sizes = plural(len(config.ladder.sizes), "size")
    print_pairs(out, f"ladder {study.name}", [
        ("question", config.question or "–"),
        ("FLOPs", f"{', '.join(dict.fromkeys(point.budget for point in points))} per trial, at each of {sizes}"),
        ("arms", ", ".join(arm.name for arm in config.ladder.arms)),
        ("trials", f"{plural(len(config.search.seeds), 'seed')} per arm, size and budget{tuned}"),
        ("data", data),
        *[("chosen", note) for note in loaded.notes],
    ])  # fmt: skip
    plans = []
    for budget in dict.fromkeys(point.budget for point in points):
        plans += _plan_budget(study, [point for point in points if point.budget == budget], rates, options, priced)
    out.print(total(plans, "all budgets"), soft_wrap=True)
    return 0


def _plan_budget(
    study: "NamedStudy",
    points: "list[IsoflopPoint]",
    rates: tuple[float, ...],
    options: argparse.Namespace,
    priced: PriceOne,
) -> list[dict[str, Any]]:
    """Print the points of one compute budget and return the plan of each."""
    from march_search.data.text_tokens import text_tokens
    from march_search.display.tables import Column, console, print_table
    from march_search.planning import candidates
    from march_search.planning.plan import warnings
    from march_search.units import count, duration, si

    columns = (
        Column(key="size", heading="size", short="size", left=True),
        Column(key="arm", heading="arm", short="arm", left=True),
        Column(key="name", heading="name", short="name", left=True),
        Column(key="params", heading="parameters", short="params", show=count),
        Column(key="tokens", heading="tokens", short="tokens", show=count),
        Column(key="ratio", heading="tokens per parameter", short="tok/par", show="{:.3g}".format),
        Column(key="off", heading="off by", short="off", show="{:+.1%}".format),
    )
    plans, rows, notes = [], [], []
    alerts: dict[str, None] = {}
    for point in points:
        carried = rates[len(rates) // 2] if len(rates) > 1 and not point.is_first else None
        own, base, _ = study_of_size(study, point.study, study.folder.path.parent, carried).loaded()
        plan, device = priced(options, own, candidates.choose(own, base))
        plans.append(plan)
        alerts |= dict.fromkeys(warnings(own, plan, device, text_tokens(own.data, base)))
        found = point.study.arms[0]
        rows.append(
            {
                "size": point.study.size,
                "arm": point.arm,
                "name": found.architecture.name,
                "params": point.parameters,
                "tokens": point.study.tokens,
                "ratio": point.study.tokens / point.parameters,
                "off": point.trained_flops / point.flops - 1,
            }
        )
        if found.missed:
            notes.append(f"not kept at {point.study.size}: {point.arm}: {'; '.join(found.missed)}")
    notes.append("off by: training FLOPs of whole steps against the budget; fits use the tokens of whole steps.")
    trials, tokens, flops = (sum(plan[key] for plan in plans) for key in ("trials", "tokens", "flops"))
    seconds = [plan["seconds"] for plan in plans]
    time = "" if None in seconds else f", {duration(sum(seconds))}"
    title = f"{points[0].budget} FLOPs: {trials} trials, {si(tokens)} tokens, {si(flops)} FLOPs{time}"
    print_table(console(), rows, columns, title, notes, warnings=[f"WARNING: {text}" for text in alerts])
    return plans
