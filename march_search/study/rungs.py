"""What each trial of a study may do next, decided from what the storage knows alone: every worker finds the same.

With rungs, the candidates are architectures, not trials: the seeds of one are one candidate, whose loss on a rung is
their mean, and go on together. A seed that failed is left out of the mean; a candidate fails when all its seeds have.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from march_search.config import StudyConfig
from march_search.strategy import Rungs

FEWEST = 4
"""Candidates below which rungs mean nothing: all train to the end."""

Candidate = tuple[Any, ...]


@dataclass(frozen=True)
class Schedule:
    """What is to be done, by trial number, in order."""

    runnable: Mapping[int, int]
    """Waiting trials that may run, and until how many tokens."""
    stopped: Mapping[int, int]
    """Waiting trials that were not promoted, and the rung's tokens."""
    targets: Mapping[int, int]
    """Until how many tokens each unfinished trial may train now."""


def candidate(trial: FrozenTrial) -> Candidate:
    """What the seeds of one architecture, trained at one learning rate, have in common."""
    return trial.user_attrs.get("architecture"), trial.user_attrs.get("learning_rate")


def apart(trial: FrozenTrial) -> bool:
    """Whether a trial takes no part in the rungs' decisions, and is compared with them: a race's, a repeated one."""
    return "race" in trial.user_attrs or "retry_of" in trial.user_attrs


def rung_tokens(config: StudyConfig, candidates: int) -> tuple[int, ...]:
    """Where the study's trials pause, the end last; only the end without rungs or with too few candidates."""
    if config.pruner.kind != "rungs" or candidates < FEWEST:
        return (config.training.tokens,)
    return config.pruner.rung_tokens(config.training)


def to_come(trials: Iterable[FrozenTrial], total: int) -> int:
    """How many of a study's `total` trials have not been chosen yet."""
    return max(0, total - sum(not apart(t) for t in trials))


def decided(trials: Sequence[FrozenTrial], config: StudyConfig, total: int) -> Schedule:
    """What is to be done in a study that will have at least `total` trials."""
    candidates = len({candidate(t) for t in trials if not apart(t)})
    where = rung_tokens(config, max(candidates, total // len(config.search.seeds)))
    return schedule(trials, where, config.pruner.keep, not to_come(trials, total))


def schedule(trials: Sequence[FrozenTrial], rungs: Sequence[int], keep: float, whole: bool = True) -> Schedule:
    """What may run, until where, and what is stopped.

    Args:
        trials: all of the study.
        rungs: tokens, ascending, the end last.
        keep: share of a rung's candidates that goes on.
        whole: whether all candidates are known; before that the first rung is not decided.
    """
    regular = [t for t in trials if not apart(t)]
    members, targets, stopped = {candidate(t) for t in regular}, dict.fromkeys((t.number for t in trials), rungs[0]), {}
    for rung, following in pairwise(rungs):
        on_it = [t for t in regular if candidate(t) in members]
        if not whole or not all(_arrived(t, rung) for t in on_it):
            break
        losses = _losses(on_it, rung)
        chosen = set(Rungs(keep=keep).promoted(losses))
        worst = max((loss for key, loss in losses.items() if key in chosen and loss is not None), default=0.0)
        for trial in trials:
            reached = trial.intermediate_values.get(rung)
            if targets[trial.number] != rung or reached is None:
                continue
            late = apart(trial) and reached <= worst
            if late or (not apart(trial) and candidate(trial) in chosen):
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
    """Whether nothing more is to be heard of a trial on this rung."""
    return rung in trial.intermediate_values or trial.state.is_finished()


def _losses(trials: Iterable[FrozenTrial], rung: int) -> dict[Candidate, float | None]:
    """Each candidate's mean over the seeds that reached the rung; None if none did."""
    seeds: dict[Candidate, list[float]] = {}
    for trial in trials:
        reached = seeds.setdefault(candidate(trial), [])
        if rung in trial.intermediate_values:
            reached.append(trial.intermediate_values[rung])
        elif trial.state == TrialState.COMPLETE and trial.value is not None:  # it did not pause
            reached.append(trial.value)
    return {key: fmean(values) if values else None for key, values in seeds.items()}


def in_words(config: StudyConfig, candidates: int) -> str:
    """The pruner, for a person: rungs, and how many candidates reach each."""
    from march_search.report.tables import si

    if config.pruner.kind != "rungs":
        return config.pruner.kind
    if candidates < FEWEST:
        return f"none: rungs need {FEWEST} candidates, and there are {candidates}; all train to the end"
    parts, left = [], candidates
    for tokens in config.pruner.rung_tokens(config.training):
        parts.append(f"{left} to {si(tokens)}")
        left = len(Rungs(keep=config.pruner.keep).promoted(dict.fromkeys(range(left), 0.0)))
    seeds = ", decided on the mean of the seeds" if len(config.search.seeds) > 1 else ""
    return f"rungs: {', '.join(parts)} tokens{seeds}"
