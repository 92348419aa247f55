"""The `[devices]` table: the devices that a trial runs on, and how its global batch is split across them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from march_search.config.data_config import DataConfig
from march_search.config.loader import not_finite, refuse
from march_search.config.training_config import TrainingConfig
from march_search.errors import ConfigError

MOST_PROCESSES = 100_000
"""Largest number of ranks, threads or parallel trials."""


@dataclass(frozen=True, kw_only=True)
class DevicesConfig:
    """The `[devices]` table: the devices and processes of each trial."""

    kind: Literal["auto", "cpu", "cuda"] = "auto"
    """Device type: `cpu`, `cuda`, or `auto` for GPUs if torch finds any, else the CPU."""
    ranks: int = 1
    """Processes per trial, over all machines: one per GPU, or sharing the cores on a CPU. At least 1."""
    nodes: int = 1
    """Machines per trial, with `ranks / nodes` processes on each. All must see the same folders at the same paths."""
    launcher: Literal["own", "deepspeed", "srun"] = "own"
    """How the ranks are started. `own`: by the worker, on this machine. `deepspeed`: by DeepSpeed's launcher, on the
    hosts in `hostfile`. `srun`: by srun, inside a Slurm allocation."""
    hostfile: str | None = None
    """Path of the host file; required by the `deepspeed` launcher, an error with the others. It has one line
    `name slots=8` per host, with at least `ranks / nodes` slots. Each host must be reachable by ssh without a password;
    `user@name` logs in as that user."""
    port: int | None = None
    """Port on the first machine at which launched ranks connect, from 1 to 65535; None picks a free port. Unused by
    `own`."""
    threads: int | None = None
    """CPU threads per rank, at least 1; None divides the machine's cores evenly between ranks and parallel trials."""
    parallel_trials: int = 1
    """Trials that a worker runs at the same time, each with its own ranks; at least 1, and exactly 1 for the
    launchers `deepspeed` and `srun`. With more than one, the pruners `median`, `halving` and `hyperband` may stop
    different trials depending on timing; losses do not change."""
    hang_seconds: float = 1800.0
    """Seconds after which a trial that makes no progress on any rank is killed and resumed from its last checkpoint, at
    most twice in a study; 0 disables the check. At least ten minutes are allowed before the first step. Must exceed
    the time that one layer, or writing one checkpoint file, takes."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        refuse([*not_finite(self, "devices"), *self._faults()])

    def _faults(self) -> Iterator[str]:
        """Yield one sentence for each setting or pair of settings that is refused."""
        if min(self.ranks, self.parallel_trials, 1 if self.threads is None else self.threads) < 1:
            yield "[devices]: ranks, threads and parallel_trials must be at least 1."
        if max(self.ranks, self.parallel_trials, self.threads or 1) > MOST_PROCESSES:
            yield f"[devices]: ranks, threads and parallel_trials must be at most {MOST_PROCESSES:,}."
        if self.nodes < 1 or self.ranks % self.nodes:
            yield f"[devices]: {self.ranks} ranks cannot be divided evenly between {self.nodes} nodes."
        if self.launcher == "own" and self.nodes > 1:
            yield f'[devices]: {self.nodes} nodes need launcher = "deepspeed" and a hostfile, or launcher = "srun".'
        if (self.launcher == "deepspeed") != (self.hostfile is not None):
            yield '[devices]: launcher = "deepspeed" and hostfile must be set together.'
        if self.launcher != "own" and self.parallel_trials > 1:
            yield (
                f'[devices]: launcher = "{self.launcher}" gives all devices to one trial: parallel_trials must be 1, '
                f"not {self.parallel_trials}."
            )
        if self.port is not None and not 1 <= self.port <= 65535:
            yield f"[devices]: port must be from 1 to 65535, not {self.port}."
        if self.hang_seconds < 0:
            yield f"[devices]: hang_seconds must not be negative, got {self.hang_seconds}; set 0 to disable."


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is split: `sequences = ranks * accumulation * micro_batch` examples per step."""

    sequences: int
    """Examples per global batch."""
    ranks: int
    """Processes per trial."""
    micro_batch: int
    """Examples that a rank processes at once."""
    accumulation: int
    """Micro batches per rank and step."""

    @property
    def share(self) -> int:
        """Sequences of one process per step."""
        return self.sequences // self.ranks

    @classmethod
    def of(cls, training: TrainingConfig, data: DataConfig, ranks: int) -> "BatchPlan":
        """Return the batch plan for these settings.

        Raises:
            ConfigError: If the batch does not divide evenly; the message names the nearest value where there is one.
        """
        sequences, rest = divmod(training.global_batch_tokens, data.sequence_length)
        if rest or not sequences:
            near = max(1, round(training.global_batch_tokens / data.sequence_length)) * data.sequence_length
            raise ConfigError(
                f"[training]: global_batch_tokens ({training.global_batch_tokens:,}) must be a multiple of "
                f"[data] sequence_length ({data.sequence_length}); the nearest is {near:_}."
            )
        if sequences % ranks:
            raise ConfigError(
                f"[devices]: {sequences} sequences per step cannot be divided evenly between {ranks} ranks."
            )
        share = sequences // ranks
        micro = training.micro_batch_sequences or share
        if share % micro:
            small = [m for m in range(1, math.isqrt(share) + 1) if share % m == 0]
            near = min(sorted({*small, *(share // m for m in small)}), key=lambda m: abs(m - micro))
            raise ConfigError(
                f"[training]: micro_batch_sequences ({micro}) must divide the {share} sequences per rank; the nearest "
                f"divisor is {near}."
            )
        return cls(sequences, ranks, micro, share // micro)
