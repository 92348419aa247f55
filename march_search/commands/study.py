"""`march-search study`: list studies, run a study, or print its plan."""

import argparse
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.commands import study_actions, study_create, study_isoflop, study_ladder, study_new, study_worker
from march_search.commands.options import (
    add_action,
    add_actions,
    add_examples,
    add_format,
    add_root,
    refuse_without_effect,
    root_option,
)
from march_search.commands.output import print_pairs, print_plan, report_summary

if TYPE_CHECKING:
    from march_search.commands.studies import NamedStudy
    from march_search.config.study_config import StudyConfig
    from march_search.cost.devices import Device
    from march_search.planning.candidates import Candidates
    from march_search.planning.defaults import DeviceType


def add(study: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    actions = add_actions(study, "ACTION")
    listing = add_action(actions, "list", "list the shipped studies and those in the --root folder")
    add_root(listing)
    add_format(listing, holds="one row per study")
    add_examples(listing, "march-search study list", "march-search study list --root /shared/runs")
    listing.set_defaults(run=run_list)
    study_new.add_actions(actions)
    running = add_action(actions, "run", "train the trials of a study; run it again to resume after an interruption")
    study_create.add_start_options(running)
    running.add_argument("--dry-run", action="store_true", help="check everything and print the plan, without training")
    running.add_argument("--extend", action="store_true", help="add what is new in the file to the started study")
    running.add_argument(
        "--up-to", metavar="SIZE", help="of a ladder, train the sizes, or the budgets of training FLOPs, up to this one"
    )
    add_examples(
        running,
        "march-search study run cpu-demo --dry-run",
        "march-search study run my.toml training.tokens=2M devices.ranks=4",
    )
    running.set_defaults(run=run_study, create=False)
    study_create.add_actions(actions, run_study)
    study_actions.add_actions(actions)
    study_worker.add_actions(actions)


def run_list(options: argparse.Namespace) -> int:
    """Print the shipped and the started studies."""
    from march_search.commands.output import print_rows
    from march_search.config.loader import read_file
    from march_search.config.shipped import shipped_folder, shipped_names
    from march_search.display.tables import Column

    folders = [path.parent for path in sorted(options.root.glob("*/study.json"))]
    started = [{"study": str(folder), **_summary(folder)} for folder in folders]
    shipped: list[dict[str, Any]] = []
    for name in shipped_names("studies"):
        table = read_file(shipped_folder("studies") / f"{name}.toml")
        shipped.append({"study": name, "trials": None, "states": None, "description": table.get("description", "")})
    study = Column(key="study", heading="study", short="study", left=True, whole=True)
    trials = Column(key="trials", heading="trials started", short="trials")
    states = Column(key="states", heading="ended", short="ended", left=True)
    description = Column(key="description", heading="description", short="description", left=True)
    columns = (study, trials, states, description)
    if options.format == "table":
        if started:
            print_rows("table", started, columns, title=f"Studies in {options.root}")
        print_rows("table", shipped, (study, description), title="Shipped studies")
    else:
        print_rows(options.format, [*shipped, *started], columns, name="studies")
    return 0


def _summary(folder: Path) -> dict[str, Any]:
    """Return the number of trials of a started study, their states, and its description or what is damaged in it."""
    from march_search.errors import StorageError
    from march_search.storage.study_folder import read_record
    from march_search.trial.outcome import read_outcome
    from march_search.trial.own_trials import find_trials

    found, ended = find_trials(folder), Counter[str]()
    for trial in found.trials:
        try:
            ended.update(outcome["state"] for outcome in [read_outcome(trial.folder)] if outcome)
        except StorageError:
            ended.update(["damaged"])
    ended.update(["damaged"] * len(found.damaged))
    states = ", ".join(f"{number} {state}" for state, number in sorted(ended.items()))
    try:
        description = str(read_record(folder)["settings"].get("description", ""))
    except StorageError as error:
        description = str(error)
    number = len(found.trials) + len(found.damaged)
    return {"trials": number, "states": states or None, "description": description}


def run_study(options: argparse.Namespace) -> int:
    """Run a study or the studies of a ladder, or print the plan.

    Raises:
        UsageError: If a ladder is not named by its file, or an option has no effect.
    """
    from march_search.display.wording import listed
    from march_search.errors import UsageError

    study = _asked(options)
    if study.file is None:
        if studies := study.ladder_studies():
            raise UsageError(f"{study.name} is a ladder: name its TOML file, or one of its studies, {listed(studies)}.")
        names = ("dry_run", "extend", "device", "rate", "up_to")
        refuse_without_effect(options, names, f"on the folder of {study.name}: name its TOML file instead")
        return study_actions.run_resume(options)
    loaded = study.loaded(_planned_type(options), is_created=options.create)
    study.refuse_other_kind(loaded.config)
    if loaded.config.ladder.budgets:
        run = study_isoflop.run_isoflop if loaded.config.ladder.training_flops else study_ladder.run_ladder
        return run(study, loaded, options, _run_one, _priced)
    refuse_without_effect(options, ("up_to",), f"on {study.name}, which is not a ladder")
    return _run_one(study, options)


def _run_one(study: "NamedStudy", options: argparse.Namespace) -> int:
    """Run one study, or print its plan."""
    from march_search.data import corpora, vocabulary
    from march_search.data.text_tokens import text_tokens
    from march_search.display.tables import console
    from march_search.errors import ConfigError, MarchSearchError
    from march_search.files.atomic import check_writable
    from march_search.planning import candidates, extension, plan_cost
    from march_search.planning.plan import plan_rows, product, warnings
    from march_search.storage import usage
    from march_search.study.status import phase_rows

    config, base, notes = study.loaded(_planned_type(options), is_created=options.create)
    folder = study.folder
    plan = None if options.dry_run or options.extend else usage.saved_plan(folder.path)
    if plan is not None:
        because = f"on {study.name}, which was started with a plan: add --dry-run to print another estimate"
        refuse_without_effect(options, ("device", "rate"), because)
    if not options.dry_run:
        check_writable(folder.path.parent)
        check_writable(folder.path)
    try:
        corpus = corpora.check(config.data, base)
        drawn = candidates.choose(config, base)
        data_summary = f"{corpus}; {vocabulary.check(config.data, base, drawn.structure)}"
        chosen = extension.extended_candidates(folder.path, config, drawn, options.extend)
        _check_start(study, config, options)
        device = None
        if plan is None:
            plan, device = _priced(options, config, chosen)
        alerts = warnings(config, plan, device, text_tokens(config.data, base, _store(study)))
    except ConfigError as error:
        raise ConfigError.of_file(options.study, error.faults) from None
    except MarchSearchError as error:
        raise type(error)(f"{options.study}: {error}") from None
    rows = plan_cost.cost_rows(plan, product(config, chosen)) + phase_rows(folder)
    rows += [("overrides", " ".join(study.overrides))] if study.overrides else []
    rows += plan_rows(config, chosen, data_summary, folder.path) + [("chosen", note) for note in notes]
    out = console(stderr=not options.dry_run)
    print_plan(out, f"study {study.name}{config.question and f': {config.question}'}", alerts, rows)
    if options.dry_run:
        _print_candidates(out, chosen, config)
        if plan["device"] == "cpu":
            _check_models(chosen, config)
        return 0
    if options.extend:
        extension.adopt(folder, config, chosen, drawn)
    if options.create:
        return study_create.create(study_create.recorded_run(study, config, base, chosen, plan))
    return _train(study, config, base, chosen, plan)


def _train(study: "NamedStudy", config: "StudyConfig", base: Path, chosen: "Candidates", plan: dict[str, Any]) -> int:
    """Record a study, train its trials and return the exit code."""
    from march_search.display.tables import console
    from march_search.planning import gpus
    from march_search.storage import usage

    gpus.claim(config.devices)
    summary = study_create.recorded_run(study, config, base, chosen, plan).run()
    actual = usage.comparison_rows(plan, usage.actual(study.folder.path, config))
    print_pairs(console(stderr=True), "planned and actual cost", actual)
    return report_summary(summary, study.folder)


def _priced(
    options: argparse.Namespace, config: "StudyConfig", chosen: "Candidates"
) -> "tuple[dict[str, Any], Device | None]":
    """Return the plan of a study, and the devices of a trial that it is priced for; None if they are unknown.

    Without --device, a study on the CPU is timed on this machine, unless it is only created here.
    """
    from march_search.errors import UsageError
    from march_search.planning import gpus, measured_cpu, price

    named, kind = (options.device or "").strip().lower(), config.devices.kind
    if named == "cpu" or (
        not named and not options.create and (kind == "cpu" or (kind == "auto" and not gpus.exist()))
    ):
        seconds = measured_cpu.STEP_SECONDS if options.dry_run else measured_cpu.QUICK_SECONDS
        cpu = measured_cpu.measured_cpu(config, price.stand_ins(config, chosen), seconds)
        if cpu is None:
            raise UsageError("this machine's CPU could not be measured; see march-search doctor --only devices.")
        return cpu.plan(config, chosen, options.rate), cpu.device
    if not named:
        refuse_without_effect(options, ("rate",), "without --device D, whose hours it prices")
        return price.priced_plan(config, chosen), None
    device = price.device_of(config, options.device)
    return price.priced_plan(config, chosen, device, options.rate), device


def _asked(options: argparse.Namespace) -> "NamedStudy":
    """Return the study to run, named by STUDY or --config, with the KEY=VALUE arguments.

    Raises:
        UsageError: If no study is named, or if the settings of a study that is only a folder are to be replaced.
    """
    from march_search.commands.studies import named_study
    from march_search.errors import UsageError

    words = [word for word in (options.config, options.study, *options.overrides) if word is not None]
    if words and not options.config and "=" in words[0] and not Path(words[0]).exists():
        raise UsageError(f"name a STUDY before {words[0]}, such as cpu-demo, or its file with --config FILE.")
    if not words:
        raise UsageError("name a STUDY to run, such as cpu-demo. To see all studies, run march-search study list.")
    options.study, overrides = words[0], tuple(words[1:])
    study = replace(named_study(options.study, options.root), overrides=overrides)
    if study.file is None and options.create:
        root = root_option(study.folder.path.parent)
        raise UsageError(f"{study.name} was created already: run march-search study worker {study.name}{root}.")
    if study.file is None and overrides:
        raise UsageError(f"{overrides[0]} has no effect on the folder of {study.name}: name its TOML file instead.")
    return study


def _planned_type(options: argparse.Namespace) -> "DeviceType | None":
    """Return the type of the device that a plan is printed for or a study is created for; None for this machine's."""
    if not (options.dry_run or options.create) or options.device is None:
        return None
    return "cpu" if options.device.strip().lower() == "cpu" else "cuda"


def _check_start(study: "NamedStudy", config: "StudyConfig", options: argparse.Namespace) -> None:
    """Check, before anything is measured, that a study can be started, or continued with the settings of its file.

    For a plan, the storage is opened without changing it, and the libraries of trackers are looked for.
    """
    from march_search.storage import study_storage
    from march_search.tracking.trackers import check_libraries

    check_libraries(config.tracking)
    if options.dry_run:
        study_storage.check_unchanged(config.storage, study.folder.path)
        return
    if study.is_started and not options.extend:
        study.folder.check_settings(config)
    study_storage.check(config.storage, study.folder.path)


def _store(study: "NamedStudy") -> Path | None:
    """Return the token store of a study; None if it has not been prepared."""
    from march_search.errors import StorageError

    with suppress(StorageError):
        return study.folder.store
    return None


def _print_candidates(out: Any, chosen: "Candidates", config: "StudyConfig") -> None:
    """Print the architectures that a study would train, if it knows any before its first trial."""
    from march_search.display import architectures, tables

    if not chosen.architectures:
        return
    data, rows = config.data, []
    for a in chosen.architectures:
        flops = a.flops_per_token(data.sequence_length, data.noise_density, data.mean_span_length)
        cost = {"difference_percent": chosen.found.difference_percent(a), "flops_per_token": flops}
        rows.append(a.row() | cost)
    title = f"{len(rows)} candidates, in order"
    tables.print_table(out, rows, architectures.SOLVE_COLUMNS, title, legend=architectures.NARROW_LEGEND)


def _check_models(chosen: "Candidates", config: "StudyConfig") -> None:
    """Build the models and print how many have the predicted number of parameters."""
    from march_search.planning import price

    num_models = price.built(price.stand_ins(config, chosen))
    print(f"Checked: {num_models} models build with the predicted parameter count.")
