"""The ranks of one trial: started together, watched, stopped together, none left behind.

On several machines it watches the launcher that starts them, and the files that they write.
"""

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
from typing import Any

from march_search.config import DevicesConfig
from march_search.errors import StorageError, TrialError
from march_search.files import read_json, write_json
from march_search.outcome import HUNG, killed, memory_kills
from march_search.training import launch, ranks

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
    devices: DevicesConfig
    arguments: Sequence[str]
    """What each rank is told besides the folder."""
    launched: dict[str, Any] = field(default_factory=dict)
    """What launched ranks are told of their launch."""
    seen: object = None
    """What the files of launched ranks looked like."""
    kills: int | None = field(default_factory=memory_kills)
    processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    signum: int = 0
    """The first signal that asked it to stop, 0 for none."""
    hung: str = ""
    """Why it counts as hung, empty if it does not."""

    def pass_on(self, signum: int, _frame: FrameType | None) -> None:
        """Asks all ranks to stop."""
        self.signum = self.signum or signum
        if self.is_launched:
            return launch.announce(self.folder, self.launched, self.signum)
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signum)
        return None

    @property
    def is_launched(self) -> bool:
        """Whether another program starts the ranks, whose launcher is then the one process here."""
        return self.devices.launcher != "own"


def supervise(folder: Path, devices: DevicesConfig, arguments: Sequence[str], once: bool = False) -> int:
    """Runs the ranks of the trial in `folder`; returns 0 if all ended well, else the first code that says otherwise.

    The first rank that ends with an error takes the others with it; SIGTERM and SIGINT are passed on. Where no rank
    gets on for `hang_seconds` (0: for ever), all show their stacks, are killed, and go on from the checkpoint a
    second time, or, if they may start only `once`, end with `HUNG`.

    Raises:
        ConfigError: the port where launched ranks would meet is taken.
        TrialError: the launcher is not installed, or its hostfile says something else.
    """
    trial = _Trial(folder, devices, arguments)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, trial.pass_on)
    code = _attempt(trial)
    if trial.hung and once:
        return HUNG
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
        if trial.is_launched:
            trial.processes.append(_launch(trial))
        else:
            for rank in range(trial.devices.ranks):
                trial.processes.append(_start(trial, rank, meeting, writing))
        return _wait(trial, reading)
    finally:
        _kill(trial)
        os.close(reading)
        os.close(writing)
        with contextlib.suppress(OSError):
            meeting.unlink(missing_ok=True)


def _launch(trial: _Trial) -> "subprocess.Popen[bytes]":
    """The launcher of all ranks, in a session of its own with what it starts here."""
    port = launch.choose_port(trial.devices.port)
    command = launch.command(trial.devices, trial.folder, port, trial.arguments)
    trial.launched = {"id": uuid.uuid4().hex, "port": port, "command": command}
    launch.announce(trial.folder, trial.launched)
    ranks.say(f"{trial.devices.launcher} starts {trial.devices.ranks} ranks, which meet on port {port}.")
    try:
        return subprocess.Popen(command, env=launch.environment(port), start_new_session=True)
    except OSError as error:
        raise TrialError(f"{command[0]} cannot be started: {error.strerror}.") from None


def _kill(trial: _Trial) -> None:
    """Leaves no process behind; of launched ranks, none on this machine."""
    for process in trial.processes:
        if trial.is_launched:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        elif process.poll() is None:
            process.kill()
        process.wait()


def _start(trial: _Trial, rank: int, meeting: Path, pulse: int) -> "subprocess.Popen[bytes]":
    """One rank, told who it is in the variables that DeepSpeed and torch read."""
    told = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": trial.devices.ranks,
        "LOCAL_WORLD_SIZE": trial.devices.ranks,
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
    hang_seconds = trial.devices.hang_seconds
    quiet, patience, looked = 0.0, max(hang_seconds, START_SECONDS), time.monotonic()
    while any(process.poll() is None for process in trial.processes) and time.monotonic() < deadline:
        failed = next((rank for rank, process in enumerate(trial.processes) if process.poll()), None)
        if trial.signum and not asked:
            asked, deadline = True, time.monotonic() + SAVE_SECONDS
            trial.pass_on(trial.signum, None)  # a rank may have started since
        elif failed is not None and first_failed is None and not asked:
            first_failed, deadline = failed, time.monotonic() + GRACE_SECONDS
            for process in trial.processes:
                process.terminate()
        signs = _files_grew(trial) if trial.is_launched else _signs(pulse)
        if ranks.TRAINING in signs:
            patience = hang_seconds
        now = time.monotonic()
        quiet = 0.0 if signs else quiet + min(now - looked, 1)  # hours in which this process was stopped do not count
        looked = now
        if hang_seconds and quiet > patience and deadline == math.inf:
            return _hung(trial, quiet)
        time.sleep(_POLL_SECONDS)
    return _code(trial, first_failed)


def _signs(pulse: int) -> bytes:
    """What the ranks have written since the last look."""
    try:
        return os.read(pulse, 1 << 16)
    except BlockingIOError:
        return b""


def _files_grew(trial: _Trial) -> bytes:
    """The sign of launched ranks: metrics and checkpoints are not what they were at the last look."""
    paths = (trial.folder / "metrics.jsonl", *trial.folder.glob("checkpoints/*/*"))
    now = []
    for path in paths:
        with contextlib.suppress(OSError):
            now.append((path.name, path.stat().st_size, path.stat().st_mtime_ns))
    before, trial.seen = trial.seen, now
    return ranks.TRAINING if before is not None and now != before else b""


def _hung(trial: _Trial, quiet: float) -> int:
    """Has all ranks show their stacks and kills them; writes down why, for the case that it is not tried again."""
    stopped = [str(rank) for rank, process in enumerate(trial.processes) if _is_stopped(process.pid)]
    who = f" (rank {', '.join(stopped)}: stopped by a signal)" if stopped else ""
    trial.hung = f"no rank got on for {quiet:.0f} seconds{who}"
    ranks.say(trial.hung if trial.is_launched else f"{trial.hung}: their stacks:")
    for rank, process in enumerate(trial.processes):
        if not trial.is_launched and process.poll() is None and str(rank) not in stopped:
            ranks.say(f"rank {rank}:")
            process.send_signal(ranks.SHOW_STACK)
            time.sleep(STACK_SECONDS)
    _kill(trial)
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
    if trial.is_launched and trial.signum:
        return 0 if all(code == 0 for code in codes) else 128 + trial.signum
    if first_failed is not None:
        return _explain(trial, first_failed, codes[first_failed])
    return 0 if all(code == 0 for code in codes) else 128 + trial.signum


def _explain(trial: _Trial, rank: int, code: int | None) -> int:
    """Writes failure.json for the rank that failed first, whose failure the others only repeat; its exit code."""
    own = trial.folder / f"failure.rank{rank}.json"
    if trial.is_launched:
        own = min(trial.folder.glob("failure.rank*.json"), key=lambda path: path.stat().st_mtime_ns, default=own)
    told = read_json(own)
    if not isinstance(told, dict):
        by = (
            f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
        )
        hint = f": {killed(trial.kills)}" if code == -signal.SIGKILL else ""
        told = {"state": "failed", "reason": f"rank {rank} {by}{hint}.", "exit_code": 1}
        if trial.is_launched:
            told["reason"] = f"the launcher {by} before its ranks had ended; its output says why."
        if code == StorageError.exit_code:
            told["reason"] = f"{trial.folder}: cannot be written; free some room, or make it writable."
    with contextlib.suppress(StorageError):  # a full disk, which the rank has told
        write_json(trial.folder / "failure.json", told)
        own.unlink(missing_ok=True)
    return 1 if code is None else 128 - code if code < 0 else code
