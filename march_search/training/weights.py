"""Save and load the weights of a complete trial, as weights.safetensors."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from march_search.errors import StorageError
from march_search.files.atomic import save_tensors
from march_search.files.json_tables import find_table
from march_search.training.engine import RankInfo
from march_search.trial.result import RESULT, WEIGHTS_SEAL, check_file

NAME = "weights.safetensors"


def save(engine: Any, folder: Path, rank_info: RankInfo) -> None:
    """Write weights.safetensors atomically, in the training precision. All ranks must call it together.

    Raises:
        StorageError: If the folder is not writable or the disk is full.
    """
    import deepspeed

    tensors = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):  # gathers the shards of ZeRO 3
            if rank_info.is_first:
                tensors[name] = parameter.detach().cpu().clone()
    if rank_info.is_first:
        partial = folder / f".{NAME}.partial"
        save_tensors(tensors, partial)
        partial.replace(folder / NAME)


def load(folder: Path) -> dict[str, Tensor]:
    """Return the final weights of the complete trial in `folder`. Checkpoints are not read, because they are pickles.

    Raises:
        StorageError: If there are no weights, or they cannot be read.
        DataError: If they do not match the SHA-256 in result.json.
    """
    try:
        tensors = load_file(folder / NAME)
    except FileNotFoundError:
        raise StorageError(
            f"{folder} has no weights: a complete trial keeps them only if keep_weights is true; resume an unfinished "
            "trial to its end first."
        ) from None
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{folder / NAME}: cannot be read ({error}).") from None
    check_file(folder / NAME, find_table(folder / RESULT) or {}, WEIGHTS_SEAL)
    return tensors
