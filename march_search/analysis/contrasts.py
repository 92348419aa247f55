"""Find the architectures that a statement compares, as contrasts: weighted sums of mean losses.

For a statement about an ordered quantity, each step between neighbours is a contrast of its own. A mean over all pairs
of 4, 2 and 1 layers would give the middle arm weight 0 and hide a turn there. A pair is a step if no third architecture
lies between the two. Steps with the same two values of the quantity are averaged. A statement about two groups, such as
gated or not, has one contrast: the mean over its pairs.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from march_search.analysis.effects import AXES
from march_search.analysis.noise import Array
from march_search.analysis.statements import SAME, Statement
from march_search.architecture.architecture import Architecture

CONFOUNDED = 1.25
"""A dimension that differs by more than this factor in at least half of the pairs is reported."""

AXIS_NAMES = {
    "num_layers": "layers",
    "num_heads": "heads",
    "d_model": "d_model",
    "length_reduction": "positions",
    "key_value_heads": "key/value heads",
}
"""Fields along which statements move, as they are printed."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One comparison that a statement asks for: the favoured side minus the other."""

    step: str
    """The two values of the ordered quantity, such as `layers 4 → 2`; empty for a statement about two groups."""
    pairs: tuple[tuple[int, int], ...]
    """Indices of the compared architectures, the favoured one first."""
    weights_A: Array
    """Weight of each architecture; the weights sum to 0."""
    confounds: tuple[str, ...]
    """Other dimensions that differ in at least half of the pairs."""


def contrasts(statement: Statement, shapes: Sequence[Architecture]) -> tuple[Contrast, ...]:
    """Return the contrasts of a statement, in the direction in which it moves; none if nothing can be compared."""
    equal = (*(field for field in SAME if field not in statement.varies), *statement.equal)
    praised = {
        (i, k)
        for i, a in enumerate(shapes)
        for k, b in enumerate(shapes)
        if statement.praises(a, b) and all(getattr(a, field) == getattr(b, field) for field in equal)
    }
    if not praised:
        return ()
    if not statement.along:
        return (_contrast(statement, shapes, "", sorted(praised)),)
    everyone = range(len(shapes))
    steps: dict[tuple[float, float], list[tuple[int, int]]] = defaultdict(list)
    for i, k in sorted(praised):
        if not any((i, between) in praised and (between, k) in praised for between in everyone):
            steps[getattr(shapes[k], statement.along), getattr(shapes[i], statement.along)].append((i, k))
    name, rises = AXIS_NAMES[statement.along], all(end > start for start, end in steps)
    ordered = sorted(steps) if rises else sorted(steps, reverse=True)
    return tuple(
        _contrast(statement, shapes, f"{name} {start:g} → {end:g}", steps[start, end]) for start, end in ordered
    )


def _contrast(
    statement: Statement, shapes: Sequence[Architecture], step: str, pairs: Sequence[tuple[int, int]]
) -> Contrast:
    """Return the mean over some pairs as a contrast."""
    weights_A = np.zeros(len(shapes))
    for i, k in pairs:
        weights_A[i] += 1 / len(pairs)
        weights_A[k] -= 1 / len(pairs)
    return Contrast(step=step, pairs=tuple(pairs), weights_A=weights_A, confounds=_confounds(statement, shapes, pairs))


def _confounds(
    statement: Statement, shapes: Sequence[Architecture], pairs: Sequence[tuple[int, int]]
) -> tuple[str, ...]:
    """Return the dimensions that differ in at least half of the pairs but that the statement does not name."""
    confounds = []
    for name, take in AXES.items():
        ratios = [take(shapes[i]) / take(shapes[k]) for i, k in pairs]
        differing = sum(max(ratio, 1 / ratio) > CONFOUNDED for ratio in ratios)
        if name not in statement.moves and differing * 2 >= len(pairs):
            confounds.append(name)
    return tuple(confounds)
