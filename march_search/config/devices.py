"""`[devices]`: what a trial runs on, and how its batch is cut."""

from dataclasses import dataclass
from typing import Literal

from march_search.config.checks import check_finite
from march_search.config.data import DataConfig
from march_search.config.training import TrainingConfig
from march_search.errors import ConfigError


@dataclass(frozen=True)
class DevicesConfig:
    """`[devices]`: what one trial runs on."""

    kind: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes GPUs where torch finds any."""
    ranks: int = 1
    """Processes of a trial on all its machines together, one a GPU; on a CPU they share the cores."""
    nodes: int = 1
    """Machines of a trial, `ranks / nodes` processes on each. They see the same folders under the same names."""
    launcher: Literal["own", "deepspeed", "srun"] = "own"
    """What starts the ranks: `own` on this machine; `deepspeed`, its launcher, on the hosts of `hostfile`; `srun`, from
    within an allocation of Slurm."""
    hostfile: str | None = None
    """For `deepspeed`: a file with a line `name slots=8` for each host, reached by ssh without a password."""
    port: int | None = None
    """Where the ranks of several machines meet on the first; None for one that is free here."""
    threads: int | None = None
    """CPU threads of a rank; None divides the machine's cores."""
    parallel_trials: int = 1
    """Trials that a worker runs at the same time, each on ranks of its own. With more than one, which trials a pruner
    stops depends on which is ahead; losses do not."""
    hang_seconds: float = 1800.0
    """A trial none of whose ranks gets on for so long is killed and goes on from its checkpoint, in a study twice at
    most; 0 for never. Before the first step it has at least ten minutes. A layer, or a file of a checkpoint, must take
    less."""

    def __post_init__(self) -> None:
        """Refuses settings that cannot be meant."""
        if min(self.ranks, self.parallel_trials, 1 if self.threads is None else self.threads) < 1:
            raise ConfigError("[devices]: ranks, threads and parallel_trials must be at least 1.")
        if self.nodes < 1 or self.ranks % self.nodes:
            raise ConfigError(f"[devices]: {self.ranks} ranks cannot be divided between {self.nodes} nodes.")
        if self.launcher == "own" and self.nodes > 1:
            raise ConfigError(
                f'[devices]: {self.nodes} nodes need launcher = "deepspeed" and a hostfile, or launcher = "srun".'
            )
        if (self.launcher == "deepspeed") != (self.hostfile is not None):
            raise ConfigError('[devices]: launcher = "deepspeed" and hostfile need each other.')
        if self.launcher != "own" and self.parallel_trials > 1:
            raise ConfigError(
                f'[devices]: launcher = "{self.launcher}" gives all devices to one trial: parallel_trials must be 1, '
                f"not {self.parallel_trials}."
            )
        check_finite(self, "devices")
        if self.hang_seconds < 0:
            raise ConfigError(f"[devices]: hang_seconds must not be negative, and is {self.hang_seconds}; 0 for never.")


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut: `sequences = ranks * accumulation * micro_batch` examples a step."""

    sequences: int
    """Examples of a global batch."""
    ranks: int
    """Processes."""
    micro_batch: int
    """Examples a process takes at once."""
    accumulation: int
    """Micro batches of a process in one step."""

    @classmethod
    def of(cls, training: TrainingConfig, data: DataConfig, ranks: int) -> "BatchPlan":
        """The plan of these settings.

        Raises:
            ConfigError: a division leaves a remainder; the message says which values would not.
        """
        sequences, rest = divmod(training.global_batch_tokens, data.sequence_length)
        if rest or not sequences:
            near = max(1, round(training.global_batch_tokens / data.sequence_length)) * data.sequence_length
            raise ConfigError(
                f"[training]: global_batch_tokens ({training.global_batch_tokens:,}) must be a multiple of "
                f"[data] sequence_length ({data.sequence_length}); the nearest is {near:_}."
            )
        if sequences % ranks:
            raise ConfigError(f"[devices]: {sequences} sequences a step cannot be divided between {ranks} ranks.")
        share = sequences // ranks
        micro = training.micro_batch_sequences or share
        if share % micro:
            fits = [m for m in range(1, share + 1) if share % m == 0]
            near = min(fits, key=lambda m: abs(m - micro))
            raise ConfigError(
                f"[training]: micro_batch_sequences ({micro}) must divide the {share} sequences of a rank; the nearest "
                f"that does is {near}."
            )
        return cls(sequences, ranks, micro, share // micro)
