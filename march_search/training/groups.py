"""The optimizer's parameter groups: those with and without weight decay, apart by learning rate."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from march_search.architecture import Architecture
from march_search.config import TrainingConfig
from march_search.model.init import all_kinds
from march_search.scaling import factors


@dataclass(frozen=True)
class Group:
    """Parameters with the same learning rate and weight decay."""

    decays: bool
    """Whether they have weight decay."""
    factor: float
    """Their learning rate, as a multiple of the trial's."""
    parameters: dict[str, nn.Parameter]
    """By name."""

    def settings(self, training: TrainingConfig) -> dict[str, Any]:
        """Learning rate and weight decay, for AdamW.

        AdamW takes learning rate times weight decay off a weight. Decay is divided by the factor, so that this product
        is the same for all shapes and groups: with a rate of one over the width, decay would vanish in wide models (Dey
        et al. 2025, table 1, whose decay of a matrix grows as its rate falls).
        """
        decay = training.weight_decay / self.factor if self.decays else 0.0
        return {"lr": training.learning_rate * self.factor, "weight_decay": decay}

    def describe(self, training: TrainingConfig) -> dict[str, Any]:
        """What a reader needs to know of it, before ZeRO takes the parameters apart."""
        settings = self.settings(training)
        return {
            "name": f"{'with' if self.decays else 'no'} weight decay, rate x {self.factor:.4g}",
            "rate_factor": self.factor,
            "learning_rate": settings["lr"],
            "weight_decay": settings["weight_decay"],
            "num_params": sum(p.numel() for p in self.parameters.values()),
            "parameters": list(self.parameters),
        }


def parameter_groups(model: nn.Module, base: Architecture | None) -> list[Group]:
    """Groups that hold each parameter of `model` once: those with weight decay first, higher rates first.

    Matrices decay; norms, no-op keys and position tables do not.
    """
    rates, groups = _rates(model, base), dict[tuple[bool, float], dict[str, nn.Parameter]]()
    for name, parameter in model.named_parameters():
        is_table = name.endswith(("position_embedding", "relative_bias"))
        key = parameter.ndim >= 2 and not is_table, rates[id(parameter)]
        groups.setdefault(key, {})[name] = parameter
    return [Group(*key, groups[key]) for key in sorted(groups, reverse=True)]


def _rates(model: nn.Module, base: Architecture | None) -> dict[int, float]:
    """The factor of each parameter's learning rate, by its `id`."""
    rates: dict[int, float] = {}
    for kind, weight, sizes in all_kinds(model):
        whole = weight if weight._base is None else weight._base  # a slice of queries, or of keys and values
        rate = factors(kind, sizes, base).rate
        assert rates.setdefault(id(whole), rate) == rate, "one parameter has one learning rate"
    return rates
