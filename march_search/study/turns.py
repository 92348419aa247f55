"""One trial on this worker: its process, its output and its cost."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from march_search import seal
from march_search.config import StudyConfig
from march_search.files import read_lines, try_lock
from march_search.study import ends
from march_search.study.child import Child, Tail
from march_search.study.leases import Lease

FENCE = ".fence"
"""File in a trial's folder that its process locks, so that two processes never train in one folder."""


@dataclass
class Turn:
    """A trial that this worker holds."""

    trial: FrozenTrial
    lease: Lease
    folder: Path
    slot: int
    """Index of its share of the devices."""
    reported: set[int]
    """Token counts already reported to Optuna."""
    child: Child | None = None
    """The trial's process; None while an earlier process still locks the folder."""
    last: int = field(init=False)
    """Token count of the last training step."""
    _seen: set[tuple[str, int]] = field(default_factory=set)
    """Kind and token count of the lines already read."""
    _resets: int = 0
    """Number of resets of metrics.jsonl already handled."""

    def __post_init__(self) -> None:
        self.last = self.lease.start

    @property
    def spent(self) -> int:
        """Number of tokens trained under this lease."""
        return self.last - self.lease.start

    def start(self, config: StudyConfig, command: Sequence[str], hidden: Sequence[str]) -> bool:
        """Start the process, unless the trial is complete; return False if another one still trains in the folder."""
        fence = try_lock(self.folder / FENCE)
        if fence is None:
            return False
        with fence:
            if ends.complete(self.folder):  # the previous process finished the trial
                return True
            until = None if self.lease.until >= config.training.tokens else self.lease.until
            self.child = Child.start(self.folder, config.devices, command, self.slot, until, hidden, fence.fileno())
        return True

    def lines(self, stopped: bool) -> list[dict[str, Any]]:
        """Return new metric lines; for a process that has stopped, also lines that were missed before.

        Lines are missed if the file was rewritten to exactly its previous length.
        """
        assert self.child is not None
        lines = self.child.new_lines()
        self._seen.update((line["kind"], line["tokens"]) for line in lines)
        if stopped:
            lines += [
                line for line in Tail(self.folder).new_lines() if (line["kind"], line["tokens"]) not in self._seen
            ]
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
        self.last = max(self.last, tokens)
        return bool(tokens > self.lease.start)


def resume_point(folder: Path, batch: int) -> int:
    """Return the token count of the newest complete checkpoint; 0 without one."""
    steps = (path.parent.name.removeprefix("step-") for path in folder.glob(f"checkpoints/step-*/{seal.MANIFEST}"))
    return max((int(step) for step in steps if step.isdigit()), default=0) * batch


def drop_damaged(folder: Path) -> None:
    """Delete checkpoints newer than the newest undamaged one, because a trial cannot resume from them.

    Call it only while no process trains in the folder. It reads whole checkpoints.
    """
    for path in sorted(folder.glob(f"checkpoints/step-*/{seal.MANIFEST}"), reverse=True):
        if seal.is_whole(path.parent):
            return
        shutil.rmtree(path.parent, ignore_errors=True)


def unseen_cost(folder: Path, lease: Lease, batch: int) -> int:
    """Return the most tokens that a dead worker's lease can have cost: those in its metrics, plus one step."""
    reached = max((line["tokens"] for line in read_lines(folder / "metrics.jsonl") if "tokens" in line), default=0)
    return max(0, min(reached + batch, lease.until) - lease.start)
