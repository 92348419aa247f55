"""Measured training speed: medians, and whether other trials could have slowed it down."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from march_search.analysis.study_record import TrialRecord

UNEQUAL = 0.1
"""Spread over seeds, as a fraction of the lowest speed, above which a speed counts as rough."""


@dataclass(frozen=True, kw_only=True)
class MeasuredSpeed:
    """Training speed of one architecture."""

    tokens_per_second: float | None
    """Median over the seeds of each trial's median over its log lines; None before the first line."""
    low: float | None
    """Speed of the slowest seed."""
    high: float | None
    """Speed of the fastest seed."""
    most_parallel: int
    """Largest number of trials that a worker ran at the same time, this one included."""

    @property
    def is_rough(self) -> bool:
        """Whether trials ran beside others, or seeds differ by more than `UNEQUAL`."""
        spread = self.high / self.low - 1 if self.low and self.high else 0.0
        return self.tokens_per_second is not None and (self.most_parallel > 1 or spread > UNEQUAL)


def measured_speed(trials: Sequence[TrialRecord]) -> MeasuredSpeed:
    """Return the speed of the trials of one architecture, one per seed."""
    speeds = [t.tokens_per_second for t in trials if t.tokens_per_second is not None]
    return MeasuredSpeed(
        tokens_per_second=median(speeds) if speeds else None,
        low=min(speeds, default=None),
        high=max(speeds, default=None),
        most_parallel=max((t.config.devices.parallel_trials for t in trials), default=1),
    )
