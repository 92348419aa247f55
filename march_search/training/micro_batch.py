"""Choose the micro batch: predict it from the free memory, and halve it when memory runs out."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from march_search.architecture.architecture import Architecture
from march_search.config import DevicesConfig, TrialConfig
from march_search.cost.devices import Device
from march_search.cost.memory import largest_micro_batch
from march_search.cost.setup import study_setup
from march_search.errors import ConfigError
from march_search.files.json_tables import find_table, sealed, write_json
from march_search.training.engine import RankInfo, from_first

HALVINGS = 6
"""Number of times the micro batch is halved before the trial counts as infeasible."""

OUT_OF_MEMORY = (
    "out of memory",
    "allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudaerrormemoryallocation",
)
"""Lower-case parts of the messages with which libraries report that memory ran out. NCCL's "unhandled cuda error" may
have other causes."""


def fit_micro_batch(folder: Path, config: TrialConfig, rank_info: RankInfo) -> TrialConfig:
    """Return `config` with this trial's micro batch: the configured one, or the one predicted at the first start.

    It is halved each time memory ran out. The prediction is saved, so that a resumed trial sums in the same order. All
    ranks must call it together.
    """
    chosen = 0
    if rank_info.is_first:
        saved, share = _load(folder), config.batch.share
        if saved is None and config.training.micro_batch_sequences is None:
            saved = _predicted(config, rank_info), 0
            _save(folder, *saved)
        chosen = _divisor(share, saved[0]) if saved else config.batch.micro_batch
    micro = from_first(chosen, rank_info)
    return replace(config, training=replace(config.training, micro_batch_sequences=micro))


def halve_micro_batch(folder: Path, config: TrialConfig) -> bool:
    """Save half the micro batch for the next start; return False if it is already 1 or was halved `HALVINGS` times.

    Gradient accumulation grows accordingly, so the global batch, the tokens and their order do not change.
    """
    micro, halvings = _load(folder) or (config.batch.micro_batch, 0)
    if micro == 1 or halvings >= HALVINGS:
        return False
    _save(folder, _divisor(config.batch.share, micro // 2), halvings + 1)
    return True


def halvings(folder: Path) -> int:
    """Return how often the micro batch was halved."""
    saved = _load(folder)
    return saved[1] if saved else 0


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, torch, CUDA, cuBLAS or cuDNN failed to allocate memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)
    )


def _load(folder: Path) -> tuple[int, int] | None:
    """Return the micro batch and halvings that an earlier start saved, or None.

    Raises:
        ConfigError: If micro_batch.json is damaged.
    """
    path, remedy = folder / "micro_batch.json", "Delete it to choose the micro batch again."
    saved = find_table(path, {"micro_batch": int, "halvings": int}, remedy, ConfigError)
    if saved is None:
        return None
    micro_batch, halvings = saved["micro_batch"], saved["halvings"]
    if micro_batch < 1 or not 0 <= halvings <= HALVINGS:
        raise ConfigError(
            f"{path}: is damaged: micro_batch must be at least 1 and halvings 0 to {HALVINGS}, not {micro_batch} and "
            f"{halvings}. {remedy}"
        )
    return micro_batch, halvings


def _save(folder: Path, micro_batch: int, halvings: int) -> None:
    """Save the micro batch and halvings for the next start."""
    write_json(folder / "micro_batch.json", sealed({"micro_batch": micro_batch, "halvings": halvings}))


def _divisor(share: int, most: int) -> int:
    """Return the largest number up to `most` that divides a rank's share of the global batch."""
    return next(n for n in range(min(share, most), 0, -1) if share % n == 0)


def _predicted(config: TrialConfig, rank_info: RankInfo) -> int:
    """Return the largest micro batch that the cost model expects to fit, or 1 if none does."""
    is_cpu = rank_info.device.type == "cpu"
    device = Device(
        name="this",
        memory_bytes=0,
        bf16_flops=1.0,
        fp32_flops=1.0,
        utilisation=1.0,
        count=config.batch.ranks,
        keeps_scores=is_cpu,
    )
    a, free = Architecture.parse(config.architecture), _free_bytes(rank_info, config.devices)
    return largest_micro_batch(a, study_setup(config, device), config.batch.share, free)


def _free_bytes(rank_info: RankInfo, devices: DevicesConfig) -> int:
    """Return the free bytes available to this rank: of its GPU, or its share of the machine's free memory."""
    if rank_info.device.type == "cuda":
        return int(torch.cuda.mem_get_info(rank_info.device)[0])
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    for line in _meminfo():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    return free // (rank_info.world_size // devices.nodes * devices.parallel_trials)


def _meminfo() -> list[str]:
    """Return the lines of /proc/meminfo; empty on systems other than Linux."""
    try:
        return Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return []
