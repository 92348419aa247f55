"""Read metrics.jsonl while a trial writes it."""

import math
import os
from pathlib import Path
from typing import Any

from march_search.files import parse_lines


class MetricsTail:
    """Reader of a trial's metric lines while they are written."""

    def __init__(self, folder: Path) -> None:
        """Read metrics.jsonl in `folder` from its start."""
        self._path, self._file, self._read, self._rest = folder / "metrics.jsonl", 0, 0, b""
        self.resets = 0
        """Number of times the file was truncated or replaced."""

    def new_lines(self) -> list[dict[str, Any]]:
        """Return the lines written since the last call, except a line that is still incomplete."""
        try:
            with self._path.open("rb") as file:
                known, self._file = self._file, os.fstat(file.fileno()).st_ino
                if file.seek(0, os.SEEK_END) < self._read or known not in (0, self._file):  # trial resumed
                    self._read, self._rest = 0, b""
                    self.resets += 1
                file.seek(self._read)
                data = file.read()
        except OSError:
            return []
        self._read += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = parse_lines(line.decode(errors="replace") for line in whole)
        return [line for line in lines if _is_metric(line)]


def _is_metric(line: dict[str, Any]) -> bool:
    """Return whether a line has a kind, a number of tokens and a finite loss."""
    loss, tokens = line.get("loss"), line.get("tokens")
    known = isinstance(line.get("kind"), str) and type(tokens) is int
    return known and isinstance(loss, int | float) and math.isfinite(loss)
