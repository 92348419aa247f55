"""The process that trains one trial, and the trial on the worker that started it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from march_search.config import DevicesConfig, StudyConfig, TrainingConfig
from march_search.errors import StorageError
from march_search.files.atomic import try_lock
from march_search.files.json_tables import read_json
from march_search.processes import PARENT
from march_search.storage.leases import Lease
from march_search.storage.study_folder import trial_number
from march_search.trial import outcome
from march_search.trial.manifest import resume_point
from march_search.trial.metrics import MetricsTail, branched_tokens, read_metrics
from march_search.trial.outcome import FAILURES, KILLED, kill_reason, memory_kills, ran_out_of_memory

TRAINING = (sys.executable, "-m", "march_search.training", "--once")
"""Command that trains the trial in the folder appended to it. The worker decides whether to restart it."""

STOP_SECONDS = 330
"""Seconds that a trial may take to save before it is killed. Large models take minutes to write."""


@dataclass(kw_only=True)
class TrialProcess:
    """The process of a running trial."""

    folder: Path
    process: "subprocess.Popen[bytes]"
    tail: MetricsTail
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
    ) -> "TrialProcess":
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
        return cls(folder=folder, process=process, tail=MetricsTail(folder), _kills=kills)

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

    @property
    def was_killed(self) -> bool:
        """Whether its process or one of its ranks was killed, but not because memory ran out."""
        return self.process.returncode in KILLED and not ran_out_of_memory(self._kills)

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
            hint = f": {kill_reason(self._kills)}" if code == -signal.SIGKILL else ""
            return "failed", f"the process was killed by {signal.Signals(-code).name}{hint}."
        return "failed", f"the process exited with code {code} and no result; see {self.folder / 'trial.log'}."


def _gpus(ranks: int, slot: int) -> str:
    """Return the GPUs of a slot, out of those visible to this process."""
    visible = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g]
    indices = range(slot * ranks, (slot + 1) * ranks)
    if not visible:
        return ",".join(map(str, indices))
    return ",".join(visible[i] if i < len(visible) else "none" for i in indices)


FENCE = ".fence"
"""File in a trial's folder that its process locks, so that two processes never train in one folder."""


@dataclass(kw_only=True)
class ActiveTrial:
    """A trial that this worker holds."""

    trial: FrozenTrial
    lease: Lease
    folder: Path
    slot: int
    """Index of its share of the devices."""
    reported: set[int]
    """Token counts already reported to Optuna."""
    child: TrialProcess | None = None
    """The trial's process; None while an earlier process still locks the folder."""
    last: int = field(init=False)
    """Token count of the last training step."""
    _branches: dict[int, int] = field(default_factory=dict)
    """Tokens that each decay branch has trained."""
    _seen: set[tuple[Any, ...]] = field(default_factory=set)
    """Kind and token counts of the lines already read."""
    _resets: int = 0
    """Number of resets of metrics.jsonl already handled."""

    def __post_init__(self) -> None:
        self.last = self.lease.start

    @property
    def number(self) -> int:
        """Number by which users know the trial."""
        return trial_number(self.trial)

    @property
    def spent(self) -> int:
        """Number of tokens trained under this lease, those of decay branches included."""
        return self.last - self.lease.start + max(0, sum(self._branches.values()) - self.lease.branched)

    def start(self, config: StudyConfig, command: Sequence[str], hidden: Sequence[str]) -> bool:
        """Start the process and return True; return False if another process still trains in the folder.

        If that one completed the trial, return True without starting, and `child` stays None.
        """
        fence = try_lock(self.folder / FENCE)
        if fence is None:
            return False
        with fence:
            if outcome.completed_outcome(self.folder):  # the previous process finished the trial
                return True
            until = None if self.lease.until >= config.training.tokens else self.lease.until
            self.child = TrialProcess.start(
                self.folder, config.devices, command, self.slot, until, hidden, fence.fileno()
            )
        return True

    def lines(self, stopped: bool) -> list[dict[str, Any]]:
        """Return new metric lines; for a process that has stopped, also lines that were missed before.

        Lines are missed if the file was rewritten to exactly its previous length.
        """
        assert self.child is not None
        lines = self.child.new_lines()
        self._seen.update(map(_identity, lines))
        if stopped:
            lines += [line for line in MetricsTail(self.folder).new_lines() if _identity(line) not in self._seen]
        return lines

    def count(self, line: dict[str, Any]) -> bool:
        """Record how far a line is; return whether it is new, that is, not from an earlier lease.

        A process that resumes from a checkpoint truncates the file. Lines that were read earlier and lie beyond the
        lease's start belong to an earlier lease.
        """
        assert self.child is not None
        tokens = line["tokens"]
        if self.child.tail.resets > self._resets:
            self._resets, self.last = self.child.tail.resets, self.lease.start
            self._branches.clear()
        self.last = max(self.last, tokens)
        if "branch" in line:
            known = self._branches.get(line["branch"], 0)
            self._branches |= {branch: max(known, trained) for branch, trained in branched_tokens([line]).items()}
            return bool(tokens >= self.lease.start)
        return bool(tokens > self.lease.start)


def _identity(line: dict[str, Any]) -> tuple[Any, ...]:
    """Return what no other line of a trial has: its kind and token counts."""
    return line["kind"], line["tokens"], line.get("branch"), line.get("branch_tokens")


def unseen_cost(folder: Path, lease: Lease, batch: int) -> int:
    """Return the most tokens that a dead worker's lease can have cost: those in its metrics, plus one step."""
    metrics = read_metrics(folder)
    branched = min(max(0, metrics.branched_tokens - lease.branched), lease.branches)
    return max(0, min(metrics.tokens + batch, lease.until) - lease.start) + branched


def branch_costs(training: TrainingConfig, folder: Path, start: int, until: int) -> tuple[int, int]:
    """Return the tokens of a trial's decay branches: those trained before it resumes, and those to train from there.

    Args:
        training: The trial's settings.
        folder: Its folder.
        start: Tokens at which it resumes.
        until: Tokens at which it stops.
    """
    if not training.branches:
        return 0, 0
    metrics = read_metrics(folder)
    ended = {line["branch"] for line in metrics.of_kind("branch_evaluation")}
    branched = branched_tokens(
        line for line in metrics.lines if "branch" in line
        and (line["tokens"] < start or (line["tokens"] == start and line["branch"] in ended))
    )  # fmt: skip
    ahead = [branch for branch in training.branches_between(start, until) if branch.tokens not in branched]
    return sum(branched.values()), sum(branch.trained_tokens for branch in ahead)


def reached(folder: Path, batch: int) -> int:
    """Return the tokens of the last step in a trial's metrics or of its newest checkpoint, whichever is later."""
    return max(read_metrics(folder).tokens, resume_point(folder, batch))
