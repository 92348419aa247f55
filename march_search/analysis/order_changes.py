"""How differences between the losses of two runs changed with further tokens, on recorded runs.

A difference `d` after some tokens became `kept · d` plus a rest after `ratio` times as many. The size of the rest, as a
multiple of `|d| + OFFSET`, has the quantiles of the table. `python benchmarks/horizon.py --write` makes it.
"""

from dataclasses import dataclass

import numpy as np

from march_search.analysis.noise import Array

CHECKED = 10 / 3
"""Largest factor in tokens on record."""

RATIOS = (1.25, 1.5, 2.0, 2.5, 3.0, CHECKED)
"""Factors in tokens of the table."""

LEVELS = (0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.99, 1.0)
"""Probabilities of the quantiles in the table."""

OFFSET = 0.15
"""Nats added to a difference. Chosen so that intervals hold about as often for small differences as for large ones."""

SOURCE = (
    "the 25 runs of the 2023 study (constant learning rate) and those of studies/results (linear decay), the wider of "
    "the two"
)
"""Source of the table, in words."""


@dataclass(frozen=True)
class Changes:
    """How differences changed at one ratio of tokens."""

    kept: float
    """Share of a difference that was kept: the median over differences of at least 0.05 nats."""
    quantiles: tuple[float, ...]
    """Quantiles, at `LEVELS`, of the size of the rest, as multiples of the difference plus `OFFSET`."""


TABLE = {
    1.25: Changes(0.941, (0.019, 0.040, 0.071, 0.105, 0.129, 0.154, 0.188, 0.388)),
    1.50: Changes(0.823, (0.023, 0.050, 0.088, 0.127, 0.155, 0.183, 0.232, 0.452)),
    2.00: Changes(0.727, (0.029, 0.063, 0.107, 0.152, 0.199, 0.238, 0.321, 0.476)),
    2.50: Changes(0.698, (0.036, 0.069, 0.112, 0.178, 0.264, 0.328, 0.383, 0.576)),
    3.00: Changes(0.623, (0.036, 0.074, 0.117, 0.178, 0.264, 0.328, 0.383, 0.576)),
    CHECKED: Changes(0.612, (0.036, 0.074, 0.117, 0.178, 0.264, 0.328, 0.383, 0.576)),
}
"""Changes by ratio of tokens."""


def changes_at(ratio: float) -> Changes:
    """Return the changes at a ratio of tokens between 1 and `CHECKED`, by linear interpolation in its logarithm."""
    logs, rows = np.log([1.0, *RATIOS]), [Changes(1.0, (0.0,) * len(LEVELS)), *TABLE.values()]
    kept = float(np.interp(np.log(ratio), logs, [row.kept for row in rows]))
    columns = zip(*(row.quantiles for row in rows), strict=True)
    return Changes(kept, tuple(float(np.interp(np.log(ratio), logs, column)) for column in columns))


def later_differences(differences_A: Array, seed_draws_AB: Array, ratio: float) -> Array:
    """Return (A, B) draws of the differences to the leader after `ratio` times the tokens.

    Two differences share the leader, so half of the variance of their changes is shared.

    Args:
        differences_A: Present differences to the leader, in nats.
        seed_draws_AB: Draws of their errors over seeds.
        ratio: Factor in tokens, between 1 and `CHECKED`.
    """
    from scipy.special import ndtr

    found, rng = changes_at(ratio), np.random.default_rng(0)
    own_AB = rng.standard_normal(seed_draws_AB.shape)
    normal_AB = (own_AB - rng.standard_normal(seed_draws_AB.shape[1])) / np.sqrt(2)
    sizes_AB = np.interp(2 * ndtr(np.abs(normal_AB)) - 1, (0.0, *LEVELS), (0.0, *found.quantiles))
    scale_A1 = (np.abs(differences_A) + OFFSET)[:, None]
    true_AB = np.asarray(differences_A)[:, None] + seed_draws_AB
    return np.asarray(found.kept * true_AB + np.sign(normal_AB) * sizes_AB * scale_A1, np.float64)
