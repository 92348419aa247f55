"""The phase of a study, from its trials alone: it searches, confirms the order of its finalists, or is complete."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from march_search.analysis.finals import Finals, SeedTrial, finals, verdict
from march_search.analysis.study_record import StudyRecord, TrialRecord
from march_search.analysis.trial_counts import not_started
from march_search.config import StudyConfig
from march_search.units import plural


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Phase of a study."""

    name: Literal["search", "confirm", "complete"]
    """`search`: candidates are trained and stopped; `confirm`: finalists are trained with further seeds."""
    detail: str
    """What is left of it or how it ended: one or two sentences, the first in lower case."""


def study_phase(study: StudyRecord, spent: int | None = None) -> Phase:
    """Return the phase of a study.

    Args:
        study: The study as its folder records it.
        spent: Tokens that count towards `max_tokens`, from the storage; None to add up those of the trials.
    """
    study = study.whole or study
    config, seeds = study.config, study.config.search.seeds
    searched = [t for t in study.trials if t.seed in seeds]
    further = [t for t in study.trials if t.seed not in seeds]
    paused, unfinished = (sum(t.state == state for t in searched) for state in ("paused", "unfinished"))
    to_come = not_started(study)
    if paused or unfinished or to_come:
        parts = [(unfinished, "not finished"), (paused, "paused on a rung"), (to_come, "not started")]
        counts = _listed([f"{number} {'is' if number == 1 else 'are'} {words}" for number, words in parts if number])
        limit = "" if config.search.max_tokens is None else f" [search] max_tokens is {config.search.max_tokens:,}."
        return Phase(name="search", detail=f"of {plural(len(searched) + to_come, 'trial')}, {counts}.{limit}")
    found = finals(seed_trials(study.trials), config)
    if config.confirm.further(len(seeds)) == 0 and not further:
        number = len({t.architecture for t in searched if t.state == "complete"})
        arms = "1 architecture is" if number == 1 else f"{number} architectures are"
        return Phase(name="complete", detail=f"{arms} complete; [confirm] adds no seeds.")
    running = [t for t in further if t.state in ("paused", "unfinished")]
    spent = sum(t.tokens + t.branched_tokens for t in study.trials) if spent is None else spent
    if running:
        leader = f"; so far, {found.left[0]} leads" if found.left else ""
        return Phase(name="confirm", detail=f"{_further(len(running))} not finished{leader}.")
    if not found.following:
        return Phase(name="complete", detail=verdict(found, config))
    if not fits(found, config, spent):
        return Phase(name="complete", detail=f"{verdict(found, config)} [search] max_tokens allows no further round.")
    names = ", ".join(t.architecture for t in found.following)
    return Phase(name="confirm", detail=f"{_further(len(found.following))} to be trained, one of each of {names}.")


def fits(found: Finals, config: StudyConfig, spent: int) -> bool:
    """Return whether the next round stays within the study's `max_tokens`, after `spent` tokens."""
    limit, training = config.search.max_tokens, config.training
    return limit is None or spent + len(found.following) * training.trained_tokens(0, training.tokens) <= limit


def seed_trials(trials: Sequence[TrialRecord]) -> list[SeedTrial]:
    """Return the recorded trials as the confirmation looks at them."""
    return [
        SeedTrial(
            architecture=t.architecture.name,
            seed=t.seed,
            learning_rate=t.config.training.learning_rate,
            loss=t.loss if t.state == "complete" else None,
            has_failed=t.state not in ("complete", "pruned", "paused", "unfinished"),
        )
        for t in trials
    ]


def _further(number: int) -> str:
    """Return a number of further seeds with its verb."""
    return "1 further seed is" if number == 1 else f"{number} further seeds are"


def _listed(parts: Sequence[str]) -> str:
    """Join parts of a sentence with commas and "and"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
