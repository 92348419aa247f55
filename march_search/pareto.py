"""Find the Pareto-optimal members of a feasible set."""

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
"""Default objectives: the fewest operations and bytes for each depth."""


def pareto(found: "FeasibleSet", by: Sequence[str] = OBJECTIVES, setup: Setup = Setup()) -> Selection:  # noqa: B008
    """Return the members that no other member dominates, sorted by the first objective, then by the next.

    A member dominates another if it is at least as good in all of `by` and better in one. Equal members all stay.

    Args:
        found: The feasible set.
        by: Measures or axes as in `Selection.top`; smaller is better, or larger with the prefix `-`.
        setup: How a trial would run.

    Raises:
        UsageError: If `by` is empty or contains an unknown measure.
    """
    if not by:
        raise UsageError("a Pareto set needs at least one objective, such as flops,memory,-depth.")
    numbers, points = found.numbers(0, 0), np.zeros((0, len(by)))
    for start in range(0, max(len(found), 1), CHUNK):
        more = found.numbers(start, start + CHUNK)
        members = found.decode(more)
        columns = [(-1.0 if key[0:1] == "-" else 1.0) * members.measure(key.removeprefix("-"), setup) for key in by]
        numbers = np.concatenate([numbers, more])
        points = np.concatenate([points, np.stack(columns, axis=1)])
        optimal = front(points)
        numbers, points = numbers[optimal], points[optimal]
    return found.select(numbers[np.lexsort(points.T[::-1])])


def front(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the (m,) indices of the rows that none of the (n, k) rows dominates.

    Rows are visited in lexicographic order and each removes the rows that it dominates. A row that is still present
    when it is visited is therefore on the front.
    """
    order = np.lexsort(points.T[::-1])
    rows, i = points[order], 0
    while i < len(rows):
        behind = rows[i:]
        keeps = (behind < rows[i]).any(axis=1) | (behind == rows[i]).all(axis=1)
        keeps = np.concatenate([np.ones(i, dtype=bool), keeps])
        rows, order, i = rows[keeps], order[keeps], i + 1
    return np.sort(order)
