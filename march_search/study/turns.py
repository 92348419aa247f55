"""One trial's turn on this worker: its process, what it has written, what it has cost."""

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
"""File in a trial's folder whose lock its process holds: two processes never train in one folder."""


@dataclass
class Turn:
    """A trial that this worker has."""

    trial: FrozenTrial
    lease: Lease
    folder: Path
    slot: int
    """Which share of the devices it has."""
    reported: set[int]
    """Token counts already told to Optuna."""
    child: Child | None = None
    """Its process; None while a former one still holds the folder."""
    last: int = field(init=False)
    """Tokens of the last training step."""
    _seen: set[tuple[str, int]] = field(default_factory=set)
    """Kind and tokens of lines that were read."""
    _resets: int = 0
    """Of metrics.jsonl, as far as they are counted."""

    def __post_init__(self) -> None:
        self.last = self.lease.start

    @property
    def spent(self) -> int:
        """Tokens trained in this turn."""
        return self.last - self.lease.start

    def start(self, config: StudyConfig, command: Sequence[str], hidden: Sequence[str]) -> bool:
        """Starts the process, unless the trial is complete; False while another still trains in the folder."""
        fence = try_lock(self.folder / FENCE)
        if fence is None:
            return False
        with fence:
            if ends.complete(self.folder):  # the process that had the folder until now finished what it was at
                return True
            until = None if self.lease.until >= config.training.tokens else self.lease.until
            self.child = Child.start(self.folder, config.devices, command, self.slot, until, hidden, fence.fileno())
        return True

    def lines(self, stopped: bool) -> list[dict[str, Any]]:
        """New metric lines; of a process that has stopped, all that were missed, too.

        A file that was written anew, to the very length it had, looks as if nothing happened.
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
        """Notes how far a line is; whether it is new, and not left by an earlier turn.

        A process that goes on from a checkpoint cuts the file back: what it had beyond the turn's start was trained in
        an earlier turn.
        """
        assert self.child is not None
        tokens = line["tokens"]
        if self.child.tail.resets > self._resets:
            self._resets, self.last = self.child.tail.resets, self.lease.start
        self.last = max(self.last, tokens)
        return bool(tokens > self.lease.start)


def resume_point(folder: Path, batch: int) -> int:
    """Tokens of the newest whole checkpoint; 0 without one."""
    steps = (path.parent.name.removeprefix("step-") for path in folder.glob(f"checkpoints/step-*/{seal.MANIFEST}"))
    return max((int(step) for step in steps if step.isdigit()), default=0) * batch


def drop_damaged(folder: Path) -> None:
    """Deletes checkpoints newer than the newest that is as it was sealed: a trial could not go on from them.

    Only while nobody trains in the folder. It reads all of a checkpoint.
    """
    for path in sorted(folder.glob(f"checkpoints/step-*/{seal.MANIFEST}"), reverse=True):
        if seal.is_whole(path.parent):
            return
        shutil.rmtree(path.parent, ignore_errors=True)


def unseen_cost(folder: Path, lease: Lease, batch: int) -> int:
    """What a turn whose worker died has cost at most: what its metrics reach, and the step it was in."""
    reached = max((line["tokens"] for line in read_lines(folder / "metrics.jsonl") if "tokens" in line), default=0)
    return max(0, min(reached + batch, lease.until) - lease.start)
