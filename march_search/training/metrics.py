"""metrics.jsonl: one line a step and one an evaluation; a resumed trial drops the lines of what it will do again."""

import json
import os
from pathlib import Path
from typing import Any, TextIO

from march_search.files import read_lines


class MetricsFile:
    """Appends to the metrics of one trial."""

    def __init__(self, path: Path, keep_steps: int) -> None:
        """Opens `path`, keeping the lines up to `keep_steps`: those of the checkpoint the trial goes on from."""
        kept = [line for line in read_lines(path) if line.get("step", 0) <= keep_steps] if keep_steps else []
        temporary = path.with_suffix(".new")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, kept))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self._file: TextIO = path.open("a", encoding="utf-8", buffering=1)

    def append(self, kind: str, **values: Any) -> None:
        """Adds one line."""
        self._file.write(_line({"kind": kind} | values))

    def sync(self) -> None:
        """Makes sure the lines so far survive a crash of the machine."""
        self._file.flush()
        os.fsync(self._file.fileno())


def _line(value: dict[str, Any]) -> str:
    """One line of JSON."""
    return json.dumps(value, allow_nan=False) + "\n"
