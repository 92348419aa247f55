"""Print how many members a feasible set has by depth and width."""

from typing import TYPE_CHECKING, Any

from march_search.display.tables import Column, fits, print_table
from march_search.space.census import bins, census
from march_search.units import count

if TYPE_CHECKING:
    from rich.console import Console

    from march_search.space.feasible_set import Selection

MOST_COLUMNS, MOST_ROWS = 12, 8
"""Largest number of widths and depths in the table."""


def print_cross_table(out: "Console", found: "Selection") -> None:
    """Print the number of members by depth and width, in groups that fit the console; nothing for a single cell."""
    depths, widths, counts = census(found)
    if len(counts) < 2:
        return
    layers = "layers" if found.source.space.equal_depths else "encoder layers"
    rows_of = bins(depths.tolist(), MOST_ROWS)
    for most in range(MOST_COLUMNS, 0, -1):
        columns_of = bins(widths.tolist(), most)
        columns = (
            Column(key="layers", heading=layers, short=layers),
            *(Column(key=label, heading=label, short=label, show=_number) for label in map(_label, columns_of)),
            Column(key="all", heading="all", short="all", show=count),
        )
        rows: list[dict[str, Any]] = []
        for row in rows_of:
            cells = {
                _label(group): int(counts[_inside(depths, row) & _inside(widths, group)].sum()) for group in columns_of
            }
            rows.append({"layers": _label(row), **cells, "all": sum(cells.values())})
        if fits(out, rows, columns):
            break
    print_table(out, rows, columns, "Shapes by depth and d_model")


def _inside(values: Any, group: list[int]) -> Any:
    """Return which values lie in a group."""
    return (values >= group[0]) & (values <= group[-1])


def _label(group: list[int]) -> str:
    """Return the range of a group: `12` or `12–15`."""
    return str(group[0]) if len(group) == 1 else f"{group[0]}–{group[-1]}"


def _number(value: int) -> str:
    """Format a number of shapes; 0 is a dot."""
    return f"{value:,}" if value else "·"
