"""What a study has done and what is left of it, from its storage: the numbers of the display and of `study status`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from optuna.trial import FrozenTrial, TrialState

from march_search.analysis.trial_counts import TrialCounts, count_states
from march_search.config import StudyConfig
from march_search.planning import rungs
from march_search.planning.confirmation import is_confirmation
from march_search.storage.leases import Lease
from march_search.storage.study_folder import trial_number
from march_search.storage.trials import newest_attempts


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """Trials and tokens of a study, those of decay branches included."""

    phase: Literal["search", "confirm"]
    """`confirm` while further seeds of the finalists are trained."""
    counts: TrialCounts
    to_come: int
    """Trials that a sampler has not chosen yet."""
    on_rung: int
    """Trials that have reached their rung and wait for the others."""
    tokens_done: int
    """Tokens in the newest attempts of all trials."""
    tokens_planned: int
    """Tokens that these trials will have at the rungs up to which they may train now, and at their ends."""
    tokens_expected: int
    """The same at the end of the phase, with as many trials promoted from later rungs as the plan has."""

    def seconds_left(self, speed: float) -> float | None:
        """Return the seconds to the end of the phase at `speed` tokens per second; None if nothing runs or is left."""
        left = self.tokens_expected - self.tokens_done
        return left / speed if speed > 0 and left > 0 else None


def trial_state(trial: FrozenTrial) -> str:
    """Return a trial's state: `paused` if it waits after an evaluation, `waiting` if it has not started."""
    if trial.state == TrialState.WAITING:
        return "paused" if trial.intermediate_values and Lease.of(trial).attempt else "waiting"
    return {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())


def trial_counts(trials: Sequence[FrozenTrial], planned: int) -> TrialCounts:
    """Return the counts of trials; `planned` is their number in the plan of a study with a sampler, else 0."""
    return count_states(map(trial_state, newest_attempts(trials)), rungs.to_come(trials, planned))


def running_phase(trials: Iterable[FrozenTrial]) -> Literal["search", "confirm"]:
    """Return `confirm` while the storage has an unfinished trial of the confirmation, else `search`."""
    further = any(is_confirmation(trial) and not trial.state.is_finished() for trial in trials)
    return "confirm" if further else "search"


def outlook(trials: Sequence[FrozenTrial], config: StudyConfig, planned: int, tokens: Mapping[int, int]) -> Outlook:
    """Return what the study has done and what is left.

    Trials that have not been chosen yet are planned up to the first rung.

    Args:
        trials: All trials in the storage.
        config: The study's settings.
        planned: Number of trials in the plan of a study with a sampler, else 0.
        tokens: Trained tokens of trials by number, where they are known better than from the storage.
    """
    training = config.training
    schedule, to_come = rungs.study_schedule(trials, config, planned), rungs.to_come(trials, planned)
    targets, elsewhere = schedule.targets, {*schedule.runnable, *schedule.stopped}
    newest, done, goal = newest_attempts(trials), 0, 0
    for trial in newest:
        number = trial_number(trial)
        reached = tokens[number] if number in tokens else _stored_tokens(trial, config)
        done += reached
        is_over = trial.state.is_finished()
        target = training.trained_tokens(0, targets.get(trial.number, training.tokens))
        goal += reached if is_over else max(reached, target)
    candidates = max(len({rungs.candidate(t) for t in newest}), planned // len(config.search.seeds))
    goal += to_come * training.trained_tokens(0, rungs.rung_tokens(config, candidates)[0])
    return Outlook(
        phase=running_phase(trials),
        counts=trial_counts(trials, planned),
        to_come=to_come,
        on_rung=sum(t.state == TrialState.WAITING and t.number not in elsewhere for t in newest),
        tokens_done=done,
        tokens_planned=goal,
        tokens_expected=goal + _later(trials, config, candidates, targets, to_come),
    )


def _stored_tokens(trial: FrozenTrial, config: StudyConfig) -> int:
    """Return the tokens of a trial as far as the storage tells: at its last evaluation."""
    complete = trial.state == TrialState.COMPLETE
    reached = config.training.tokens if complete else max(trial.intermediate_values, default=0)
    return config.training.trained_tokens(0, reached)


def _later(
    trials: Sequence[FrozenTrial], config: StudyConfig, candidates: int, targets: Mapping[int, int], to_come: int
) -> int:
    """Return the tokens that trials will train after rungs that are not decided yet."""
    now = [targets[t.number] for t in trials if t.number in targets and not rungs.is_independent(t)]
    if not now and not to_come:
        return 0
    points = rungs.reached(config, candidates, max(1, len(config.search.learning_rates)))
    last = max(now, default=points[0][0])
    steps, trained = pairwise(points), config.training.trained_tokens
    later = sum(many * trained(before, tokens) for (before, _), (tokens, many) in steps if tokens > last)
    return later * len(config.search.seeds)
