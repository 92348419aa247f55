"""Learning rate schedules, as a multiple of the peak learning rate at each optimizer step."""

import math
from collections.abc import Callable

from march_search.config import TrainingConfig


def schedule(training: TrainingConfig) -> Callable[[int], float]:
    """Return the factor as a function of the step: a linear rise over `warmup_tokens`, then the configured schedule."""
    warmup = math.ceil(training.warmup_tokens / training.global_batch_tokens)
    end = training.final_learning_rate

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if training.schedule == "constant":
            return 1.0
        done = min(1.0, (step - warmup) / max(1, training.steps - warmup))
        left = 1 - done if training.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return end + (1 - end) * left

    return factor
