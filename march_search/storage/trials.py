"""Add a study's trials to Optuna and report their outcomes to it."""

import math
import signal
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from march_search.architecture.architecture import CHOICES, Architecture
from march_search.errors import StorageError
from march_search.sampler.dimensions import SHAPE_AXES
from march_search.storage.study_folder import FIRST_ATTEMPT, trial_number
from march_search.storage.trial_process import TrialProcess
from march_search.trial import manifest
from march_search.trial.outcome import TrialOutcome, read_outcome

WantedTrial = tuple[Architecture, int] | tuple[Architecture, int, float]
"""Architecture, training seed, and optionally a learning rate; the default is the study's own."""

EARLIER_CHOICES = {"feed_forward_proj": 6, "position": 3}
"""Number of the first values of these fields in `CHOICES` that earlier states of this program recorded. Optuna refuses
other choices in a study that has trials, so a study that needs no more values keeps to these."""


def distributions(architectures: Iterable[Architecture]) -> dict[str, BaseDistribution]:
    """Return the Optuna distribution of every dimension that these architectures need."""
    shapes = [asdict(a) for a in architectures]
    varying = [f for f in shapes[0] if len({s[f] for s in shapes}) > 1 and all(s[f] is not None for s in shapes)]
    return {axis: _distribution(axis, {s[axis] for s in shapes}) for axis in dict.fromkeys((*SHAPE_AXES, *varying))}


def _distribution(axis: str, values: set[Any]) -> BaseDistribution:
    """Return the distribution of one dimension."""
    if axis in CHOICES:
        earlier = CHOICES[axis][: EARLIER_CHOICES.get(axis)]
        return CategoricalDistribution(earlier if values <= set(earlier) else CHOICES[axis])
    if all(type(value) is int for value in values):
        return IntDistribution(min(values), max(values))
    return CategoricalDistribution(sorted(values, key=str))


def enqueue(
    study: optuna.Study, wanted: Sequence[WantedTrial], ranges: dict[str, BaseDistribution], own_rate: float
) -> int:
    """Add the trials that the study does not have yet and return their number.

    `own_rate` is the study's own learning rate. The caller must hold the study's lock; otherwise two workers could add
    the same trial.
    """
    known = {trial_identity(trial, own_rate) for trial in study.get_trials(deepcopy=False)}
    new = [w for w in wanted if (w[0].name, w[1], w[2] if len(w) > 2 else own_rate) not in known]
    for architecture, seed, *rate in new:
        attrs = {"learning_rate": rate[0]} if rate and rate[0] != own_rate else {}
        add_trial(study, architecture, seed, ranges, **attrs)
    return len(new)


def add_trial(
    study: optuna.Study, architecture: Architecture, seed: int, ranges: dict[str, BaseDistribution], **attrs: Any
) -> None:
    """Add one trial; `attrs` holds additional user attributes."""
    attrs = {"architecture": architecture.name, "seed": seed, "num_params": architecture.num_params, **attrs}
    params = {axis: getattr(architecture, axis) for axis in ranges}
    study.add_trial(create_trial(state=TrialState.WAITING, params=params, distributions=ranges, user_attrs=attrs))


def repeat_trial(study: optuna.Study, trial: FrozenTrial, **attrs: Any) -> None:
    """Add a trial of the same architecture as `trial`; the user attributes `attrs` replace those of `trial`."""
    _repeat(study, trial, ("architecture", "seed", "num_params", "learning_rate"), attrs, {})


def retry_trial(study: optuna.Study, trial: FrozenTrial, folder: Path, batch: int) -> None:
    """Add a trial that continues a failed one in its folder, from its newest intact checkpoint.

    Optuna never reopens a finished trial. The caller must hold the study's lock.

    Args:
        study: The study.
        trial: The failed trial.
        folder: Its folder.
        batch: Tokens per step.
    """
    manifest.keep_newest(folder)
    try:
        ended = read_outcome(folder)
    except StorageError:  # damaged; the retry writes another
        ended = None
    out_of_memory = ended is not None and ended["state"] == "infeasible_memory"
    for name in (*(["micro_batch.json"] if out_of_memory else []), "failure.json", "outcome.json"):
        (folder / name).unlink(missing_ok=True)
    start = manifest.resume_point(folder, batch)
    known = {tokens: loss for tokens, loss in trial.intermediate_values.items() if tokens <= start}
    attrs = {"retry_of": trial.number, FIRST_ATTEMPT: trial_number(trial)}
    _repeat(study, trial, ("architecture", "seed", "num_params", "learning_rate", "confirm", "race"), attrs, known)


def _repeat(
    study: optuna.Study, trial: FrozenTrial, names: Sequence[str], attrs: dict[str, Any], known: dict[int, float]
) -> None:
    """Add a trial with the user attributes `names` of another and `attrs`; `known` holds its losses by tokens."""
    copied = {name: trial.user_attrs[name] for name in names if name in trial.user_attrs}
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=copied | attrs,
            intermediate_values=known,
        )
    )


def newest_attempts(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that were not retried, by the number of their first attempt."""
    trials = list(trials)
    retried = {trial.user_attrs.get("retry_of") for trial in trials}
    return sorted((trial for trial in trials if trial.number not in retried), key=trial_number)


def trial_identity(trial: FrozenTrial, own_rate: float) -> tuple[str, int, float]:
    """Return the architecture, seed and learning rate of a trial; no two trials of a plan share all three.

    Args:
        trial: A trial of the study.
        own_rate: The study's own learning rate, which trials without that attribute have.
    """
    attrs = trial.user_attrs
    return attrs["architecture"], attrs["seed"], attrs.get("learning_rate", own_rate)


INTERRUPTED = (130, 143, -signal.SIGINT, -signal.SIGTERM)
"""Exit codes of a process that was asked to stop."""


def failed_outcome(child: TrialProcess) -> TrialOutcome | None:
    """Return the outcome of a process that exited without a result; None if it was asked to stop.

    Raises:
        StorageError: If it could not write. The trial has not failed; it resumes once there is disk space.
    """
    if child.process.returncode in INTERRUPTED:
        return None
    state, text = child.failure()
    if child.process.returncode == StorageError.exit_code:
        raise StorageError(text)
    return {"state": state, "tokens": None, "loss": None, "text": text}


def tell_optuna(storage: BaseStorage, trial: FrozenTrial, outcome: TrialOutcome) -> None:
    """Close the trial in Optuna, as failed if its loss is not finite; raise if it is already closed.

    `Study.tell` accepts an infinite loss, and makes twice as many storage calls under a lock that all workers share.
    """
    state, values = TrialState.FAIL, None
    if outcome["state"] in ("complete", "pruned") and math.isfinite(outcome["loss"]):
        state = TrialState.COMPLETE if outcome["state"] == "complete" else TrialState.PRUNED
        values = [float(outcome["loss"])]
    else:
        storage.set_trial_user_attr(trial._trial_id, "reason", outcome["text"])
    storage.set_trial_state_values(trial._trial_id, state, values)
