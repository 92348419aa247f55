"""Loss on the fixed validation set, and how much of it the model owes to its input."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from march_search.data.batches import Batches
from march_search.training.environment import Place


@dataclass(frozen=True)
class Validation:
    """The validation examples, the same in every trial of a study: N examples, I input and T target tokens."""

    inputs_NI: torch.Tensor | None
    """None for a decoder-only model, whose targets are the text."""
    targets_NT: torch.Tensor

    @classmethod
    def of(cls, batches: Batches) -> "Validation":
        """All validation examples."""
        inputs, targets = batches.validation(0, batches.num_validation)
        return cls(None if inputs is None else torch.from_numpy(inputs), torch.from_numpy(targets))


def evaluate(engine: Any, examples: Validation, batch_size: int, place: Place) -> dict[str, float]:
    """Mean validation loss in nats per target token; all ranks call it together and get the same numbers.

    Args:
        engine: the DeepSpeed engine.
        examples: the validation set; each rank takes its share.
        batch_size: examples that are evaluated at once.
        place: this process.

    Returns:
        `loss`; and `context_gain` if there are inputs: the loss with every target paired with the input of the example
        half a validation set away, another document's, minus the loss. 0 means that the input is not used at all.
    """
    total, paired = len(examples.targets_NT), examples.inputs_NI is not None
    first, stop = total * place.rank // place.world_size, total * (place.rank + 1) // place.world_size
    largest_share = math.ceil(total / place.world_size)
    rounds = math.ceil(largest_share / batch_size)  # equal on all ranks: under ZeRO 3 they compute together
    sums = torch.zeros(2, dtype=torch.float64)
    engine.eval()
    for start in range(first, first + rounds * batch_size, batch_size):
        rows = (
            torch.arange(start, min(start + batch_size, stop)) if start < stop else torch.tensor([], dtype=torch.int64)
        )
        sums[0] += _sum(engine, examples, rows, rows, place)
        if paired:
            sums[1] += _sum(engine, examples, (rows + total // 2) % total, rows, place)
    engine.train()
    if place.world_size > 1:
        sums = sums.to(place.device)
        dist.all_reduce(sums)
    loss, swapped_loss = (sums / total).tolist()
    return {"loss": loss, "context_gain": swapped_loss - loss} if paired else {"loss": loss}


def _sum(engine: Any, examples: Validation, inputs: torch.Tensor, targets: torch.Tensor, place: Place) -> float:
    """Sum of the mean losses of these examples; a rank that has none left computes one and leaves it out."""
    dummy = torch.tensor([0])
    every_NI = examples.inputs_NI
    inputs_BI = None if every_NI is None else every_NI[inputs if len(inputs) else dummy].to(place.device)
    targets_BT = examples.targets_NT[targets if len(targets) else dummy].to(place.device)
    with torch.no_grad():
        losses_B = engine(inputs_BI, targets_BT, output="example_losses")
    return float(losses_B[: len(targets)].double().sum())
