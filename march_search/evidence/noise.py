"""Two reasons why a measured order may be wrong: other seeds, and other validation documents.

**Training noise**: the loss of a shape varies with its seed. Its variance is pooled over shapes, taken to be the same
for all: a study has few seeds a shape, and each shape's own variance would be worth nothing.

**Data noise**: all trials read the same validation examples, so the difference of two shapes is averaged over paired
losses. Examples of one document are no independent evidence; they are summed, and documents are what varies (cluster-
robust variance, Liang and Zeger 1986; for evaluations of language models, Miller 2024, arXiv 2411.00640).

Where both apply their variances are added. The differences of single seeds hold a little of what seed and document do
together, so the sum is a little too large: the tests err on the side of ties.

Shape suffixes: A architectures, N validation examples, C documents (clusters of examples).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from march_search.report.tables import plural

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SeedNoise:
    """How much a loss varies with the seed."""

    deviation: float
    """Standard deviation of a trial's loss over seeds, in nats."""
    degrees: float
    """Degrees of freedom of its estimate; infinite if it is assumed."""
    source: str
    """Where it comes from, in words."""
    equal_chance: float = 1.0
    """p of Bartlett's test that all shapes vary alike with the seed; 1 if assumed."""

    @property
    def is_measured(self) -> bool:
        """Whether the study itself has several seeds."""
        return math.isfinite(self.degrees)


PUBLISHED = SeedNoise(
    0.006,
    math.inf,
    "published runs of T5 with 223M parameters after 65,536 steps (Narang et al. 2021, Table 1; Shazeer 2020, Table 1: "
    "14 variants, 0.003 to 0.010, root mean square 0.0059)",
)
"""What is assumed where a study has one seed a shape. Small or short runs may well vary more."""


def seed_noise(losses: Sequence[Sequence[float]], assumed: SeedNoise | None = PUBLISHED) -> SeedNoise | None:
    """Seed noise pooled over architectures, each with the losses of its seeds; `assumed` where none has two."""
    degrees = sum(len(own) - 1 for own in losses if own)
    if not degrees:
        return assumed
    squares = sum(float(np.square(np.subtract(own, np.mean(own))).sum()) for own in losses if own)
    many = sum(len(own) > 1 for own in losses)
    source = f"pooled over {plural(many, 'architecture')} with several seeds"
    return SeedNoise(
        math.sqrt(squares / degrees), degrees, source, _equal_chance([own for own in losses if len(own) > 1])
    )


def _equal_chance(losses: Sequence[Sequence[float]]) -> float:
    """p of the test (Bartlett 1937) that all shapes vary alike; 1 where there are no two to compare."""
    from scipy.special import chdtrc

    degrees = np.array([len(own) - 1 for own in losses], float)
    variances = np.array([np.var(own, ddof=1) for own in losses])
    if len(losses) < 2 or variances.min() <= 0:
        return 1.0
    pooled = float(degrees @ variances / degrees.sum())
    statistic = degrees.sum() * math.log(pooled) - float(degrees @ np.log(variances))
    correction = 1 + (float((1 / degrees).sum()) - 1 / degrees.sum()) / (3 * (len(losses) - 1))
    return float(chdtrc(len(losses) - 1, statistic / correction))


@dataclass(frozen=True)
class DataNoise:
    """How much mean losses vary with the choice of validation documents, all architectures reading the same ones."""

    covariance_AA: Array
    """Of the architectures' mean losses, in nats²."""
    degrees: float
    """Degrees of freedom: documents less one."""

    def variance(self, i: int, k: int) -> float:
        """Of the difference between the losses of architectures `i` and `k`."""
        c = self.covariance_AA
        return max(0.0, float(c[i, i] + c[k, k] - 2 * c[i, k]))


def data_noise(losses_AN: Array, documents_N: NDArray[np.int64]) -> DataNoise | None:
    """Data noise from each example's loss, a mean over seeds; None where fewer than two documents were read.

    Args:
        losses_AN: loss of each validation example under each architecture.
        documents_N: number of the document that each example belongs to.
    """
    _, clusters_N, sizes_C = np.unique(documents_N, return_inverse=True, return_counts=True)
    many = len(sizes_C)
    if many < 2:
        return None
    sums_AC = np.array([np.bincount(clusters_N, own_N, many) for own_N in losses_AN])
    spread_AC = sums_AC - losses_AN.mean(axis=1, keepdims=True) * sizes_C
    covariance_AA = spread_AC @ spread_AC.T * (many / (many - 1) / len(documents_N) ** 2)
    return DataNoise(covariance_AA, many - 1)
