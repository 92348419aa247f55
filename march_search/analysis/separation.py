"""Which finalists are still in question after each round of seeds: an elimination that may stop after any of them.

After its m-th seed, an architecture is eliminated if another one that is still in question is better by a one-sided
t-test on their first m seeds. The error is spread over the looks and over all ordered pairs of the A architectures: the
level of a test is `(1 - confidence) * share(m) / (A * (A - 1))`. All shares sum to 1, so by the union bound the
probability that any elimination is wrong, ties included, is at most `1 - confidence`, whenever one stops (alpha
spending, Lan and DeMets 1983). What was eliminated stays eliminated.

The variance of an architecture is the larger one of two: that of its own seeds, moderated by its prior (`seed_prior`,
after Smyth 2004), and that of all architectures in question, pooled. The first protects against an architecture that
varies more than the others, the second against a prior that is too small for all of them. The degrees of freedom of a
difference are those of Satterthwaite (1946), but at most those of the prior, once, and one per seed after each
architecture's first: a prior that is wrong is wrong for all.

`benchmarks/racing_errors.py` compares it with e-processes and other rules.

Shape suffixes: R replicates, A architectures, S seeds.
"""

from collections.abc import Mapping, Sequence
from itertools import permutations
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from march_search.analysis.seed_prior import SeedPrior, seed_prior
from march_search.architecture.architecture import Architecture

Array = NDArray[np.float64]

SHARES = (0.02, 0.25, 0.25, 0.15, 0.1)
"""Shares of the error spent on the first five looks; one seed has little, because its noise is not measured."""

LEAST_DEVIATION = 0.006
"""Smallest deviation of a prior here, in nats: elimination is final, so a prior must not be too small."""

MOST_DEGREES = 3.0
"""Largest number of degrees of freedom of a prior here; with more, deviations 2.5 times the prior's break the test."""


def share(seeds: int) -> float:
    """Return the share of the error that is spent on the look after the given number of seeds; all sum to 1."""
    if seeds <= len(SHARES):
        return SHARES[seeds - 1]
    return (1 - sum(SHARES)) * len(SHARES) / (seeds * (seeds - 1))


def remaining(
    losses: Mapping[str, Sequence[float]], confidence: float = 0.95, priors: Mapping[str, SeedPrior] | None = None
) -> tuple[str, ...]:
    """Return the architectures that no other one eliminated, lowest mean loss first.

    Args:
        losses: Final losses of each architecture, one per seed, in the order in which the seeds were trained; an
            architecture without losses is ignored.
        confidence: Probability that no elimination is wrong, over all looks; a tie that is split counts as wrong.
        priors: Prior of the variance of each architecture over seeds; None for `seed_prior` of the names.
    """
    known = {name: values for name, values in losses.items() if len(values)}
    left = [*known]
    if len(known) > 1:
        losses_RAS = np.full((1, len(known), max(map(len, known.values()))), np.nan)
        for own_S, values in zip(losses_RAS[0], known.values(), strict=True):
            own_S[: len(values)] = values
        own = [priors[name] if priors else seed_prior(Architecture.parse(name)) for name in known]
        left = [name for name, stays in zip(known, in_question(losses_RAS, own, confidence)[0], strict=True) if stays]
    return tuple(sorted(left, key=lambda name: fmean(known[name])))


def in_question(losses_RAS: Array, priors: Sequence[SeedPrior], confidence: float) -> NDArray[np.bool_]:
    """Return which architectures are still in question after all of their seeds, for each replicate.

    Args:
        losses_RAS: Losses in the order of the seeds; NaN from the first seed on that an architecture does not have.
        priors: Prior of each architecture.
        confidence: Probability that no elimination is wrong.
    """
    from scipy.special import stdtr

    _, architectures, seeds = losses_RAS.shape
    prior_A = np.array([min(prior.degrees, MOST_DEGREES) for prior in priors])
    scale_A = prior_A * np.array([max(prior.deviation, LEAST_DEVIATION) for prior in priors]) ** 2
    pairs = np.array([*permutations(range(architectures), 2)]).T
    better, worse = pairs
    left_RA = np.isfinite(losses_RAS[:, :, 0])
    for m in range(1, seeds + 1):
        here_RA = left_RA & np.isfinite(losses_RAS[:, :, m - 1])
        first_RAS = np.where(here_RA[:, :, None], losses_RAS[:, :, :m], 0.0)
        mean_RA = first_RAS.mean(axis=2)
        squares_RA = np.square(first_RAS - mean_RA[:, :, None]).sum(axis=2)
        degrees_A = prior_A + m - 1
        pooled_R1 = squares_RA.sum(axis=1, keepdims=True) / np.maximum(1, here_RA.sum(axis=1, keepdims=True) * (m - 1))
        variance_RA = np.maximum((scale_A + squares_RA) / degrees_A, pooled_R1) / m
        error_RP = variance_RA[:, better] + variance_RA[:, worse]
        spread_RP = (variance_RA**2 / degrees_A)[:, better] + (variance_RA**2 / degrees_A)[:, worse]
        most_P = np.maximum(prior_A[better], prior_A[worse]) + 2 * (m - 1)
        t_RP = (mean_RA[:, better] - mean_RA[:, worse]) / np.sqrt(error_RP)
        p_RP = stdtr(np.minimum(error_RP**2 / spread_RP, most_P), t_RP)
        level = (1 - confidence) * share(m) / (architectures * (architectures - 1))
        beaten_RP = (p_RP < level) & here_RA[:, better] & here_RA[:, worse]
        for k in range(architectures):
            left_RA[:, k] &= ~beaten_RP[:, worse == k].any(axis=1)
    return left_RA
