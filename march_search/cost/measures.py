"""Measures of a shape that follow from the cost model, and the objectives of a study made of them."""

from collections.abc import Callable
from typing import Any

from march_search.architecture import parameters
from march_search.architecture.architecture import Architecture
from march_search.config.study_config import StudyConfig
from march_search.cost import memory, speed
from march_search.cost.setup import Setup, study_setup


def depth(shape: Any, _: Setup) -> Any:
    """Return the number of layers of all stacks together."""
    return sum(num_layers for _, num_layers in parameters.stacks(shape))


SHAPE_MEASURES: dict[str, Callable[[Any, Setup], Any]] = {
    "flops": speed.flops_per_token,
    "depth": depth,
    "memory": memory.memory_bytes,
    "hours": speed.hours,
    "tokens_per_second": speed.tokens_per_second,
}
"""Functions of a shape, whose numbers may be int64 arrays, and the setup of a trial: operations per token, layers of
all stacks, bytes per device, hours per trial, and tokens per second of all devices."""


def objective_value(objective: str, a: Architecture, config: StudyConfig) -> float:
    """Return the value of an objective that depends only on the shape, to be minimized; negated for the prefix `-`.

    Memory and speed come from the cost model for the devices of the 2023 study. Other devices order shapes alike.
    """
    name = objective.removeprefix("-")
    value = a.num_params if name == "params" else SHAPE_MEASURES[name](a, study_setup(config))
    return float(value) * (-1 if objective != name else 1)
