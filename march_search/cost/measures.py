"""Measures of a shape that follow from the cost model, and the objectives of a study made of them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from march_search.architecture import parameters
from march_search.architecture.architecture import Architecture
from march_search.cost import inference, memory, speed
from march_search.cost.setup import Setup, study_setup

if TYPE_CHECKING:
    from march_search.config.study_config import StudyConfig


def depth(shape: Any, _: Setup) -> Any:
    """Return the number of layers of all stacks together."""
    return sum(num_layers for _, num_layers in parameters.stacks(shape))


def params(shape: Any, _: Setup) -> Any:
    """Return the number of parameters; tied embeddings and shared layers count once."""
    return sum(parameters.param_groups(shape).values())


def params_non_embedding(shape: Any, _: Setup) -> Any:
    """Return the number of parameters without token embedding, learned positions and output layer."""
    return params(shape, _) - sum(parameters.embedding_groups(shape).values())


def active_params(shape: Any, _: Setup) -> Any:
    """Return the number of parameters that one position is multiplied by; fewer than all only with a user's block."""
    return sum(parameters.param_groups(shape, is_active=True).values())


SHAPE_MEASURES: dict[str, Callable[[Any, Setup], Any]] = {
    "params": params,
    "params_non_embedding": params_non_embedding,
    "active_params": active_params,
    "flops": speed.flops_per_token,
    "depth": depth,
    "memory": memory.memory_bytes,
    "hours": speed.hours,
    "tokens_per_second": speed.tokens_per_second,
    "cache_bytes_per_token": inference.cache_bytes_per_token,
    "prefill_ms": inference.prefill_ms,
    "decode_ms": inference.decode_ms,
}
"""Functions of a shape, whose numbers may be int64 arrays, and the setup of a trial: parameters, operations per token,
layers of all stacks, bytes per device, hours per trial, tokens per second of all devices, bytes of the key/value cache,
and milliseconds to read a prompt and to write a token."""

PRICES = frozenset({"memory", "hours", "tokens_per_second", "prefill_ms", "decode_ms"})
"""Measures that depend on the device."""

COLUMN_NAMES = {
    "num_params": "params",
    "num_params_non_embedding": "params_non_embedding",
    "num_active_params": "active_params",
    "flops_per_token": "flops",
    "memory_bytes": "memory",
}
"""Names of measures in JSON and CSV, where they differ; both are understood."""


def objective_value(objective: str, a: Architecture, config: "StudyConfig") -> float:
    """Return the value of an objective that depends only on the shape, to be minimized; negated for the prefix `-`.

    Memory and speed come from the cost model for the devices of the 2023 study. Other devices order shapes alike.
    """
    name = objective.removeprefix("-")
    return float(SHAPE_MEASURES[name](a, study_setup(config))) * (-1 if objective != name else 1)
