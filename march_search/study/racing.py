"""The race after a study's candidates: further seeds for the leaders until the winner stands apart."""

from collections.abc import Iterable
from statistics import fmean

import optuna
from optuna.trial import FrozenTrial, TrialState

from march_search.evidence.racing import next_seeds
from march_search.study.enqueueing import repeat


def losses(trials: Iterable[FrozenTrial]) -> dict[str, list[float]]:
    """Final losses of each architecture at its best learning rate, one a seed."""
    return {name: [loss for t in own if (loss := t.value) is not None] for name, own in _best(trials).items()}


def _best(trials: Iterable[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
    """Complete trials of each architecture at the learning rate with its lowest mean loss."""
    groups: dict[tuple[str, float | None], list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            told = trial.user_attrs
            groups.setdefault((told["architecture"], told.get("learning_rate")), []).append(trial)
    means = {key: fmean(t.value for t in own if t.value is not None) for key, own in groups.items()}
    found: dict[str, list[FrozenTrial]] = {}
    for key in sorted(groups, key=means.__getitem__):
        found.setdefault(key[0], groups[key])
    return found


def add_seeds(study: optuna.Study, confidence: float) -> bool:
    """Enqueues one more seed for each architecture still in the race; whether there is one. Only under the lock."""
    trials = study.get_trials(deepcopy=False)
    failed = {t.user_attrs["architecture"] for t in trials if t.state == TrialState.FAIL and "race" in t.user_attrs}
    names = [name for name in next_seeds(losses(trials), confidence) if name not in failed]
    for name in names:
        complete = _best(trials)[name][0]
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
