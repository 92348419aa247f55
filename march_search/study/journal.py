"""Open Optuna's journal file with a lock that ends with its process, and repair an incomplete last line."""

import fcntl
import os
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

JOURNAL = "optuna-journal.log"
"""File name of the journal in a study folder."""


class JournalLock:
    """Optuna's lock interface, implemented with `flock` on the journal; Linux releases it when the process ends.

    Optuna's own lock is a file; if its process is killed, the file blocks all workers for half a minute.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._held = path, -1

    def acquire(self) -> bool:
        """Wait for the lock, then remove an incomplete last line that a killed process left."""
        self._held = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._held, fcntl.LOCK_EX)
        cut_torn_end(self._held)
        return True

    def release(self) -> None:
        """Release the lock."""
        os.close(self._held)


def open_journal(path: Path) -> JournalStorage:
    """Open the journal at `path`; create it if it does not exist and remove an incomplete last line."""
    lock = JournalLock(path)
    lock.acquire()
    lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLock(path)))  # type: ignore[arg-type]


def cut_torn_end(descriptor: int) -> None:
    """Truncate an open file after its last newline, so that the next record does not join an incomplete line.

    Nothing acknowledged is lost: a record is acknowledged only after it and its newline are on the disk.
    """
    size = end = os.fstat(descriptor).st_size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        end -= 1
    if end < size:
        os.ftruncate(descriptor, end)
