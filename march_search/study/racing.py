"""The race after a study's candidates: further seeds for the leaders until the winner stands apart."""

from collections.abc import Iterable

import optuna
from optuna.trial import FrozenTrial, TrialState

from march_search.evidence.racing import next_seeds
from march_search.study.enqueueing import repeat


def losses(trials: Iterable[FrozenTrial]) -> dict[str, list[float]]:
    """Final losses of each architecture, one a seed."""
    found: dict[str, list[float]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            found.setdefault(trial.user_attrs["architecture"], []).append(trial.value)
    return found


def add_seeds(study: optuna.Study, confidence: float) -> bool:
    """Enqueues one more seed for each architecture still in the race; whether there is one. Only under the lock."""
    trials = study.get_trials(deepcopy=False)
    failed = {t.user_attrs["architecture"] for t in trials if t.state == TrialState.FAIL and "race" in t.user_attrs}
    names = [name for name in next_seeds(losses(trials), confidence) if name not in failed]
    for name in names:
        mine = [t for t in trials if t.user_attrs["architecture"] == name]
        complete = next(t for t in mine if t.state == TrialState.COMPLETE)
        seed = max(t.user_attrs["seed"] for t in trials if t.user_attrs["architecture"] == name) + 1
        repeat(study, complete, seed=seed, race=confidence)
    return bool(names)


def verdict(trials: Iterable[FrozenTrial], confidence: float) -> str:
    """How the race stands, in one sentence."""
    found = losses(trials)
    if len(found) < 2:
        return "race: fewer than two architectures are complete."
    ordered = sorted(found, key=lambda name: sum(found[name]) / len(found[name]))
    left = next_seeds(found, confidence)
    seeds = sum(map(len, found.values()))
    if not left:
        return f"race: {ordered[0]} is separated from all others at {confidence:.0%} after {seeds} complete trials."
    rivals = ", ".join(name for name in left if name != ordered[0])
    return f"race: {ordered[0]} leads after {seeds} complete trials, not separated at {confidence:.0%} from {rivals}."
