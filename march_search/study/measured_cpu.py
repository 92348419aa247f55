"""This machine's CPU as a device for prices, from steps of a study's own shapes, timed with all its trials at once."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, geometric_mean

from march_search.architecture.architecture import Architecture
from march_search.config import StudyConfig
from march_search.cost import speed
from march_search.cost.devices import Device
from march_search.cost.setup import study_setup
from march_search.processes import PARENT
from march_search.study import price

STEP_SECONDS = 1.0
"""Time to spend on each shape."""

OVERHEAD = 1.25
"""Time of a trial's step relative to a timed step, which has no engine, no data and no metrics."""

START_SECONDS = 9.0
"""Time from the start of a trial's process to its first step on one core, and from its last step to its end."""

UNCERTAINTY = 1.3
"""Factor by which the time of a study may be longer or shorter than its price on a measured CPU."""


@dataclass(frozen=True)
class MeasuredCpu:
    """This machine's CPU."""

    device: Device
    """The CPU as a device; its speeds are those that the steps showed."""
    tokens_per_second: float
    """Mean tokens per second of all parallel trials together."""

    def seconds(self, config: StudyConfig, plan: dict[str, object]) -> tuple[float, float, float]:
        """Return the time of a study with this plan: at least, in the middle, and at most, confirmation included."""
        together = config.devices.parallel_trials
        stages, confirm = plan["stages"], plan["confirm"] or {}
        assert isinstance(stages, list)
        assert isinstance(confirm, dict)
        search = sum(self._stage(stage["seconds"], stage["trials"], together) for stage in stages)
        rounds = self._stage(confirm.get("seconds") or 0.0, confirm.get("trials") or 0, together)
        return search / UNCERTAINTY, search + rounds / 2, (search + rounds) * UNCERTAINTY

    @staticmethod
    def _stage(seconds: float, trials: int, together: int) -> float:
        """Return the time of some trials: their last turn is as long as the others, and each trial has to start."""
        if not trials:
            return 0.0
        turns = -(-trials // together)
        return seconds / trials * turns * together + START_SECONDS * turns


def measured_cpu(config: StudyConfig, shapes: Sequence[Architecture]) -> MeasuredCpu | None:
    """Return this CPU with the speed at which steps of `shapes` run, `parallel_trials` at a time; None if they fail.

    The steps have the batch, lengths and precision of `config`. It takes about five seconds.
    """
    device, together = price.cpu(), config.devices.parallel_trials
    if device is None:
        return None
    lengths = config.data.lengths
    is_decoder = shapes[0].structure == "decoder-only"
    threads = config.devices.threads or max(1, (os.cpu_count() or 1) // (config.devices.ranks * together))
    work = {
        "names": [a.name for a in shapes],
        "inputs": lengths.input,
        "targets": config.data.sequence_length if is_decoder else lengths.target,
        "sequences": config.batch.sequences,
        "precision": config.training.precision,
        "threads": threads,
        "seconds": STEP_SECONDS,
    }
    command = [sys.executable, "-m", "march_search.model.step_times", json.dumps(work)]
    environment = os.environ | {PARENT: str(os.getpid())}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(together)
    ]
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        return None
    steps = [fmean(pair) * OVERHEAD for pair in zip(*map(json.loads, printed), strict=True)]
    setup = study_setup(config, device)
    real = [together * config.training.global_batch_tokens / step for step in steps]
    factor = geometric_mean(
        float(speed.tokens_per_second(a, setup)) / measured for a, measured in zip(shapes, real, strict=True)
    )
    assert math.isfinite(factor)
    slower = replace(
        device,
        bf16_flops=device.bf16_flops / factor,
        fp32_flops=device.fp32_flops / factor,
        layer_seconds=device.layer_seconds * factor,
        basis=f"steps of {len(shapes)} shapes timed now, {together} at a time",
    )
    return MeasuredCpu(slower, fmean(real))
