"""Start the ranks of one trial, watch them, and stop them together, leaving no process behind.

On several machines, watch the launcher that starts the ranks and the files that the ranks write.
"""

import contextlib
import logging
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
from march_search.files.json_tables import read_json, write_json
from march_search.processes import PARENT
from march_search.training import launch, ranks
from march_search.trial.outcome import HUNG, kill_reason, memory_kills

_LOGGER = logging.getLogger(__name__)

GRACE_SECONDS = 10
"""Seconds that the other ranks have to exit after one has failed."""

SAVE_SECONDS = 300
"""Seconds that the ranks have after a signal to finish their micro batch, write a checkpoint and exit."""

START_SECONDS = 600
"""Minimum seconds before a trial counts as hung if it has not taken a step: libraries load and kernels compile."""

STACK_SECONDS = 1.0
"""Seconds that each hung rank has to write its stack traces."""

_POLL_SECONDS = 0.05


@dataclass(kw_only=True)
class _Trial:
    """One trial and its processes."""

    folder: Path
    devices: DevicesConfig
    arguments: Sequence[str]
    """Arguments of each rank, after the folder."""
    launched: dict[str, Any] = field(default_factory=dict)
    """Content of launch.json, for launched ranks."""
    seen: object = None
    """Sizes and times of the files of launched ranks at the last look."""
    kills: int | None = field(default_factory=memory_kills)
    processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    signum: int = 0
    """First stop signal received; 0 for none."""
    hung: str = ""
    """Reason why the trial counts as hung; empty if it does not."""

    def pass_on(self, signum: int, _frame: FrameType | None) -> None:
        """Ask all ranks to stop."""
        self.signum = self.signum or signum
        if self.is_launched:
            return launch.announce(self.folder, self.launched, self.signum)
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signum)
        return None

    @property
    def is_launched(self) -> bool:
        """Whether an external launcher starts the ranks; it is then the only child process."""
        return self.devices.launcher != "own"


def supervise(folder: Path, devices: DevicesConfig, arguments: Sequence[str], once: bool = False) -> int:
    """Run the ranks of the trial in `folder` and return 0 if all succeed, else the exit code of the first failure.

    When a rank fails, the others are stopped. SIGTERM and SIGINT are passed on to the ranks. If no rank makes progress
    for `hang_seconds` (0 disables the check), all ranks print their stack traces and are killed. They then resume from
    the last checkpoint once; with `once`, the function returns `HUNG` instead.

    Raises:
        ConfigError: If the port for launched ranks is not available, or the host file is invalid.
        TrialError: If the launcher is not installed.
    """
    trial = _Trial(folder=folder, devices=devices, arguments=arguments)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, trial.pass_on)
    code = _attempt(trial)
    if trial.hung and once:
        return HUNG
    if trial.hung and not trial.signum:
        _LOGGER.warning(f"{trial.hung}: resuming from the last checkpoint.")
        code = _attempt(trial)
    return code


def _attempt(trial: _Trial) -> int:
    """Start all ranks and wait until they exit."""
    meeting = trial.folder / f".rendezvous.{uuid.uuid4().hex}"
    for pattern in ("failure*.json", ".rendezvous.*"):  # left by an attempt that was killed
        for old in trial.folder.glob(pattern):
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
    """Start the launcher of the ranks in a new session."""
    port = launch.choose_port(trial.devices.port)
    command = launch.command(trial.devices, trial.folder, port, trial.arguments)
    trial.launched = {"id": uuid.uuid4().hex, "port": port, "command": command}
    launch.announce(trial.folder, trial.launched)
    _LOGGER.warning(f"{trial.devices.launcher} is starting {trial.devices.ranks} ranks, which meet on port {port}.")
    try:
        return subprocess.Popen(command, env=launch.environment(port), start_new_session=True)
    except OSError as error:
        raise TrialError(f"cannot start {command[0]}: {error.strerror}.") from None


def _kill(trial: _Trial) -> None:
    """Kill all remaining processes; for launched ranks, only those on this machine."""
    for process in trial.processes:
        if trial.is_launched:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        elif process.poll() is None:
            process.kill()
        process.wait()


def _start(trial: _Trial, rank: int, meeting: Path, pulse: int) -> "subprocess.Popen[bytes]":
    """Start one rank with the environment variables that DeepSpeed and torch read."""
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": trial.devices.ranks,
        "LOCAL_WORLD_SIZE": trial.devices.ranks,
        "MARCH_SEARCH_MEETING": meeting,
        PARENT: os.getpid(),
        ranks.PULSE: pulse,
    }
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    command = [sys.executable, "-m", "march_search.training", str(trial.folder), *trial.arguments]
    return subprocess.Popen(command, env=environment, pass_fds=[pulse])


def _wait(trial: _Trial, pulse: int) -> int:
    """Wait for all ranks: up to `SAVE_SECONDS` after a signal, and up to `GRACE_SECONDS` after the first failure."""
    deadline, first_failed, asked = math.inf, None, False
    hang_seconds = trial.devices.hang_seconds
    quiet, patience, looked = 0.0, max(hang_seconds, START_SECONDS), time.monotonic()
    while any(process.poll() is None for process in trial.processes) and time.monotonic() < deadline:
        failed = next((rank for rank, process in enumerate(trial.processes) if process.poll()), None)
        if trial.signum and not asked:
            asked, deadline = True, time.monotonic() + SAVE_SECONDS
            trial.pass_on(trial.signum, None)  # again, for a rank that started after the signal
        elif failed is not None and first_failed is None and not asked:
            first_failed, deadline = failed, time.monotonic() + GRACE_SECONDS
            for process in trial.processes:
                process.terminate()
        signs = _files_grew(trial) if trial.is_launched else _signs(pulse)
        if ranks.TRAINING in signs:
            patience = hang_seconds
        now = time.monotonic()
        quiet = 0.0 if signs else quiet + min(now - looked, 1)  # ignore time while suspended
        looked = now
        if hang_seconds and quiet > patience and deadline == math.inf:
            return _hung(trial, quiet)
        time.sleep(_POLL_SECONDS)
    return _code(trial, first_failed)


def _signs(pulse: int) -> bytes:
    """Return the heartbeats that the ranks have sent since the last call."""
    try:
        return os.read(pulse, 1 << 16)
    except BlockingIOError:
        return b""


def _files_grew(trial: _Trial) -> bytes:
    """Return a heartbeat if the metrics or checkpoints of launched ranks have changed since the last call."""
    paths = (trial.folder / "metrics.jsonl", *trial.folder.glob("checkpoints/*/*"))
    now = []
    for path in paths:
        with contextlib.suppress(OSError):
            now.append((path.name, path.stat().st_size, path.stat().st_mtime_ns))
    before, trial.seen = trial.seen, now
    return ranks.TRAINING if before is not None and now != before else b""


def _hung(trial: _Trial, quiet: float) -> int:
    """Make all ranks print their stack traces, kill them, and write failure.json in case the trial is not retried."""
    stopped = [str(rank) for rank, process in enumerate(trial.processes) if _is_stopped(process.pid)]
    culprits = f" (rank {', '.join(stopped)}: stopped by a signal)" if stopped else ""
    trial.hung = f"no rank made progress for {quiet:.0f} seconds{culprits}"
    _LOGGER.warning(trial.hung if trial.is_launched else f"{trial.hung}; stack traces:")
    for rank, process in enumerate(trial.processes):
        if not trial.is_launched and process.poll() is None and str(rank) not in stopped:
            _LOGGER.warning(f"rank {rank}:")
            process.send_signal(ranks.SHOW_STACK)
            time.sleep(STACK_SECONDS)
    _kill(trial)
    reason = f"{trial.hung}; increase [devices] hang_seconds if part of a step can take that long."
    write_json(trial.folder / "failure.json", {"state": "failed", "reason": reason, "exit_code": 1})
    return 1


def _is_stopped(pid: int) -> bool:
    """Return whether a signal has suspended the process; False on systems other than Linux."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in ("T", "t")
    except OSError:
        return False


def _code(trial: _Trial, first_failed: int | None) -> int:
    """Return the exit code of the trial from those of its ranks."""
    codes = [process.poll() for process in trial.processes]
    expected = (0, 128 + trial.signum, -trial.signum, None) if trial.signum else (0,)
    if -signal.SIGKILL in codes:  # not sent by this process, so it caused the other failures
        first_failed = codes.index(-signal.SIGKILL)
    elif first_failed is None:
        first_failed = next((rank for rank, code in enumerate(codes) if code not in expected), None)
    if trial.is_launched and trial.signum:
        return 0 if all(code == 0 for code in codes) else 128 + trial.signum
    if first_failed is not None:
        return _explain(trial, first_failed, codes[first_failed])
    return 0 if all(code == 0 for code in codes) else 128 + trial.signum


def _explain(trial: _Trial, rank: int, code: int | None) -> int:
    """Write failure.json for the rank that failed first, the cause of the other failures, and return its exit code."""
    path = trial.folder / f"failure.rank{rank}.json"
    if trial.is_launched:
        path = min(trial.folder.glob("failure.rank*.json"), key=lambda path: path.stat().st_mtime_ns, default=path)
    failure = read_json(path)
    if not isinstance(failure, dict):
        end = (
            f"was killed by {signal.Signals(-code).name}"
            if code is not None and code < 0
            else f"exited with code {code}"
        )
        hint = f": {kill_reason(trial.kills)}" if code == -signal.SIGKILL else ""
        failure = {"state": "failed", "reason": f"rank {rank} {end}{hint}.", "exit_code": 1}
        if trial.is_launched:
            failure["reason"] = f"the launcher {end} before its ranks finished; see its output for the cause."
        if code == StorageError.exit_code:
            failure["reason"] = f"{trial.folder}: cannot be written; free disk space, or make the folder writable."
    with contextlib.suppress(StorageError):  # the disk is full, which the rank has already reported
        write_json(trial.folder / "failure.json", failure)
        path.unlink(missing_ok=True)
    return 1 if code is None else 128 - code if code < 0 else code
