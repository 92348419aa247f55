"""Space-filling designs: a few architectures of a feasible set, as different from each other as the set allows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from march_search.errors import ConfigError
from march_search.selection import Selection
from march_search.settings import nearest
from march_search.space import AXES

if TYPE_CHECKING:
    from march_search.members import Members
    from march_search.solver import FeasibleSet

POOL = 20_000
"""Members that a design is chosen from; a larger set is sampled uniformly first."""


def design(
    found: "FeasibleSet", n: int, by: Sequence[str] = (), seed: int = 0, strata: Sequence[str] = ()
) -> Selection:
    """`n` members spread over the axes `by` (default: all that vary); every beginning of the result is a design too.

    Greedy maximin distance (Kennard and Stone 1969): first the member nearest to the middle, then always the one whose
    nearest chosen member is farthest away. Whole numbers count by their logarithm, scaled to the set's range; values of
    other axes are all equally far apart.

    With `strata`, each combination of values that the set has on these axes takes its turn, so that all get the same
    number of members, give or take one, as long as they have any left.

    Raises:
        ConfigError: `n` is more than the set holds, or `by` or `strata` names something that is no axis.
    """
    for axis in (*by, *strata):
        if axis not in AXES:
            raise ConfigError(f'a design cannot spread over "{axis}". {nearest(axis, AXES)}')
    if not 0 <= n <= len(found):
        raise ConfigError(f"a design of {n:,} architectures needs more than the {len(found):,} of the feasible set.")
    pool = found.numbers() if len(found) <= max(POOL, n) else np.sort(found.sample(max(POOL, n), seed).numbers())
    members = found.decode(pool)
    points = _coordinates(members, by or found.space.varying)
    return found.select(pool[_spread(points, n, _strata(members, strata))])


def _strata(members: "Members", axes: Sequence[str]) -> NDArray[np.int64]:
    """(n,) number of each member's combination of values, from 0 on."""
    columns = [np.unique(members.axis(axis), return_inverse=True)[1] for axis in axes]
    if not columns:
        return np.zeros(len(members), dtype=np.int64)
    return np.unique(np.stack(columns), axis=1, return_inverse=True)[1].astype(np.int64)


def _coordinates(members: "Members", axes: Sequence[str]) -> NDArray[np.float64]:
    """(n, dimensions) coordinates in [0, 1] along number axes, one dimension a value along others."""
    columns = []
    for axis in axes:
        values = members.axis(axis)
        if values.dtype.kind in "iuf" and values.dtype != bool:
            logs = np.log2(np.maximum(values.astype(np.float64), 1e-3))
            columns.append((logs - logs.min()) / (np.ptp(logs) or 1.0))
        else:
            columns += [0.5 * (values == value) for value in np.unique(values)]
    return np.stack(columns, axis=1) if columns else np.zeros((len(members.d_ff), 1))


def _spread(points: NDArray[np.float64], n: int, strata: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) indices of the points chosen, from one stratum after another; ties go to the smaller index."""
    chosen = np.zeros(n, dtype=np.int64)
    if not n:
        return chosen
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    chosen[0] = np.argmin(((points - middle) ** 2).sum(axis=1))
    distance = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    distance[chosen[0]] = -1
    left, turn = np.bincount(strata), strata[chosen[0]]
    left[turn] -= 1
    for place in range(1, n):
        turn = next(s % len(left) for s in range(turn + 1, turn + 1 + len(left)) if left[s % len(left)])
        chosen[place] = np.argmax(np.where(strata == turn, distance, -2))
        left[turn] -= 1
        distance = np.minimum(distance, ((points - points[chosen[place]]) ** 2).sum(axis=1))
        distance[chosen[: place + 1]] = -1
    return chosen
