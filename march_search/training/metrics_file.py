"""Write metrics.jsonl, with one line per step and per evaluation, and the same metrics for TensorBoard.

A resumed trial drops the lines of the steps that it will repeat. `tensorboard --logdir` on a study folder shows each
trial as a run.
"""

import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from march_search.trial.metrics import SEAL, damaged_lines, has_seal, parsed_lines, sealed_line

_LOGGER = logging.getLogger(__name__)

CLOCKS = frozenset(
    (
        "seconds", "tokens_per_second", "flop_utilisation", "peak_memory_bytes", "peak_host_memory_bytes",
        "peak_reserved_memory_bytes", "data_wait_seconds", "forward_seconds", "backward_seconds", "step_seconds", SEAL,
    )
)  # fmt: skip
"""Metrics that vary between runs and machines. All others are the same in a resumed trial."""


class MetricsFile:
    """Metrics files of one trial, open for appending."""

    def __init__(self, path: Path, keep_steps: int) -> None:
        """Open `path` and keep only the lines up to `keep_steps`, the step of the checkpoint to resume from.

        Damaged lines among them are kept as they are. If no line has a seal, all intact ones get one.
        """
        texts, lines = _kept_lines(path, keep_steps)
        kept = [line for line in lines if line is not None]
        if damaged := tuple(number for number, line in enumerate(lines, 1) if line is None):
            _LOGGER.warning(f"{path}: {damaged_lines(damaged)} kept as found.")
        if not any(map(has_seal, texts)):
            texts = [
                text if line is None else sealed_line(line).encode().rstrip(b"\n")
                for text, line in zip(texts, lines, strict=True)
            ]
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.writelines(text + b"\n" for text in texts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self._file: TextIO = path.open("a", encoding="utf-8", buffering=1)
        self._events = EventFile(path.parent, kept)

    def append(self, kind: str, **values: Any) -> None:
        """Append one line."""
        line = {"kind": kind} | values
        self._file.write(sealed_line(line))
        self._events.append(line)

    def sync(self) -> None:
        """Flush the lines so far to disk, so that they survive a machine crash, and to TensorBoard."""
        self._events.flush()
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close both files."""
        self._file.close()
        self._events.close()


def _kept_lines(path: Path, keep_steps: int) -> tuple[list[bytes], list[dict[str, Any] | None]]:
    """Return the lines before the first one beyond `keep_steps`, as they are and parsed (None if damaged).

    Lines of a decay branch that begins there and was not evaluated are left out, because it will be repeated.
    """
    if not keep_steps or not path.is_file():
        return [], []
    texts = path.read_bytes().split(b"\n")[:-1]
    lines = parsed_lines(texts)
    beyond = (at for at, line in enumerate(lines) if line is not None and line.get("step", 0) > keep_steps)
    end = next(beyond, len(lines))
    done = {line["branch"] for line in lines[:end] if line is not None and line["kind"] == "branch_evaluation"}
    kept = [
        (text, line)
        for text, line in zip(texts[:end], lines[:end], strict=True)
        if line is None or "branch" not in line or line["branch"] in done or line["step"] < keep_steps
    ]
    return [text for text, _ in kept], [line for _, line in kept]


EVENT_FILE = "events.out.tfevents.0.march-search"

EVENT_VALUES = (
    *("loss", "bits_per_byte", "context_gain", "gradient_norm", "learning_rate", "tokens_per_second"),
    "flop_utilisation",
)
"""Metrics that are written as curves, such as `train/loss`. The others are only in metrics.jsonl."""


class EventFile:
    """Event file of one trial."""

    def __init__(self, folder: Path, lines: Iterable[dict[str, Any]]) -> None:
        """Rewrite the file with the metrics lines that a resumed trial keeps, so that no step appears twice."""
        temporary = folder / ".events.new"
        self._writer = RecordWriter(temporary.open("wb"))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        for line in lines:
            self.append(line)
        self._writer.flush()
        temporary.replace(folder / EVENT_FILE)

    def append(self, line: dict[str, Any]) -> None:
        """Append one metrics line."""
        shown = {name: line[name] for name in EVENT_VALUES if line.get(name) is not None}
        kind, step = line["kind"], line.get("branch_step", line.get("step", 0))
        kind += f"_{line['branch']}" if "branch" in line else ""
        values = [Summary.Value(tag=f"{kind}/{name}", simple_value=value) for name, value in shown.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        """Flush the lines written so far, so that TensorBoard can read them."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()

    def _write(self, event: Event) -> None:
        """Append one event."""
        self._writer.write(event.SerializeToString())
