"""Workers of a study: their records in the storage, their heartbeats, and how others detect that one has died.

The clocks of two machines are never compared. A worker counts its heartbeats, and an observer records, on its own
clock, when the count last changed. On the same machine, a lock that the kernel releases shows a death at once.
"""

import fcntl
import os
import platform
import time
import uuid
from collections.abc import Set
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from march_search.files.atomic import make_folder, try_lock

PREFIX = "worker:"
"""Prefix of the study's user attributes that hold worker records."""

SILENT = 2.5
"""Heartbeat intervals without a heartbeat after which a worker counts as dead; with the polling delay, under three."""

STOP = "stop"
"""User attribute of the study that asks all workers to save and stop."""


@dataclass(frozen=True, kw_only=True)
class WorkerRecord:
    """A worker's record."""

    host: str
    boot: str
    """Boot ID of the machine; empty if unknown."""
    pid: int
    interval: float
    """Seconds between two heartbeats."""
    slots: int
    """Number of trials it can run at a time."""
    count: int = 0
    """Number of heartbeats so far."""
    at: float = 0.0
    """Time of the last heartbeat by the host's clock; for display only."""
    ended: bool = False
    """Whether the worker left normally."""


class Heartbeat:
    """Heartbeat of this process as a worker."""

    def __init__(self, study: optuna.Study, folder: Path, interval: float, slots: int) -> None:
        """Create a worker of `study` whose lock file is in `folder`."""
        self._study, self._due = study, 0.0
        self.record = WorkerRecord(host=platform.node(), boot=boot(), pid=os.getpid(), interval=interval, slots=slots)
        self.worker = f"{platform.node()[:32]}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._path = make_folder(folder) / f"{self.worker}.lock"
        while (held := try_lock(self._path)) is None or not self._path.exists():  # it was cleared before it was locked
            pass
        self._held = held

    def due(self) -> bool:
        """Return whether the next heartbeat is due."""
        return time.monotonic() >= self._due

    def tick(self, ended: bool = False) -> None:
        """Send a heartbeat; the last one if the worker has `ended`."""
        record = asdict(self.record) | {"count": self.record.count + 1, "at": time.time(), "ended": ended}
        self._study.set_user_attr(PREFIX + self.worker, record)
        self.record = WorkerRecord(**record)
        self._due = time.monotonic() + self.record.interval

    def leave(self) -> None:
        """Send the last heartbeat, so that other workers do not wait for this one."""
        self.tick(ended=True)
        self.close()

    def close(self) -> None:
        """Delete the lock file and release its lock."""
        with suppress(OSError):
            self._path.unlink()
        self._held.close()


class Liveness:
    """Liveness of the other workers, as one process observes it by its own clock."""

    def __init__(self, folder: Path, interval: float) -> None:
        """Start without observations.

        Args:
            folder: Folder of the workers' lock files.
            interval: Heartbeat interval in seconds, for workers without a record.
        """
        self._folder, self._interval = folder, interval
        self._seen: dict[Any, tuple[Any, float]] = {}

    def silent(self, key: Any, records: dict[str, WorkerRecord], worker: str) -> bool:
        """Return whether `worker` must be dead: it left, its lock is free, or its heartbeat count has not changed.

        That counts after `SILENT` intervals. `key` names what is observed, such as a trial's attempt.
        """
        record = records.get(worker)
        if record and (record.ended or has_exited(self._folder, worker, record)):
            return True
        now, mark = time.monotonic(), (worker, record.count if record else 0)
        last, since = self._seen.get(key, (None, 0.0))
        if last != mark:
            self._seen[key] = (mark, now)
            return False
        return now - since > SILENT * (record.interval if record else self._interval)


def has_exited(folder: Path, worker: str, record: WorkerRecord) -> bool:
    """Return whether a worker of this machine has exited, so that the kernel released its lock file in `folder`."""
    if not record.boot or record.boot != boot():
        return False
    try:
        with (folder / f"{worker}.lock").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def worker_records(study: optuna.Study) -> dict[str, WorkerRecord]:
    """Return the records of the workers of a study by name, without those that were cleared."""
    attrs = {key.removeprefix(PREFIX): value for key, value in study.user_attrs.items() if key.startswith(PREFIX)}
    return {name: WorkerRecord(**value) for name, value in attrs.items() if value is not None}


def clear(study: optuna.Study, folder: Path, worker: str) -> None:
    """Clear the record of a worker that left or died, and delete its lock file if no process holds it.

    Optuna cannot delete an attribute of a study, so its value becomes None. A worker that was only slow writes its
    record again with its next heartbeat.
    """
    study.set_user_attr(PREFIX + worker, None)
    _delete_free(folder / f"{worker}.lock")


def _delete_free(path: Path) -> None:
    """Delete a lock file unless a process holds its lock."""
    if path.exists() and (held := try_lock(path)):
        with held:
            path.unlink(missing_ok=True)


def clear_dead(study: optuna.Study, folder: Path, needed: Set[str | None]) -> None:
    """Clear the workers that left, or died on this machine, and lock files without a record, except those in `needed`.

    Args:
        study: The study.
        folder: Folder of the workers' lock files.
        needed: Workers that hold a trial according to the storage.
    """
    records = worker_records(study)
    for name in sorted(records.keys() - needed):
        if records[name].ended or has_exited(folder, name, records[name]):
            clear(study, folder, name)
    for path in folder.glob("*.lock"):
        if path.stem not in {*records, *needed}:
            _delete_free(path)


def is_in_use(folder: Path) -> bool:
    """Return whether a process holds the lock of a worker or of a trial of the study in `folder`."""
    paths = (*folder.glob("workers/*.lock"), *folder.glob("trials/*/.fence"), *folder.glob("trials/*/lock"))
    for path in paths:
        held = try_lock(path)
        if held is None:
            return True
        held.close()
    return False


def boot() -> str:
    """Return the boot ID of this machine; empty if Linux does not provide it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
