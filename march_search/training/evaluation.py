"""Compute the loss on the fixed validation set, and how much it depends on the encoder's input."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from march_search.data.batches import Batches
from march_search.files.atomic import file_sha256, make_folder
from march_search.training import ranks
from march_search.training.engine import RankInfo


@dataclass(frozen=True)
class Validation:
    """Validation examples, the same in every trial of a study: N examples, I input and T target tokens."""

    inputs_NI: torch.Tensor | None
    """Input tokens; None for a decoder-only model, whose targets are the text."""
    targets_NT: torch.Tensor

    @classmethod
    def of(cls, batches: Batches) -> "Validation":
        """Return all validation examples."""
        inputs, targets = batches.validation(0, batches.num_validation)
        return cls(None if inputs is None else torch.from_numpy(inputs), torch.from_numpy(targets))


@dataclass(frozen=True)
class Evaluation:
    """Loss of each validation example, in nats per target token."""

    losses_N: torch.Tensor
    """Loss of each example with its own input, float64."""
    swapped_N: torch.Tensor | None
    """Loss of each target with the input of another document, half a validation set away; None without inputs."""

    @property
    def values(self) -> dict[str, float]:
        """Mean `loss`, and `context_gain`: the loss increase with swapped inputs, 0 if the model ignores its inputs."""
        loss = float(self.losses_N.mean())
        return {"loss": loss} | (
            {} if self.swapped_N is None else {"context_gain": float(self.swapped_N.mean()) - loss}
        )

    def keep(self, file: Path) -> str:
        """Write the losses to `file`, as a float32 NumPy array with the same examples in every trial.

        Returns:
            The SHA-256 of the file, which is replaced atomically.
        """
        make_folder(file.parent)
        temporary = file.with_suffix(".new")
        with temporary.open("wb") as out:
            np.save(out, self.losses_N.to(torch.float32).numpy())
            out.flush()
            os.fsync(out.fileno())
        seal = file_sha256(temporary)
        temporary.replace(file)
        return seal


def evaluate(engine: Any, examples: Validation, batch_size: int, rank_info: RankInfo) -> Evaluation:
    """Return the validation losses. All ranks must call it together and get the same numbers.

    Args:
        engine: DeepSpeed engine.
        examples: Validation set, which is divided among the ranks.
        batch_size: Number of examples per batch.
        rank_info: Rank and device of this process.
    """
    total, paired = len(examples.targets_NT), examples.inputs_NI is not None
    first, stop = total * rank_info.rank // rank_info.world_size, total * (rank_info.rank + 1) // rank_info.world_size
    largest_share = math.ceil(total / rank_info.world_size)
    rounds = math.ceil(largest_share / batch_size)  # equal on all ranks, because ZeRO 3 computes collectively
    losses = torch.zeros(1 + paired, total, dtype=torch.float64)
    engine.eval()
    for start in range(first, first + rounds * batch_size, batch_size):
        ranks.beat()
        rows = torch.arange(start, max(start, min(start + batch_size, stop)))
        losses[0, rows] = _losses(engine, examples, rows, rows, rank_info)
        if paired:
            losses[1, rows] = _losses(engine, examples, (rows + total // 2) % total, rows, rank_info)
    engine.train()
    if rank_info.world_size > 1:
        losses = losses.to(rank_info.device)
        dist.all_reduce(losses)  # entries of other ranks' examples are zero
        losses = losses.cpu()
    return Evaluation(losses[0], losses[1] if paired else None)


def _losses(
    engine: Any, examples: Validation, inputs: torch.Tensor, targets: torch.Tensor, rank_info: RankInfo
) -> torch.Tensor:
    """Return the losses of these examples. A rank without examples computes a dummy one and discards it."""
    dummy = torch.tensor([0])
    every_NI = examples.inputs_NI
    inputs_BI = None if every_NI is None else every_NI[inputs if len(inputs) else dummy].to(rank_info.device)
    targets_BT = examples.targets_NT[targets if len(targets) else dummy].to(rank_info.device)
    with torch.no_grad():
        losses_B: torch.Tensor = engine(inputs_BI, targets_BT, output="example_losses")
    return losses_B[: len(targets)].double().cpu()
