"""Results of decay branches: a study as if its trials had a shorter data budget, and whether the order holds later."""

import math
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from march_search.analysis.level import complete_architectures
from march_search.analysis.study_record import StudyRecord, TrialRecord
from march_search.architecture.architecture import Architecture
from march_search.errors import UsageError
from march_search.trial.result import VALIDATION_SEAL


@dataclass(frozen=True, kw_only=True)
class BudgetOrder:
    """The order of the architectures at one data budget, compared with that at the next and at the longest."""

    tokens: int
    """The data budget."""
    architectures: int
    """Number of architectures with a result there."""
    leader: str
    """Name of the architecture with the lowest loss."""
    kept_next: int | None
    """Pairs whose order is the same at the next budget; None for the longest."""
    pairs_next: int | None
    """Pairs of architectures with results at both budgets."""
    kept: int | None
    """Pairs whose order is the same at the longest budget; None for that itself."""
    pairs: int | None
    """Pairs of architectures with results at both."""
    kendall: float | None
    """Rank correlation with the order at the longest budget (Kendall's tau-b); None if it is not defined."""
    regret: float | None
    """Loss at the longest budget of the architecture that leads here minus the lowest there, in nats."""


def branch_budgets(study: StudyRecord) -> tuple[int, ...]:
    """Return the data budgets at which decay branches of the study ended, ascending."""
    return tuple(sorted({int(line["branch"]) for trial in study.trials for line in trial.branches}))


def at_budget(study: StudyRecord, tokens: int) -> StudyRecord:
    """Return the study as if its trials had a data budget of `tokens`, from the results of its decay branches.

    A trial with such a branch is complete, even if its stable run is not. Trials that were stopped before keep the
    losses of their stable run.

    Raises:
        UsageError: If the study has no decay branches, or none that ended there.
    """
    if tokens == study.config.training.tokens:
        return study
    budgets = branch_budgets(study)
    if not study.config.training.branch_tokens and not budgets:
        raise UsageError(
            f"--at {tokens:,}: {study.name} has no decay branches and is not a ladder. Train with [training] schedule "
            '"wsd" and branch_tokens for results at shorter data budgets, or use --horizon for longer ones.'
        )
    if tokens not in budgets:
        ends = [f"{end:,}" for end in (*budgets, study.config.training.tokens)]
        text = "no decay branch has ended yet" if not budgets else f"use one of {', '.join(ends)}"
        raise UsageError(f"--at {tokens:,}: {study.name} has no results there; {text}.")
    return replace(study, trials=tuple(_at(trial, tokens) for trial in study.trials), whole=study)


def _at(trial: TrialRecord, tokens: int) -> TrialRecord:
    """Return a trial as if its data budget were `tokens`."""
    lines = {int(line["branch"]): line for line in trial.branches}
    if trial.state == "damaged" or (tokens not in lines and trial.tokens < tokens):
        return trial
    if tokens not in lines:
        reason = f"the result of the decay branch to {tokens:,} tokens is missing"
        return replace(trial, state="damaged", loss=None, evaluations=(), result=None, reason=reason, branches=())
    line, training = lines[tokens], trial.config.training
    short = replace(training, tokens=tokens, branch_tokens=(), evaluate_at=())
    result = {key: value for key, value in (trial.result or {}).items() if key != VALIDATION_SEAL}
    if VALIDATION_SEAL in line:
        result[VALIDATION_SEAL] = line[VALIDATION_SEAL]
    return replace(
        trial,
        config=replace(trial.config, training=short),
        state="complete",
        tokens=tokens,
        loss=float(line["loss"]),
        bits_per_byte=line.get("bits_per_byte"),
        context_gain=line.get("context_gain"),
        reason="",
        evaluations=tuple({**line, "tokens": end} for end, line in lines.items() if end <= tokens),
        result=result | {"tokens": tokens, "loss": float(line["loss"])},
        branches=(),
        is_branch=True,
    )


def budget_orders(study: StudyRecord) -> tuple[BudgetOrder, ...]:
    """Return the order at each data budget, ascending; empty without branches, or if fewer than two can be compared."""
    budgets = branch_budgets(study)
    if not budgets:
        return ()
    losses: dict[int, dict[Architecture, float]] = {}
    for tokens in (*budgets, study.config.training.tokens):
        complete = complete_architectures(at_budget(study, tokens))
        if complete:
            losses[tokens] = {pooled.architecture: pooled.loss for pooled in complete}
    if len(losses) < 2:
        return ()
    following: dict[int, int | None] = {**dict(pairwise(losses)), **dict.fromkeys([*losses][-1:])}
    last = [*losses][-1:]
    return tuple(
        _order(tokens, own, losses.get(following[tokens] or 0), losses[last[0]] if [tokens] != last else None)
        for tokens, own in losses.items()
    )


def _order(
    tokens: int,
    own: dict[Architecture, float],
    following: dict[Architecture, float] | None,
    last: dict[Architecture, float] | None,
) -> BudgetOrder:
    """Return the order at one budget, given the losses at the next and at the longest one."""
    leader = min(own, key=lambda a: own[a])
    kept_next, pairs_next = _kept(own, following)
    kept, pairs = _kept(own, last)
    regret = None
    if last and leader in last:
        regret = last[leader] - min(last[a] for a in last if a in own)
    return BudgetOrder(
        tokens=tokens,
        architectures=len(own),
        leader=leader.name,
        kept_next=kept_next,
        pairs_next=pairs_next,
        kept=kept,
        pairs=pairs,
        kendall=_kendall(own, last),
        regret=regret,
    )


def _kept(own: dict[Architecture, float], other: dict[Architecture, float] | None) -> tuple[int | None, int | None]:
    """Return how many pairs have the same order in both, and how many pairs there are."""
    if other is None:
        return None, None
    pairs = list(combinations([a for a in own if a in other], 2))
    return int(sum(np.sign(own[a] - own[b]) == np.sign(other[a] - other[b]) for a, b in pairs)), len(pairs)


def _kendall(own: dict[Architecture, float], other: dict[Architecture, float] | None) -> float | None:
    """Return Kendall's tau-b over the architectures of both; None if it is not defined."""
    shared = [a for a in own if a in (other or {})]
    if other is None or len(shared) < 2:
        return None
    from scipy.stats import kendalltau

    found = float(kendalltau([own[a] for a in shared], [other[a] for a in shared])[0])
    return None if math.isnan(found) else found


def branch_values(study: StudyRecord) -> dict[str, Any]:
    """Return the budget that a record shows, and the budgets that it can show, as values for JSON."""
    whole = study.whole or study
    shown = next((trial.tokens for trial in study.trials if trial.is_branch), None)
    return {"at": shown, "branch_budgets": list(branch_budgets(whole))}
