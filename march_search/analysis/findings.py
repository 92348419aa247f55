"""Test named findings and open questions about architectures on the results of a study.

Each contrast of each statement is tested twice: at the learning rate at which it was measured, and with the learning
rate among the uncertainties. Holm's method corrects each of the two families over all contrasts of all statements.
Under a budget several dimensions move together, so a finding about one may be a finding about another; the others are
reported.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from march_search.analysis.comparison import CONFIDENCE, holm
from march_search.analysis.contrasts import Contrast, contrasts
from march_search.analysis.measurement import Measured, Trials, measure
from march_search.analysis.rate_noise import RECORDED, RateNoise
from march_search.analysis.statements import STATEMENTS, Statement
from march_search.architecture.architecture import Architecture

Verdict = Literal["yes", "no", "not separable"]
Summary = Literal["yes", "no", "turns", "yes in part", "no in part", "not separable", "not tested"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """Result of one contrast."""

    step: str
    """The two values of the ordered quantity, such as `layers 4 → 2`; empty for a statement about two groups."""
    at_rate: Measured
    """The contrast at the learning rate with most seeds: seeds and documents are its uncertainties."""
    over_rates: Measured
    """The same contrast with the learning rate among its uncertainties."""
    adjusted_p_at_rate: float
    adjusted_p: float
    """p-value of `over_rates` after Holm's correction over all contrasts."""
    verdict_at_rate: Verdict
    verdict: Verdict
    """Verdict with the learning rate among the uncertainties, after the correction."""
    by_rate: Mapping[float, float]
    """The difference at each learning rate that all compared architectures share; empty if only one is known."""
    pairs: int
    agreeing: int
    """Number of pairs in which the favoured side has the lower loss, with the statement's margin."""
    confounds: tuple[str, ...]
    """Other dimensions that differ in at least half of the pairs."""

    @property
    def answer(self) -> str:
        """Verdict in words; it ends in `at this rate` if it no longer holds with the learning rate included."""
        return _in_words(self.verdict, self.verdict_at_rate)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Result of testing one statement on a study."""

    statement: str
    verdict: Summary
    """What the steps say together, with the learning rate among the uncertainties."""
    verdict_at_rate: Summary
    """What the steps say together at the learning rate at which they were measured."""
    steps: tuple[Step, ...]

    @property
    def answer(self) -> str:
        """Verdict in words; it ends in `at this rate` if it no longer holds with the learning rate included."""
        return _in_words(self.verdict, self.verdict_at_rate)


def findings(trials: Trials, rate_noise: RateNoise = RECORDED) -> tuple[Answer, ...]:
    """Test all statements on one study and return the answers in order."""
    [answers] = family([trials], rate_noise)
    return answers


def family(studies: Sequence[Trials], rate_noise: RateNoise = RECORDED) -> list[tuple[Answer, ...]]:
    """Test all statements on several studies, with one correction over all their contrasts.

    Contrasts of the same trials, such as two statements that compare the same arms, count once.
    """
    found = [
        (number, statement, contrast)
        for number, trials in enumerate(studies)
        for statement in STATEMENTS
        for contrast in contrasts(statement, trials.architectures)
    ]
    both = [measure(contrast, statement.margin, studies[n], rate_noise) for n, statement, contrast in found]
    keys = [_key(contrast, statement.margin, studies[n].architectures) for n, statement, contrast in found]
    at_rate_p = _adjusted(keys, [at_rate.p for at_rate, _, _ in both])
    adjusted_p = _adjusted(keys, [over_rates.p for _, over_rates, _ in both])
    steps: dict[tuple[int, str], list[Step]] = {}
    for (n, statement, contrast), (at_rate, over_rates, by_rate), p_at_rate, p in zip(
        found, both, at_rate_p, adjusted_p, strict=True
    ):
        means = studies[n].means
        step = Step(
            step=contrast.step,
            at_rate=at_rate,
            over_rates=over_rates,
            adjusted_p_at_rate=p_at_rate,
            adjusted_p=p,
            verdict_at_rate=_verdict(at_rate.difference - statement.margin, p_at_rate),
            verdict=_verdict(over_rates.difference - statement.margin, p),
            by_rate=by_rate,
            pairs=len(contrast.pairs),
            agreeing=sum(means[i] < means[k] + statement.margin for i, k in contrast.pairs),
            confounds=contrast.confounds,
        )
        steps.setdefault((n, statement.text), []).append(step)
    return [
        tuple(_answer(statement, steps.get((n, statement.text), [])) for statement in STATEMENTS)
        for n in range(len(studies))
    ]


def _answer(statement: Statement, steps: Sequence[Step]) -> Answer:
    """Summarise the steps of one statement."""
    return Answer(
        statement=statement.text,
        verdict=_summary([step.verdict for step in steps]),
        verdict_at_rate=_summary([step.verdict_at_rate for step in steps]),
        steps=tuple(steps),
    )


def _summary(verdicts: Sequence[Verdict]) -> Summary:
    """Return what the verdicts of all steps say together."""
    kinds = set(verdicts)
    if not kinds:
        return "not tested"
    if len(kinds) == 1:
        return verdicts[0]
    if {"yes", "no"} <= kinds:
        return "turns"
    return "yes in part" if "yes" in kinds else "no in part"


def _in_words(verdict: Summary, verdict_at_rate: Summary) -> str:
    """Return the verdict at the measured rate, and whether it depends on that rate."""
    if verdict_at_rate in (verdict, "not separable"):
        return verdict
    return f"{verdict_at_rate} at this rate"


def _verdict(difference: float, p: float) -> Verdict:
    """Return the verdict of a contrast from its difference to the margin and its corrected p-value."""
    if p > 1 - CONFIDENCE:
        return "not separable"
    return "yes" if difference < 0 else "no"


def _key(contrast: Contrast, margin: float, shapes: Sequence[Architecture]) -> tuple[object, ...]:
    """Return what identifies a contrast: two of the same architectures, with weights equal but for a sign, are one."""
    weights = sorted((shapes[n].name, round(float(w), 9)) for n, w in enumerate(contrast.weights_A) if w)
    sign = 1 if margin else math.copysign(1, weights[0][1])
    return margin, *((name, sign * weight) for name, weight in weights)


def _adjusted(keys: Sequence[tuple[object, ...]], p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's correction over all different contrasts; of equal ones the largest p counts."""
    different: dict[tuple[object, ...], float] = {}
    for key, p in zip(keys, p_values, strict=True):
        different[key] = max(p, different.get(key, 0.0))
    adjusted = dict(zip(different, holm(np.array(list(different.values()))), strict=True))
    return [float(adjusted[key]) for key in keys]
