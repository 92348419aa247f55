"""Add seeds to a study's leading architectures until one is separated from all others (`race`)."""

from collections.abc import Iterable

import optuna
from optuna.trial import FrozenTrial, TrialState

from march_search.analysis.further_seeds import next_seeds
from march_search.analysis.pooling import best_rates
from march_search.study.trials import newest_attempts, repeat_trial, trial_identity


def race_losses(trials: Iterable[FrozenTrial], own_rate: float) -> dict[str, list[float]]:
    """Return the final losses of each architecture at its best learning rate, one per seed."""
    return {
        name: [loss for t in group if (loss := t.value) is not None]
        for name, group in _best_rate_trials(trials, own_rate).items()
    }


def _best_rate_trials(trials: Iterable[FrozenTrial], own_rate: float) -> dict[str, list[FrozenTrial]]:
    """Return the complete trials of each architecture at the learning rate with its lowest mean loss."""
    groups: dict[tuple[str, float], list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            name, _, rate = trial_identity(trial, own_rate)
            groups.setdefault((name, rate), []).append(trial)
    best = best_rates({key: [t.value for t in group if t.value is not None] for key, group in groups.items()})
    return {name: groups[name, rate] for name, rate in best.items()}


def add_seeds(study: optuna.Study, confidence: float, own_rate: float) -> bool:
    """Enqueue one more seed per architecture still in the race; return whether any was added. Needs the study lock."""
    trials = study.get_trials(deepcopy=False)
    ended = [t for t in newest_attempts(trials) if t.state == TrialState.FAIL and "race" in t.user_attrs]
    failed = {t.user_attrs["architecture"] for t in ended}
    names = [name for name in next_seeds(race_losses(trials, own_rate), confidence) if name not in failed]
    for name in names:
        complete = _best_rate_trials(trials, own_rate)[name][0]
        seed = max(t.user_attrs["seed"] for t in trials if t.user_attrs["architecture"] == name) + 1
        repeat_trial(study, complete, seed=seed, race=confidence)
    return bool(names)


def race_verdict(trials: Iterable[FrozenTrial], confidence: float, own_rate: float) -> str:
    """Return the state of the race as one sentence."""
    finals = race_losses(trials, own_rate)
    if len(finals) < 2:
        return "race: fewer than two architectures are complete."
    ordered = sorted(finals, key=lambda name: sum(finals[name]) / len(finals[name]))
    left = next_seeds(finals, confidence)
    seeds = sum(map(len, finals.values()))
    if not left:
        return (
            f"race: {ordered[0]} is separated from all others at {confidence:.0%} confidence after {seeds} complete "
            "trials."
        )
    rivals = ", ".join(name for name in left if name != ordered[0])
    return (
        f"race: {ordered[0]} leads after {seeds} complete trials, but is not separated at {confidence:.0%} confidence "
        f"from {rivals}."
    )
