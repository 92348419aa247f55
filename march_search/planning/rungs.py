"""Decide what each trial of a study may do next, from the storage alone, so that all workers decide alike.

Rungs compare candidates, not trials. A candidate is one architecture at one learning rate, with all its seeds. Its loss
at a rung is the mean over the seeds, which are promoted together. Failed seeds are left out of the mean; a candidate
fails if all its seeds fail. Whatever their rank, the best candidates of the best `finalists` architectures and that of
the baseline are promoted.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from march_search.analysis.finals import baseline
from march_search.config import StudyConfig
from march_search.config.halving import Halving
from march_search.config.search_config import LEAST_STEPS, least_steps
from march_search.planning.confirmation import is_confirmation
from march_search.units import si

FEWEST = 4
"""Fewest candidates for which rungs are used, whatever the number of finalists."""

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
    """Return whether rung decisions ignore a trial because it is a retry or belongs to the confirmation."""
    return is_confirmation(trial) or "retry_of" in trial.user_attrs


def rung_tokens(config: StudyConfig, candidates: int) -> tuple[int, ...]:
    """Return the token counts at which trials pause, and the end; only the end if rungs are not used."""
    if config.pruner.kind != "rungs" or candidates < fewest(config):
        return (config.training.tokens,)
    return config.pruner.rung_tokens(config.training)


def fewest(config: StudyConfig) -> int:
    """Return the fewest candidates for which rungs are used; with fewer, all train to the end."""
    return max(FEWEST, config.pruner.finalists + 2)


def reached(config: StudyConfig, candidates: int, rates: int = 1) -> tuple[tuple[int, int], ...]:
    """Return (tokens, number of candidates) for each rung, the most that can reach it.

    The baseline is counted in addition to the best. With several learning rates, the best candidates may be of few
    architectures, to which those of other finalists are added.

    Args:
        config: The study's settings.
        candidates: Number of candidates.
        rates: Number of learning rates.
    """
    tokens, finalists = rung_tokens(config, candidates), config.pruner.finalists
    extra, numbers = int(finalists > 1), [candidates]
    rule = Halving.at(tokens, config.pruner.keep)
    for rung in range(len(tokens) - 1):
        best = rule.count(numbers[-1], rung)
        numbers.append(min(numbers[-1], best + max(0, finalists - -(-best // rates)) + extra))
    return tuple(zip(tokens, numbers, strict=True))


def to_come(trials: Iterable[FrozenTrial], total: int) -> int:
    """Return how many of the study's `total` trials have not been chosen yet."""
    return max(0, total - sum(not is_independent(t) for t in trials))


def study_schedule(trials: Sequence[FrozenTrial], config: StudyConfig, total: int) -> Schedule:
    """Return the schedule of a study that will have at least `total` trials."""
    candidates = len({candidate(t) for t in trials if not is_independent(t)})
    tokens = rung_tokens(config, max(candidates, total // len(config.search.seeds)))
    finalists, names = config.pruner.finalists, [t.user_attrs["architecture"] for t in trials if not is_independent(t)]
    return schedule(
        trials,
        tokens,
        config.pruner.keep,
        not to_come(trials, total),
        finalists=finalists,
        always=baseline(config, names) if finalists > 1 else None,
    )


def schedule(
    trials: Sequence[FrozenTrial],
    rungs: Sequence[int],
    keep: float | None,
    is_complete: bool = True,
    *,
    finalists: int = 1,
    always: str | None = None,
) -> Schedule:
    """Return which trials may run, up to which token count, and which are stopped.

    Args:
        trials: All trials of the study.
        rungs: Token counts, ascending; the last is the end.
        keep: Share of a rung's candidates that is promoted; None for the ratio of the rung to the next.
        is_complete: Whether all candidates are known; before that, the first rung is not decided.
        finalists: Fewest architectures that are promoted from each rung, if so many have not failed.
        always: Architecture of which the best candidate is promoted in any case.
    """
    regular = [t for t in trials if not is_independent(t)]
    members, targets, stopped = {candidate(t) for t in regular}, dict.fromkeys((t.number for t in trials), rungs[0]), {}
    rule = Halving.at(rungs, keep)
    for number, (rung, following) in enumerate(pairwise(rungs)):
        on_rung = [t for t in regular if candidate(t) in members]
        if not is_complete or not all(_arrived(t, rung) for t in on_rung):
            break
        losses = _losses(on_rung, rung)
        kept = _kept(losses, finalists, always)
        chosen = set(rule.promoted(losses, number, always=kept))
        by_rank = [loss for key, loss in losses.items() if key in chosen and loss is not None and key[0] != always]
        worst = max(by_rank, default=0.0)
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
        if is_confirmation(trial):
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


def _kept(losses: Mapping[Candidate, float | None], finalists: int, always: str | None) -> set[Candidate]:
    """Return the best candidates of the best `finalists` architectures and of `always`, without failed ones."""
    known = {key: loss for key, loss in losses.items() if loss is not None and math.isfinite(loss)}
    best: dict[str, Candidate] = {}
    for key in sorted(known, key=lambda key: known[key]):
        best.setdefault(key[0], key)
    return {*[*best.values()][:finalists], *(best[name] for name in (always,) if name in best)}


def notes(config: StudyConfig, candidates: int) -> str:
    """Return in words why rungs are not those of the settings; empty if they are."""
    training, pruner = config.training, config.pruner
    if pruner.kind != "rungs":
        return ""
    if candidates < fewest(config):
        return f"none: they need at least {fewest(config)} candidates, got {candidates}; all train to the end"
    raised, least = pruner.raised_rungs(training), least_steps(training)
    if not raised:
        return ""
    if least >= training.steps:
        return f"none: the first may be at {least:,} steps and a trial has {training.steps:,}; all train to the end"
    reason = "the end of the warm-up" if least > LEAST_STEPS else "the fewest after which candidates are compared"
    end = f"{least:,} steps ({si(least * training.global_batch_tokens)} tokens), {reason}"
    return f"{raised} of {len(pruner.rungs)} {'was' if raised == 1 else 'were'} raised to {end}"
