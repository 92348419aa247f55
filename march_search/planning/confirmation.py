"""Add further seeds of a study's finalists, one round at a time (`[confirm]`)."""

from collections.abc import Iterable

import optuna
from optuna.trial import FrozenTrial, TrialState

from march_search.analysis.finals import Finals, SeedTrial, finals, verdict
from march_search.analysis.phase import fits
from march_search.config import StudyConfig
from march_search.storage.trials import newest_attempts, repeat_trial, trial_identity

CONFIRM = "confirm"
"""User attribute of a trial that the confirmation added. Its value is the target confidence, `[confirm] confidence`."""

MARKS = (CONFIRM, "race")
"""User attributes of a trial of the confirmation; earlier versions wrote `race`."""


def is_confirmation(trial: FrozenTrial) -> bool:
    """Return whether the confirmation added a trial."""
    return any(mark in trial.user_attrs for mark in MARKS)


def found_finals(trials: Iterable[FrozenTrial], config: StudyConfig) -> Finals:
    """Return the finalists of a study whose search is over, and the next seeds."""
    own_rate = config.training.learning_rate
    return finals([_seed_trial(trial, own_rate) for trial in newest_attempts(trials)], config)


def _seed_trial(trial: FrozenTrial, own_rate: float) -> SeedTrial:
    """Return one of Optuna's trials as the confirmation looks at it."""
    name, seed, rate = trial_identity(trial, own_rate)
    return SeedTrial(
        architecture=name,
        seed=seed,
        learning_rate=rate,
        loss=trial.value if trial.state == TrialState.COMPLETE else None,
        has_failed=trial.state == TrialState.FAIL,
    )


def add_round(study: optuna.Study, config: StudyConfig, committed: int) -> bool:
    """Enqueue the next round of seeds and return whether there is one.

    The caller must hold the study's lock. A round is added only if the search and the rounds before are over and all of
    its trials fit into `max_tokens`, so that the finalists keep equal numbers of seeds.

    Args:
        study: The study.
        config: Its settings.
        committed: Tokens spent so far.
    """
    trials = study.get_trials(deepcopy=False)
    if config.confirm.further(len(config.search.seeds)) == 0 or not all(t.state.is_finished() for t in trials):
        return False
    found = found_finals(trials, config)
    if not found.following or not fits(found, config, committed):
        return False
    own_rate = config.training.learning_rate
    known = {trial_identity(trial, own_rate)[::2]: trial for trial in trials if not is_confirmation(trial)}
    for wanted in found.following:
        trial = known[wanted.architecture, wanted.learning_rate]
        repeat_trial(study, trial, seed=wanted.seed, **{CONFIRM: config.confirm.confidence})
    return True


def confirmation_note(trials: Iterable[FrozenTrial], config: StudyConfig) -> str:
    """Return what the confirmation has found as one sentence; empty if the study has none or one architecture."""
    trials = list(trials)
    if len({t.user_attrs["architecture"] for t in trials}) < 2:
        return ""
    if config.confirm.further(len(config.search.seeds)) == 0 and not any(map(is_confirmation, trials)):
        return ""
    return f"confirm: {verdict(found_finals(trials, config), config)}"
