"""Measure a trial's FLOP utilisation, relative to the peak of matrix products measured when the trial starts."""

from dataclasses import dataclass
from pathlib import Path

import torch

from march_search.config import TrialConfig
from march_search.devices import products_per_second
from march_search.files import read_json, write_json
from march_search.flops import flops_per_token
from march_search.training.environment import Place, device_name

SIZES = {"cpu": 512, "cuda": 4096}
"""Rows and columns of the square matrices. On a CPU, 1024 gave the same peak and took eight times as long."""


@dataclass(frozen=True)
class Utilisation:
    """FLOPs per token, and peak FLOPs per second of all ranks."""

    flops_per_token: float
    """FLOPs of the forward and backward pass from `march_search.flops`, without recomputed activations."""
    peak_flops: float
    """Peak FLOPs per second of matrix products in the trial's precision, summed over all ranks."""

    def at(self, tokens_per_second: float) -> float:
        """Return the fraction of the peak that this speed uses."""
        return round(tokens_per_second * self.flops_per_token / self.peak_flops, 4)


def measured(folder: Path, config: TrialConfig, architecture: object, place: Place) -> Utilisation:
    """Return the utilisation. The peak is measured once per device, thread count and precision (device_peak.json)."""
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
