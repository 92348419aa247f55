"""Time the phases of a step with the device's clock, because a GPU computes asynchronously."""

import time
from collections.abc import Callable
from typing import Any

import torch


class Phases:
    """Timer of the phases of a step. On a GPU, marks are events that are read after the step, without waiting."""

    def __init__(self, device: torch.device) -> None:
        self._now: Callable[[], Any] = _event if device.type == "cuda" else time.perf_counter
        self._marks: list[tuple[str, Any]] = []

    def mark(self, ended: str = "") -> None:
        """End the phase `ended` and start the next. Without a name, the time since the last mark is not counted."""
        self._marks.append((ended, self._now()))

    def seconds(self) -> dict[str, float]:
        """Return the seconds per phase since the last call. The device must have reached the last mark."""
        totals: dict[str, float] = {}
        for (_, began), (name, ended) in zip(self._marks, self._marks[1:], strict=False):
            if name:
                taken = ended - began if isinstance(ended, float) else began.elapsed_time(ended) / 1000
                totals[name] = totals.get(name, 0.0) + taken
        self._marks.clear()
        return totals


def _event() -> torch.cuda.Event:
    """Record an event in the current GPU's stream."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
