"""Choose the micro batch: predict it from the free memory, and halve it when memory runs out."""

import os
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from march_search.architecture.architecture import Architecture
from march_search.config import DevicesConfig, TrialConfig
from march_search.cost.devices import Device
from march_search.cost.memory import memory
from march_search.cost.setup import Setup
from march_search.files import read_json, write_json
from march_search.training.engine import RankInfo

HALVINGS = 6
"""Number of times the micro batch is halved before the trial counts as infeasible."""

USABLE = 0.9
"""Fraction of the free memory that a prediction may use. Contexts, workspaces and fragmentation need the rest."""


def fit_micro_batch(folder: Path, config: TrialConfig, place: RankInfo) -> TrialConfig:
    """Return `config` with this trial's micro batch: as configured, or predicted at the first start, or since halved.

    The prediction is saved, so that a resumed trial sums in the same order. All ranks must call it together.
    """
    chosen = [0]
    if place.is_first:
        saved, share = _kept(folder), config.batch.sequences // config.batch.ranks
        if saved is None and config.training.micro_batch_sequences is None:
            saved = _predicted(config, place), 0
            _keep(folder, *saved)
        chosen[0] = _divisor(share, saved[0]) if saved else config.batch.micro_batch
    dist.broadcast_object_list(chosen, src=0)
    return replace(config, training=replace(config.training, micro_batch_sequences=chosen[0]))


def halve_micro_batch(folder: Path, config: TrialConfig) -> bool:
    """Save half the micro batch for the next start; return False if it is already 1 or was halved `HALVINGS` times.

    Gradient accumulation grows accordingly, so the global batch, the tokens and their order do not change.
    """
    micro, halvings = _kept(folder) or (config.batch.micro_batch, 0)
    if micro == 1 or halvings >= HALVINGS:
        return False
    _keep(folder, _divisor(config.batch.sequences // config.batch.ranks, micro // 2), halvings + 1)
    return True


def halvings(folder: Path) -> int:
    """Return how often the micro batch was halved."""
    saved = _kept(folder)
    return saved[1] if saved else 0


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch or Python failed to allocate memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "allocate memory" in text)
    )


def _kept(folder: Path) -> tuple[int, int] | None:
    """Return the micro batch and halvings that an earlier start saved, or None."""
    saved = read_json(folder / "micro_batch.json")
    return (int(saved["micro_batch"]), int(saved["halvings"])) if isinstance(saved, dict) else None


def _keep(folder: Path, micro_batch: int, halvings: int) -> None:
    """Save the micro batch and halvings for the next start."""
    write_json(folder / "micro_batch.json", {"micro_batch": micro_batch, "halvings": halvings})


def _divisor(share: int, most: int) -> int:
    """Return the largest number up to `most` that divides a rank's share of the global batch."""
    return next(n for n in range(min(share, most), 0, -1) if share % n == 0)


def _predicted(config: TrialConfig, place: RankInfo) -> int:
    """Return the largest micro batch that the cost model expects to fit, or 1 if none does."""
    plan, data, training = config.batch, config.data, config.training
    a, room = Architecture.parse(config.architecture), USABLE * _free_bytes(place, config.devices)
    device = Device("this", 0, 1.0, 1.0, 1.0, count=plan.ranks, keeps_scores=place.device.type == "cpu")
    setup = Setup(
        device=device,
        tokens=training.tokens,
        sequence_length=data.sequence_length,
        noise_density=data.noise_density,
        mean_span_length=data.mean_span_length,
        precision=training.precision,
        zero_stage=training.zero_stage,
        checkpointing=training.activation_checkpointing,
    )
    share = plan.sequences // plan.ranks
    sizes = [n for n in range(share, 0, -1) if share % n == 0]
    return next((n for n in sizes if memory(a, replace(setup, micro_batch=n)).total <= room), 1)


def _free_bytes(place: RankInfo, devices: DevicesConfig) -> int:
    """Return the free bytes available to this rank: of its GPU, or its share of the machine's free memory."""
    if place.device.type == "cuda":
        return int(torch.cuda.mem_get_info(place.device)[0])
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    for line in _meminfo():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    return free // (place.world_size // devices.nodes * devices.parallel_trials)


def _meminfo() -> list[str]:
    """Return the lines of /proc/meminfo; empty on systems other than Linux."""
    try:
        return Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return []
