"""Estimate the two kinds of noise in a ranking: the choice of seeds and the choice of validation documents.

**Training noise**: The loss of an architecture varies with its seed. The variance is assumed to be equal for all
architectures and is pooled over them, because a study has too few seeds per architecture to estimate each one alone.

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

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SeedNoise:
    """Variation of the loss with the seed."""

    deviation: float
    """Standard deviation of a trial's loss over seeds, in nats."""
    degrees: float
    """Degrees of freedom of the estimate; infinite if it is assumed."""
    source: str
    """Source of the estimate, in words."""
    equal_chance: float = 1.0
    """p-value of Bartlett's test that all architectures have the same variance over seeds; 1 if assumed."""

    @property
    def is_measured(self) -> bool:
        """Whether the noise was estimated from the seeds of the study."""
        return math.isfinite(self.degrees)


PUBLISHED = SeedNoise(
    0.006,
    math.inf,
    "from published runs of T5 with 223M parameters after 65,536 steps (Narang et al. 2021, Table 1; Shazeer 2020, "
    "Table 1: 14 variants, 0.003 to 0.010, root mean square 0.0059)",
)
"""Assumed noise for a study with one seed per architecture. Small or short runs may well vary more."""


def seed_noise(losses: Sequence[Sequence[float]], assumed: SeedNoise | None = PUBLISHED) -> SeedNoise | None:
    """Return seed noise pooled over the seed losses of each architecture; `assumed` if none has two seeds."""
    degrees = sum(len(values) - 1 for values in losses if values)
    if not degrees:
        return assumed
    squares = sum(float(np.square(np.subtract(values, np.mean(values))).sum()) for values in losses if values)
    many = sum(len(values) > 1 for values in losses)
    source = f"pooled over {many} architecture{'s' * (many != 1)} with several seeds"
    return SeedNoise(
        math.sqrt(squares / degrees), degrees, source, _equal_chance([values for values in losses if len(values) > 1])
    )


def _equal_chance(losses: Sequence[Sequence[float]]) -> float:
    """Return the p-value of Bartlett's test (1937) of equal variances; 1 if it cannot be computed."""
    from scipy.special import chdtrc

    degrees = np.array([len(values) - 1 for values in losses], float)
    variances = np.array([np.var(values, ddof=1) for values in losses])
    if len(losses) < 2 or variances.min() <= 0:
        return 1.0
    pooled = float(degrees @ variances / degrees.sum())
    statistic = degrees.sum() * math.log(pooled) - float(degrees @ np.log(variances))
    correction = 1 + (float((1 / degrees).sum()) - 1 / degrees.sum()) / (3 * (len(losses) - 1))
    return float(chdtrc(len(losses) - 1, statistic / correction))


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
