"""Compute the loss on the fixed validation set, and how much it depends on the context.

The context is the encoder's input, or for decoder-only models the text more than a few tokens back.

Shape suffixes: N and B examples, I input and T target tokens, P pieces of a text, C tokens of a piece, R = B * P.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from march_search.data.batches import Batches
from march_search.data.store import Store
from march_search.data.text_bytes import bits_per_nat
from march_search.files.atomic import file_sha256, make_folder
from march_search.training import ranks
from march_search.training.engine import RankInfo

CUT = 8
"""Fewest tokens of context that are left when the context of a text is cut."""


@dataclass(frozen=True)
class Validation:
    """Validation examples, the same in every trial of a study: N examples, I input and T target tokens."""

    inputs_NI: torch.Tensor | None
    """Input tokens; None for a decoder-only model, whose targets are the text."""
    targets_NT: torch.Tensor
    bits_per_nat: float | None = None
    """Factor from the loss to bits per byte of the targets' text; None if it is unknown."""
    starts_NT: torch.Tensor | None = None
    """Where documents begin (see `data.documents`), if they are masked; else None."""

    @classmethod
    def of(cls, batches: Batches, store: Store) -> "Validation":
        """Return all validation examples of `batches`, which are cut from `store`."""
        inputs, targets = batches.validation(0, batches.num_validation)
        factor, starts = bits_per_nat(store, targets), batches.document_starts(targets)
        inputs_NI, starts_NT = (None if array is None else torch.from_numpy(array) for array in (inputs, starts))
        return cls(inputs_NI, torch.from_numpy(targets), factor, starts_NT)


@dataclass(frozen=True)
class Evaluation:
    """Loss of each validation example, in nats per target token."""

    losses_N: torch.Tensor
    """Loss of each example with its own input, float64."""
    without_N: torch.Tensor | None
    """Loss without the context: of each target with the input of another document, half a validation set away, or of
    each text with all but its last few tokens cut off (`_text_losses`). None for texts too short to be cut."""
    bits_per_nat: float | None = None
    """Factor from the loss to bits per byte; None if it is unknown."""

    @property
    def values(self) -> dict[str, float]:
        """Mean `loss`, the same as `bits_per_byte`, and `context_gain`: the loss increase without the context.

        The gain is 0 if the model ignores its context.
        """
        loss = float(self.losses_N.mean())
        return (
            {"loss": loss}
            | ({} if self.bits_per_nat is None else {"bits_per_byte": loss * self.bits_per_nat})
            | ({} if self.without_N is None else {"context_gain": float(self.without_N.mean()) - loss})
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
    total, length = examples.targets_NT.shape
    paired = examples.inputs_NI is not None
    has_context = paired or length >= 4 * CUT
    first, stop = total * rank_info.rank // rank_info.world_size, total * (rank_info.rank + 1) // rank_info.world_size
    largest_share = math.ceil(total / rank_info.world_size)
    rounds = math.ceil(largest_share / batch_size)  # equal on all ranks, because ZeRO 3 computes collectively
    losses = torch.zeros(1 + has_context, total, dtype=torch.float64)
    engine.eval()
    for start in range(first, first + rounds * batch_size, batch_size):
        ranks.beat()
        rows = torch.arange(start, max(start, min(start + batch_size, stop)))
        if paired:
            losses[0, rows] = _losses(engine, examples, rows, rows, rank_info)
            losses[1, rows] = _losses(engine, examples, (rows + total // 2) % total, rows, rank_info)
        else:
            losses[:, rows] = _text_losses(engine, examples, rows, rank_info)[: len(losses)]
    engine.train()
    if rank_info.world_size > 1:
        losses = losses.to(rank_info.device)
        dist.all_reduce(losses)  # entries of other ranks' examples are zero
        losses = losses.cpu()
    return Evaluation(losses[0], losses[1] if has_context else None, examples.bits_per_nat)


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


def _text_losses(engine: Any, examples: Validation, rows: torch.Tensor, rank_info: RankInfo) -> torch.Tensor:
    """Return (2, B): the loss of each text, and that loss plus its increase when the context is cut.

    The texts are cut into pieces of `2 * CUT` tokens. Tokens in the second half of a piece still have `CUT` to
    `2 * CUT - 1` tokens of context there, so models of n-grams lose nothing. The increase is their mean, without the
    first piece, whose context is whole. Texts too short for two pieces are not cut. Masked documents stay masked in
    both.
    """
    rows_B = rows if len(rows) else torch.tensor([0])
    targets_BT, every_NT = examples.targets_NT[rows_B].to(rank_info.device), examples.starts_NT
    starts_BT = None if every_NT is None else every_NT[rows_B].to(rank_info.device)
    pieces = targets_BT.shape[1] // (2 * CUT)
    with torch.no_grad():
        losses_BT: torch.Tensor = engine(None, targets_BT, output="token_losses", starts_BT=starts_BT)
        whole_B = losses_BT.mean(1).double()
        increase_B = torch.zeros_like(whole_B)
        if pieces > 1:
            kept, shape_BPC = pieces * 2 * CUT, (len(targets_BT), pieces, 2 * CUT)
            cut_starts_RC = None
            if starts_BT is not None:  # a document that began in an earlier piece begins with its own piece
                offsets_P1 = torch.arange(0, kept, 2 * CUT, device=starts_BT.device)[:, None]
                cut_starts_RC = (starts_BT[:, :kept].view(shape_BPC) - offsets_P1).clamp(min=0).view(-1, 2 * CUT)
            cut_targets_RC = targets_BT[:, :kept].reshape(-1, 2 * CUT)
            cut_RC: torch.Tensor = engine(None, cut_targets_RC, output="token_losses", starts_BT=cut_starts_RC)
            change_BPC = cut_RC.view(shape_BPC) - losses_BT[:, :kept].reshape(shape_BPC)
            increase_B = change_BPC[:, 1:, CUT:].double().mean((1, 2))
    return torch.stack([whole_B, whole_B + increase_B])[:, : len(rows)].cpu()
