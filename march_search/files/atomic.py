"""Files and folders that are written whole or not at all, text, and locks that are released when the process ends."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from march_search.errors import DataError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""OSError numbers for a full, over-quota or read-only disk."""


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically: readers see the old file or the complete new one, even after a crash.

    Raises:
        StorageError: If the folder cannot be written or the disk is full. An existing file is left unchanged.
    """
    _write(path, text.encode())


def _write(path: Path, content: bytes) -> None:
    """Write `content` as `write_text` does."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process, or a link that another user put there
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # on a read-only disk
            temporary.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written: {error.strerror}.") from None


def write_output(path: Path, content: str | bytes) -> None:
    """Write a file that the user named: a new or regular file atomically, anything else through what is there.

    A device, a pipe and the target of a symbolic link are written, and stay what they are.

    Raises:
        StorageError: If it cannot be written.
    """
    content = content.encode() if isinstance(content, str) else content
    try:
        if not os.path.lexists(path) or stat.S_ISREG(path.lstat().st_mode):
            _write(path, content)
            return
        with path.open("wb") as file:
            file.write(content)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}.") from None


def make_folder(path: Path) -> Path:
    """Create the folder `path` if needed, check that it is writable, and return it.

    Raises:
        StorageError: If the folder cannot be created or written. The message gives the reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}. Choose another folder with --root.") from None
    check_writable(path)
    return path


def check_writable(path: Path) -> None:
    """Check that the folder `path` is writable, or can be created; nothing is left behind.

    Raises:
        StorageError: If it is not. The message gives the reason.
    """
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.lexists(folder))
    probe = there / f".probe.{os.getpid()}.{threading.get_ident()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}. Choose another folder with --root.") from None


def private_folder(path: Path) -> Path:
    """Create a folder with a known name under the temporary folder, for this user only, and return it.

    Raises:
        StorageError: If the folder cannot be created, or its name is taken by another user or by something else.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise StorageError(
                f"{path}: is not a folder of this user, so its files cannot be trusted. Remove it, or set TMPDIR to a "
                "folder of your own."
            )
        path.chmod(0o700)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}. Set TMPDIR to another folder.") from None
    return path


@contextmanager
def lock(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` until the block or the process ends.

    Args:
        path: Lock file, created if missing.
        busy: Error message if the lock is already held. None waits for the lock instead.

    Raises:
        StorageError: If the file cannot be created, if its file system has no locks, or if `busy` is given and the lock
            is already held.
    """
    try:
        opened = path.open("a")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}.") from None
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise StorageError(busy) from None
        except OSError as error:
            raise _no_locks(path, error) from None
        yield


def _no_locks(path: Path, error: OSError) -> StorageError:
    """Return the error for a file system without locks."""
    return StorageError(f"{path}: cannot be locked: {error.strerror}. Use a file system that has flock.")


def try_lock(path: Path) -> IO[str] | None:
    """Open the file `path` and lock it exclusively until it is closed; return None if it is already locked.

    Raises:
        StorageError: If the file cannot be created or its file system has no locks.
    """
    try:
        file = path.open("a")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}.") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        file.close()
        raise _no_locks(path, error) from None
    return file


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file.

    Raises:
        DataError: If the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}).") from None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        DataError: If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None


def expanded(name: str) -> Path:
    """Return a path with `~` and `~user` replaced by the home folder.

    Raises:
        DataError: If the user does not exist or has no home folder.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise DataError(f"{name}: no such user, or the user has no home folder.") from None


def one_line(error: BaseException) -> str:
    """Return the first line of an error message, without a trailing full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path | None]:
    """Yield a temporary folder that is renamed to `folder` at the end, or None if `folder` already exists.

    The temporary folder is next to `folder` and keeps its files if the writer is stopped or fails, so the next writer
    finds them. Use `discard_folder` to remove it.
    """
    if folder.is_dir():
        yield None
        return
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    yield partial
    sync_folder(partial)
    partial.rename(folder)
    sync_folder(folder.parent)


def discard_folder(folder: Path) -> None:
    """Remove a folder and its contents, if it exists."""
    shutil.rmtree(folder, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Flush the entries of a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_tensors(tensors: "Mapping[str, Tensor]", path: Path) -> None:
    """Write a safetensors file to `path`, with default file permissions, and sync it to disk.

    Raises:
        StorageError: If the folder is not writable or the disk is full. The file at `path` is then
            removed, also one that was there before.
    """
    from safetensors import SafetensorError  # here, because loading torch takes seconds and most callers need none
    from safetensors.torch import save_file

    try:
        path.touch()
        mode = path.stat().st_mode
        save_file(dict(tensors), path, metadata={"format": "pt"})  # makes the file private
        path.chmod(mode)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):  # the disk may be read-only
            path.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written: {error}.") from None
