"""Measure a contrast of architectures, with seeds, documents and the learning rate as its uncertainties."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from march_search.analysis.comparison import CONFIDENCE, Interval, pooled_variance, two_sided
from march_search.analysis.contrasts import Contrast
from march_search.analysis.noise import Array, DataNoise, SeedNoise
from march_search.analysis.rate_noise import RateNoise
from march_search.architecture.architecture import Architecture

Rates = Mapping[float, Sequence[float]]
"""Losses of the seeds of one architecture at each learning rate."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Losses to test statements on; all sequences have one entry per architecture, in the same order."""

    architectures: Sequence[Architecture]
    means: Sequence[float]
    """Mean loss over seeds, at each architecture's own learning rate."""
    counts: Sequence[int]
    """Number of seeds behind each mean."""
    rates: Sequence[Rates] = ()
    """Losses at each learning rate; empty if all were trained at one."""
    seeds: SeedNoise | None
    data: DataNoise | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A contrast with its uncertainty, before the correction over all contrasts."""

    difference: float
    """Loss of the favoured side minus that of the other, in nats."""
    interval: Interval | None
    """95% interval of this contrast alone; None if no noise is known."""
    p: float
    """p-value of the contrast alone, against the statement's margin; 1 if no noise is known."""


def measure(
    contrast: Contrast, margin: float, trials: Trials, rate_noise: RateNoise
) -> tuple[Measured, Measured, Mapping[float, float]]:
    """Measure a contrast at one learning rate and over several, with the differences at the rates that all share.

    With several shared rates, the interval over rates reaches from the lowest to the highest end of those at the single
    rates, and the p-value is the largest of them (intersection-union test, Berger 1982): a verdict then holds at each
    of the rates. With one, the variance that `rate_noise` expects is added.
    """
    weights_A, used = contrast.weights_A, np.flatnonzero(contrast.weights_A).tolist()
    counts = np.asarray(trials.counts)
    shared = sorted(set.intersection(*(set(trials.rates[n]) for n in used))) if trials.rates else []
    if len(shared) < 2:
        difference = float(weights_A @ np.asarray(trials.means))
        parts = _parts(weights_A, counts, trials.seeds, trials.data)
        moved = rate_noise.parts(weights_A, trials.architectures) if parts else []
        return _with(difference, margin, parts), _with(difference, margin, [*parts, *moved]), {}
    measured, fewest = {}, {}
    for rate in shared:
        means_A, counts_A = np.zeros(len(weights_A)), np.ones(len(weights_A), int)
        for n in used:
            means_A[n], counts_A[n] = np.mean(trials.rates[n][rate]), len(trials.rates[n][rate])
        fewest[rate] = int(counts_A[used].min())
        measured[rate] = _with(
            float(weights_A @ means_A), margin, _parts(weights_A, counts_A, trials.seeds, trials.data)
        )
    middle = math.exp(float(np.log(shared).mean()))
    main = measured[min(shared, key=lambda rate: (-fewest[rate], abs(math.log(rate / middle))))]
    signs = {one.difference < margin for one in measured.values()}
    intervals = [one.interval for one in measured.values() if one.interval]
    over_rates = Measured(
        difference=main.difference,
        interval=Interval(min(i.low for i in intervals), max(i.high for i in intervals)) if intervals else None,
        p=max(one.p for one in measured.values()) if len(signs) == 1 else 1.0,
    )
    return main, over_rates, {rate: one.difference for rate, one in measured.items()}


def _parts(
    weights_A: Array, counts_A: np.ndarray, seeds: SeedNoise | None, data: DataNoise | None
) -> list[tuple[float, float]]:
    """Return the variances of a contrast over seeds and documents with their degrees of freedom."""
    parts = []
    if seeds is not None:
        parts += [
            (float(weights_A[n] * seeds.deviations[n]) ** 2 / int(counts_A[n]), seeds.degrees[n])
            for n in np.flatnonzero(weights_A)
        ]
    if data is not None:
        parts.append((max(0.0, float(weights_A @ data.covariance_AA @ weights_A)), data.degrees))
    return parts


def _with(difference: float, margin: float, parts: Sequence[tuple[float, float]]) -> Measured:
    """Return a difference with its interval and p-value, from variances with their degrees of freedom."""
    from scipy.special import stdtrit

    if not parts:
        return Measured(difference=difference, interval=None, p=1.0)
    variance, degrees = (float(value) for value in pooled_variance(parts))
    half = float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return Measured(
        difference=difference,
        interval=Interval(difference - half, difference + half),
        p=float(two_sided(difference - margin, variance, degrees)),
    )
