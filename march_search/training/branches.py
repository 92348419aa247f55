"""Decay branches of a stable run (`[training] branch_tokens`): one trial gives the results of several data budgets.

A branch takes the steps that a trial of the shorter budget would take: the same batches, weights and optimizer state,
at that trial's learning rates. In metrics.jsonl, the lines of a branch have the kind `branch_train` or
`branch_evaluation`. Their `step` and `tokens` are those of the stable run, which waits, and `branch_step` and
`branch_tokens` those of the branch. `branch` is the budget at which it ends.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from march_search.config import TrainingConfig
from march_search.config.training_config import Branch
from march_search.errors import StorageError, TrialError
from march_search.training import checkpoint
from march_search.training.engine import RankInfo, from_first
from march_search.trial.metrics import read_metrics


def shorter(training: TrainingConfig, branch: Branch) -> TrainingConfig:
    """Return the settings of a trial whose data budget is that of the branch."""
    return replace(training, tokens=branch.tokens, branch_tokens=(), evaluate_at=())


def is_done(folder: Path, branch: Branch, rank_info: RankInfo) -> bool:
    """Return whether the branch has been evaluated; all ranks must call it together and get the same answer."""
    lines = read_metrics(folder).of_kind("branch_evaluation") if rank_info.is_first else ()
    return bool(from_first(any(line["branch"] == branch.tokens for line in lines), rank_info))


def set_rate(engine: Any, factor: Callable[[int], float]) -> None:
    """Replace the schedule of the learning rate, also for the next step.

    Args:
        engine: DeepSpeed engine.
        factor: Factor on the learning rate as a function of the step.
    """
    rate = engine.lr_scheduler
    rate.lr_lambdas = [factor] * len(rate.base_lrs)
    for group, base in zip(rate.optimizer.param_groups, rate.base_lrs, strict=True):
        group["lr"] = base * factor(rate.last_epoch)


def check_steps(engine: Any, branch: Branch) -> None:
    """Check that the branch and the stable run before it took all their steps.

    Raises:
        TrialError: If DeepSpeed skipped a step.
    """
    if skipped := int(getattr(engine, "skipped_steps", 0)):
        raise TrialError(f"DeepSpeed skipped {skipped} steps before the end{words(branch)}.")


def reload(engine: Any, folder: Path, step: int, rank_info: RankInfo) -> None:
    """Load the state of the stable run after `step` steps from the checkpoints in `folder`.

    Raises:
        StorageError: If that checkpoint is damaged or gone.
    """
    loaded, _ = checkpoint.load(engine, folder, rank_info)
    if loaded != step:
        raise StorageError(
            f"{folder}: the checkpoint of step {step:,} was damaged or deleted while its decay branch trained; start "
            "the trial again to resume from an earlier one."
        )


def position(kind: str, step: int, batch_tokens: int, branch: Branch | None) -> tuple[str, dict[str, Any]]:
    """Return the kind of a metrics line and the values that tell its position.

    Args:
        kind: `train` or `evaluation`.
        step: Number of steps taken.
        batch_tokens: Tokens per step.
        branch: Decay branch; None for the stable run.
    """
    if branch is None:
        return kind, {"step": step, "tokens": step * batch_tokens}
    return f"branch_{kind}", {
        "step": branch.start,
        "tokens": branch.start_tokens,
        "branch": branch.tokens,
        "branch_step": step,
        "branch_tokens": step * batch_tokens,
    }


def words(branch: Branch | None) -> str:
    """Return which branch a step belongs to, as part of a sentence; empty for the stable run."""
    return "" if branch is None else f" of the decay branch to {branch.tokens:,} tokens"


RESULT_KEYS = ("loss", "bits_per_byte", "context_gain", "validation_sha256")
"""Values of a branch's evaluation that the result repeats under its seal."""


def results(folder: Path) -> dict[str, Any]:
    """Return the evaluations of all branches as the key `branches` of a result; empty if the trial has none."""
    lines = sorted(read_metrics(folder).of_kind("branch_evaluation"), key=lambda line: int(line["branch"]))
    rows = [
        {"tokens": line["branch"], "start_tokens": line["tokens"]}
        | {key: line[key] for key in RESULT_KEYS if line.get(key) is not None}
        for line in lines
    ]
    return {"branches": rows} if rows else {}
