"""Who trains which trial: leases that a worker takes, keeps by its heartbeat, and loses when it falls silent.

A lease is a user attribute of the trial. Every change of owner happens under the trial's lock, a file in the study's
folder, and starts with a fresh look at the trial: so two workers never both get it, and one that was only slow finds,
before it writes a result, that the trial is no longer its own. Taking a waiting trial is Optuna's compare-and-set on
top. What concerns all trials (adding some, staying within the study's tokens) happens under the study's own lock.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from march_search.files import lock

MAX_RETRIES = 2
"""How often a trial goes on after its worker died or it hung; then it fails."""

LOCKS = 16
"""Lock files of a study's trials: workers that write to different trials seldom wait for each other."""

LEASE = "lease"
"""User attribute of a trial."""


@dataclass(frozen=True)
class Lease:
    """A trial's owner, and what it has cost."""

    attempt: int = 0
    """How often the trial has been taken; with the worker, it tells one lease from every other."""
    worker: str | None = None
    """Who has it; None for nobody."""
    retries: int = 0
    """How often its worker died or it hung."""
    spent: int = 0
    """Tokens it was trained on under former leases, repeated ones counted."""
    start: int = 0
    """Tokens at which it goes on."""
    until: int = 0
    """Tokens at which it is to stop."""

    @classmethod
    def of(cls, trial: FrozenTrial) -> "Lease":
        """The lease that the storage has."""
        return cls(**trial.user_attrs.get(LEASE, {}))


class Leases:
    """The leases of one study, as one worker sees them."""

    def __init__(self, study: optuna.Study, storage: BaseStorage, path: Path, worker: str) -> None:
        """Leases for `worker` under the lock file `path`."""
        self.study, self.storage, self.worker, self._path = study, storage, worker, path

    def locked(self) -> Any:
        """The study's lock, as a context; waits for it. Taken before a trial's, never within one."""
        return lock(self._path)

    def alone(self, trial: FrozenTrial) -> Any:
        """The lock of a trial, which it shares with every sixteenth other, as a context; waits for it."""
        return lock(self._path.with_name(f"{self._path.name}-{trial.number % LOCKS:02d}"))

    def _look(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial as it is now."""
        return self.storage.get_trial(trial._trial_id)

    def _write(self, trial: FrozenTrial, lease: Lease) -> None:
        """Replaces the trial's lease."""
        self.storage.set_trial_user_attr(trial._trial_id, LEASE, asdict(lease))

    def waits(self, trial: FrozenTrial) -> bool:
        """Whether the trial still waits, and nobody has had it since it was looked at."""
        return self._same_wait(trial, self._look(trial))

    @staticmethod
    def _same_wait(trial: FrozenTrial, now: FrozenTrial) -> bool:
        """Whether a trial `now` waits as it did."""
        return now.state == TrialState.WAITING and Lease.of(now).attempt == Lease.of(trial).attempt

    def take(self, trial: FrozenTrial, start: int, until: int) -> Lease | None:
        """Takes a waiting trial; None if it no longer waits. Only under its lock."""
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
        self._write(trial, lease)
        return lease

    def holds(self, trial: FrozenTrial, lease: Lease) -> bool:
        """Whether this worker still has the trial."""
        now = self._look(trial)
        return now.state == TrialState.RUNNING and Lease.of(now) == lease

    def give_back(self, trial: FrozenTrial, lease: Lease, spent: int, failed: bool = False) -> bool:
        """Lets a trial wait for the next worker; False if it is no longer as `lease` says. Only under its lock.

        `failed`: its worker died, or it hung, which can happen `MAX_RETRIES` times.

        The lease is written before the state: a worker that dies in between leaves a trial without an owner, which is
        given back once more and costs no retry.
        """
        if not self.holds(trial, lease):
            return False
        counted = int(failed and lease.worker is not None)
        self._write(trial, replace(lease, worker=None, retries=lease.retries + counted, spent=lease.spent + spent))
        self.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        return True

    def close(self, trial: FrozenTrial, lease: Lease, spent: int) -> None:
        """Notes what a trial has cost in the end, before Optuna is told. Only under its lock, by its owner."""
        self._write(trial, replace(lease, spent=lease.spent + spent))
