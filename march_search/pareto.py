"""The members of a feasible set that no other member beats in every respect."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from march_search.cost import Setup
from march_search.errors import UsageError
from march_search.selection import CHUNK, Selection

if TYPE_CHECKING:
    from march_search.solver import FeasibleSet

OBJECTIVES = ("flops", "memory", "-depth")
"""Fewest operations and bytes for each depth: depth is what a budget buys, and what it costs is in the other two."""


def pareto(found: "FeasibleSet", by: Sequence[str] = OBJECTIVES, setup: Setup = Setup()) -> Selection:  # noqa: B008
    """Members for which no other is at least as good in all of `by` and better in one; equal ones all stay.

    In the order of the first objective, then of the next.

    Args:
        found: the set.
        by: measures or axes as in `Selection.top`; the smallest is best, or the largest behind a `-`.
        setup: how a trial would run.

    Raises:
        UsageError: nothing to compare by, or a name that is no measure.
    """
    if not by:
        raise UsageError("a Pareto set needs something to compare by, such as flops,memory,-depth.")
    numbers, points = found.numbers(0, 0), np.zeros((0, len(by)))
    for start in range(0, max(len(found), 1), CHUNK):
        more = found.numbers(start, start + CHUNK)
        members = found.decode(more)
        columns = [(-1.0 if key[0:1] == "-" else 1.0) * members.measure(key.removeprefix("-"), setup) for key in by]
        numbers = np.concatenate([numbers, more])
        points = np.concatenate([points, np.stack(columns, axis=1)])
        kept = front(points)
        numbers, points = numbers[kept], points[kept]
    return found.select(numbers[np.lexsort(points.T[::-1])])


def front(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """(m,) indices of the rows that none of the (n, k) rows beats.

    Takes one row after another in lexicographic order, so that each still there when its turn comes is on the front,
    and leaves out at once all that it beats.
    """
    order = np.lexsort(points.T[::-1])
    rows, place = points[order], 0
    while place < len(rows):
        behind = rows[place:]
        keeps = (behind < rows[place]).any(axis=1) | (behind == rows[place]).all(axis=1)
        keeps = np.concatenate([np.ones(place, dtype=bool), keeps])
        rows, order, place = rows[keeps], order[keeps], place + 1
    return np.sort(order)
