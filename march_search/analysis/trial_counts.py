"""Count the trials of a study by state. Every command that prints such a number takes it from here."""

from collections.abc import Iterable
from dataclasses import dataclass

from march_search.analysis.study_record import StudyRecord

FAILED = ("failed", "diverged", "infeasible_memory")
"""States of trials that count as failed: training them again would take `study retry`."""


@dataclass(frozen=True, kw_only=True)
class TrialCounts:
    """Number of trials of a study by state; a trial that was retried counts once."""

    complete: int
    pruned: int
    """Trials that were stopped early."""
    failed: int
    damaged: int = 0
    """Trials whose files do not show how they ended."""
    left: int
    """Trials that have not ended: they run, wait, are paused on a rung, or have not been chosen yet."""

    @property
    def ended(self) -> int:
        """Trials that nothing will change, unless they are retried."""
        return self.complete + self.pruned + self.failed + self.damaged

    @property
    def total(self) -> int:
        """All trials: those of the search, and the further seeds of the confirmation that have been added so far."""
        return self.ended + self.left


def count_states(states: Iterable[str], to_come: int = 0) -> TrialCounts:
    """Return the counts of trials in these states, plus `to_come` trials that have not been chosen or started yet."""
    all_states = list(states)
    complete, pruned, damaged = (all_states.count(state) for state in ("complete", "pruned", "damaged"))
    failed = sum(state in FAILED for state in all_states)
    left = len(all_states) - complete - pruned - failed - damaged + to_come
    return TrialCounts(complete=complete, pruned=pruned, failed=failed, damaged=damaged, left=left)


def recorded_counts(study: StudyRecord) -> TrialCounts:
    """Return the counts of a study as its folder records it; a trial without a folder has not started yet."""
    states = [trial.state for trial in study.trials] + ["damaged"] * len(study.damaged)
    return count_states(states, not_started(study))


def not_started(study: StudyRecord) -> int:
    """Return how many trials of the search have no folder yet."""
    seeds = study.config.search.seeds
    searched = sum(trial.seed in seeds for trial in study.trials) + len(study.damaged)
    if len(study.trials) + len(study.damaged) > searched:  # further seeds are only trained after the search
        return 0
    return max(0, _planned(study) - searched)


def _planned(study: StudyRecord) -> int:
    """Return how many trials the search will have."""
    search, architectures = study.config.search, len(study.settings.get("architectures", ()))
    if search.adaptive:
        architectures = max(architectures, search.trials)
    planned = architectures * len(search.seeds) * max(1, len(search.learning_rates))
    return min(planned, study.planned_trials) if search.adaptive and study.planned_trials else planned
