"""Time the phases of a step, and measure the share of the device's matrix-product peak that a trial reaches."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from march_search.architecture.flops import flops_per_token
from march_search.config import TrialConfig
from march_search.cost.devices import products_per_second
from march_search.errors import StorageError
from march_search.files.json_tables import find_table, sealed, write_json
from march_search.training.engine import RankInfo, device_name

_LOGGER = logging.getLogger(__name__)


class Phases:
    """Timer of the phases of a step. On a GPU, marks are events that are read after the step, without waiting."""

    def __init__(self, device: torch.device) -> None:
        self._now: Callable[[], Any] = _cuda_event if device.type == "cuda" else time.perf_counter
        self._marks: list[tuple[str, Any]] = []

    def mark(self, ended: str = "") -> None:
        """End the phase `ended` and start the next. Without a name, the time since the last mark is not counted."""
        self._marks.append((ended, self._now()))

    def seconds(self) -> dict[str, float]:
        """Return the seconds per phase since the last call. The device must have reached the last mark."""
        totals: dict[str, float] = {}
        for (_, began), (name, ended) in zip(self._marks, self._marks[1:], strict=False):
            if name:
                taken = ended - began if isinstance(ended, float) else began.elapsed_time(ended) / 1000
                totals[name] = totals.get(name, 0.0) + taken
        self._marks.clear()
        return totals


def _cuda_event() -> torch.cuda.Event:
    """Record an event in the current GPU's stream."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


PEAK_MATRIX_SIZES = {"cpu": 512, "cuda": 4096}
"""Rows and columns of the square matrices. On a CPU, 1024 gave the same peak and took eight times as long."""


@dataclass(frozen=True)
class Utilisation:
    """FLOPs per token, and peak FLOPs per second of all ranks."""

    flops_per_token: float
    """FLOPs of the forward and backward pass from `march_search.architecture.flops`, without recomputed activations."""
    peak_flops: float
    """Peak FLOPs per second of matrix products in the trial's precision, summed over all ranks."""

    def at(self, tokens_per_second: float) -> float:
        """Return the fraction of the peak that this speed uses."""
        return round(tokens_per_second * self.flops_per_token / self.peak_flops, 4)


def measure_utilisation(folder: Path, config: TrialConfig, architecture: object, rank_info: RankInfo) -> Utilisation:
    """Return the utilisation. The peak is measured once per device, thread count and precision (device_peak.json)."""
    precision, path = config.training.precision, folder / "device_peak.json"
    key = f"{device_name(rank_info.device)}, {torch.get_num_threads()} threads, {precision}"
    known = _known_peaks(path)
    if key not in known:
        known[key] = max(
            products_per_second(precision, rank_info.device.type, PEAK_MATRIX_SIZES[rank_info.device.type])
        )
        write_json(path, sealed(known))
    data = config.data
    cost = flops_per_token(architecture, data.sequence_length, data.noise_density, data.mean_span_length)
    return Utilisation(float(cost), known[key] * rank_info.world_size)


def _known_peaks(path: Path) -> dict[str, float]:
    """Return the peaks measured so far; without those that are not positive numbers, and none from a damaged file."""
    try:
        table = find_table(path, remedy="The peak is measured again.") or {}
    except StorageError as error:
        _LOGGER.warning(str(error))
        return {}
    return {key: value for key, value in table.items() if type(value) in (int, float) and value > 0}
