"""Leases of trials. A worker takes a lease, keeps it with its heartbeat, and loses it when the heartbeat stops.

A lease is a user attribute of the trial. Its owner changes only under the trial's lock, a file in the study folder, and
only after the trial is read again. Two workers therefore never hold the same trial, and a slow worker notices that it
lost the lease before it writes a result. Taking a waiting trial also uses Optuna's compare-and-set. Operations on all
trials (adding trials, checking the study's token limit) use the study's own lock.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from march_search.files.atomic import lock

MAX_RETRIES = 2
"""Number of times in a row that a trial resumes although it made no progress before it died; after that, it fails."""

MAX_ORPHANED = 10
"""The same for deaths of its worker. More are allowed, because preempted machines say little about the trial; but a
trial that crashes its machines has to fail in the end."""

LOCKS = 16
"""Number of lock files for a study's trials, so that workers on different trials rarely wait for each other."""

LEASE = "lease"
"""User attribute of a trial that holds its lease."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Owner of a trial and tokens spent on it."""

    attempt: int = 0
    """Number of times the trial was taken; identifies the lease, together with `worker`."""
    worker: str | None = None
    """Worker that holds the trial; None if it is free."""
    retries: int = 0
    """Number of deaths since it last made progress: its process was killed, or it hung."""
    orphaned: int = 0
    """Number of times that its worker died since it last made progress."""
    reached: int = 0
    """Most tokens that it had reached at any of its deaths."""
    spent: int = 0
    """Tokens trained under earlier leases, including repeated ones."""
    start: int = 0
    """Number of tokens at which training resumes."""
    until: int = 0
    """Number of tokens at which training stops."""
    branched: int = 0
    """Tokens that the trial's decay branches had trained when the lease began."""
    branches: int = 0
    """Tokens of the decay branches that are still to be trained between `start` and `until`."""
    closed: bool = False
    """Whether the trial's outcome is known, so that `spent` includes the tokens of this lease."""

    @classmethod
    def of(cls, trial: FrozenTrial) -> "Lease":
        """Return the lease of a trial as read from the storage."""
        return cls(**trial.user_attrs.get(LEASE, {}))


class Leases:
    """Leases of one study, as seen by one worker."""

    def __init__(self, study: optuna.Study, storage: BaseStorage, path: Path, worker: str) -> None:
        """Manage leases for `worker` under the study's lock file `path`."""
        self.study, self.storage, self.worker, self._path = study, storage, worker, path

    def locked(self) -> Any:
        """Return a context manager that acquires the study's lock; never enter it while holding a trial's lock."""
        return lock(self._path)

    def alone(self, trial: FrozenTrial) -> Any:
        """Return a context manager that acquires a trial's lock; trials share `LOCKS` of them by number."""
        return lock(self._path.with_name(f"{self._path.name}-{trial.number % LOCKS:02d}"))

    def _look(self, trial: FrozenTrial) -> FrozenTrial:
        """Read the trial again from the storage."""
        return self.storage.get_trial(trial._trial_id)

    def _write(self, trial: FrozenTrial, lease: Lease) -> None:
        """Replace the trial's lease."""
        self.storage.set_trial_user_attr(trial._trial_id, LEASE, asdict(lease))

    def waits(self, trial: FrozenTrial) -> bool:
        """Return whether the trial is still waiting and no worker has taken it since it was read."""
        return self._same_wait(trial, self._look(trial))

    @staticmethod
    def _same_wait(trial: FrozenTrial, now: FrozenTrial) -> bool:
        """Return whether `now` is waiting with the same attempt as `trial`."""
        return now.state == TrialState.WAITING and Lease.of(now).attempt == Lease.of(trial).attempt

    def take(self, trial: FrozenTrial, start: int, until: int, branched: int = 0, branches: int = 0) -> Lease | None:
        """Take a waiting trial; return None if it is no longer waiting. The caller must hold the trial's lock.

        Args:
            trial: The trial.
            start: Number of tokens at which it resumes.
            until: Number of tokens at which it stops.
            branched: Tokens that its decay branches have trained.
            branches: Tokens that they will train up to `until`.
        """
        now = self._look(trial)
        if not self._same_wait(trial, now):
            return None
        try:
            if not self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                return None
        except UpdateFinishedTrialError:
            return None
        lease = Lease.of(now)
        lease = replace(lease, attempt=lease.attempt + 1, worker=self.worker, start=start, until=until)
        lease = replace(lease, branched=branched, branches=branches, closed=False)
        self._write(trial, lease)
        return lease

    def holds(self, trial: FrozenTrial, lease: Lease) -> bool:
        """Return whether this worker still holds the trial."""
        now = self._look(trial)
        return now.state == TrialState.RUNNING and Lease.of(now) == lease

    def give_back(
        self, trial: FrozenTrial, lease: Lease, spent: int, died_at: int | None = None, orphaned: bool = False
    ) -> bool:
        """Set a trial to waiting; return False if its lease changed. The caller must hold the trial's lock.

        A death counts as one of `MAX_RETRIES` retries, or of `MAX_ORPHANED` if it was the worker's. If the trial got
        further than at all earlier deaths, both counts start again.

        The lease is written before the state. If the worker dies in between, the trial has no owner and is given back
        again without a retry being counted.

        Args:
            trial: The trial, as it was read when `lease` was.
            lease: The lease that ends.
            spent: Tokens trained under this lease; a closed lease has them already.
            died_at: Tokens that the trial had reached when it or its worker died; None if neither did.
            orphaned: Whether the worker died.
        """
        if not self.holds(trial, lease):
            return False
        free = replace(lease, worker=None, spent=lease.spent + (0 if lease.closed else spent), closed=False)
        if died_at is not None and lease.worker is not None:
            if died_at > lease.reached:
                free = replace(free, retries=0, orphaned=0, reached=died_at)
            free = replace(free, orphaned=free.orphaned + orphaned, retries=free.retries + (not orphaned))
        self._write(trial, free)
        self.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        return True

    def close(self, trial: FrozenTrial, lease: Lease, spent: int) -> Lease:
        """Record the total tokens spent on a trial before it is closed in Optuna, and return its lease with them.

        If it cannot be closed and is given back, they are not counted again. The owner must hold the trial's lock.
        """
        closed = replace(lease, spent=lease.spent + spent, closed=True)
        self._write(trial, closed)
        return closed
