"""Count the members of a selection by depth and width."""

from collections.abc import Sequence

import numpy as np

from march_search.space.feasible_set import FeasibleSet, Selection
from march_search.space.grid import Ints


def census(found: Selection) -> tuple[Ints, Ints, Ints]:
    """Return the (n,) `num_layers`, `d_model` and number of members, for each of the n pairs that has members.

    A whole feasible set is counted by its intervals of `d_ff`, which have one depth and width each.
    """
    if isinstance(found, FeasibleSet):
        members, weights = found.decode(found.begins[:-1]), found.intervals.length
    else:
        members, weights = found.members(), np.ones(len(found), dtype=np.int64)
    points = np.stack([members.axis("num_layers"), members.axis("d_model")])
    cells, cell = np.unique(points, axis=1, return_inverse=True)
    counts = np.zeros(cells.shape[1], dtype=np.int64)
    np.add.at(counts, cell.reshape(-1), weights)
    return cells[0], cells[1], counts


def bins(values: Sequence[int], most: int) -> list[list[int]]:
    """Return values above 0 in ascending groups, at most `most` of them (at least 1).

    A group is one value if that is few enough, else a quarter, a half or a whole octave, or several octaves.
    """
    known = sorted(set(values))
    groups = [[value] for value in known]
    parts, octaves = 4, 1
    while len(groups) > most:
        table: dict[int, list[int]] = {}
        for value in known:
            octave = value.bit_length() - 1
            part = ((value - 2**octave) * parts) >> octave
            table.setdefault((octave * parts + part) // octaves, []).append(value)
        groups = list(table.values())
        parts, octaves = (parts // 2, 1) if parts > 1 else (1, 2 * octaves)
    return groups
