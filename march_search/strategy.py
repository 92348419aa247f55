"""The default search strategy: synchronous successive halving on rungs, a rule that needs no order and no tuning."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Rungs:
    """All candidates train to the first rung; the best share goes on to the next, from its checkpoint, and so on.

    A rung is decided once every candidate on it has reached it or failed, so neither the order of the trials nor the
    number of workers changes what is promoted (Jamieson and Talwalkar 2016, without the asynchrony of Li et al. 2020).
    Workers that find nothing left on a rung wait for it. `benchmarks/strategies.py` measures both sides of this.

    With n candidates at least 1/n of all tokens goes into the one that trains to the end: 4 % of 25, 10 % of 10.

    Raises:
        ValueError: the fractions do not ascend to 1, or `keep` is no share.
    """

    fractions: tuple[float, ...] = (0.02, 0.06, 0.2, 1.0)
    """Rungs as shares of a trial's data budget, ascending, the last 1."""
    keep: float = 1 / 3
    """Share of a rung's candidates that is promoted, rounded up, at least one."""

    def __post_init__(self) -> None:
        ascending = sorted({*self.fractions}) == [*self.fractions]
        if not (ascending and self.fractions and self.fractions[0] > 0 and self.fractions[-1] == 1):
            raise ValueError(f"fractions must be above 0 and ascend to 1, not {self.fractions}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be above 0 and at most 1, not {self.keep}")

    def promoted(self, losses: Mapping[Key, float | None]) -> tuple[Key, ...]:
        """Which of a rung's candidates go on, lowest loss first; None or a loss that is not finite is a failure.

        Failures count among the candidates of the rung, whose share is then filled by the next best. Equal losses keep
        the mapping's order.
        """
        finite = {key: loss for key, loss in losses.items() if loss is not None and math.isfinite(loss)}
        many = max(1, math.ceil(len(losses) * self.keep - 1e-9))
        return tuple(sorted(finite, key=lambda key: finite[key])[:many])
