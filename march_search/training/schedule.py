"""Learning-rate schedules, as a factor of the peak by optimizer step."""

import math
from collections.abc import Callable

from march_search.config import TrainingConfig


def schedule(training: TrainingConfig) -> Callable[[int], float]:
    """The factor for step 0, 1, 2, …: a linear rise over `warmup_tokens`, then what `schedule` says."""
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
