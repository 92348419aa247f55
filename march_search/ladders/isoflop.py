"""What a ladder with compute budgets shows: the compute-optimal size and tokens of each arm, and how they grow."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from march_search.analysis.comparison import CONFIDENCE, Interval
from march_search.analysis.noise import Array, seed_noise
from march_search.analysis.study_record import StudyRecord
from march_search.config.ladder_config import LEAST_SIZES
from march_search.errors import UsageError
from march_search.ladders.isoflop_fit import ArmFit, ArmPoints, OptimumDraws, fit_arm, growth
from march_search.ladders.isoflop_record import (
    IsoflopRecord,
    PointRecord,
    chosen_rate,
    point_studies,
    point_trials,
)
from march_search.ladders.ladder_record import is_finished

MISFIT_P = 0.01
"""Below this p-value, the law is said to miss the losses."""


@dataclass(frozen=True, kw_only=True)
class PointLoss:
    """Losses of one point."""

    point: PointRecord
    loss: float
    """Mean over seeds, in nats."""
    error: float
    """Standard error of the mean over seeds."""
    degrees: float
    """Degrees of freedom of the error."""
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95% interval."""

    value: float
    """Median of the draws."""
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Lowest loss of an arm at one compute budget, among the sizes from the smallest to the largest trained."""

    arm: str
    budget: str
    flops: float
    is_inside: bool
    """Whether both ends of the interval lie between the smallest and the largest size: only then is it an optimum."""
    is_open: tuple[bool, bool]
    """Whether the optimum may be below the smallest size, and above the largest."""
    parameters: Estimate
    """Optimal parameters; an open end is the smallest or the largest size."""
    tokens: Estimate
    tokens_per_parameter: Estimate
    loss: Estimate
    """Lowest expected loss among these sizes."""
    draws: OptimumDraws


@dataclass(frozen=True, kw_only=True)
class ArmGrowth:
    """How the optimum of an arm grows with the training FLOPs C: parameters as C^x, tokens as C^y."""

    arm: str
    parameters: Estimate
    tokens: Estimate


@dataclass(frozen=True, kw_only=True)
class OptimumGap:
    """An arm against the baseline at one compute budget."""

    arm: str
    baseline: str
    budget: str
    loss: Estimate
    """Lowest loss minus that of the baseline, in nats."""
    ratio: Estimate | None
    """Optimal parameters divided by those of the baseline; None unless both optima are inside the sizes."""


@dataclass(frozen=True, kw_only=True)
class IsoflopEvidence:
    """Results of a ladder with compute budgets."""

    ladder: IsoflopRecord
    rate: float
    """Learning rate of all trials that count."""
    rate_edge: str
    """`lowest` or `highest` if the rate is at that end of the list tried, else empty."""
    losses: tuple[PointLoss, ...]
    """Points with complete trials."""
    optima: tuple[Optimum, ...]
    """By budget, then by arm."""
    gaps: tuple[OptimumGap, ...]
    growths: tuple[ArmGrowth, ...]
    misfits: tuple[str, ...]
    """Arms whose losses the law misses by more than the noise of seeds."""
    unfinished: tuple[str, ...]
    """Studies with trials that may still complete, or none yet."""
    faults: tuple[str, ...]
    """One sentence for each arm and budget with too few sizes, and for each arm whose losses do not follow the law."""


def isoflop_evidence(ladder: IsoflopRecord, root: Path, assumed: float | None = None) -> IsoflopEvidence:
    """Collect the results of a ladder with compute budgets whose studies are in `root`.

    Args:
        ladder: The ladder.
        root: Folder of its studies.
        assumed: Deviation over seeds of every architecture's prior, in nats; None for the recorded priors.

    Raises:
        StorageError: If a study is damaged.
        UsageError: If no trial is complete where learning rates are tried.
    """
    studies = point_studies(ladder, root)
    rate = chosen_rate(ladder, studies)
    if rate is None:
        raise UsageError(f"{ladder.name} has no complete trial yet: run march-search study run {ladder.name}.")
    losses = _losses(ladder, studies, rate, assumed)
    fits: dict[str, ArmFit] = {}
    faults: list[str] = []
    for number, arm in enumerate(ladder.arms):
        own, short = _enough(ladder, [one for one in losses if one.point.arm == arm])
        faults += [
            f"{arm} at {budget} FLOPs has {many} of {LEAST_SIZES} sizes that a curve needs." for budget, many in short
        ]
        if own:
            try:
                fits[arm] = fit_arm(_points(own), [one.point.budget_flops for one in own], seed=number)
            except UsageError as error:
                faults.append(f"{arm}: {error}")
    optima = [
        _optimum(arm, budget, flops, fits[arm].optima[flops])
        for budget, flops in ladder.budgets.items()
        for arm in ladder.arms
        if arm in fits and flops in fits[arm].optima
    ]
    grown = {arm: growth(fit.optima) for arm, fit in fits.items()}
    tried = sorted({rate for study in studies.values() for rate in _tried(study)})
    return IsoflopEvidence(
        ladder=ladder,
        rate=rate,
        rate_edge={tried[0]: "lowest", tried[-1]: "highest"}.get(rate, "") if len(tried) > 1 else "",
        losses=tuple(losses),
        optima=tuple(optima),
        gaps=tuple(gap for gap in (_gap(one, optima, ladder.arms[0]) for one in optima) if gap),
        growths=tuple(
            ArmGrowth(arm=arm, parameters=_estimate(found[0]), tokens=_estimate(found[1]))
            for arm, found in grown.items()
            if found
        ),
        misfits=tuple(arm for arm, fit in fits.items() if fit.misfit_p is not None and fit.misfit_p < MISFIT_P),
        unfinished=tuple(p.study for p in ladder.points if p.study not in studies or not is_finished(studies[p.study])),
        faults=tuple(faults),
    )


def _tried(study: StudyRecord) -> Sequence[float]:
    """Return the learning rates that a study tries."""
    return study.settings.get("search", {}).get("learning_rates") or ()


def _losses(
    ladder: IsoflopRecord, studies: Mapping[str, StudyRecord], rate: float, assumed: float | None
) -> list[PointLoss]:
    """Return the points with complete trials at the learning rate, with the noise of their seeds."""
    found = []
    for point in ladder.points:
        trials = point_trials(studies[point.study], point, rate) if point.study in studies else ()
        if own := [trial.loss for trial in trials if trial.loss is not None]:
            found.append((point, own))
    noise = seed_noise([point.architecture for point, _ in found], [own for _, own in found], assumed)
    return [
        PointLoss(point=point, loss=fmean(own), error=deviation / math.sqrt(len(own)), degrees=degrees, seeds=len(own))
        for (point, own), deviation, degrees in zip(found, noise.deviations, noise.degrees, strict=True)
    ]


def _enough(ladder: IsoflopRecord, own: Sequence[PointLoss]) -> tuple[list[PointLoss], list[tuple[str, int]]]:
    """Return the points of one arm at budgets with enough sizes, and budgets with too few and their number."""
    counts = {budget: sum(one.point.budget == budget for one in own) for budget in ladder.budgets}
    kept = [one for one in own if counts[one.point.budget] >= LEAST_SIZES]
    return kept, [(budget, many) for budget, many in counts.items() if 0 < many < LEAST_SIZES]


def _points(own: Sequence[PointLoss]) -> ArmPoints:
    """Return what was trained of one arm, as arrays."""
    return ArmPoints(
        flops_P=np.array([one.point.budget_flops for one in own]),
        parameters_P=np.array([one.point.parameters for one in own], float),
        tokens_P=np.array([one.point.tokens for one in own], float),
        per_token_P=np.array([one.point.flops_per_token for one in own]),
        means_P=np.array([one.loss for one in own]),
        errors_P=np.array([one.error for one in own]),
        degrees_P=np.array([one.degrees for one in own]),
    )


def _optimum(arm: str, budget: str, flops: float, draws: OptimumDraws) -> Optimum:
    """Return the optimum that the draws show."""
    low, middle, high = draws.ends
    parameters, tokens = draws.parameters_X, draws.tokens_X

    def at(values: Array) -> Estimate:
        ends = sorted((float(values[low]), float(values[high])))
        return Estimate(value=float(values[middle]), interval=Interval(*ends))

    return Optimum(
        arm=arm,
        budget=budget,
        flops=flops,
        is_inside=not any(draws.is_open),
        is_open=draws.is_open,
        parameters=at(parameters),
        tokens=at(tokens),
        tokens_per_parameter=at(tokens / parameters),
        loss=_estimate(draws.loss_B),
        draws=draws,
    )


def _gap(one: Optimum, optima: Sequence[Optimum], baseline: str) -> OptimumGap | None:
    """Return an arm against the baseline at its budget; None for the baseline, or if that has no fit there."""
    base = next((other for other in optima if (other.arm, other.budget) == (baseline, one.budget)), None)
    if base is None or base is one:
        return None
    many = min(len(one.draws.loss_B), len(base.draws.loss_B))
    parameters = [side.draws.parameters_X[side.draws.best_B[:many]] for side in (one, base)]
    return OptimumGap(
        arm=one.arm,
        baseline=baseline,
        budget=one.budget,
        loss=_estimate(one.draws.loss_B[:many] - base.draws.loss_B[:many]),
        ratio=_estimate(parameters[0] / parameters[1]) if one.is_inside and base.is_inside else None,
    )


def _estimate(draws_B: Array) -> Estimate:
    """Return the median and the central interval of draws."""
    tail = (1 - CONFIDENCE) / 2
    low, middle, high = np.quantile(draws_B, [tail, 0.5, 1 - tail])
    return Estimate(value=float(middle), interval=Interval(float(low), float(high)))
