"""Save and load a trial's weights: weights.safetensors if it is complete, else its newest DeepSpeed checkpoint."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from march_search.errors import StorageError
from march_search.files import save_tensors
from march_search.training import checkpoint
from march_search.training.engine import RankInfo

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
    """Return the final weights of the trial in `folder` if it is complete, else those of its newest checkpoint.

    Raises:
        StorageError: If there are no weights, or they are damaged.
    """
    try:
        if (folder / NAME).is_file():
            return load_file(folder / NAME)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{folder / NAME}: cannot be read ({error}).") from None
    tag = checkpoint.newest(folder / "checkpoints")
    if tag is None:
        raise StorageError(
            f"{folder} has no weights: a complete trial keeps them only if keep_weights is true, an unfinished trial "
            "only if it has written a checkpoint."
        )
    return _of_checkpoint(tag)


def _of_checkpoint(tag: Path) -> dict[str, Tensor]:
    """Return the model's weights in one checkpoint; under ZeRO 3, merge the fp32 shards of all ranks."""
    whole = tag / "mp_rank_00_model_states.pt"
    if whole.is_file():
        module: dict[str, Tensor] = torch.load(whole, map_location="cpu", weights_only=True)["module"]
        return module
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(sys.stderr):
        return dict(get_fp32_state_dict_from_zero_checkpoint(str(tag.parent), tag=tag.name))
