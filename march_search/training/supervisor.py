"""The ranks of one trial on one machine: started together, watched, stopped together, none left behind."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from march_search.errors import StorageError
from march_search.files import read_json, write_json
from march_search.outcome import killed, memory_kills
from march_search.training import ranks

GRACE_SECONDS = 10
"""How long the other ranks may take to end after one has failed."""

SAVE_SECONDS = 300
"""How long all ranks may take to save and end after a signal: the micro batch they are in, and a checkpoint."""

START_SECONDS = 600
"""No trial counts as hung sooner than that before its first step: libraries load, kernels are compiled."""

STACK_SECONDS = 1.0
"""How long hung ranks get to write their stacks down."""

_POLL_SECONDS = 0.05


@dataclass
class _Trial:
    """One trial and its processes."""

    folder: Path
    ranks: int
    hang_seconds: float
    arguments: Sequence[str]
    """What each rank is told besides the folder."""
    kills: int | None = field(default_factory=memory_kills)
    processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    signum: int = 0
    """The first signal that asked it to stop, 0 for none."""
    hung: str = ""
    """Why it counts as hung, empty if it does not."""

    def pass_on(self, signum: int, _frame: FrameType | None) -> None:
        """Asks all ranks to stop."""
        self.signum = self.signum or signum
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signum)


def supervise(folder: Path, num_ranks: int, hang_seconds: float, arguments: Sequence[str]) -> int:
    """Runs the ranks of the trial in `folder`; returns 0 if all ended well, else the first code that says otherwise.

    The first rank that ends with an error takes the others with it; SIGTERM and SIGINT are passed on. Where no rank
    gets on for `hang_seconds` (0: for ever), all show their stacks, are killed, and go on from the checkpoint once.
    """
    trial = _Trial(folder, num_ranks, hang_seconds, arguments)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, trial.pass_on)
    code = _attempt(trial)
    if trial.hung and not trial.signum:
        ranks.say(f"{trial.hung}: going on from the last checkpoint.")
        code = _attempt(trial)
    return code


def _attempt(trial: _Trial) -> int:
    """Starts all ranks and waits for their end."""
    meeting = trial.folder / f".rendezvous.{uuid.uuid4().hex}"
    for old in trial.folder.glob("failure*.json"):
        old.unlink()
    trial.processes.clear()
    trial.hung = ""
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    try:
        for rank in range(trial.ranks):
            trial.processes.append(_start(trial, rank, meeting, writing))
        return _wait(trial, reading)
    finally:
        for process in trial.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        os.close(reading)
        os.close(writing)
        with contextlib.suppress(OSError):
            meeting.unlink(missing_ok=True)


def _start(trial: _Trial, rank: int, meeting: Path, pulse: int) -> "subprocess.Popen[bytes]":
    """One rank, told who it is in the variables that DeepSpeed and torch read."""
    told = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": trial.ranks,
        "LOCAL_WORLD_SIZE": trial.ranks,
        "MARCH_SEARCH_MEETING": meeting,
        "MARCH_SEARCH_PARENT": os.getpid(),
        ranks.PULSE: pulse,
    }
    environment = os.environ | {name: str(value) for name, value in told.items()}
    command = [sys.executable, "-m", "march_search.training", str(trial.folder), *trial.arguments]
    return subprocess.Popen(command, env=environment, pass_fds=[pulse])


def _wait(trial: _Trial, pulse: int) -> int:
    """Waits for all ranks; after a signal for `SAVE_SECONDS` more, after the first failure for `GRACE_SECONDS`."""
    deadline, first_failed, asked = math.inf, None, False
    quiet, patience, looked = 0.0, max(trial.hang_seconds, START_SECONDS), time.monotonic()
    while any(process.poll() is None for process in trial.processes) and time.monotonic() < deadline:
        failed = next((rank for rank, process in enumerate(trial.processes) if process.poll()), None)
        if trial.signum and not asked:
            asked, deadline = True, time.monotonic() + SAVE_SECONDS
            trial.pass_on(trial.signum, None)  # a rank may have started since
        elif failed is not None and first_failed is None and not asked:
            first_failed, deadline = failed, time.monotonic() + GRACE_SECONDS
            for process in trial.processes:
                process.terminate()
        signs = _signs(pulse)
        if ranks.TRAINING in signs:
            patience = trial.hang_seconds
        now = time.monotonic()
        quiet = 0.0 if signs else quiet + min(now - looked, 1)  # hours in which this process was stopped do not count
        looked = now
        if trial.hang_seconds and quiet > patience and deadline == math.inf:
            return _hung(trial, quiet)
        time.sleep(_POLL_SECONDS)
    return _code(trial, first_failed)


def _signs(pulse: int) -> bytes:
    """What the ranks have written since the last look."""
    try:
        return os.read(pulse, 1 << 16)
    except BlockingIOError:
        return b""


def _hung(trial: _Trial, quiet: float) -> int:
    """Has all ranks show their stacks and kills them; writes down why, for the case that it is not tried again."""
    stopped = [str(rank) for rank, process in enumerate(trial.processes) if _is_stopped(process.pid)]
    who = f" (rank {', '.join(stopped)}: stopped by a signal)" if stopped else ""
    trial.hung = f"no rank got on for {quiet:.0f} seconds{who}"
    ranks.say(f"{trial.hung}: their stacks:")
    for rank, process in enumerate(trial.processes):
        if process.poll() is None and str(rank) not in stopped:
            ranks.say(f"rank {rank}:")
            process.send_signal(ranks.SHOW_STACK)
            time.sleep(STACK_SECONDS)
    for process in trial.processes:
        process.kill()
    reason = f"{trial.hung}; raise [devices] hang_seconds if that is how long a part of a step takes."
    write_json(trial.folder / "failure.json", {"state": "failed", "reason": reason, "exit_code": 1})
    return 1


def _is_stopped(pid: int) -> bool:
    """Whether a signal holds the process up; False where Linux is not there to say it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in ("T", "t")
    except OSError:
        return False


def _code(trial: _Trial, first_failed: int | None) -> int:
    """The exit code of all ranks together."""
    codes = [process.poll() for process in trial.processes]
    well = (0, 128 + trial.signum, -trial.signum, None) if trial.signum else (0,)
    if -signal.SIGKILL in codes:  # sent by nobody here so far: that rank's end is why the others failed
        first_failed = codes.index(-signal.SIGKILL)
    elif first_failed is None:
        first_failed = next((rank for rank, code in enumerate(codes) if code not in well), None)
    if first_failed is not None:
        return _explain(trial, first_failed, codes[first_failed])
    return 0 if all(code == 0 for code in codes) else 128 + trial.signum


def _explain(trial: _Trial, rank: int, code: int | None) -> int:
    """Writes failure.json for the rank that failed first, whose failure the others only repeat; its exit code."""
    own = trial.folder / f"failure.rank{rank}.json"
    told = read_json(own)
    if not isinstance(told, dict):
        by = (
            f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
        )
        hint = f": {killed(trial.kills)}" if code == -signal.SIGKILL else ""
        told = {"state": "failed", "reason": f"rank {rank} {by}{hint}.", "exit_code": 1}
        if code == StorageError.exit_code:
            told["reason"] = f"{trial.folder}: cannot be written; free some room, or make it writable."
    with contextlib.suppress(StorageError):  # a full disk, which the rank has told
        write_json(trial.folder / "failure.json", told)
        own.unlink(missing_ok=True)
    return 1 if code is None else 128 - code if code < 0 else code
