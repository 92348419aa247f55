"""What a study may look for besides a low loss, and the members of a Pareto set that stand out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from march_search import cost, memory, parameters
from march_search.architecture import Architecture
from march_search.config import StudyConfig
from march_search.cost import Setup


def value(objective: str, a: Architecture, config: StudyConfig) -> float:
    """An objective that the shape alone decides, the smallest best: negative behind a `-`.

    Memory and speed are those of the cost model on the devices of the 2023 study, which order shapes alike elsewhere.
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
    """How a trial of the study would run on these devices."""
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
    """Which of the (n, k) rows of a Pareto set is the knee: furthest below the plane through the ends of each column.

    Columns are first brought to [0, 1], the smallest best. That plane then holds the k unit vectors, as in Das 1999's
    normal-boundary view of a knee: the row with the smallest sum. Ties go to the first.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    return int(np.argmin(((points - low) / np.where(high > low, high - low, 1.0)).sum(axis=1)))


def columns(rows: Sequence[Sequence[float]], objectives: Sequence[str]) -> NDArray[np.float64]:
    """(n, k) numbers as they are measured, with the sign under which the smallest is best."""
    signs = np.array([-1.0 if name.startswith("-") else 1.0 for name in objectives])
    signed: NDArray[np.float64] = np.asarray(rows, dtype=float).reshape(len(rows), len(objectives)) * signs
    return signed
