"""Checkpoints of DeepSpeed, each sealed by a manifest of hashes written last; the last two are kept.

DeepSpeed writes in place and pickles: a folder without a manifest, or with a file that differs from it, is never read.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from march_search import seal
from march_search.errors import StorageError
from march_search.training import ranks
from march_search.training.environment import Place

KEEP = 2
"""Checkpoints that are kept: the last one, and the one before in case it is damaged."""


def save(engine: Any, folder: Path, state: dict[str, Any], place: Place) -> None:
    """Writes the engine and `state`, which holds its `step`, and removes the oldest. All ranks call it together.

    Raises:
        StorageError: the folder cannot be written or the disk is full; nothing of this checkpoint is left.
    """
    tag = f"step-{state['step']:09d}"
    if place.is_first:
        shutil.rmtree(folder / tag, ignore_errors=True)
    dist.barrier()
    try:
        engine.save_checkpoint(str(folder), tag=tag, client_state=state, save_latest=False)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's writer of files
            raise
        why = error.strerror if isinstance(error, OSError) else "torch ended before its file did"
        free = shutil.disk_usage(folder).free
        _give_back(folder / tag)
        raise StorageError(f"{folder / tag}: cannot be written: {why} ({free:,} bytes are free).") from None
    ranks.beat()
    dist.barrier()
    if place.is_first:
        seal.seal(folder / tag, _beat)
        for old in _tags(folder)[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)
    dist.barrier()


def load(engine: Any, folder: Path, place: Place) -> tuple[int, float]:
    """Brings `engine` to the newest whole checkpoint; its step and seconds, or zeros. All ranks call it together."""
    chosen: list[str | None] = [None]
    if place.is_first and folder.is_dir():
        whole = [tag for tag in _tags(folder) if _is_whole(tag)]
        chosen[0] = whole[-1].name if whole else None
        for tag in _tags(folder):
            if tag not in whole:
                shutil.rmtree(tag, ignore_errors=True)
    dist.broadcast_object_list(chosen, src=0)
    ranks.beat(ranks.STARTING)
    if chosen[0] is None:
        return 0, 0.0
    _, state = engine.load_checkpoint(str(folder), tag=chosen[0])
    return int(state["step"]), float(state["seconds"])


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`; None if there is none."""
    return next((tag for tag in reversed(_tags(folder)) if _is_whole(tag)), None)


def remove(folder: Path) -> None:
    """Deletes all checkpoints of a trial that needs none any more."""
    shutil.rmtree(folder, ignore_errors=True)


def _give_back(tag: Path) -> None:
    """Deletes a checkpoint that could not be finished, and its bytes though torch still holds its files open."""
    for path in seal.files(tag):
        with contextlib.suppress(OSError):
            os.truncate(path, 0)
    shutil.rmtree(tag, ignore_errors=True)


def _tags(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def _is_whole(tag: Path) -> bool:
    """Whether a checkpoint is as it was sealed; shows that this rank lives while it reads."""
    return seal.is_whole(tag, _beat)


def _beat() -> None:
    """Shows that this rank lives."""
    ranks.beat(ranks.STARTING)
