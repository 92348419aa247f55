"""Files of tensors."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from march_search.errors import StorageError


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file at `path` and brings it to the disk; readable by whom new files here are readable.

    Raises:
        StorageError: the folder cannot be written or the disk is full; no file is left.
    """
    try:
        path.touch()
        mode = path.stat().st_mode
        save_file(dict(tensors), path, metadata={"format": "pt"})  # takes every right from others
        path.chmod(mode)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):  # on a read-only disk
            path.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written: {error}.") from None
