"""Several ranks of one trial on one machine: started together, stopped together, none left behind."""

import ctypes
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import FrameType

GRACE_SECONDS = 10
"""How long a rank may take to save and end after it is asked to."""


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
        return _wait(processes, asked)
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


def _wait(processes: "list[subprocess.Popen[bytes]]", asked: list[int]) -> int:
    """Waits for all ranks; after the first failure, or `GRACE_SECONDS` after a signal, for no more than that."""
    deadline = None
    while any(process.poll() is None for process in processes):
        failed = [process for process in processes if process.poll()]
        if (failed or asked) and deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
            for process in processes if failed and not asked else []:
                process.terminate()
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(0.05)
    if asked:
        return 128 + asked[0]
    codes = [process.poll() for process in processes]
    bad = [code for code in codes if code not in (0, None, 143, -signal.SIGTERM)] or [code for code in codes if code]
    if not bad and None in codes:
        return 1
    return _exit_code(bad[0]) if bad else 0


def _exit_code(code: int | None) -> int:
    """A shell's exit code: 128 + n for a process that signal n ended."""
    return 1 if code is None else 128 - code if code < 0 else code


class StopRequest:
    """Remembers the first SIGTERM or SIGINT, to be obeyed between two steps."""

    def __init__(self) -> None:
        self.signum = 0
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._remember)

    def _remember(self, signum: int, _frame: FrameType | None) -> None:
        self.signum = self.signum or signum
