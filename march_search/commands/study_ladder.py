"""`march-search study run` and `study status` on a ladder: the study of each size, smallest first."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.commands.options import refuse_without_effect, root_option

if TYPE_CHECKING:
    from march_search.commands.studies import LoadedStudy, NamedStudy
    from march_search.config.ladder_config import LadderConfig
    from march_search.config.study_config import StudyConfig
    from march_search.cost.devices import Device
    from march_search.ladders.ladder_record import LadderRecord
    from march_search.ladders.size_survivors import Survivors
    from march_search.planning.candidates import Candidates
    from march_search.planning.ladder_sizes import LadderSize

RunOne = Callable[["NamedStudy", argparse.Namespace], int]
"""Function that runs one study, or prints its plan, and returns the exit code."""

PriceOne = Callable[[argparse.Namespace, "StudyConfig", "Candidates"], "tuple[dict[str, Any], Device | None]"]
"""Function that prices one study and returns its plan, and the devices of a trial."""


def run_ladder(
    study: "NamedStudy", loaded: "LoadedStudy", options: argparse.Namespace, run_one: RunOne, priced: PriceOne
) -> int:
    """Run the study of each size, or print the plans; a size starts when the one before has ended.

    The learning rate that is best at the smallest size is carried to the others. A trial that fails does not stop the
    ladder, because a learning rate that is too high is worth trying; the exit code is then 1.

    Raises:
        ConfigError: If the ladder is not valid.
        UsageError: If an option has no effect on a ladder.
    """
    from march_search.planning.ladder_sizes import keep_ladder, ladder_record, ladder_sizes, started_choices

    refuse_without_effect(options, ("extend",), "on a ladder: add a budget to its file and run it again")
    sizes = ladder_sizes(loaded.config, loaded.base, study.name, study.overrides)
    last = _last(sizes, options.up_to)  # before anything is written
    if options.dry_run:
        return _plan(study, loaded, sizes, options, priced)
    chosen = started_choices(study.folder.path, loaded.config, sizes)
    keep_ladder(study.folder.path, loaded.config, sizes, chosen, study.overrides)
    root, failed = study.folder.path.parent, 0
    for number, size in enumerate(sizes[: last + 1]):
        known = ladder_record(study.name, loaded.config, sizes, chosen)
        rate = _carried(known, root, loaded) if number else None
        if number and (found := _choice(known, number, root, loaded.config.ladder)):
            chosen[size.size] = found
            keep_ladder(study.folder.path, loaded.config, sizes, chosen, study.overrides)
            print(f"{study.name}: {found.reason}", file=sys.stderr)
        code = run_one(study_of_size(study, size, root, rate, chosen.get(size.size)), options)
        if code > 1:
            return code
        failed = failed or code
        if options.create:
            rest = f"; the other sizes follow when it is complete: {again(study, root)}" if len(sizes) > 1 else ""
            print(f"{study.name}: created its smallest size{rest}.", file=sys.stderr)
            return 0
    ended = f"{_words(sizes[: last + 1])} ended. Ladder: march-search rank {study.name}{root_option(root)}"
    print(f"{study.name}: {ended}", file=sys.stderr)
    return failed


def _choice(ladder: "LadderRecord", number: int, root: Path, config: "LadderConfig") -> "Survivors | None":
    """Return the arms that train at a size; None if all do, or if the size was started, or the one before is not over.

    Raises:
        StorageError: If a study is damaged.
    """
    from march_search.ladders.ladder_record import carried_rate, is_finished, size_study
    from march_search.ladders.size_survivors import survivors

    if not config.keep or (root / ladder.sizes[number].study / "study.json").is_file():
        return None
    earlier = [size_study(ladder, size, root) for size in ladder.sizes[:number]]
    rate = carried_rate(ladder, earlier)
    if rate is None or not all(one and is_finished(one) for one in earlier):
        return None
    return survivors(ladder, number, root, rate, config)


def again(study: "NamedStudy", root: Path) -> str:
    """Return the command that continues a ladder."""
    overrides = "".join(f" {shlex.quote(override)}" for override in study.overrides)
    return f"march-search study run {study.argument}{overrides}{root_option(root)}"


def _words(sizes: "tuple[LadderSize, ...]") -> str:
    """Return the names of sizes as part of a sentence."""
    return ", ".join(size.size for size in sizes)


def _last(sizes: "tuple[LadderSize, ...]", up_to: str | None) -> int:
    """Return the index of the last size to run.

    Raises:
        UsageError: If `up_to` is not the name of a size.
    """
    from march_search.errors import UsageError, nearest

    names = [size.size for size in sizes]
    if up_to is not None and up_to not in names:
        raise UsageError(f"--up-to {up_to}: the ladder has no such size. {nearest(up_to, names)}")
    return len(names) - 1 if up_to is None else names.index(up_to)


def study_of_size(
    study: "NamedStudy", size: "LadderSize", root: Path, rate: float | None, chosen: "Survivors | None" = None
) -> "NamedStudy":
    """Return the study of one size: the ladder's file with other settings."""
    from march_search.storage.study_folder import StudyFolder

    arms = [arm.name for arm in study.load()[0].ladder.arms] if chosen else []
    new = size.overrides(rate, {arms.index(arm) for arm in chosen.arms} if chosen else None)
    changed = {text.partition("=")[0] for text in new}
    own = [text for text in study.overrides if text.partition("=")[0].split(".")[0] != "ladder"]
    kept = [text for text in own if text.partition("=")[0] not in changed]
    return replace(study, folder=StudyFolder.of(root, size.study), overrides=(*kept, *new))


def _carried(ladder: "LadderRecord", root: Path, loaded: "LoadedStudy") -> float | None:
    """Return the learning rate that the smallest size hands on; None if only one was tried.

    Raises:
        StorageError: If the smallest size has no complete trial.
    """
    from march_search.errors import StorageError
    from march_search.ladders.ladder_record import carried_rate, size_study

    if len(loaded.config.search.learning_rates) < 2:
        return None
    rate = carried_rate(ladder, [size_study(ladder, size, root) for size in ladder.sizes])
    if rate is None:
        raise StorageError(
            f"{ladder.sizes[0].study} has no complete trial, so no learning rate can be carried: retry it first."
        )
    return rate


def _plan(
    study: "NamedStudy",
    loaded: "LoadedStudy",
    sizes: "tuple[LadderSize, ...]",
    options: argparse.Namespace,
    priced: PriceOne,
) -> int:
    """Print the arms and the price of each size, then the sum."""
    from march_search.commands.output import print_pairs
    from march_search.data import corpora, vocabulary
    from march_search.data.text_tokens import text_tokens
    from march_search.display.tables import Column, console, print_table
    from march_search.planning import candidates
    from march_search.planning.ladder_sizes import arm_rows, ladder_record, refuse_changes, started_choices
    from march_search.planning.plan import warnings
    from march_search.units import count, duration, plural, si

    config, out = loaded.config, console()
    refuse_changes(study.folder.path, config, sizes)
    structure = sizes[0].arms[0].architecture.structure
    tokens = vocabulary.check(config.data, loaded.base, structure)
    data = f"{corpora.check(config.data, loaded.base)}; {tokens}"
    rates = config.search.learning_rates
    tuned = f"; {len(rates)} learning rates at {sizes[0].size}, the best one after that" if len(rates) > 1 else ""
    print_pairs(out, f"ladder {study.name}", [
        ("question", config.question or "–"),
        ("sizes", ", ".join(f"{size.size} for {si(size.tokens)} tokens" for size in sizes)),
        ("arms", f"{', '.join(arm.name for arm in config.ladder.arms)}; effects are measured from the first"),
        ("trials", f"{plural(len(config.search.seeds), 'seed')} per arm and size{tuned}"),
        ("data", data),
        *[("chosen", note) for note in loaded.notes],
    ])  # fmt: skip
    columns = (
        Column(key="arm", heading="arm", short="arm", left=True),
        Column(key="name", heading="name", short="name", left=True),
        Column(key="params", heading="parameters", short="params", show=count),
    )
    plans, root = [], study.folder.path.parent
    started, risks = started_choices(study.folder.path, config, sizes), _planned(config.ladder)
    known = ladder_record(study.name, config, sizes, started)
    for number, size in enumerate(sizes):
        carried = rates[len(rates) // 2] if size is not sizes[0] and len(rates) > 1 else None
        decided = started.get(size.size) or (_choice(known, number, root, config.ladder) if number else None)
        own, base, _ = study_of_size(study, size, root, carried, decided).loaded()
        chosen = candidates.choose(own, base)
        plan, device = priced(options, own, chosen)
        time = "" if plan["seconds"] is None else f", {duration(plan['seconds'])}"
        title = f"{size.size}: {plan['trials']} trials, {si(plan['tokens'])} tokens, {si(plan['flops'])} FLOPs{time}"
        rows = [row for row in arm_rows(config, size) if decided is None or row["arm"] in decided.arms]
        notes = [f"not kept at {size.size}: {row['arm']}: {row['missed']}" for row in rows if row["missed"]]
        if decided:
            notes.append(decided.reason)
        elif number in risks:
            notes.append(_planned_words(config.ladder, number, size.size, plan, risks[number]))
        alerts = [f"WARNING: {text}" for text in warnings(own, plan, device, text_tokens(own.data, base))]
        print_table(out, rows, columns, title, notes, warnings=alerts)
        plans.append(plan)
    out.print(total(plans), soft_wrap=True)
    return 0


def _planned(config: "LadderConfig") -> "dict[int, float]":
    """Return for each size at which `keep` drops arms the probability that its best one was dropped there or before."""
    from march_search.ladders.size_survivors import PUBLISHED_ACCURACY, planned_risks

    if not config.halving:
        return {}
    many = len(config.arms)
    counts = [config.halving.count(many, index) for index in range(1, len(config.budgets))]
    risks = planned_risks(many, counts, config.assumed_accuracy or PUBLISHED_ACCURACY)
    return {index: risk for index, (count, risk) in enumerate(zip(counts, risks, strict=True), 1) if count + 1 < many}


def _planned_words(config: "LadderConfig", number: int, size: str, plan: dict[str, Any], risk: float) -> str:
    """Return in words what dropping arms before a size saves and risks, before the sizes below it are finished."""
    from march_search.ladders.size_survivors import PUBLISHED_ACCURACY
    from march_search.units import chance, duration, si

    many = len(config.arms)
    most = (config.halving.count(many, number) if config.halving else many) + 1
    saved = 1 - most / many
    words = f"{si(saved * plan['flops'])} FLOPs"
    words += "" if plan["seconds"] is None else f" and {duration(saved * plan['seconds'])}"
    accuracy, source = config.assumed_accuracy or PUBLISHED_ACCURACY, "is assumed_accuracy"
    if config.assumed_accuracy is None:
        source = "is known for data mixtures, not for these arms"
    first = number == 1 and config.assumed_accuracy is None
    text = (
        f"keep at {size}: the best {most - 1} of {many} arms and the baseline would train, which saves {words} or more "
        f"({saved:.0%} of the size). If neighbouring sizes order {accuracy:.0%} of the pairs alike, which {source}, "
        f"its best arm is dropped at this size or before with a probability of {chance(risk)}. "
    )
    if first:
        return (
            text
            + "All arms train here nevertheless, because nothing is measured yet: set assumed_accuracy to drop arms."
        )
    basis = "which follows from assumed_accuracy" if number == 1 else "estimated from the two sizes before"
    return text + f"Arms are dropped if this probability, {basis}, is at most {config.max_risk:.0%} (max_risk)."


def total(plans: "list[dict[str, Any]]", what: str = "all sizes") -> str:
    """Return the sum of the plans of `what` in words."""
    from march_search.units import duration, si

    trials, tokens, flops = (sum(plan[key] for plan in plans) for key in ("trials", "tokens", "flops"))
    words, last = f"{what}: {trials} trials, {si(tokens)} tokens, {si(flops)} FLOPs", plans[-1]
    if last["device_hours"] is None:
        return f"{words}; add --device 8xA5000 to see the time, and --rate PRICE_PER_HOUR the money"
    hours = sum(plan["device_hours"] for plan in plans)
    words += f"; {duration(sum(plan['seconds'] for plan in plans))}, {hours:,.3g} device-hours on {last['device']}"
    if last["rate"] is not None:
        words += f", {hours * last['rate']:,.2f} at {last['rate']:g} per device-hour"
    return f"{words}; prices: {last['basis']}"


def ladder_status(
    name: str, studies: Sequence[str], options: argparse.Namespace, run_one: Callable[[argparse.Namespace], int]
) -> int:
    """Print the status of each of a ladder's studies that has been started; one that cannot be read hides no other."""
    from march_search.display.wording import listed
    from march_search.errors import StorageError, UsageError, visible

    if options.format != "table":
        names = listed(studies)
        raise UsageError(f"{name} is a ladder: name one of its studies for --format {options.format}: {names}.")
    code = 0
    for study in studies:
        if not (options.root / study / "study.json").is_file():
            print(f"{study}: not started")
            continue
        options.study = study
        try:
            run_one(options)
        except StorageError as error:
            print(f"march-search: {visible(str(error))}", file=sys.stderr)
            code = error.exit_code
    return code
