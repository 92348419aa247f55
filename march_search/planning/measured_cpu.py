"""This machine's CPU as a device for prices, from steps of a study's own shapes, timed with all its trials at once."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

from march_search.architecture.architecture import Architecture
from march_search.architecture.block import source_record
from march_search.config import StudyConfig
from march_search.cost import speed
from march_search.cost.devices import CPU_LAYER_SECONDS, CPU_UTILISATION, Device
from march_search.cost.setup import study_setup
from march_search.planning import price
from march_search.planning.candidates import Candidates
from march_search.processes import start_python
from march_search.units import plural

STEP_SECONDS = 1.0
"""Time to spend on each shape for a plan that is only printed."""

QUICK_SECONDS = 0.2
"""Time to spend on each shape when a study starts."""

STEP_FLOPS = 5e9
"""Operations of a timed micro batch, about: a tenth of a second on one core. The rest of a step is extrapolated."""

MOST_FLOPS = 6e10
"""Operations of one example, forward and backward, above which a shape is not timed: a second or two on one core."""

OVERHEAD = 1.25
"""Time of a trial's step relative to a timed step, which has no engine, no data and no metrics."""

START_SECONDS = 9.0
"""Time from the start of a trial's process to its first step on one core, and from its last step to its end."""

UNCERTAINTY = 1.3
"""Factor by which the time of a study may be longer or shorter than its price on a measured CPU."""

ROUGH_UNCERTAINTY = 2.5
"""The same where only matrix products were timed."""


@dataclass(frozen=True)
class MeasuredCpu:
    """This machine's CPU."""

    device: Device
    """The CPU as a device; its speeds are those that the steps showed."""
    tokens_per_second: float
    """Mean tokens per second of all parallel trials together."""
    uncertainty: float = UNCERTAINTY
    """Factor by which the time of a study may be longer or shorter."""

    def seconds(self, config: StudyConfig, plan: dict[str, Any]) -> tuple[float, float, float]:
        """Return the time of a study with this plan: at least, in the middle, and at most, confirmation included.

        The time of a confirmation without a limit is not part of it.
        """
        search = sum(_with_starts(stage, config) for stage in plan["stages"])
        rounds = _with_starts(plan["confirm"] or {}, config)
        return search / self.uncertainty, search + rounds / 2, (search + rounds) * self.uncertainty

    def plan(self, config: StudyConfig, chosen: Candidates, rate: float | None = None) -> dict[str, Any]:
        """Return the predicted cost of a study, as `price.priced_plan`, with the least and the most seconds.

        The seconds of each phase include the starts of its trials. The range is None if the confirmation has no limit.
        """
        plan = price.priced_plan(config, chosen, self.device, rate)
        least, _, most = self.seconds(config, plan)
        stages = [stage | {"seconds": _with_starts(stage, config)} for stage in plan["stages"]]
        confirm = plan["confirm"]
        if confirm and confirm["seconds"] is not None:
            confirm = confirm | {"seconds": _with_starts(confirm, config)}
        whole = sum(stage["seconds"] for stage in stages)
        has_limit = not confirm or confirm["seconds"] is not None
        within = {"seconds_range": [least, most] if has_limit else None}
        return plan | {"stages": stages, "confirm": confirm, "seconds": whole} | within


def _with_starts(phase: dict[str, Any], config: StudyConfig) -> float:
    """Return the time of a phase: its last turn is as long as the others, and each trial has to start."""
    trials, together = phase.get("trials") or 0, config.devices.parallel_trials
    if not trials:
        return 0.0
    turns = -(-trials // together)
    return float((phase["seconds"] or 0.0) / trials * turns * together + START_SECONDS * turns)


def measured_cpu(
    config: StudyConfig, shapes: Sequence[Architecture], seconds: float = STEP_SECONDS
) -> MeasuredCpu | None:
    """Return this CPU with the speed at which steps of a study run, `parallel_trials` at a time; None if they fail.

    The steps are those of the shapes with the fewest, the median and the most operations, with the batch, lengths,
    ranks and precision of `config`. Where an example takes seconds, only matrix products are timed.

    Args:
        config: The study's settings.
        shapes: The study's candidates.
        seconds: Time to spend on each of the three shapes; loading torch takes about two seconds more.
    """
    base = study_setup(config)
    ordered = sorted(shapes, key=lambda a: float(speed.flops_per_token(a, base)))
    timed = [ordered[index] for index in sorted({0, len(ordered) // 2, len(ordered) - 1})]
    examples = [float(speed.flops_per_token(a, base)) * config.data.sequence_length for a in timed]
    if max(examples) > MOST_FLOPS:
        return _by_products(config, timed)
    devices, batch = config.devices, config.batch
    cores = os.cpu_count() or 1
    number = max(1, min(devices.parallel_trials * devices.ranks, 2 * cores))
    lengths = config.data.lengths
    work = {
        "names": [a.name for a in timed],
        "blocks": sorted({source_record(a.block, Path()) for a in timed if a.block is not None}),
        "inputs": lengths.input,
        "targets": config.data.sequence_length if timed[0].structure == "decoder-only" else lengths.target,
        "sequences": batch.share,
        "micro_batches": [max(1, min(batch.micro_batch, int(STEP_FLOPS / flops))) for flops in examples],
        "precision": config.training.precision,
        "threads": devices.threads or max(1, cores // (devices.ranks * devices.parallel_trials)),
        "seconds": seconds,
    }
    sleepy = "import os, sys; os.environ.setdefault('GOMP_SPINCOUNT', '1000')"  # as in training: idle threads sleep
    code = f"{sleepy}\nfrom march_search.model.step_times import main; main(sys.argv[1])"
    running = [start_python(code, json.dumps(work)) for _ in range(number)]
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        return None
    found = [json.loads(text) for text in printed]
    steps = [fmean(times) * OVERHEAD for times in zip(*(one["steps"] for one in found), strict=True)]
    real = [number * batch.share * config.data.sequence_length / step for step in steps]
    fp32_flops, bf16_flops = (sum(one[key] for one in found) for key in ("fp32_flops", "bf16_flops"))
    together = f", {devices.parallel_trials} at a time" if devices.parallel_trials > 1 else ""
    device = Device(
        name="cpu",
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        bf16_flops=bf16_flops,
        fp32_flops=fp32_flops,
        utilisation=CPU_UTILISATION,
        layer_seconds=CPU_LAYER_SECONDS / fp32_flops,
        keeps_scores=True,
        basis=f"steps of {plural(len(timed), 'shape')} timed now{together}",
    )
    setup = replace(study_setup(config, device), optimizer="adamw")  # with which they were timed
    predicted = [float(speed.tokens_per_second(a, setup)) for a in timed]
    factor = geometric_mean(one / measured for one, measured in zip(predicted, real, strict=True))
    slower = replace(
        device,
        bf16_flops=device.bf16_flops / factor,
        fp32_flops=device.fp32_flops / factor,
        layer_seconds=device.layer_seconds * factor,
    )
    return MeasuredCpu(slower, fmean(real))


def _by_products(config: StudyConfig, shapes: Sequence[Architecture]) -> MeasuredCpu | None:
    """Return this CPU with the speed of its matrix products; None if they fail."""
    device = price.cpu()
    if device is None:
        return None
    setup = study_setup(config, device)
    speeds = [float(speed.tokens_per_second(a, setup)) for a in shapes]
    rough = replace(device, basis="matrix products timed now: the shapes are too large to time steps")
    return MeasuredCpu(rough, fmean(speeds), ROUGH_UNCERTAINTY)
