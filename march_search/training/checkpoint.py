"""Save and load DeepSpeed checkpoints, each sealed by a manifest of file hashes; keep the last two.

DeepSpeed writes checkpoints in place and pickles them. The manifest is written last, so a folder that has no manifest,
or does not match it, is never read.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from march_search.errors import StorageError
from march_search.training import ranks
from march_search.training.engine import RankInfo
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
    """
    chosen: list[str | None] = [None]
    if rank_info.is_first and folder.is_dir():
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
    """Return the newest intact checkpoint in `folder`, or None."""
    return next((tag for tag in reversed(_tags(folder)) if _is_whole(tag)), None)


def remove(folder: Path) -> None:
    """Delete all checkpoints of a trial that no longer needs them."""
    shutil.rmtree(folder, ignore_errors=True)


def _give_back(tag: Path) -> None:
    """Delete an unfinished checkpoint. Truncating first frees the space even while torch holds the files open."""
    for path in manifest.checkpoint_files(tag):
        with contextlib.suppress(OSError):
            os.truncate(path, 0)
    shutil.rmtree(tag, ignore_errors=True)


def _tags(folder: Path) -> list[Path]:
    """Return the checkpoint folders, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def _is_whole(tag: Path) -> bool:
    """Return whether a checkpoint matches its manifest; send heartbeats while reading it."""
    return manifest.is_intact(tag, _beat)


def _beat() -> None:
    """Send a heartbeat."""
    ranks.beat(ranks.STARTING)
