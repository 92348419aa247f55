"""`march-search study status | show | stop | resume | retry | confirm | delete`: watch and control a started study."""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from march_search.commands import Verbs
from march_search.commands.options import add_action, add_examples, add_format, add_study, root_option
from march_search.commands.output import report_summary

if TYPE_CHECKING:
    import optuna

    from march_search.config.study_config import StudyConfig
    from march_search.storage.study_folder import StudyFolder


def add_actions(actions: Verbs) -> None:
    """Add the actions to `march-search study`."""
    for name, run, text, example in (
        ("status", run_status, "print states, workers, tokens and time left", "cpu-demo"),
        ("show", run_show, "print one trial: settings, evaluations, outcome", "cpu-demo 3"),
        ("stop", run_stop, "ask all workers on all hosts to save and exit", "cpu-demo"),
        ("resume", run_resume, "resume a study with the settings it was started with", "cpu-demo"),
        ("retry", run_retry, "train failed trials again, all of them or those with the given numbers", "cpu-demo 3 4"),
        (
            "confirm",
            run_confirm,
            "train further seeds of the finalists, beyond the limits of [confirm]",
            "cpu-demo --max-seeds 5",
        ),
        ("delete", run_delete, "delete the folder and the records of a study", "cpu-demo --yes"),
    ):
        parser = add_action(actions, name, text)
        add_study(parser)
        add_examples(parser, f"march-search study {name} {example}")
        if name == "status":
            add_format(parser, holds="one row per trial; json also the workers and the totals")
        if name == "show":
            add_format(parser, holds="the settings, evaluations and outcome of the trial")
            parser.add_argument("trial", metavar="TRIAL", type=int, help="trial number, from 0")
        if name == "retry":
            parser.add_argument(
                "trials", metavar="TRIAL", type=int, nargs="*", help="trial numbers, from 0 (default: all)"
            )
        if name == "delete":
            parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
        if name == "confirm":
            parser.add_argument("--confidence", type=float, help="confidence (default: that of [confirm])")
            parser.add_argument(
                "--max-seeds", metavar="N", type=int, default=0, help="seeds per architecture (default: no limit)"
            )
        parser.set_defaults(run=partial(_run, run))


def _run(action: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run an action. If the storage fails meanwhile, the error is one line."""
    from march_search.storage import study_storage

    with study_storage.guarded():
        return action(options)


def _open(options: argparse.Namespace) -> "tuple[StudyFolder, StudyConfig, optuna.Study]":
    """Return the folder, the settings and the Optuna study of a started study."""
    from march_search.commands.studies import named_study
    from march_search.study import status

    folder, config = named_study(options.study, options.root).started()
    return folder, config, status.open_started(folder, config)


def _open_to_continue(options: argparse.Namespace) -> "tuple[StudyFolder, StudyConfig, optuna.Study]":
    """Return the same as `_open`, after checking the settings of a TOML file against those of the started study."""
    from march_search.commands.studies import named_study
    from march_search.study import status

    folder, config = named_study(options.study, options.root).to_continue()
    return folder, config, status.open_started(folder, config)


def run_status(options: argparse.Namespace) -> int:
    """Print the state of a study, its trials and its workers, or those of every study of a ladder."""
    from march_search.commands.studies import named_study
    from march_search.commands.study_ladder import ladder_status
    from march_search.study import status

    named = named_study(options.study, options.root)
    if studies := named.ladder_studies():
        options.root = named.folder.path.parent  # the argument may be a folder elsewhere
        return ladder_status(named.name, studies, options, run_status)
    folder, config, study = _open(options)
    trials = study.get_trials(deepcopy=False)
    rows, crew = status.trial_rows(folder, config, trials), status.worker_rows(study, folder)
    total, name = status.totals(folder, config, trials, rows), folder.path.name
    total["remarks"] = status.remarks(folder, rows)
    total["phase"] = status.phase(folder, total["tokens_spent"])
    _print_status(options.format, name, total, rows, crew, status.openers(folder, config))
    return 0


def _print_status(
    output_format: str, name: str, total: dict[str, Any], rows: list[Any], crew: list[Any], openers: list[str]
) -> None:
    """Print the trials, and for a person also the workers and the commands that open the study elsewhere."""
    from march_search.commands.output import print_rows
    from march_search.display.tables import Column, console
    from march_search.units import count, duration, plural, si

    left = total["seconds_left"]
    parts = [f"{number} {state}" for state, number in total["states"].items()]
    parts += [f"{total['trials_to_come']} to come"] if total["trials_to_come"] else []
    limit = f", at most {si(total['max_tokens'])}" if total["max_tokens"] else ""
    phase = total["phase"]
    notes = [
        *([f"phase: {phase['name']}: {phase['detail']}"] if phase else []),
        f"tokens: {si(total['tokens_done'])} of {si(total['tokens_expected'])} expected, "
        f"{si(total['tokens_without_pruning'])} without pruning; {si(total['tokens_spent'])} committed{limit}"
        + ("" if left is None else f"; {duration(left)} left for all at the current speed"),
        *total["remarks"],
    ]
    several_rates = len({row["learning_rate"] for row in rows}) > 1
    columns = (
        Column(key="trial", heading="trial", short="#"),
        Column(key="name", heading="name", short="name", left=True),
        Column(key="seed", heading="seed", short="seed", wide_only=True),
        *(
            [Column(key="learning_rate", heading="learning rate", short="rate", show=lambda value: f"{value:g}")]
            if several_rates
            else []
        ),
        Column(key="state", heading="state", short="state", left=True),
        Column(key="tokens", heading="tokens", short="tokens", show=si),
        Column(key="loss", heading="loss", short="loss", show=lambda value: f"{value:.4f}"),
        Column(key="bits_per_byte", heading="bits/byte", short="b/B", show="{:.4f}".format, wide_only=True),
        Column(key="retries", heading="retries", short="retries", wide_only=True),
        Column(key="worker", heading="worker", short="worker", left=True, wide_only=True),
    )
    head = {"study": name, **total, "workers": crew, "open_with": openers}
    title = f"{name}: {total['trials_ended']} of {plural(total['trials_total'], 'trial')} ended ({', '.join(parts)})"
    print_rows(output_format, rows, columns, title=title, notes=notes, head=head, name="trials")
    if output_format in ("json", "csv"):
        return
    if crew:
        heads = (
            Column(key="worker", heading="worker", short="worker", left=True),
            Column(key="state", heading="state", short="state", left=True),
            Column(key="slots", heading="slots", short="slots"),
            Column(key="beats", heading="beats", short="beats", show=count),
            Column(key="beat_seconds", heading="last beat", short="last", show=lambda value: f"{duration(value)} ago"),
        )
        print_rows(output_format, crew, heads, title="workers")
    for line in openers if output_format == "table" else ():
        console().print(line, soft_wrap=True)


def run_show(options: argparse.Namespace) -> int:
    """Print one trial."""
    from march_search.commands.output import print_json, print_rows
    from march_search.display.tables import Column, console
    from march_search.errors import UsageError
    from march_search.storage.study_folder import trial_number
    from march_search.storage.trials import newest_attempts
    from march_search.study import status

    folder, config, study = _open(options)
    trials = study.get_trials(deepcopy=False)
    by_number = {row["trial"]: row for row in status.trial_rows(folder, config, trials)}
    newest = {trial_number(trial): trial for trial in newest_attempts(trials)}
    if options.trial not in by_number:
        last = max(by_number, default=0)
        raise UsageError(f"{folder.path.name} has no trial {options.trial}: use a number from 0 to {last}.")
    row = by_number[options.trial] | status.trial_details(folder, newest[options.trial])
    if options.format == "json":
        print_json({"study": folder.path.name, **row})
        return 0
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}
    rows = [{"key": key.replace("_", " "), "value": texts[key]} for key, value in row.items() if value is not None]
    if options.format == "table":
        for pair in rows:
            console().print(f"{pair['key']}: {pair['value']}", soft_wrap=True)
    else:
        columns = (
            Column(key="key", heading="key", short="key", left=True),
            Column(key="value", heading="value", short="value", left=True),
        )
        print_rows(options.format, rows, columns)
    return 0


def run_stop(options: argparse.Namespace) -> int:
    """Ask all workers to save and exit."""
    from march_search.storage import heartbeat
    from march_search.study import status
    from march_search.units import plural

    folder, _, study = _open(options)
    study.set_user_attr(heartbeat.STOP, True)
    states = [row["state"] for row in status.worker_rows(study, folder) if row["state"] != "gone"]
    most = "up to " if "silent" in states else ""  # a silent one may be dead, or its clock is behind
    message = f"asked {most}{plural(len(states), 'worker')} to save and exit" if states else "no worker is running"
    print(f"{folder.path.name}: {message}. To resume: {_resume_command(folder)}", file=sys.stderr)
    return 0


def _resume_command(folder: "StudyFolder") -> str:
    """Return the command that resumes a study."""
    return f"march-search study resume {folder.path.name}{root_option(folder.path.parent)}"


def run_resume(options: argparse.Namespace) -> int:
    """Resume a study after a stop or an interruption."""
    from march_search.commands.prepare import verified_store
    from march_search.planning import gpus
    from march_search.storage import heartbeat
    from march_search.study.runner import StudyRun

    folder, config, study = _open_to_continue(options)
    gpus.claim(config.devices)
    study.set_user_attr(heartbeat.STOP, None)
    return report_summary(StudyRun(config, folder, verified_store(folder)).run(), folder)


def run_retry(options: argparse.Namespace) -> int:
    """Enqueue failed trials again, to be trained by a worker."""
    from march_search.files.atomic import lock
    from march_search.storage.trials import retry_trial
    from march_search.study import status
    from march_search.units import plural

    folder, config, study = _open_to_continue(options)
    with lock(folder.path / "lock"):
        failed = status.failed_trials(study, options.trials)
        for trial in failed:
            retry_trial(study, trial, folder.of_trial(trial), config.training.global_batch_tokens)
    message = f"{plural(len(failed), 'trial')} enqueued again. To resume: {_resume_command(folder)}"
    print(f"{folder.path.name}: {message}", file=sys.stderr)
    return 0


def run_confirm(options: argparse.Namespace) -> int:
    """Train further seeds of the finalists until the leader is separated from the others."""
    from dataclasses import replace

    from march_search.commands.prepare import verified_store
    from march_search.planning import gpus
    from march_search.study.runner import StudyRun

    folder, config, _ = _open_to_continue(options)
    confidence = config.confirm.confidence if options.confidence is None else options.confidence
    confirm = replace(config.confirm, confidence=confidence, max_seeds=options.max_seeds)
    gpus.claim(config.devices)
    config = replace(config, confirm=confirm)
    return report_summary(StudyRun(config, folder, verified_store(folder)).run(), folder)


def run_delete(options: argparse.Namespace) -> int:
    """Delete a study that has no running worker."""
    import optuna

    from march_search.errors import StorageError
    from march_search.files.atomic import lock
    from march_search.storage import heartbeat
    from march_search.study import status

    folder, config, study = _open(options)
    name, root = folder.path.name, root_option(folder.path.parent)
    busy = f"{name} has running workers: stop them first with march-search study stop {name}{root}."

    def refuse_if_in_use() -> None:
        if heartbeat.is_in_use(folder.path) or any(
            row["state"] == "alive" for row in status.worker_rows(study, folder)
        ):
            raise StorageError(busy)

    refuse_if_in_use()
    if not options.yes:
        print(f"delete {folder.path} with {len(study.trials)} trials? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return 0
    with lock(folder.path / "lock", busy):
        refuse_if_in_use()
        if config.storage is not None:
            optuna.delete_study(study_name=name, storage=study._storage)
        shutil.rmtree(folder.path)
    print(f"{name}: deleted.", file=sys.stderr)
    return 0
