"""The lines of metrics.jsonl: their seal, and readers of finished files and of files that a trial still writes.

Each line ends with the CRC-32 of the rest of it, so that a flipped bit is noticed. Files of earlier versions have no
such seals. In a file with seals, each line must have one.
"""

import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from march_search.files.json_tables import parse_json

METRICS = "metrics.jsonl"
"""Name of the file in a trial's folder."""

SEAL = "crc"
"""Last key of a line: its CRC-32, as eight hexadecimal digits."""

_SEALED = re.compile(rf'(\{{.*), "{SEAL}": "([0-9a-f]{{8}})"\}}')


@dataclass(frozen=True)
class Metrics:
    """Content of a trial's metrics.jsonl, without an incomplete last line."""

    lines: tuple[dict[str, Any], ...] = ()
    """Intact lines, in order. Each has a `kind`, `tokens` and a finite `loss`."""
    damaged: tuple[int, ...] = ()
    """Numbers of the damaged lines, from 1."""
    path: Path = Path(METRICS)
    """The file."""
    error: str = ""
    """Why the file cannot be read; empty if it can be, or is missing."""

    def of_kind(self, kind: str) -> tuple[dict[str, Any], ...]:
        """Return the lines of one kind: `train` or `evaluation`, with the prefix `branch_` those of decay branches."""
        return tuple(line for line in self.lines if line["kind"] == kind)

    @property
    def tokens(self) -> int:
        """Largest number of tokens of a line; 0 without lines. Decay branches do not add to it."""
        return max((line["tokens"] for line in self.lines), default=0)

    @property
    def branched_tokens(self) -> int:
        """Tokens that decay branches trained."""
        return sum(branched_tokens(self.lines).values())

    @property
    def trained_tokens(self) -> int:
        """Tokens that the trial trained, decay branches included."""
        return self.tokens + self.branched_tokens

    @property
    def fault(self) -> str:
        """What is damaged, as a sentence; empty if nothing is."""
        if self.error:
            return f"{self.path}: cannot be read: {self.error}."
        return f"{self.path}: {damaged_lines(self.damaged)} left out." if self.damaged else ""


def branched_tokens(lines: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Return the tokens that each decay branch trained, by the data budget at which it ends."""
    trained: dict[int, int] = {}
    for line in lines:
        if "branch" in line:
            trained[line["branch"]] = max(trained.get(line["branch"], 0), line["branch_tokens"] - line["tokens"])
    return trained


def damaged_lines(numbers: tuple[int, ...]) -> str:
    """Return line numbers as the subject of a sentence: `line 3 is damaged and was`."""
    if len(numbers) == 1:
        return f"line {numbers[0]} is damaged and was"
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"lines {', '.join(map(str, numbers[:5]))}{more} are damaged and were"


def read_metrics(folder: Path) -> Metrics:
    """Return the metrics of the trial in `folder`; without lines if it has no metrics.jsonl that can be read."""
    path = folder / METRICS
    try:
        texts = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return Metrics(path=path)
    except OSError as error:
        return Metrics(path=path, error=error.strerror or "")
    lines = parsed_lines(texts)
    intact = tuple(line for line in lines if line is not None)
    return Metrics(intact, tuple(number for number, line in enumerate(lines, 1) if line is None), path)


def sealed_line(values: Mapping[str, Any]) -> str:
    """Return one line of metrics.jsonl, with its seal and newline."""
    text = json.dumps({name: value for name, value in values.items() if name != SEAL}, allow_nan=False)
    return f'{text[:-1]}, "{SEAL}": "{zlib.crc32(text.encode()):08x}"}}\n'


def parsed_lines(texts: Iterable[bytes], is_sealed: bool = False) -> list[dict[str, Any] | None]:
    """Return the metrics of each line, without the seal; None for a damaged line.

    Args:
        texts: Lines of the file.
        is_sealed: Whether the lines before these have seals.
    """
    parsed = [_parsed(text) for text in texts]
    is_sealed = is_sealed or any(has_seal for _, has_seal in parsed)
    return [line if has_seal or not is_sealed else None for line, has_seal in parsed]


def has_seal(text: bytes) -> bool:
    """Return whether a line ends with a seal."""
    return _SEALED.fullmatch(text.decode(errors="replace")) is not None


def _parsed(data: bytes) -> tuple[dict[str, Any] | None, bool]:
    """Return the metrics of a line, None if it is damaged, and whether it has a seal."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None, False
    found = _SEALED.fullmatch(text)
    if found:
        text = f"{found[1]}}}"
        if zlib.crc32(text.encode()) != int(found[2], 16):
            return None, True
    try:
        value = parse_json(text)
    except ValueError:
        return None, found is not None
    return (value if _is_metric(value) else None), found is not None


class MetricsTail:
    """Reader of a trial's metric lines while they are written."""

    def __init__(self, folder: Path) -> None:
        """Read metrics.jsonl in `folder` from its start."""
        self._path, self._file, self._read, self._rest = folder / METRICS, 0, 0, b""
        self._is_sealed = False
        self.resets = 0
        """Number of times the file was truncated or replaced."""

    def new_lines(self) -> list[dict[str, Any]]:
        """Return the intact lines written since the last call, except a line that is still incomplete."""
        try:
            with self._path.open("rb") as file:
                known, self._file = self._file, os.fstat(file.fileno()).st_ino
                if file.seek(0, os.SEEK_END) < self._read or known not in (0, self._file):  # trial resumed
                    self._read, self._rest, self._is_sealed = 0, b"", False
                    self.resets += 1
                file.seek(self._read)
                data = file.read()
        except OSError:
            return []
        self._read += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = parsed_lines(whole, self._is_sealed)
        self._is_sealed = self._is_sealed or any(map(has_seal, whole))
        return [line for line in lines if line is not None]


def _is_metric(line: Any) -> bool:
    """Return whether a line has a kind, a number of tokens and a finite loss, and numbers where they are read."""
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return False
    whole = [line.get("tokens"), line.get("step", 0)]
    if "branch" in line or line["kind"].startswith("branch_"):
        whole += [line.get(name) for name in ("branch", "branch_tokens", "branch_step", "step")]
    numbers = [line.get("loss"), *(line.get(name) for name in MAYBE if line.get(name) is not None)]
    return all(type(value) is int and value >= 0 for value in whole) and all(map(_is_number, numbers))


MAYBE = ("context_gain", "bits_per_byte", "tokens_per_second", "seconds")
"""Numbers that a line may have, and that others read."""


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
