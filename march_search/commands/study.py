"""`march-search study`: list studies, run a study, or print its plan."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.commands import Verbs, study_actions
from march_search.commands.options import amount
from march_search.config import StudyConfig
from march_search.study.study_folder import DEFAULT_ROOT

if TYPE_CHECKING:
    from march_search.study.runner import Summary


def add(verbs: Verbs) -> None:
    """Add the command to the parser."""
    study = verbs.add_parser("study", help="run, watch, stop and resume studies, or list the shipped ones")
    actions = study.add_subparsers(
        dest="action", metavar="list | run | status | show | stop | resume | retry | race | delete", required=True,
        parser_class=type(study),
    )  # fmt: skip
    listing = actions.add_parser("list", help="list the shipped studies and those in the --root folder")
    listing.set_defaults(run=run_list)
    running = actions.add_parser(
        "run", help="train the trials of a study; run it again to resume after an interruption"
    )
    running.add_argument("study", metavar="STUDY", help="TOML file of a study, or name of a shipped study")
    running.add_argument("--dry-run", action="store_true", help="check everything and print the plan, without training")
    running.add_argument("--extend", action="store_true", help="add what is new in the file to the started study")
    running.add_argument("--device", metavar="D", help="device of a trial, for the cost estimate: A5000, 8xH100, cpu")
    running.add_argument("--rate", type=amount, metavar="X", help="price of one device per hour, in any currency")
    running.set_defaults(run=run_study)
    listing.add_argument("--json", action="store_true", help="JSON instead of a table")
    study_actions.add_actions(actions)
    for parser in (listing, running):
        parser.add_argument("--root", default=DEFAULT_ROOT, metavar="DIR", help="folder of the studies (default: runs)")


def run_list(options: argparse.Namespace) -> int:
    """Print the shipped and the started studies."""
    from march_search.config.loader import read_file
    from march_search.config.shipped import shipped_folder, shipped_names
    from march_search.display.tables import Column, console, print_table
    from march_search.files import read_json

    rows = []
    for name in shipped_names("studies"):
        table = read_file(shipped_folder("studies") / f"{name}.toml")
        rows.append({"study": name, "trials": None, "description": table.get("description", "")})
    for path in sorted(Path(options.root).glob("*/study.json")):
        record = read_json(path)
        settings = record.get("settings", {}) if isinstance(record, dict) else {}
        trials = len(list(path.parent.glob("trials/*/trial.json")))
        ended = Counter((read_json(file) or {}).get("state", "?") for file in path.parent.glob("trials/*/outcome.json"))
        states = ", ".join(f"{number} {state}" for state, number in sorted(ended.items()))
        rows.append({
            "study": str(path.parent), "trials": trials, "states": states or None,
            "description": settings.get("description", ""),
        })  # fmt: skip
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    columns = (
        Column("study", "study", "study", left=True),
        Column("trials", "trials started", "trials"),
        Column("states", "ended", "ended", left=True),
        Column("description", "description", "description", left=True),
    )
    print_table(console(), rows, columns, "")
    return 0


def load(text: str) -> tuple[StudyConfig, str, Path]:
    """Load a study from a TOML file or a shipped name; return its settings, its name and the folder of its file."""
    from march_search.config.loader import build, read_file
    from march_search.config.shipped import shipped_path

    path = shipped_path("studies", text)
    table = read_file(path)
    training = table.get("training")
    if isinstance(training, dict) and isinstance(training.get("deepspeed"), str):
        training["deepspeed"] = read_file(path.parent / Path(training["deepspeed"]).expanduser())
    return build(StudyConfig, table, str(path)), path.stem, path.parent


def run_study(options: argparse.Namespace) -> int:
    """Run a study, or print its plan."""
    from march_search.data import corpora, vocabulary
    from march_search.display.tables import console
    from march_search.errors import MarchSearchError
    from march_search.study import candidates, extension, price, rungs
    from march_search.study.plan import plan_rows
    from march_search.study.study_folder import StudyFolder

    config, name, folder = load(options.study)
    root = Path(options.root)
    study_folder = StudyFolder.of(root, name)
    try:
        drawn = candidates.choose(config, folder)
        chosen = extension.extended(study_folder.path, config, drawn, options.extend)
        data_summary = "; ".join([corpora.check(config.data, folder), vocabulary.check(config.data, folder)])
        rows_of = plan_rows(config, chosen, data_summary, study_folder.path)
        plan = None if options.dry_run or options.extend else price.kept(study_folder.path)
        if plan is None:
            device = price.device_of(config, options.device, torch_is_loaded=options.dry_run)
            stages = rungs.rung_tokens(config, candidates.how_many(chosen, config) * len(candidates.rates(config)))
            plan = price.planned(config, chosen, device, options.rate, stages, config.pruner.keep)
        rows_of += price.price_rows(plan)
    except MarchSearchError as error:
        raise type(error)(f"{options.study}: {error}") from None
    out = console(stderr=not options.dry_run)
    _print_plan(out, f"study {name}", rows_of)
    if options.dry_run:
        if chosen.architectures:
            _print_candidates(out, chosen, config)
        num_models = price.built(price.stand_ins(config, chosen))
        print(f"Checked: {num_models} models build with the predicted parameter count.")
        return 0
    if options.extend:
        extension.adopt(study_folder, config, chosen, drawn)
    return _train(config, name, folder, root, study_folder, chosen, plan)


def _print_plan(out: Any, title: str, rows: list[tuple[str, str]]) -> None:
    """Print the rows as a table of two columns."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def _print_candidates(out: Any, chosen: Any, config: StudyConfig) -> None:
    """Print the architectures that a study would train."""
    from march_search.display import architectures, tables

    budget, data, rows = chosen.found.budget, config.data, []
    for a in chosen.architectures:
        flops = a.flops_per_token(data.sequence_length, data.noise_density, data.mean_span_length)
        counted = a.num_params if budget.count == "total" else a.num_params_non_embedding
        cost = {"difference_percent": budget.difference_percent(counted), "flops_per_token": flops}
        rows.append(a.row() | cost)
    title = f"{len(rows)} candidates, in order"
    tables.print_table(out, rows, architectures.SOLVE_COLUMNS, title, legend=architectures.NARROW_LEGEND)


def _train(config: StudyConfig, name: str, folder: Path, root: Path, study_folder: Any, chosen: Any, plan: Any) -> int:
    """Prepare the data, train the trials and return the exit code."""
    from march_search.commands.prepare import prepared_store, repeats
    from march_search.data.ngrams import reference_nats
    from march_search.display.tables import console
    from march_search.files import make_folder, read_json, write_json
    from march_search.study import gpus, price, study_state
    from march_search.study.candidates import planned
    from march_search.study.runner import StudyRun

    gpus.claim(config.devices)
    make_folder(root)
    study_folder.keep_settings(config, chosen.architectures)
    study_state.keep_candidates(study_folder.path, chosen)
    write_json(study_folder.path / "plan.json", plan)
    store = prepared_store(config, root, folder)
    print(repeats(config, store), file=sys.stderr, flush=True)
    study_folder.keep_store(store.folder)
    write_json(study_folder.path / "tokenizer.json", read_json(store.folder / "tokenizer.json"))
    write_json(study_folder.path / "reference.json", reference_nats(store, config.data))
    summary = StudyRun(config, study_folder, store.folder, planned(chosen, config)).run()
    took = price.comparison_rows(plan, price.actual(study_folder.path, config))
    _print_plan(console(stderr=True), "planned and actual cost", took)
    return report(summary, name, root)


def report(summary: "Summary", name: str, root: Path) -> int:
    """Print to stderr how the run of a study ended, and return the exit code."""
    counts = f"{summary.complete} complete, {summary.pruned} pruned, {summary.failed} failed, {summary.left} left"
    print(f"{name}: {counts}. Ranking: march-search rank {name}{_root_option(root)}", file=sys.stderr)
    for note in summary.notes:
        print(f"{name}: {note}", file=sys.stderr)
    if summary.signum:
        print(f"{name}: interrupted; run the same command again to resume.", file=sys.stderr)
        return 128 + summary.signum
    return 1 if summary.failed else 0


def _root_option(root: Path) -> str:
    """Return the --root option to repeat in a suggested command."""
    return "" if str(root) == DEFAULT_ROOT else f" --root {root}"
