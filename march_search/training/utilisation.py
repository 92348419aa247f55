"""The share of a device's matrix products that a trial gets: FLOPs a second against a peak measured at its start."""

from dataclasses import dataclass
from pathlib import Path

import torch

from march_search.config import TrialConfig
from march_search.devices import products_per_second
from march_search.files import read_json, write_json
from march_search.flops import flops_per_token
from march_search.training.environment import Place, device_name

SIZES = {"cpu": 512, "cuda": 4096}
"""Rows and columns of the matrices: on a CPU 1024 were no faster and took eight times as long."""


@dataclass(frozen=True)
class Utilisation:
    """What a token costs, and what all ranks could do."""

    flops_per_token: float
    """Forward and backward, by `march_search.flops`; recomputed activations do not count."""
    peak_flops: float
    """Of matrix products in the trial's precision, operations a second of all ranks together."""

    def at(self, tokens_per_second: float) -> float:
        """The share of the peak."""
        return round(tokens_per_second * self.flops_per_token / self.peak_flops, 4)


def measured(folder: Path, config: TrialConfig, architecture: object, place: Place) -> Utilisation:
    """By the peak of this rank, measured once for each kind of device and number of threads: device_peak.json."""
    precision, path = config.training.precision, folder / "device_peak.json"
    key = f"{device_name(place.device)}, {torch.get_num_threads()} threads, {precision}"
    known = read_json(path)
    known = known if isinstance(known, dict) else {}
    if key not in known:
        known[key] = max(products_per_second(precision, place.device.type, SIZES[place.device.type]))
        write_json(path, known)
    data = config.data
    cost = flops_per_token(architecture, data.sequence_length, data.noise_density, data.mean_span_length)
    return Utilisation(float(cost), known[key] * place.world_size)
