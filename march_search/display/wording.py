"""Words that several outputs share: short names of architectures, titles of levels, lists and p-values."""

from collections.abc import Sequence
from typing import Any

from march_search.analysis.evidence import Evidence
from march_search.display.tables import common_tail
from march_search.units import si

Row = dict[str, Any]

NAMED = 3
"""Largest number of architectures that a sentence names; more are counted."""


def short_names(evidence: Evidence) -> dict[str, str]:
    """Return the short name of each architecture: its name without the ending that all have in common."""
    return shortened([trial.architecture.name for trial in evidence.study.trials])


def shortened(full_names: Sequence[str]) -> dict[str, str]:
    """Return the short name of each architecture name, without the ending that all have in common."""
    tail = common_tail(list(dict.fromkeys(full_names)))
    return {name: name.removesuffix(tail) or name for name in full_names}


def listed(names: Sequence[str]) -> str:
    """Return names as part of a sentence: `A`, `A and B`, `A, B and 4 others`."""
    shown = list(names[:NAMED] if len(names) <= NAMED else names[: NAMED - 1])
    if len(names) > NAMED:
        shown.append(f"{len(names) - len(shown)} others")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def p_text(p: float) -> str:
    """Format a p-value: `p = 0.012`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def level_breaks(rows: Sequence[Row]) -> dict[int, str]:
    """Return what stands above the first row of each level but the first, by the row's index."""
    return {
        index: level_title([other for other in rows if _level(other) == _level(row)])
        for index, row in enumerate(rows)
        if index and _level(row) != _level(rows[index - 1])
    }


def level_title(level: Sequence[Row]) -> str:
    """Return the title of a level: `trained to the end: 104M tokens`, or `stopped after 21M tokens`."""
    tokens = f"{si(level[0]['level_tokens'])} tokens"
    if level[0]["is_final"]:
        return f"trained to the end: {tokens}"
    return f"{'stopped' if all(row['state'] == 'pruned' for row in level) else 'compared'} after {tokens}"


def _level(row: Row) -> tuple[bool, int]:
    """Return what the rows of one level have in common."""
    return row["is_final"], row["level_tokens"]
