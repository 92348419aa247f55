"""Write metrics.jsonl, with one line per step and per evaluation, and the same metrics for TensorBoard.

A resumed trial drops the lines of the steps that it will repeat.
"""

import json
import os
from pathlib import Path
from typing import Any, TextIO

from march_search.files import read_lines
from march_search.training.events import EventFile

CLOCKS = frozenset(
    {"seconds", "tokens_per_second", "flop_utilisation", "peak_memory_bytes", "peak_host_memory_bytes"}
    | {"data_wait_seconds", "forward_seconds", "backward_seconds", "step_seconds"}
)
"""Metrics that vary between runs and machines. All others are the same in a resumed trial."""


class MetricsFile:
    """Metrics files of one trial, open for appending."""

    def __init__(self, path: Path, keep_steps: int) -> None:
        """Open `path` and keep only the lines up to `keep_steps`, the step of the checkpoint to resume from."""
        kept = [line for line in read_lines(path) if line.get("step", 0) <= keep_steps] if keep_steps else []
        temporary = path.with_suffix(".new")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, kept))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self._file: TextIO = path.open("a", encoding="utf-8", buffering=1)
        self._events = EventFile(path.parent, kept)

    def append(self, kind: str, **values: Any) -> None:
        """Append one line."""
        line = {"kind": kind} | values
        self._file.write(_line(line))
        self._events.append(line)

    def sync(self) -> None:
        """Flush the lines so far to disk, so that they survive a machine crash, and to TensorBoard."""
        self._events.flush()
        self._file.flush()
        os.fsync(self._file.fileno())


def _line(value: dict[str, Any]) -> str:
    """Format one line of JSON."""
    return json.dumps(value, allow_nan=False) + "\n"
