"""`march-search study status | show | stop | resume | retry | race | delete`: inspect and control started studies."""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from march_search.commands import Verbs
from march_search.study.study_folder import DEFAULT_ROOT


def add_actions(actions: Verbs) -> None:
    """Add the actions to `march-search study`."""
    for name, run, text in (
        ("status", run_status, "print states, workers, tokens and time left"),
        ("show", run_show, "print one trial: settings, evaluations, outcome"),
        ("stop", run_stop, "ask all workers on all hosts to save and exit"),
        ("resume", run_resume, "resume a study with the settings it was started with"),
        ("retry", run_retry, "train failed trials again, all of them or those with the given numbers"),
        ("race", run_race, "train more seeds of the leaders until the winner is separated from the others"),
        ("delete", run_delete, "delete the folder and the records of a study"),
    ):
        parser = actions.add_parser(name, help=text)
        parser.add_argument("study", metavar="STUDY", help="name of a started study, or its TOML file")
        parser.add_argument("--root", default=DEFAULT_ROOT, metavar="DIR", help="folder of the studies (default: runs)")
        if name in ("status", "show"):
            parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
        if name == "show":
            parser.add_argument("trial", metavar="TRIAL", type=int, help="trial number, from 0")
        if name == "retry":
            parser.add_argument(
                "trials", metavar="TRIAL", type=int, nargs="*", help="trial numbers, from 0 (default: all)"
            )
        if name == "delete":
            parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
        if name == "race":
            parser.add_argument("--confidence", type=float, default=0.95, help="confidence level (default: 0.95)")
        parser.set_defaults(run=run)


def _found(options: argparse.Namespace) -> Any:
    """Return the folder, the settings and the Optuna study of a started study."""
    from march_search.commands.study_worker import started
    from march_search.study import status

    folder, config = started(options.study, Path(options.root))
    return folder, config, status.open_started(folder, config)


def run_status(options: argparse.Namespace) -> int:
    """Print the state of a study, its trials and its workers."""
    from march_search.study import status

    folder, config, study = _found(options)
    trials = study.get_trials(deepcopy=False)
    rows, crew = status.trial_rows(folder, config, trials), status.worker_rows(study, folder)
    total, name = status.totals(folder, config, trials, rows), folder.path.name
    if options.json:
        value = {"schema_version": 1, "study": name, **total, "trials": rows, "workers": crew}
        print(json.dumps(value | {"open_with": status.openers(folder, config)}, indent=1))
        return 0
    _print_status(name, total, rows, crew, status.openers(folder, config))
    return 0


def _print_status(name: str, total: dict[str, Any], rows: list[Any], crew: list[Any], openers: list[str]) -> None:
    """Print the tables of `study status`."""
    from march_search.display.tables import Column, console, count, duration, print_table, si

    left = total["seconds_left"]
    parts = [f"{number} {state}" for state, number in total["states"].items()]
    parts += [f"{total['trials_to_come']} to come"] if total["trials_to_come"] else []
    limit = f", at most {si(total['max_tokens'])}" if total["max_tokens"] else ""
    notes = [
        f"tokens: {si(total['tokens_done'])} of {si(total['tokens_planned'])} currently planned, "
        f"{si(total['tokens_without_pruning'])} without pruning; {si(total['tokens_spent'])} committed{limit}"
        + ("" if left is None else f"; {duration(left)} left at the current speed"),
    ]
    several_rates = len({row["learning_rate"] for row in rows}) > 1
    columns = (
        Column("trial", "trial", "#"),
        Column("name", "name", "name", left=True),
        Column("seed", "seed", "seed", wide_only=True),
        *([Column("learning_rate", "learning rate", "rate", lambda value: f"{value:g}")] if several_rates else []),
        Column("state", "state", "state", left=True),
        Column("tokens", "tokens", "tokens", si),
        Column("loss", "loss", "loss", lambda value: f"{value:.4f}"),
        Column("retries", "retries", "retries", wide_only=True),
        Column("worker", "worker", "worker", left=True, wide_only=True),
    )
    out = console()
    print_table(out, rows, columns, f"{name}: {', '.join(parts)}", notes)
    if crew:
        heads = (
            Column("worker", "worker", "worker", left=True),
            Column("state", "state", "state", left=True),
            Column("slots", "slots", "slots"),
            Column("beats", "beats", "beats", count),
            Column("beat_seconds", "last beat", "last", lambda value: f"{duration(value)} ago"),
        )
        print_table(out, crew, heads, "workers")
    for line in openers:
        out.print(line, markup=False, soft_wrap=True)


def run_show(options: argparse.Namespace) -> int:
    """Print one trial."""
    from march_search.display.tables import console
    from march_search.errors import UsageError
    from march_search.study import status

    folder, config, study = _found(options)
    trials = study.get_trials(deepcopy=False)
    if not 0 <= options.trial < len(trials):
        raise UsageError(f"{folder.path.name} has no trial {options.trial}: use a number from 0 to {len(trials) - 1}.")
    row = status.trial_rows(folder, config, trials)[options.trial] | status.trial_details(folder, trials[options.trial])
    if options.json:
        print(json.dumps({"schema_version": 1, "study": folder.path.name, **row}, indent=1))
        return 0
    out = console()
    for key, value in row.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            out.print(f"{key.replace('_', ' ')}: {text}", markup=False, soft_wrap=True)
    return 0


def run_stop(options: argparse.Namespace) -> int:
    """Ask all workers to save and exit."""
    from march_search.study import heartbeat, status

    folder, _, study = _found(options)
    study.set_user_attr(heartbeat.STOP, True)
    alive = [row["worker"] for row in status.worker_rows(study, folder) if row["state"] == "alive"]
    message = f"asked {len(alive)} workers to save and exit" if alive else "no worker is running"
    print(f"{folder.path.name}: {message}. To resume: march-search study resume {folder.path.name}", file=sys.stderr)
    return 0


def run_resume(options: argparse.Namespace) -> int:
    """Resume a study after a stop or an interruption."""
    from march_search.commands.study import report
    from march_search.study import gpus, heartbeat
    from march_search.study.runner import StudyRun

    folder, config, study = _found(options)
    gpus.claim(config.devices)
    study.set_user_attr(heartbeat.STOP, None)
    return report(StudyRun(config, folder, folder.store).run(), folder.path.name, Path(options.root))


def run_retry(options: argparse.Namespace) -> int:
    """Enqueue failed trials again, to be trained by a worker."""
    from march_search.files import lock
    from march_search.study import status
    from march_search.study.trials import repeat_trial

    folder, _, study = _found(options)
    with lock(folder.path / "lock"):
        failed = status.failed_trials(study, options.trials)
        for trial in failed:
            repeat_trial(study, trial, retry_of=trial.number)
    name = folder.path.name
    print(f"{name}: {len(failed)} trials enqueued again. To resume: march-search study resume {name}", file=sys.stderr)
    return 0


def run_race(options: argparse.Namespace) -> int:
    """Train more seeds of the leaders until the winner is separated from the others."""
    from dataclasses import replace

    from march_search.commands.study import report
    from march_search.study import gpus
    from march_search.study.runner import StudyRun

    folder, config, _ = _found(options)
    gpus.claim(config.devices)
    config = replace(config, search=replace(config.search, race=options.confidence))
    return report(StudyRun(config, folder, folder.store).run(), folder.path.name, Path(options.root))


def run_delete(options: argparse.Namespace) -> int:
    """Delete a study that has no running worker."""
    import optuna

    from march_search.errors import StorageError
    from march_search.study import status

    folder, config, study = _found(options)
    name = folder.path.name
    if any(row["state"] == "alive" for row in status.worker_rows(study, folder)):
        raise StorageError(f"{name} has running workers: stop them first with march-search study stop {name}.")
    if not options.yes:
        print(f"delete {folder.path} with {len(study.trials)} trials? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return 0
    if config.storage is not None:
        optuna.delete_study(study_name=name, storage=study._storage)
    shutil.rmtree(folder.path)
    print(f"{name}: deleted.", file=sys.stderr)
    return 0
