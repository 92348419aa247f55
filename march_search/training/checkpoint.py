"""Save and load DeepSpeed checkpoints, each sealed by a manifest of file hashes; keep the last two.

DeepSpeed writes checkpoints in place and pickles them. The manifest is written last, so a folder that has no manifest,
or does not match it, is never read. Unpickling can run any code, so their folder is private, and a checkpoint is loaded
only if no other user could have written it.
"""

import contextlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from march_search.errors import StorageError
from march_search.training import ranks
from march_search.training.engine import RankInfo, from_first
from march_search.trial import manifest

KEEP = 2
"""Number of checkpoints to keep: the newest, and the one before it in case the newest is damaged."""


def save(engine: Any, folder: Path, state: dict[str, Any], rank_info: RankInfo) -> None:
    """Write a checkpoint of the engine and `state`, then remove the oldest checkpoint.

    All ranks must call it together. `state` must contain `step`.

    Raises:
        StorageError: If the folder is not writable or the disk is full. The partial checkpoint is removed.
    """
    tag = f"step-{state['step']:09d}"
    if rank_info.is_first:
        with contextlib.suppress(OSError):  # not all file systems have permissions; `load` judges what there is
            folder.chmod(0o700)
        shutil.rmtree(folder / tag, ignore_errors=True)
    dist.barrier()
    try:
        engine.save_checkpoint(str(folder), tag=tag, client_state=state, save_latest=False)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # raised by torch's file writer
            raise
        reason = error.strerror if isinstance(error, OSError) else "torch could not finish the file"
        free = shutil.disk_usage(folder).free
        _give_back(folder / tag)
        raise StorageError(f"{folder / tag}: cannot be written: {reason} ({free:,} bytes free).") from None
    ranks.beat()
    dist.barrier()
    if rank_info.is_first:
        manifest.write_manifest(folder / tag, _beat)
        for old in _tags(folder)[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)
    dist.barrier()


def load(engine: Any, folder: Path, rank_info: RankInfo) -> tuple[int, float]:
    """Load the newest intact checkpoint into `engine` and delete damaged ones. All ranks must call it together.

    Returns:
        The checkpoint's step and training seconds, or zeros if there is no checkpoint.

    Raises:
        StorageError: If another user wrote the checkpoint or could have.
    """
    chosen = -1
    if rank_info.is_first and folder.is_dir():
        whole = [tag for tag in _tags(folder) if _is_whole(tag)]
        chosen = _step(whole[-1]) if whole else -1
        for tag in _tags(folder):
            if tag not in whole:
                shutil.rmtree(tag, ignore_errors=True)
    chosen = from_first(chosen, rank_info)
    ranks.beat(ranks.STARTING)
    if chosen < 0:
        return 0, 0.0
    name = f"step-{chosen:09d}"
    with _trusted(folder, name) as held:
        _, state = engine.load_checkpoint(str(held), tag=name)
    return int(state["step"]), float(state["seconds"])


def newest(folder: Path) -> Path | None:
    """Return the newest intact checkpoint in `folder`, or None."""
    return next((tag for tag in reversed(_tags(folder)) if _is_whole(tag)), None)


@contextlib.contextmanager
def _trusted(folder: Path, tag: str) -> Iterator[Path]:
    """Check that no other user could have written the checkpoint `tag`, and yield a path to `folder`, held open.

    Nobody can put another folder in its place between the check and the end of the block.

    Raises:
        StorageError: If another user wrote a file, or may write to the folder.
    """
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        owners, is_private = {os.geteuid(), _new_owner(held)}, not os.fstat(held).st_mode & 0o077
        for name in (".", *_inside(held, tag)):
            status = os.stat(name, dir_fd=held, follow_symlinks=False)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                what, remedy = "is a link", "Replace it by the file"
            elif status.st_uid not in owners:
                what, remedy = f"belongs to another user (number {status.st_uid})", "Resume as that user"
            elif status.st_mode & 0o022 and not is_private:
                what, remedy = "can be written by other users", f"If you trust them, run chmod -R go-w {folder}"
            else:
                continue
            raise StorageError(
                f"{folder / name} {what}, and loading a checkpoint can run code from it. {remedy}, or delete {folder} "
                "to train from the start."
            )
        yield Path(f"/proc/self/fd/{held}") if sys.platform == "linux" else folder
    finally:
        os.close(held)


def _inside(held: int, tag: str) -> Iterator[str]:
    """Yield the folder `tag` of an open folder and everything in it, as paths from there."""
    yield tag
    for top, folders, files, _ in os.fwalk(tag, dir_fd=held):
        yield from (os.path.join(top, name) for name in (*folders, *files))  # noqa: PTH118


def _new_owner(held: int) -> int:
    """Return the owner of a new file in an open folder: this user, or whom a network drive replaces all users by."""
    name = f".owner.{os.getpid()}"
    with contextlib.suppress(OSError):
        file = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=held)
        try:
            return os.fstat(file).st_uid
        finally:
            os.close(file)
            os.unlink(name, dir_fd=held)
    return os.geteuid()


def _give_back(tag: Path) -> None:
    """Delete an unfinished checkpoint. Truncating first frees the space even while torch holds the files open."""
    for path in manifest.checkpoint_files(tag):
        with contextlib.suppress(OSError):
            os.truncate(path, 0)
    shutil.rmtree(tag, ignore_errors=True)


def _step(tag: Path) -> int:
    """Return the step of an intact checkpoint."""
    return int(tag.name.removeprefix("step-"))


def _tags(folder: Path) -> list[Path]:
    """Return the checkpoint folders, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def _is_whole(tag: Path) -> bool:
    """Return whether a checkpoint matches its manifest; send heartbeats while reading it."""
    return manifest.is_intact(tag, _beat)


def _beat() -> None:
    """Send a heartbeat."""
    ranks.beat(ranks.STARTING)
