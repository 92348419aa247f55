"""Estimate the two kinds of noise in a ranking: the choice of seeds and the choice of validation documents.

**Training noise**: The loss of an architecture varies with its seed. A study has too few seeds per architecture to
estimate each variance alone, and architectures may differ tenfold, so they must not share one variance either. Each
variance therefore has a fixed prior (`seed_prior.py`) that its own seeds update: the estimate is moderated (Smyth
2004). It depends on the architecture and its seeds alone, so the interval of an architecture is the same in every
study.

**Data noise**: All trials read the same validation examples, so the difference of two architectures is a mean of paired
losses. Examples from one document are not independent. They are summed, and the documents are the sampling unit
(cluster-robust variance, Liang and Zeger 1986; for evaluations of language models, Miller 2024, arXiv 2411.00640).

If both apply, their variances are added. Differences between single seeds already contain part of the interaction of
seed and document, so the sum is slightly too large and the tests err on the side of ties.

Shape suffixes: A architectures, N validation examples, C documents (clusters of examples).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from march_search.analysis.seed_prior import seed_prior
from march_search.architecture.architecture import Architecture

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SeedNoise:
    """Variation of the loss with the seed, for each architecture in the order of its study."""

    deviations: tuple[float, ...]
    """Standard deviation of the loss of one trial over seeds, in nats."""
    degrees: tuple[float, ...]
    """Degrees of freedom of each deviation: those of its prior, and one per seed after the first."""
    is_measured: tuple[bool, ...]
    """Whether the architecture has several seeds; otherwise its deviation is that of the prior."""
    source: str
    """Source of the deviations, in words."""


def seed_noise(
    architectures: Sequence[Architecture], losses: Sequence[Sequence[float]], assumed: float | None = None
) -> SeedNoise:
    """Return the seed noise of each architecture: its prior, updated by the losses of its own seeds.

    With a prior of `d` degrees of freedom and deviation `s`, and `n` seeds, the variance is
    `(d s² + Σ (loss - mean)²) / (d + n - 1)` with `d + n - 1` degrees of freedom (Smyth 2004, section 3).

    Args:
        architectures: Architectures of the study.
        losses: Losses of each architecture after equal training, one per seed.
        assumed: Deviation of every prior, in nats; None for the priors of `seed_prior`. Degrees of freedom stay.
    """
    deviations, degrees = [], []
    priors = [seed_prior(architecture) for architecture in architectures]
    for prior, own in zip(priors, losses, strict=True):
        center = prior.deviation if assumed is None else assumed
        squares = float(np.square(np.subtract(own, np.mean(own))).sum())
        known = prior.degrees + len(own) - 1
        deviations.append(math.sqrt((prior.degrees * center**2 + squares) / known))
        degrees.append(known)
    sources = list(dict.fromkeys(prior.source for prior in priors))
    return SeedNoise(
        deviations=tuple(deviations),
        degrees=tuple(degrees),
        is_measured=tuple(len(own) > 1 for own in losses),
        source="; ".join(sources) if assumed is None else f"{assumed:g} nats, set by --seed-noise",
    )


@dataclass(frozen=True)
class DataNoise:
    """Variation of mean losses with the choice of validation documents, which all architectures share."""

    covariance_AA: Array
    """Covariance of the architectures' mean losses, in nats²."""
    degrees: float
    """Degrees of freedom: number of documents minus 1."""

    def variance(self, i: int, k: int) -> float:
        """Return the variance of the difference between the losses of architectures `i` and `k`."""
        c = self.covariance_AA
        return max(0.0, float(c[i, i] + c[k, k] - 2 * c[i, k]))


def data_noise(losses_AN: Array, documents_N: NDArray[np.int64]) -> DataNoise | None:
    """Estimate data noise from per-example losses; return None with fewer than two documents.

    Args:
        losses_AN: Loss of each validation example under each architecture, mean over seeds.
        documents_N: Document number of each example.
    """
    _, clusters_N, sizes_C = np.unique(documents_N, return_inverse=True, return_counts=True)
    many = len(sizes_C)
    if many < 2:
        return None
    sums_AC = np.array([np.bincount(clusters_N, own_N, many) for own_N in losses_AN])
    spread_AC = sums_AC - losses_AN.mean(axis=1, keepdims=True) * sizes_C
    covariance_AA = spread_AC @ spread_AC.T * (many / (many - 1) / len(documents_N) ** 2)
    return DataNoise(covariance_AA, many - 1)
