"""The optimizer: parameter groups by weight decay and learning rate, schedules, and AdamW without torch's compiler."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from march_search.architecture.architecture import Architecture
from march_search.config import TrainingConfig
from march_search.config.scaling import FAN_IN, factors, muon_factor
from march_search.model.block_layer import BlockLayer
from march_search.model.init import all_kinds

Piece = tuple[int, int, float]
"""Rows and columns of a matrix, and the factor on its learning rate."""


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate and weight decay."""

    decays: bool
    """Whether weight decay applies."""
    factor: float
    """Learning rate, as a multiple of the trial's."""
    parameters: dict[str, nn.Parameter]
    """Parameters by name."""
    pieces: tuple[Piece, ...] = ()
    """For Muon, the matrices that the parameters consist of, in order; empty for AdamW."""

    def settings(self, training: TrainingConfig) -> dict[str, Any]:
        """Return the learning rate and weight decay for AdamW.

        AdamW shrinks a weight by learning rate times weight decay. Dividing the decay by the factor keeps this product
        the same for all shapes and groups. Otherwise, with a learning rate proportional to one over the width, decay
        would vanish in wide models (Dey et al. 2025, table 1, where a matrix's decay grows as its rate falls).
        """
        decay = training.weight_decay / self.factor if self.decays else 0.0
        settings = {"lr": training.learning_rate * self.factor, "weight_decay": decay}
        return settings | ({"pieces": list(self.pieces)} if self.pieces else {})

    def describe(self, training: TrainingConfig) -> dict[str, Any]:
        """Return a JSON description of the group, to be recorded before ZeRO partitions the parameters."""
        settings, by = self.settings(training), "Muon, " if self.pieces else ""
        return {
            "name": f"{by}{'with' if self.decays else 'no'} weight decay, rate x {self.factor:.4g}",
            "rate_factor": self.factor,
            "learning_rate": settings["lr"],
            "weight_decay": settings["weight_decay"],
            "num_params": sum(p.numel() for p in self.parameters.values()),
            "parameters": list(self.parameters),
        }


def parameter_groups(model: nn.Module, base: Architecture | None, optimizer: str = "adamw") -> list[Group]:
    """Return groups that contain each parameter of `model` once, sorted by weight decay first, then higher rates first.

    Weight decay applies to matrices, but not to norms, no-op keys or position tables. With `muon`, the first group has
    the matrices of layers, which Muon trains, except those of a user's block.
    """
    rates, groups = _rates(model, base), dict[tuple[bool, float], dict[str, nn.Parameter]]()
    pieces = _pieces(model, base) if optimizer == "muon" else {}
    matrices = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in pieces}
    for name, parameter in model.named_parameters():
        if name in matrices:
            continue
        is_table = name.endswith(("position_embedding", "relative_bias"))
        key = parameter.ndim >= 2 and not is_table, rates[id(parameter)]
        groups.setdefault(key, {})[name] = parameter
    own = tuple(piece for parameter in matrices.values() for piece in pieces[id(parameter)])
    muon = [Group(True, 1.0, matrices, own)] if matrices else []
    return muon + [Group(*key, groups[key]) for key in sorted(groups, reverse=True)]


def _pieces(model: nn.Module, base: Architecture | None) -> dict[int, list[Piece]]:
    """Return the matrices in each parameter that Muon trains, by its `id`; keys and values, gate and up are two."""
    pieces: dict[int, list[Piece]] = {}
    own = {id(p) for layer in model.modules() if isinstance(layer, BlockLayer) for p in layer.parameters()}
    for kind, weight, sizes in all_kinds(model):
        if kind in FAN_IN and id(weight) not in own and (weight._base is None or id(weight._base) not in own):
            whole = weight if weight._base is None else weight._base
            parts = 2 if kind in ("kv", "kv_layer") else len(weight) // sizes["d_ff"] if kind == "wi" else 1
            rows, columns = len(weight) // parts, weight.shape[1]
            piece = rows, columns, muon_factor(kind, rows, columns, sizes, base)
            pieces.setdefault(id(whole), []).extend([piece] * parts)
    return pieces


def _rates(model: nn.Module, base: Architecture | None) -> dict[int, float]:
    """Return the learning rate factor of each parameter, by its `id`."""
    rates: dict[int, float] = {}
    for kind, weight, sizes in all_kinds(model):
        whole = weight if weight._base is None else weight._base  # `weight` may be a slice of a matrix
        rate = factors(kind, sizes, base).rate
        assert rates.setdefault(id(whole), rate) == rate, "one parameter has one learning rate"
    return rates


DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "1-sqrt": lambda done: 1 - math.sqrt(done),
}
"""Learning rate during the decay, from 1 to 0, as a function of the fraction of the decay that is done."""


def schedule(training: TrainingConfig) -> Callable[[int], float]:
    """Return the factor as a function of the step: a linear rise over `warmup_tokens`, then the configured schedule."""
    warmup = math.ceil(training.warmup_tokens / training.global_batch_tokens)
    end, start, is_wsd = training.final_learning_rate, warmup, training.schedule == "wsd"
    decay = DECAYS[training.decay_shape if is_wsd else training.schedule]
    if is_wsd:
        start = training.steps - training.decay_tokens(training.tokens) // training.global_batch_tokens

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if training.schedule == "constant" or step < start:
            return 1.0
        done = min(1.0, (step - start) / max(1, training.steps - start))
        return end + (1 - end) * decay(done)

    return factor


_TORCHS = torch.optim.AdamW

ADAMW_STEP = torch.no_grad()(inspect.unwrap(_TORCHS.step))
"""AdamW's step without the hooks that torch adds to a class when it is first used."""


class AdamW(_TORCHS):
    """torch's AdamW with its methods unwrapped; the wrappers import the compiler only to disable it."""

    step = ADAMW_STEP
    add_param_group = inspect.unwrap(_TORCHS.add_param_group)
    load_state_dict = inspect.unwrap(_TORCHS.load_state_dict)
    zero_grad = inspect.unwrap(_TORCHS.zero_grad)
