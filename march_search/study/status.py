"""Report the state of a study from its storage and trial folders, without affecting it."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from march_search.config import StudyConfig
from march_search.config.study_config import public_storage
from march_search.errors import ConfigError, StorageError
from march_search.files import read_json, read_lines
from march_search.study import heartbeat, price, rungs, storage
from march_search.study.journal import JOURNAL
from march_search.study.leases import Lease
from march_search.study.study_folder import StudyFolder
from march_search.study.survey import committed

Row = dict[str, Any]


def open_started(folder: StudyFolder, config: StudyConfig) -> optuna.Study:
    """Return the Optuna study of a started study.

    Raises:
        StorageError: If the storage cannot be opened or does not contain the study.
    """
    name = folder.path.name
    missing = StorageError(f"{folder.path}: the study has no trials yet: run march-search study run {name}.")
    if config.storage is None and not (folder.path / JOURNAL).is_file():
        raise missing
    opened, pruner = storage.opened(config.storage, folder.path), storage.make_pruner(config.pruner)
    try:
        with storage.guarded():
            return optuna.load_study(study_name=name, storage=opened, pruner=pruner)
    except KeyError:
        raise missing from None


def trial_state(trial: FrozenTrial) -> str:
    """Return a trial's state: `paused` if it waits at a rung, `waiting` if it has not started or was interrupted."""
    if trial.state == TrialState.WAITING:
        return "paused" if trial.intermediate_values and Lease.of(trial).worker is None else "waiting"
    return {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())


def trial_rows(folder: StudyFolder, config: StudyConfig, trials: Sequence[FrozenTrial]) -> list[Row]:
    """Return one row per trial: state, tokens, loss, worker."""
    plan = rungs.study_schedule(trials, config, planned_trials(folder, config))
    rows = []
    for trial in trials:
        attrs, lease = trial.user_attrs, Lease.of(trial)
        lines = [
            line for line in read_lines(folder.of_trial(trial) / "metrics.jsonl") if isinstance(line.get("tokens"), int)
        ]
        speeds = [line["tokens_per_second"] for line in lines if line.get("tokens_per_second")]
        losses = [line["loss"] for line in lines if line.get("kind") == "evaluation"]
        rows.append({
            "trial": trial.number, "name": attrs["architecture"], "seed": attrs["seed"],
            "learning_rate": attrs.get("learning_rate", config.training.learning_rate), "state": trial_state(trial),
            "tokens": max((line["tokens"] for line in lines), default=0),
            "until": plan.targets.get(trial.number), "loss": losses[-1] if losses else None,
            "tokens_per_second": speeds[-1] if speeds and trial.state == TrialState.RUNNING else None,
            "worker": lease.worker if trial.state == TrialState.RUNNING else None,
            "retries": lease.retries, "spent_tokens": lease.spent, "reason": attrs.get("reason"),
        })  # fmt: skip
    return rows


def planned_trials(folder: StudyFolder, config: StudyConfig) -> int:
    """Return the planned number of trials of a study with a sampler; 0 for any other study."""
    plan = price.saved_plan(folder.path) if config.search.adaptive else None
    return int(plan["trials"]) if plan else 0


def worker_rows(study: optuna.Study, folder: StudyFolder) -> list[Row]:
    """Return one row per worker that has not left: host, state, and heartbeat age by the host's clock."""
    witness = heartbeat.Liveness(folder.path / "workers", 0)
    return [
        {
            "worker": name, "host": beat.host, "pid": beat.pid, "slots": beat.slots, "beats": beat.count,
            "beat_seconds": round(max(0.0, time.time() - beat.at), 1),
            "state": "gone" if witness.gone(name, beat) else
            "silent" if time.time() - beat.at > 3 * beat.interval else "alive",
        }
        for name, beat in heartbeat.worker_records(study).items() if not beat.ended
    ]  # fmt: skip


def totals(folder: StudyFolder, config: StudyConfig, trials: Sequence[FrozenTrial], rows: Sequence[Row]) -> Row:
    """Return trial states, tokens done and planned, and seconds left at the current speed; None if nothing runs.

    Trials that have not been chosen yet are planned up to the first rung.
    """
    planned_later = planned_trials(folder, config)
    to_come = rungs.to_come(trials, planned_later)
    first = rungs.rung_tokens(config, planned_later // len(config.search.seeds))[0]
    planned = sum(_planned(config, trial, row) for trial, row in zip(trials, rows, strict=True)) + to_come * first
    done = sum(row["tokens"] for row in rows)
    speed = sum(row["tokens_per_second"] or 0 for row in rows)
    return {
        "states": dict(sorted(Counter(row["state"] for row in rows).items())),
        "trials_to_come": to_come,
        "tokens_done": done,
        "tokens_planned": planned,
        "tokens_spent": committed(list(trials)),
        "max_tokens": config.search.max_tokens,
        "tokens_without_pruning": config.training.tokens * (len(trials) + to_come),
        "seconds_left": round((planned - done) / speed) if speed and planned > done else None,
    }


def _planned(config: StudyConfig, trial: FrozenTrial, row: Row) -> int:
    """Return the tokens that a trial will have seen at its end, as far as that is decided."""
    if trial.state.is_finished():
        return int(row["tokens"])
    return max(int(row["tokens"]), int(row["until"] or config.training.tokens))


def openers(folder: StudyFolder, config: StudyConfig) -> list[str]:
    """Return the commands that open the study in other tools, without its password."""
    url = config.storage or str(folder.path / JOURNAL)
    where = f'"${url.removeprefix("env:")}"' if url.startswith("env:") else public_storage(url)
    return [f"optuna-dashboard {where}", f"tensorboard --logdir {folder.trials}"]


def failed_trials(study: optuna.Study, numbers: Sequence[int]) -> list[FrozenTrial]:
    """Return the failed trials that have not been retried: those of `numbers`, or all.

    Raises:
        ConfigError: If one of `numbers` did not fail or was retried already.
    """
    trials = study.get_trials(deepcopy=False)
    repeated = {trial.user_attrs.get("retry_of") for trial in trials}
    found = {t.number: t for t in trials if t.state == TrialState.FAIL and t.number not in repeated}
    for number in numbers:
        if number not in found:
            raise ConfigError(
                f"trial {number} of {study.study_name} did not fail or was retried already; "
                f"failed trials: {sorted(found)}."
            )
    return [found[number] for number in numbers or sorted(found)]


def trial_details(folder: StudyFolder, trial: FrozenTrial) -> Row:
    """Return the details of a trial from its folder and its attributes."""
    path = folder.of_trial(trial)
    return {
        "folder": str(path),
        "evaluations": {str(k): v for k, v in sorted(trial.intermediate_values.items())},
        "params": trial.params,
        "lease": trial.user_attrs.get("lease"),
        "outcome": read_json(path / "outcome.json"),
        "result": read_json(path / "result.json"),
    }
