"""Seconds in the phases of a step, by the device's own clock: a GPU computes on after Python has gone on."""

import time
from collections.abc import Callable
from typing import Any

import torch


class Phases:
    """What a step spends its time on. On a GPU marks are events, read when the step is over: nothing waits for them."""

    def __init__(self, device: torch.device) -> None:
        self._now: Callable[[], Any] = _event if device.type == "cuda" else time.perf_counter
        self._marks: list[tuple[str, Any]] = []

    def mark(self, ended: str = "") -> None:
        """The phase of that name ends here, the next one begins; without a name, what came before counts for none."""
        self._marks.append((ended, self._now()))

    def seconds(self) -> dict[str, float]:
        """Seconds by phase since the last call; the device must have come to the last mark."""
        told: dict[str, float] = {}
        for (_, began), (name, ended) in zip(self._marks, self._marks[1:], strict=False):
            if name:
                taken = ended - began if isinstance(ended, float) else began.elapsed_time(ended) / 1000
                told[name] = told.get(name, 0.0) + taken
        self._marks.clear()
        return told


def _event() -> torch.cuda.Event:
    """A mark in the stream of the current GPU."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
