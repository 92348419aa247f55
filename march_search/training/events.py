"""Write metrics to a TensorBoard event file; `tensorboard --logdir` on a study folder shows each trial as a run."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

NAME = "events.out.tfevents.0.march-search"

SHOWN = ("loss", "context_gain", "gradient_norm", "learning_rate", "tokens_per_second", "flop_utilisation")
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
        temporary.replace(folder / NAME)

    def append(self, line: dict[str, Any]) -> None:
        """Append one metrics line."""
        shown = {name: line[name] for name in SHOWN if line.get(name) is not None}
        values = [Summary.Value(tag=f"{line['kind']}/{name}", simple_value=value) for name, value in shown.items()]
        self._write(Event(wall_time=time.time(), step=line["step"], summary=Summary(value=values)))

    def flush(self) -> None:
        """Flush the lines written so far, so that TensorBoard can read them."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()

    def _write(self, event: Event) -> None:
        """Append one event."""
        self._writer.write(event.SerializeToString())
