"""Decide what each trial of a study may do next, from the storage alone, so that all workers decide alike.

Rungs compare candidates, not trials. A candidate is one architecture at one learning rate, with all its seeds. Its loss
at a rung is the mean over the seeds, which are promoted together. Failed seeds are left out of the mean; a candidate
fails if all its seeds fail.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from march_search.config import StudyConfig
from march_search.config.halving import Halving

FEWEST = 4
"""Fewest candidates for which rungs are used; with fewer, all train to the end."""

Candidate = tuple[Any, ...]


@dataclass(frozen=True)
class Schedule:
    """Decisions by trial number, in order."""

    runnable: Mapping[int, int]
    """Waiting trials that may run, and the token count at which each stops."""
    stopped: Mapping[int, int]
    """Waiting trials that were not promoted, and the token count of their rung."""
    targets: Mapping[int, int]
    """Token count up to which each unfinished trial may train now."""


def candidate(trial: FrozenTrial) -> Candidate:
    """Return the architecture and learning rate, which all seeds of a candidate share."""
    return trial.user_attrs.get("architecture"), trial.user_attrs.get("learning_rate")


def is_independent(trial: FrozenTrial) -> bool:
    """Return whether rung decisions ignore a trial because it is a retry or belongs to a race."""
    return "race" in trial.user_attrs or "retry_of" in trial.user_attrs


def rung_tokens(config: StudyConfig, candidates: int) -> tuple[int, ...]:
    """Return the token counts at which trials pause, and the end; only the end if rungs are not used."""
    if config.pruner.kind != "rungs" or candidates < FEWEST:
        return (config.training.tokens,)
    return config.pruner.rung_tokens(config.training)


def to_come(trials: Iterable[FrozenTrial], total: int) -> int:
    """Return how many of the study's `total` trials have not been chosen yet."""
    return max(0, total - sum(not is_independent(t) for t in trials))


def study_schedule(trials: Sequence[FrozenTrial], config: StudyConfig, total: int) -> Schedule:
    """Return the schedule of a study that will have at least `total` trials."""
    candidates = len({candidate(t) for t in trials if not is_independent(t)})
    tokens = rung_tokens(config, max(candidates, total // len(config.search.seeds)))
    return schedule(trials, tokens, config.pruner.keep, not to_come(trials, total))


def schedule(
    trials: Sequence[FrozenTrial], rungs: Sequence[int], keep: float | None, is_complete: bool = True
) -> Schedule:
    """Return which trials may run, up to which token count, and which are stopped.

    Args:
        trials: All trials of the study.
        rungs: Token counts, ascending; the last is the end.
        keep: Share of a rung's candidates that is promoted; None for the ratio of the rung to the next.
        is_complete: Whether all candidates are known; before that, the first rung is not decided.
    """
    regular = [t for t in trials if not is_independent(t)]
    members, targets, stopped = {candidate(t) for t in regular}, dict.fromkeys((t.number for t in trials), rungs[0]), {}
    rule = Halving.at(rungs, keep)
    for number, (rung, following) in enumerate(pairwise(rungs)):
        on_rung = [t for t in regular if candidate(t) in members]
        if not is_complete or not all(_arrived(t, rung) for t in on_rung):
            break
        losses = _losses(on_rung, rung)
        chosen = set(rule.promoted(losses, number))
        worst = max((loss for key, loss in losses.items() if key in chosen and loss is not None), default=0.0)
        for trial in trials:
            reached = trial.intermediate_values.get(rung)
            if targets[trial.number] != rung or reached is None:
                continue
            good_enough = is_independent(trial) and reached <= worst
            if good_enough or (not is_independent(trial) and candidate(trial) in chosen):
                targets[trial.number] = following
            else:
                stopped[trial.number] = rung
        members = chosen
    for trial in trials:
        if "race" in trial.user_attrs:
            targets[trial.number] = rungs[-1]
    waiting = [t for t in trials if t.state == TrialState.WAITING]
    runnable = {
        t.number: targets[t.number] for t in waiting
        if t.number not in stopped and targets[t.number] not in t.intermediate_values
    }  # fmt: skip
    unfinished = {t.number: targets[t.number] for t in trials if not t.state.is_finished()}
    return Schedule(runnable, {t.number: stopped[t.number] for t in waiting if t.number in stopped}, unfinished)


def _arrived(trial: FrozenTrial, rung: int) -> bool:
    """Return whether a trial has reached this rung or finished."""
    return rung in trial.intermediate_values or trial.state.is_finished()


def _losses(trials: Iterable[FrozenTrial], rung: int) -> dict[Candidate, float | None]:
    """Return each candidate's mean loss over the seeds that reached the rung; None if none did."""
    seeds: dict[Candidate, list[float]] = {}
    for trial in trials:
        reached = seeds.setdefault(candidate(trial), [])
        if rung in trial.intermediate_values:
            reached.append(trial.intermediate_values[rung])
        elif trial.state == TrialState.COMPLETE and trial.value is not None:  # finished without a pause at the rung
            reached.append(trial.value)
    return {key: fmean(values) if values else None for key, values in seeds.items()}


def in_words(config: StudyConfig, candidates: int) -> str:
    """Describe the pruner: its rungs and how many candidates reach each."""
    from march_search.display.tables import si

    if config.pruner.kind != "rungs":
        return config.pruner.kind
    if candidates < FEWEST:
        return f"none: rungs need at least {FEWEST} candidates, got {candidates}; all train to the end"
    tokens = config.pruner.rung_tokens(config.training)
    numbers = Halving.at(tokens, config.pruner.keep).survivors(candidates)
    parts = [f"{number} to {si(rung)}" for number, rung in zip(numbers, tokens, strict=True)]
    seeds = ", decided by the mean loss over seeds" if len(config.search.seeds) > 1 else ""
    return f"rungs: {', '.join(parts)} tokens{seeds}"
