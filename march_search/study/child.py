"""One trial's process: started, read, stopped."""

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
"""The command that trains the trial in the folder named after it; whether it starts again is its worker's affair."""

PARENT = "MARCH_SEARCH_PARENT"
"""Environment variable that tells a process whose death is its own end too."""

STOP_SECONDS = 330
"""How long a trial may take to save after it is asked to stop; then it is killed. Large models write for minutes."""


class Tail:
    """Metric lines of a trial, as they are written."""

    def __init__(self, folder: Path) -> None:
        """Reads metrics.jsonl in `folder` from its beginning."""
        self._path, self._file, self._read, self._rest = folder / "metrics.jsonl", 0, 0, b""
        self.resets = 0
        """How often the file was cut back or replaced."""

    def new_lines(self) -> list[dict[str, Any]]:
        """Lines written since the last call; a line still being written waits for the next."""
        try:
            with self._path.open("rb") as file:
                known, self._file = self._file, os.fstat(file.fileno()).st_ino
                if file.seek(0, os.SEEK_END) < self._read or known not in (0, self._file):  # a resumed trial cut it
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
    """A running trial."""

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
        """Starts `command FOLDER` in a session of its own, its output in trial.log.

        Args:
            folder: the trial's.
            devices: what it runs on.
            command: program and first arguments.
            slot: number of the trial among those that run here, which chooses its GPUs.
            until: tokens at which the trial pauses; None for its end.
            hidden: environment variables that it must not see.
            fence: an open file whose lock lasts as long as the process.
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
        """Metric lines written since the last call."""
        return self.tail.new_lines()

    def ask_to_stop(self, hurry: bool = False) -> None:
        """Asks the trial, once, to save and end; kills it if it has not after `STOP_SECONDS`, or at once in a hurry."""
        if self.process.poll() is not None:
            return
        if self._deadline is None:
            self._deadline = time.monotonic() + STOP_SECONDS
            self.process.send_signal(signal.SIGTERM)
        if hurry or time.monotonic() > self._deadline:
            self.kill()

    def kill(self) -> None:
        """Leaves no process of the trial behind."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def failure(self) -> tuple[str, str]:
        """How the trial failed, one of `outcome.FAILURES`, and why, in one line."""
        told = read_json(self.folder / "failure.json")
        if isinstance(told, dict) and told.get("reason"):
            state = told.get("state")
            return state if state in FAILURES else "failed", str(told["reason"])
        code = self.process.returncode
        if code == StorageError.exit_code:
            return "failed", f"{self.folder}: cannot be written; free some room, or make it writable."
        if code is not None and code < 0:
            hint = f": {killed(self._kills)}" if code == -signal.SIGKILL else ""
            return "failed", f"the process was ended by {signal.Signals(-code).name}{hint}."
        return "failed", f"the process ended with code {code} and no result; see {self.folder / 'trial.log'}."


def _is_metric(line: dict[str, Any]) -> bool:
    """Whether a line says what a study needs: its kind, after how many tokens, and a finite loss."""
    loss, tokens = line.get("loss"), line.get("tokens")
    known = isinstance(line.get("kind"), str) and type(tokens) is int
    return known and isinstance(loss, int | float) and math.isfinite(loss)


def _gpus(ranks: int, slot: int) -> str:
    """The GPUs of a slot, out of those this process may use."""
    mine = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g]
    places = range(slot * ranks, (slot + 1) * ranks)
    return ",".join(mine[p] if p < len(mine) else "none" for p in places) if mine else ",".join(map(str, places))
