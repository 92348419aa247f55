"""Open Optuna's journal file: locked by its process, every record sealed, damage named by its line.

An incomplete last line, which a killed process leaves, is removed. Any other line that is not a whole record is damage.
"""

import errno
import fcntl
import json
import os
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

from optuna.exceptions import OptunaError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from march_search.errors import StorageError

JOURNAL = "optuna-journal.log"
"""File name of the journal in a study folder."""

RESTORE = "Restore a copy of it, or move it away and run the study again: trials that have a result keep it."
"""What to do about a damaged storage."""

_SEAL = "crc32"
"""Key of a record's checksum. Optuna ignores it, and records that other programs write do not have it."""


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


class SealedJournal(JournalFileBackend):
    """Optuna's journal file, with a checksum in every record that this program writes."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=JournalLock(path))  # type: ignore[arg-type]
        self._path = path
        self._ends = [0]
        """Offset in the file at which each record starts, as far as it was read, and at which the last one ends."""
        self.line = 0
        """Number of the line that was read last, from 1."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records, each with its checksum."""
        super().append_logs([{**log, _SEAL: _checksum(log)} for log in logs])

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the records from the given number on, counted from 0. An incomplete last line is not a record yet.

        Raises:
            StorageError: If a line is damaged.
        """
        first = min(log_number_from, len(self._ends) - 1)
        with self._path.open("rb") as file:
            file.seek(self._ends[first])
            for number, found in enumerate(file, start=first):
                self.line, line = number + 1, found
                record, fault = _parse(line)
                if fault:  # another process may be about to remove or write this line: look again when nobody is
                    line = self._settled(number)
                    record, fault = _parse(line)
                    file.seek(self._ends[number] + len(line))  # the line may have been written to its end meanwhile
                if not line.endswith(b"\n"):
                    return
                if fault:
                    raise self.damage(fault)
                if len(self._ends) == number + 1:
                    self._ends.append(self._ends[number] + len(line))
                if number >= log_number_from:
                    yield record

    def _settled(self, number: int) -> bytes:
        """Return the line with this number, read while no process writes."""
        with self._path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            file.seek(self._ends[number])
            return file.readline()

    def damage(self, reason: str) -> StorageError:
        """Return the error for the line that was read last."""
        return StorageError(f"{self._path} is damaged in line {self.line:,}: {reason}. {RESTORE}")


class _Journal(JournalStorage):
    """Optuna's journal storage; a record that cannot be applied is named by its line."""

    def __init__(self, journal: SealedJournal) -> None:
        self._journal = journal
        super().__init__(journal)

    def _sync_with_backend(self) -> None:
        try:
            super()._sync_with_backend()
        except (StorageError, OptunaError, OSError):
            raise
        except Exception as error:
            raise self._journal.damage(f"the record cannot be applied ({type(error).__name__})") from error


def open_journal(path: Path) -> JournalStorage:
    """Open the journal at `path`; create it if it does not exist and remove an incomplete last line.

    A user who may only read it opens it unchanged.

    Raises:
        StorageError: If it cannot be opened or is damaged.
    """
    lock = JournalLock(path)
    try:
        lock.acquire()
        lock.release()
    except OSError as error:
        is_readable = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and os.access(path, os.R_OK)
        if not is_readable:
            raise StorageError(f"{path} cannot be opened: {error.strerror}.") from None
    return _Journal(SealedJournal(path))


def cut_torn_end(descriptor: int) -> None:
    """Truncate an open file after its last newline, so that the next record does not join an incomplete line.

    Nothing acknowledged is lost: a record is acknowledged only after it and its newline are on the disk.
    """
    size = end = os.fstat(descriptor).st_size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        end -= 1
    if end < size:
        os.ftruncate(descriptor, end)


def _parse(line: bytes) -> tuple[dict[str, Any], str]:
    """Return the record in a line, without its checksum, and what is wrong with the line; empty if nothing is."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        return {}, "it is not a record"
    seal = record.pop(_SEAL, None)
    return record, "" if seal is None or seal == _checksum(record) else "it does not match its checksum"


def _checksum(log: dict[str, Any]) -> str:
    """Return the checksum of a record as eight hexadecimal digits."""
    return f"{zlib.crc32(json.dumps(log, separators=(',', ':')).encode()):08x}"
