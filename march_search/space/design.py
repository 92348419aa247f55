"""Space-filling designs: choose a few members of a feasible set that are as different as possible."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from march_search.errors import ConfigError, nearest
from march_search.space.axes import AXES
from march_search.space.members import Members


def spread_members(members: Members, n: int, by: Sequence[str], strata: Sequence[str]) -> NDArray[np.int64]:
    """Return the indices of `n` members spread over the axes `by`; every prefix of the result is a design.

    The members are chosen by greedy maximin distance (Kennard and Stone 1969): first the member nearest to the middle,
    then repeatedly the member whose nearest chosen member is farthest away. Numbers are compared by their logarithm,
    scaled to the range of the set. Different values of any other axis are equally far apart.

    With `strata`, the combinations of values on these axes take turns. Each gets the same number of members, plus or
    minus one, until it has no members left.

    Raises:
        ConfigError: If `by` or `strata` contains an unknown axis.
    """
    for axis in (*by, *strata):
        if axis not in (known := (*AXES, *members.block_fields)):
            raise ConfigError(f'unknown axis "{axis}" for a design. {nearest(axis, known)}')
    return _spread(_coordinates(members, by), n, _strata(members, strata))


def _strata(members: Members, axes: Sequence[str]) -> NDArray[np.int64]:
    """Return the (n,) stratum of each member, numbered from 0."""
    columns = [np.unique(members.axis(axis), return_inverse=True)[1] for axis in axes]
    if not columns:
        return np.zeros(len(members), dtype=np.int64)
    return np.unique(np.stack(columns), axis=1, return_inverse=True)[1].astype(np.int64)


def _coordinates(members: Members, axes: Sequence[str]) -> NDArray[np.float64]:
    """Return (n, dimensions) coordinates: one in [0, 1] per numeric axis, one per value of any other axis."""
    columns = []
    for axis in axes:
        values = members.axis(axis)
        if values.dtype.kind in "iuf":
            logs = np.log2(np.maximum(values.astype(np.float64), 1e-3))
            columns.append((logs - logs.min()) / (np.ptp(logs) or 1.0))
        else:
            columns += [0.5 * (values == value) for value in np.unique(values)]
    return np.stack(columns, axis=1) if columns else np.zeros((len(members), 1))


def _spread(points: NDArray[np.float64], n: int, strata: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the (n,) indices of the chosen points; strata take turns and ties go to the smaller index."""
    chosen = np.zeros(n, dtype=np.int64)
    if not n:
        return chosen
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    chosen[0] = np.argmin(((points - middle) ** 2).sum(axis=1))
    distance = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    distance[chosen[0]] = -1
    left, turn = np.bincount(strata), strata[chosen[0]]
    left[turn] -= 1
    for i in range(1, n):
        turn = next(s % len(left) for s in range(turn + 1, turn + 1 + len(left)) if left[s % len(left)])
        chosen[i] = np.argmax(np.where(strata == turn, distance, -2))
        left[turn] -= 1
        distance = np.minimum(distance, ((points - points[chosen[i]]) ** 2).sum(axis=1))
        distance[chosen[: i + 1]] = -1
    return chosen
