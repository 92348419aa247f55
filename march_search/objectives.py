"""Objectives besides the loss, and the knee of a Pareto set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from march_search import cost, memory, parameters
from march_search.architecture import Architecture
from march_search.config import StudyConfig
from march_search.cost import Setup


def value(objective: str, a: Architecture, config: StudyConfig) -> float:
    """Return the value of an objective that depends only on the shape, to be minimized; negated for the prefix `-`.

    Memory and speed come from the cost model for the devices of the 2023 study. Other devices order shapes alike.
    """
    setup = setup_of(config)
    name = objective.removeprefix("-")
    values: dict[str, Any] = {
        "params": lambda: a.num_params,
        "flops": lambda: cost.flops_per_token(a, setup),
        "memory": lambda: memory.memory_bytes(a, setup),
        "depth": lambda: sum(layers for _, layers in parameters.stacks(a)),
        "tokens_per_second": lambda: cost.tokens_per_second(a, setup),
    }
    return float(values[name]()) * (-1 if objective != name else 1)


def setup_of(config: StudyConfig, device: Any = cost.STUDY_DEVICES) -> Setup:
    """Return the cost model's description of a trial of the study on `device`."""
    training, data = config.training, config.data
    return Setup(
        device=device,
        tokens=training.tokens,
        sequence_length=data.sequence_length,
        noise_density=data.noise_density,
        mean_span_length=data.mean_span_length,
        micro_batch=config.batch.micro_batch,
        precision=training.precision,
        zero_stage=training.zero_stage,
        checkpointing=training.activation_checkpointing,
    )


def knee(points: NDArray[np.float64]) -> int:
    """Return the index of the knee of a Pareto set.

    Each column is scaled to [0, 1]. The knee is the row farthest below the plane through the k unit vectors, which is
    the row with the smallest sum (the normal-boundary view of Das 1999). Ties go to the first row.

    Args:
        points: (n, k) objective values, to be minimized.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    return int(np.argmin(((points - low) / np.where(high > low, high - low, 1.0)).sum(axis=1)))


def columns(rows: Sequence[Sequence[float]], objectives: Sequence[str]) -> NDArray[np.float64]:
    """Return measured values as an (n, k) array in which smaller is better; columns with the prefix `-` are negated."""
    signs = np.array([-1.0 if name.startswith("-") else 1.0 for name in objectives])
    signed: NDArray[np.float64] = np.asarray(rows, dtype=float).reshape(len(rows), len(objectives)) * signs
    return signed
