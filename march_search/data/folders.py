"""Folders that appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path | None]:
    """A folder beside `folder` that takes its name at the end, or None if `folder` is there already.

    It holds what a writer that was stopped or ran out of disk left there; `discard` removes it.
    """
    if folder.is_dir():
        yield None
        return
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    yield partial
    sync(partial)
    partial.rename(folder)
    sync(folder.parent)


def discard(folder: Path) -> None:
    """Removes a folder and all that is in it, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def sync(path: Path) -> None:
    """Brings a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
