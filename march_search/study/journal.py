"""Optuna's journal file under a lock that dies with its holder, its torn end cut off before anything is appended."""

import fcntl
import os
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

JOURNAL = "optuna-journal.log"
"""The journal's name in a study's folder."""


class JournalLock:
    """Optuna's lock interface over `flock` on the journal itself, which Linux releases when a process ends.

    Optuna's own lock is a file: one left by a kill holds everybody up for half a minute.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._held = path, -1

    def acquire(self) -> bool:
        """Waits for the lock, then cuts off what a kill left behind the last whole line."""
        self._held = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._held, fcntl.LOCK_EX)
        cut_torn_end(self._held)
        return True

    def release(self) -> None:
        """Lets the next one in."""
        os.close(self._held)


def open_journal(path: Path) -> JournalStorage:
    """The journal at `path`, made if it does not exist, repaired if a kill tore its end."""
    lock = JournalLock(path)
    lock.acquire()
    lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLock(path)))  # type: ignore[arg-type]


def cut_torn_end(descriptor: int) -> None:
    """Ends an open file with its last newline: the next record would be glued to half a line, and both be lost.

    A record is acknowledged after it and its newline are on the disk: half a line was never acknowledged.
    """
    size = end = os.fstat(descriptor).st_size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        end -= 1
    if end < size:
        os.ftruncate(descriptor, end)
