"""Train a few steps with the loop of a trial, in this process, and return their figures.

It uses the engine, the micro batches and the step of `march_search.training.loop`, so that what is measured is what
trains. Settings can be switched for one session at a time.
"""

import contextlib
import gc
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_acceptance.acceptance_run import known_device, trial_settings
from gpu_acceptance.scale import SCALES
from march_search import Architecture
from march_search.config import TrialConfig
from march_search.cost import speed
from march_search.cost.memory import memory
from march_search.cost.setup import study_setup
from march_search.data.batches import Batches, prefetch
from march_search.data.store import Store
from march_search.data.text_bytes import token_bytes
from march_search.training import evaluation, loop, timing
from march_search.training.engine import RankInfo, join_ranks, memory_of_all, use_deterministic_operations
from march_search.training.ranks import StopRequest


@dataclass(frozen=True, kw_only=True)
class Switches:
    """What a session does differently from a trial."""

    training: dict[str, str] = field(default_factory=dict)
    """Values of `[training]`, such as `compile` and `attention`."""
    is_pinned: bool = True
    """Whether batches for a GPU are copied from pinned memory."""
    has_timers: bool = False
    """Whether DeepSpeed's throughput timer is on."""
    backend: str | None = None
    """Name of the only backend of `torch.nn.attention.SDPBackend` that attention may use; None for torch's choice."""


@dataclass
class Lines:
    """Collects the metrics of each step, in place of the file of a trial."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    def append(self, kind: str, **values: Any) -> None:
        """Keep a line."""
        self.lines.append({"kind": kind} | values)


def one_session(folder: Path, scale: str, kind: str, store: str, out: str, **given: Any) -> dict[str, Any]:
    """Train one shape in a fresh process and return its figures."""
    config = settings(scale, kind, store, given["architecture"], given["micro_batch"])
    if given["deterministic"]:  # cuBLAS must know before its first product
        use_deterministic_operations()
    rank_info = join_ranks(config.devices)
    return trained(folder, Path(out), config, rank_info, SCALES[scale].steps, SCALES[scale].warm_up, Switches())


def settings(scale: str, kind: str, store: str, architecture: str, micro_batch: int, **training: Any) -> TrialConfig:
    """Return the settings of a session."""
    size = SCALES[scale]
    steps = 100  # more than any session takes
    sequences = size.batch_sequences
    return trial_settings(size, kind, Path(store), architecture, sequences, micro_batch, steps, **training)


def trained(
    folder: Path, out: Path, config: TrialConfig, rank_info: RankInfo, steps: int, warm_up: int, switches: Switches
) -> dict[str, Any]:
    """Train `warm_up` steps, then `steps` measured ones, and return their figures."""
    config = _with(config, **switches.training)
    if switches.has_timers:
        training = {"deepspeed": {"timers": {"throughput": {"enabled": True}}}}
        config = _with(config, **training)
    is_compiled = config.training.compile != "none"
    began = time.perf_counter()
    lines = Lines()
    with _switched(switches):
        trial = _trial(folder, out, config, rank_info, lines)
        if rank_info.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        micro_batches = prefetch(loop._micro_batches(trial))
        first = 0.0
        for _ in range(warm_up + is_compiled + steps):
            loop._one_step(trial, micro_batches)
            first = first or time.perf_counter() - began
        micro_batches.close()
    peaks = memory_of_all(rank_info)
    a = trial.architecture
    paths = {name: f"{path.name}: {path.reason}" for name, path in trial.engine.module.attention_paths.items()}
    trial.engine.destroy()
    del trial
    release()
    found = figures(lines.lines[-steps:], config, a, known_device(rank_info.device.type))
    return (
        found
        | peaks
        | {"attention": paths, "first_step_seconds": first, "losses": [line["loss"] for line in lines.lines]}
    )


def figures(lines: list[dict[str, Any]], config: TrialConfig, a: Architecture, device: Any) -> dict[str, Any]:
    """Return the medians of the measured steps, and the predictions of the cost model."""
    setup = study_setup(config, device)
    tokens = config.training.global_batch_tokens
    seconds = statistics.median(tokens / line["tokens_per_second"] for line in lines)
    share = [line["data_wait_seconds"] / (tokens / line["tokens_per_second"]) for line in lines]
    phases = ("forward_seconds", "backward_seconds", "step_seconds")
    per_second = tokens / seconds
    return {
        "shape": a.name,
        "micro_batch": config.batch.micro_batch,
        "tokens_per_second": per_second,
        "step_seconds_total": seconds,
        **{name: statistics.median(line[name] for line in lines) for name in phases if name in lines[0]},
        "data_wait": statistics.median(share),
        "of_peak": per_second * float(speed.flops_per_token(a, setup)) / device.peak(config.training.precision),
        "of_measured_peak": lines[-1].get("flop_utilisation"),
        "predicted_tokens_per_second": float(speed.tokens_per_second(a, setup)),
        "predicted_memory_bytes": int(memory(a, setup).total),
        "predicted_parts": {k: int(v) for k, v in memory(a, setup)._asdict().items()},
    }


def release() -> None:
    """Free the memory of the last session."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _with(config: TrialConfig, **training: Any) -> TrialConfig:
    """Return the settings with other values in `[training]`."""
    return replace(config, training=replace(config.training, **training))


def _not_pinned(array: NDArray[np.int64] | None, _trial: object) -> torch.Tensor | None:
    """Return an array as a tensor in ordinary memory."""
    return None if array is None else torch.from_numpy(array)


@contextlib.contextmanager
def _switched(switches: Switches) -> Iterator[None]:
    """Apply the switches that are global to the process."""
    with contextlib.ExitStack() as stack:
        if not switches.is_pinned:
            stack.enter_context(mock.patch.object(loop, "_host_tensor", _not_pinned))
        if switches.backend is not None:
            from torch.nn.attention import SDPBackend, sdpa_kernel

            stack.enter_context(sdpa_kernel([getattr(SDPBackend, switches.backend)]))
        yield


def _trial(folder: Path, out: Path, config: TrialConfig, rank_info: RankInfo, lines: Lines) -> Any:
    """Return the state of a trial at its start, whose metrics go to `lines`."""
    a = Architecture.parse(config.architecture)
    store = Store.open(Path(config.store))
    batches = Batches(store, config.data, config.seed, a.structure)
    utilisation = timing.measure_utilisation(out, config, a, rank_info)
    return loop._Trial(
        folder=folder,
        config=config,
        architecture=a,
        rank_info=rank_info,
        batches=batches,
        validation=evaluation.Validation.of(batches, store),
        token_bytes_V=torch.from_numpy(token_bytes(store)),
        engine=loop._engine(folder, config, a, rank_info),
        stop=StopRequest(),
        phases=timing.Phases(rank_info.device),
        utilisation=utilisation,
        metrics=lines,  # type: ignore[arg-type]
    )
