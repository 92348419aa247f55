"""Report the state of a study from its storage and trial folders, without affecting it."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from march_search.analysis.phase import study_phase
from march_search.analysis.study_record import read_study
from march_search.config import StudyConfig
from march_search.config.study_config import public_storage
from march_search.errors import ConfigError, MarchSearchError, NoTrialsError, StorageError
from march_search.planning import rungs
from march_search.storage import heartbeat, study_storage, usage
from march_search.storage.journal import JOURNAL
from march_search.storage.leases import Lease
from march_search.storage.study_folder import StudyFolder, trial_number
from march_search.storage.trials import newest_attempts
from march_search.study.outlook import outlook, trial_state
from march_search.study.survey import committed
from march_search.trial.faults import trial_faults
from march_search.trial.metrics import read_metrics
from march_search.trial.outcome import read_outcome
from march_search.trial.own_trials import find_trials
from march_search.trial.result import read_result
from march_search.trial.settings import read_settings

Row = dict[str, Any]


def open_started(folder: StudyFolder, config: StudyConfig) -> optuna.Study:
    """Return the Optuna study of a started study.

    Raises:
        StorageError: If the storage cannot be opened or does not contain the study.
    """
    name = folder.path.name
    missing = NoTrialsError(f"{folder.path}: the study has no trials yet: run march-search study run {name}.")
    if config.storage is None and not (folder.path / JOURNAL).is_file():
        raise missing
    study = study_storage.load_study(name, folder.path, config.storage, config.pruner)
    if study is None:
        raise missing
    return study


def trial_rows(folder: StudyFolder, config: StudyConfig, trials: Sequence[FrozenTrial]) -> list[Row]:
    """Return one row per trial: state, tokens, loss, worker; of a retried trial, the newest attempt."""
    plan = rungs.study_schedule(trials, config, usage.planned_trials(folder.path, config))
    rows = []
    for trial in newest_attempts(trials):
        attrs, lease = trial.user_attrs, Lease.of(trial)
        metrics = read_metrics(folder.of_trial(trial))
        speeds = [line["tokens_per_second"] for line in metrics.lines if line.get("tokens_per_second")]
        last = (metrics.of_kind("evaluation") or ({},))[-1]
        rows.append({
            "trial": trial_number(trial), "name": attrs["architecture"], "seed": attrs["seed"],
            "learning_rate": attrs.get("learning_rate", config.training.learning_rate), "state": trial_state(trial),
            "tokens": metrics.tokens, "trained_tokens": metrics.trained_tokens,
            "branches": {str(line["branch"]): line["loss"] for line in metrics.of_kind("branch_evaluation")},
            "until": plan.targets.get(trial.number), "loss": last.get("loss"),
            "bits_per_byte": last.get("bits_per_byte"),
            "tokens_per_second": speeds[-1] if speeds and trial.state == TrialState.RUNNING else None,
            "worker": lease.worker if trial.state == TrialState.RUNNING else None,
            "retries": lease.retries, "spent_tokens": lease.spent, "reason": attrs.get("reason"),
            "damage": trial_faults(folder.of_trial(trial)),
        })  # fmt: skip
    return rows


def remarks(folder: StudyFolder, rows: Sequence[Row]) -> list[str]:
    """Return one line for each damaged file of a study, and one for what its trials did not write."""
    lines = [f"trial {row['trial']}: {fault}" for row in rows for fault in row["damage"]]
    try:
        usage.saved_plan(folder.path)
    except StorageError as error:
        lines.append(str(error))
    return lines + find_trials(folder.path).notes


def phase(folder: StudyFolder, spent: int | None = None) -> dict[str, str] | None:
    """Return name and detail of the study's phase; None if its files do not show it.

    Args:
        folder: The study folder.
        spent: Tokens that count towards `max_tokens`; None to add up those of the trials.
    """
    try:
        return asdict(study_phase(read_study(folder.path), spent))
    except MarchSearchError:  # no trial has a folder yet, or study.json is damaged
        return None


def phase_rows(folder: StudyFolder) -> list[tuple[str, str]]:
    """Return the phase of a started study as a (label, value) pair for its plan; none if it has not been started."""
    found = phase(folder)
    return [("phase", f"{found['name']}: {found['detail']}")] if found else []


def worker_rows(study: optuna.Study, folder: StudyFolder) -> list[Row]:
    """Return one row per worker that has not left: host, state, and seconds since its last heartbeat.

    The seconds, and the state `silent`, are wrong if the clocks of the two machines differ.
    """
    return [
        {
            "worker": name, "host": beat.host, "pid": beat.pid, "slots": beat.slots, "beats": beat.count,
            "beat_seconds": round(max(0.0, time.time() - beat.at), 1),
            "state": "gone" if heartbeat.has_exited(folder.path / "workers", name, beat) else
            "silent" if time.time() - beat.at > 3 * beat.interval else "alive",
        }
        for name, beat in heartbeat.worker_records(study).items() if not beat.ended
    ]  # fmt: skip


def totals(folder: StudyFolder, config: StudyConfig, trials: Sequence[FrozenTrial], rows: Sequence[Row]) -> Row:
    """Return trial states, tokens done and planned, and seconds left at the current speed; None if nothing runs."""
    planned = usage.planned_trials(folder.path, config)
    training = config.training
    found = outlook(trials, config, planned, {row["trial"]: row["trained_tokens"] for row in rows})
    seconds = found.seconds_left(sum(row["tokens_per_second"] or 0 for row in rows))
    return {
        "states": dict(sorted(Counter(row["state"] for row in rows).items())),
        "trials_ended": found.counts.ended,
        "trials_total": found.counts.total,
        "trials_to_come": found.to_come,
        "tokens_done": found.tokens_done,
        "tokens_planned": found.tokens_planned,
        "tokens_expected": found.tokens_expected,
        "tokens_spent": committed(list(trials)),
        "max_tokens": config.search.max_tokens,
        "tokens_without_pruning": training.trained_tokens(0, training.tokens) * found.counts.total,
        "seconds_left": None if seconds is None else round(seconds),
    }


def openers(folder: StudyFolder, config: StudyConfig) -> list[str]:
    """Return the commands that open the study in other tools, without its password."""
    url = public_storage(config.storage) or str(folder.path / JOURNAL)
    where = f'"${url.removeprefix("env:")}"' if url.startswith("env:") else url
    return [f"optuna-dashboard {where}", f"tensorboard --logdir {folder.trials}"]


def failed_trials(study: optuna.Study, numbers: Sequence[int]) -> list[FrozenTrial]:
    """Return the trials whose newest attempt failed: those of `numbers`, or all.

    Raises:
        ConfigError: If one of `numbers` did not fail or was retried already.
    """
    trials = newest_attempts(study.get_trials(deepcopy=False))
    found = {trial_number(trial): trial for trial in trials if trial.state == TrialState.FAIL}
    for number in numbers:
        if number not in found:
            raise ConfigError(
                f"trial {number} of {study.study_name} did not fail or was retried already; "
                f"failed trials: {sorted(found)}."
            )
    return [found[number] for number in numbers or sorted(found)]


def _if_intact(read: Callable[[Path], Row | None], path: Path) -> Row | None:
    """Return what `read` returns; None if the file is damaged, which the row's `damage` reports."""
    try:
        return read(path)
    except MarchSearchError:
        return None


def trial_details(folder: StudyFolder, trial: FrozenTrial) -> Row:
    """Return the details of a trial from its folder and its attributes."""
    path = folder.of_trial(trial)
    return {
        "folder": str(path),
        "evaluations": {str(k): v for k, v in sorted(trial.intermediate_values.items())},
        "params": trial.params,
        "lease": trial.user_attrs.get("lease"),
        "outcome": _if_intact(read_outcome, path),
        "result": _if_intact(lambda path: read_result(path, read_settings(path)), path),
    }
