"""Start, read and stop the process that trains one trial."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from march_search.config import DevicesConfig
from march_search.errors import StorageError
from march_search.files import parse_lines, read_json
from march_search.outcome import FAILURES, killed, memory_kills

TRAINING = (sys.executable, "-m", "march_search.training", "--once")
"""Command that trains the trial in the folder appended to it. The worker decides whether to restart it."""

PARENT = "MARCH_SEARCH_PARENT"
"""Environment variable with the process ID of the worker; the trial ends when that process dies."""

STOP_SECONDS = 330
"""Seconds that a trial may take to save before it is killed. Large models take minutes to write."""


class Tail:
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


@dataclass
class Child:
    """The process of a running trial."""

    folder: Path
    process: "subprocess.Popen[bytes]"
    tail: Tail
    _kills: int | None = None
    _deadline: float | None = None

    @classmethod
    def start(
        cls,
        folder: Path,
        devices: DevicesConfig,
        command: Sequence[str],
        slot: int = 0,
        until: int | None = None,
        hidden: Sequence[str] = (),
        fence: int | None = None,
    ) -> "Child":
        """Start `command FOLDER` in a new session and append its output to trial.log.

        Args:
            folder: Trial folder.
            devices: Devices to run on.
            command: Program and its first arguments.
            slot: Index of the trial among those of this worker; selects its GPUs.
            until: Tokens at which the trial pauses; None to train to the end.
            hidden: Environment variables to remove.
            fence: Descriptor of an open file whose lock lasts as long as the process.
        """
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", PARENT: str(os.getpid())}
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", *hidden):
            environment.pop(name, None)
        if devices.kind != "cpu" and devices.parallel_trials > 1:
            environment["CUDA_VISIBLE_DEVICES"] = _gpus(devices.ranks, slot)
        kills = memory_kills()
        with (folder / "trial.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, str(folder), *([] if until is None else ["--until", str(until)])],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
                pass_fds=() if fence is None else (fence,),
            )  # fmt: skip
        return cls(folder, process, Tail(folder), kills)

    def new_lines(self) -> list[dict[str, Any]]:
        """Return the metric lines written since the last call."""
        return self.tail.new_lines()

    def ask_to_stop(self, hurry: bool = False) -> None:
        """Ask the trial once to save and exit; on later calls, kill it after `STOP_SECONDS`. `hurry` kills it now."""
        if self.process.poll() is not None:
            return
        if self._deadline is None:
            self._deadline = time.monotonic() + STOP_SECONDS
            self.process.send_signal(signal.SIGTERM)
        if hurry or time.monotonic() > self._deadline:
            self.kill()

    def kill(self) -> None:
        """Kill all processes of the trial."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def failure(self) -> tuple[str, str]:
        """Return the failure state, one of `outcome.FAILURES`, and a one-line reason."""
        report = read_json(self.folder / "failure.json")
        if isinstance(report, dict) and report.get("reason"):
            state = report.get("state")
            return state if state in FAILURES else "failed", str(report["reason"])
        code = self.process.returncode
        if code == StorageError.exit_code:
            return "failed", f"{self.folder}: cannot be written; free disk space, or make the folder writable."
        if code is not None and code < 0:
            hint = f": {killed(self._kills)}" if code == -signal.SIGKILL else ""
            return "failed", f"the process was killed by {signal.Signals(-code).name}{hint}."
        return "failed", f"the process exited with code {code} and no result; see {self.folder / 'trial.log'}."


def _is_metric(line: dict[str, Any]) -> bool:
    """Return whether a line has a kind, a number of tokens and a finite loss."""
    loss, tokens = line.get("loss"), line.get("tokens")
    known = isinstance(line.get("kind"), str) and type(tokens) is int
    return known and isinstance(loss, int | float) and math.isfinite(loss)


def _gpus(ranks: int, slot: int) -> str:
    """Return the GPUs of a slot, out of those visible to this process."""
    visible = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g]
    indices = range(slot * ranks, (slot + 1) * ranks)
    return (
        ",".join(visible[i] if i < len(visible) else "none" for i in indices)
        if visible
        else ",".join(map(str, indices))
    )
