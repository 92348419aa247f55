"""Pareto sets: the rows that no other row dominates, and the knee among them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


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


def knee(points: NDArray[np.float64]) -> int:
    """Return the index of the knee of a Pareto set.

    Each column is scaled to [0, 1]. The knee is the row farthest below the plane through the k unit vectors, which is
    the row with the smallest sum (the normal-boundary view of Das 1999). Ties go to the first row.

    Args:
        points: (n, k) objective values, to be minimized.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    return int(np.argmin(((points - low) / np.where(high > low, high - low, 1.0)).sum(axis=1)))


def signed_columns(rows: Sequence[Sequence[float]], objectives: Sequence[str]) -> NDArray[np.float64]:
    """Return measured values as an (n, k) array in which smaller is better; columns with the prefix `-` are negated."""
    signs = np.array([-1.0 if name.startswith("-") else 1.0 for name in objectives])
    signed: NDArray[np.float64] = np.asarray(rows, dtype=float).reshape(len(rows), len(objectives)) * signs
    return signed
