"""Write tensors to safetensors files."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from march_search.errors import StorageError


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file to `path`, with default file permissions, and sync it to disk.

    Raises:
        StorageError: If the folder is not writable or the disk is full. No partial file remains.
    """
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
