"""Several ranks of one trial on one machine: started together, stopped together, none left behind."""

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import FrameType

from march_search.files import read_json, write_json
from march_search.outcome import killed, memory_kills

GRACE_SECONDS = 10
"""How long the other ranks may take to end after one has failed."""

SAVE_SECONDS = 300
"""How long all ranks may take to save and end after a signal: the step they are in, and a checkpoint."""


class InterruptedTrialError(Exception):
    """The trial was asked to stop, and its state is saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum}")
        self.exit_code = 128 + signum


def die_with_parent() -> None:
    """Asks Linux to kill this process when the one that MARCH_SEARCH_PARENT names dies, however that happens.

    A trial started by hand has no such variable and outlives its shell. Elsewhere than on Linux nothing is done.
    """
    parent = os.environ.get("MARCH_SEARCH_PARENT")
    if not parent or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):  # it died before we asked
        os._exit(1)


def supervise(folder: Path, ranks: int) -> int:
    """Runs `ranks` processes of the trial in `folder`; returns 0 if all did, else the first code that was not.

    The first rank that ends with an error takes the others with it; SIGTERM and SIGINT are passed on.
    """
    meeting = folder / f".rendezvous.{uuid.uuid4().hex}"
    for old in folder.glob("failure*.json"):
        old.unlink()
    kills = memory_kills()
    processes = [_start(folder, rank, ranks, meeting) for rank in range(ranks)]
    asked: list[int] = []

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        asked.append(signum)
        for process in processes:
            if process.poll() is None:
                process.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, pass_on)
    try:
        return _wait(folder, processes, asked, kills)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        meeting.unlink(missing_ok=True)


def _start(folder: Path, rank: int, ranks: int, meeting: Path) -> "subprocess.Popen[bytes]":
    """One rank, told who it is in the variables that DeepSpeed and torch read."""
    told = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "MARCH_SEARCH_MEETING": meeting,
        "MARCH_SEARCH_PARENT": os.getpid(),
    }
    environment = os.environ | {name: str(value) for name, value in told.items()}
    return subprocess.Popen([sys.executable, "-m", "march_search.training", str(folder)], env=environment)


def _wait(folder: Path, processes: "list[subprocess.Popen[bytes]]", asked: list[int], kills: int | None) -> int:
    """Waits for all ranks; after a signal for `SAVE_SECONDS` more, after the first failure for `GRACE_SECONDS`."""
    deadline, first_failed = math.inf, None
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        failed = next((rank for rank, process in enumerate(processes) if process.poll()), None)
        if asked and deadline == math.inf:
            deadline = time.monotonic() + SAVE_SECONDS
        elif failed is not None and first_failed is None and not asked:
            first_failed, deadline = failed, time.monotonic() + GRACE_SECONDS
            for process in processes:
                process.terminate()
        time.sleep(0.05)
    if asked:
        return 128 + asked[0]
    if first_failed is None:
        first_failed = next((rank for rank, process in enumerate(processes) if process.poll() != 0), None)
    return 0 if first_failed is None else _explain(folder, first_failed, processes[first_failed].poll(), kills)


def _explain(folder: Path, rank: int, code: int | None, kills: int | None) -> int:
    """Writes failure.json for the rank that failed first, whose failure the others only repeat; its exit code."""
    told = read_json(folder / f"failure.rank{rank}.json")
    if not isinstance(told, dict):
        by = (
            f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
        )
        hint = f": {killed(kills)}" if code == -signal.SIGKILL else ""
        told = {"state": "failed", "reason": f"rank {rank} {by}{hint}.", "exit_code": 1}
    write_json(folder / "failure.json", told)
    return 1 if code is None else 128 - code if code < 0 else code


class StopRequest:
    """Remembers the first SIGTERM or SIGINT, to be obeyed between two steps."""

    def __init__(self) -> None:
        self.signum = 0
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._remember)

    def _remember(self, signum: int, _frame: FrameType | None) -> None:
        self.signum = self.signum or signum
