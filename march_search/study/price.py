"""Predict what a study will use and measure what it used: tokens, FLOPs, device-hours, money, disk, memory."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from types import NoneType
from typing import Any

from march_search.architecture.architecture import Architecture
from march_search.config import StudyConfig
from march_search.config.halving import Halving
from march_search.cost import speed
from march_search.cost.devices import Device, parse_device, this_cpu
from march_search.cost.memory import USABLE, largest_micro_batch, memory
from march_search.cost.setup import STUDY_DEVICES, Setup, study_setup
from march_search.display.tables import count, duration, si, size
from march_search.errors import ConfigError, StorageError, UsageError
from march_search.files.json_tables import MAYBE_NUMBER, NUMBER, Kinds, find_table, table_fault
from march_search.processes import run_python
from march_search.study.candidates import Candidates, how_many, rates
from march_search.trial.metrics import read_metrics
from march_search.trial.outcome import read_outcome
from march_search.trial.own_trials import find_trials

_PLAN: dict[str, Kinds] = {
    "trials": int, "tokens?": NUMBER, "flops?": NUMBER, "device_hours?": MAYBE_NUMBER, "rate?": MAYBE_NUMBER,
    "money?": MAYBE_NUMBER, "device?": (str, NoneType), "basis?": (str, NoneType), "stages?": list,
    "memory?": (dict, NoneType), "disk_bytes?": dict,
}  # fmt: skip
_STAGE: dict[str, Kinds] = {"tokens": NUMBER, "trials": int}
_MEMORY: dict[str, Kinds] = {"architecture": str, "bytes": NUMBER, "device_bytes": NUMBER, "micro_batch": int}

EVALUATION_PASSES = 2
"""Forward passes per evaluation, each a third of a training step's work: the second measures the context gain."""

SAMPLE = 64
"""Number of members sampled to represent those that a sampler will choose."""


def priced_plan(
    config: StudyConfig,
    chosen: Candidates,
    device: Device | None = None,
    rate: float | None = None,
    rungs: Sequence[int] = (),
    keep: float = 1 / 3,
) -> dict[str, Any]:
    """Return the predicted cost of a study; its device-hours include evaluations. Unknown values are None.

    With `rungs`, the numbers of trials are exact, and the mean over all candidates stands in for the promoted ones.
    Without `rungs`, no trial is assumed to stop early, because a pruner's savings cannot be predicted.

    Args:
        config: The study's settings.
        chosen: The study's candidates.
        device: Devices of one trial, all ranks together.
        rate: Price per device-hour, in any currency.
        rungs: Token counts at which the best candidates are promoted, ascending; the last is the end.
        keep: Share of a rung's candidates that is promoted.
    """
    shapes = stand_ins(config, chosen)
    setup, number, seeds = study_setup(config, device or STUDY_DEVICES), how_many(chosen, config), config.search.seeds
    stages = survivors(number * len(rates(config)), rungs or [config.training.tokens], keep)
    tokens = sum(trained * trials for trained, trials in stages) * len(seeds)
    flops = fmean(float(speed.flops_per_token(a, setup)) for a in shapes)
    hours = None
    if device is not None:
        evaluated = _evaluated(config, stages) * len(seeds)
        work = [(tokens + evaluated * EVALUATION_PASSES / 3) / speed.tokens_per_second(a, setup) for a in shapes]
        hours = fmean(work) / 3600 * device.count
    reached = accumulate(trained for trained, _ in stages)
    tightest = max(shapes, key=lambda a: memory(a, setup).total)
    return {
        "architectures": number,
        "trials": number * len(seeds) * len(rates(config)),
        "stages": [{"tokens": t, "trials": n * len(seeds)} for t, (_, n) in zip(reached, stages, strict=True)],
        "tokens": tokens,
        "flops": flops * tokens,
        "device": None if device is None else str(device),
        "basis": None if device is None else device.basis,
        "device_hours": hours,
        "rate": rate,
        "money": None if hours is None or rate is None else hours * rate,
        "memory": None if device is None else _memory(tightest, setup, config),
        "disk_bytes": _disk(config, shapes, stages, bool(rungs)),
    }


def saved_plan(folder: Path) -> dict[str, Any] | None:
    """Return the plan that the study in `folder` was launched with; None before the launch.

    Raises:
        StorageError: If plan.json is damaged.
    """
    path, remedy = folder / "plan.json", "Delete it to plan again."
    plan = find_table(path, _PLAN, remedy)
    if plan is None:
        return None
    parts = [(plan.get("memory") or None, _MEMORY), *((stage, _STAGE) for stage in plan.get("stages", []))]
    faults = [table_fault(part, expected) for part, expected in parts if isinstance(part, dict)]
    faults += ["must have tables as stages" for part, _ in parts if not isinstance(part, dict | None)]
    faults += [table_fault({"size": size}, {"size": NUMBER}) for size in plan.get("disk_bytes", {}).values()]
    if fault := next(filter(None, faults), ""):
        raise StorageError(f"{path}: is damaged: it {fault}. {remedy}")
    return dict.fromkeys(key.removesuffix("?") for key in _PLAN) | {"stages": [], "disk_bytes": {}} | plan


def stand_ins(config: StudyConfig, chosen: Candidates) -> tuple[Architecture, ...]:
    """Return the candidates, or a uniform sample of the feasible set if a sampler will choose them."""
    if not config.search.adaptive:
        return chosen.architectures
    return tuple(chosen.found.sample(min(SAMPLE, len(chosen.found)), config.search.seed))


def survivors(number: int, rungs: Sequence[int], keep: float) -> list[tuple[int, int]]:
    """Return (tokens since the previous rung, number of candidates that train them) for each rung."""
    numbers = Halving(keep=keep).survivors(number, len(rungs))
    return [(rung - before, number) for before, rung, number in zip([0, *rungs], rungs, numbers, strict=False)]


def _evaluated(config: StudyConfig, stages: Sequence[tuple[int, int]]) -> int:
    """Return the validation tokens that the trials of one seed are evaluated on, at rungs and as scheduled."""
    training, reached, times = config.training, 0, 0
    for trained, trials in stages:
        before, reached = reached, reached + trained
        ends = {step * training.global_batch_tokens for step in training.evaluation_steps} | {reached}
        times += trials * sum(before < tokens <= reached for tokens in ends)
    return times * config.data.validation_sequences * config.data.sequence_length


def built(shapes: Sequence[Architecture]) -> int:
    """Build every model on the `meta` device, which allocates no memory, and return how many were built.

    Raises:
        ConfigError: If a model's parameter count differs from its architecture's.
    """
    import torch

    from march_search.model import build

    for a in shapes:
        with torch.device("meta"):
            real = sum(parameter.numel() for parameter in build(a).parameters())
        if real != a.num_params:
            raise ConfigError(f"{a.name} was built with {real:,} parameters, expected {a.num_params:,}.")
    return len(shapes)


def cpu() -> Device | None:
    """Return this machine as a device, or None if it cannot be measured.

    A separate process measures it, so that torch is not loaded here.
    """
    code = "import dataclasses, json; from march_search.cost.devices import this_cpu; "
    printed = run_python(code + "print(json.dumps(dataclasses.asdict(this_cpu())))")
    return None if printed is None else Device(**json.loads(printed))


def device_of(config: StudyConfig, text: str | None, torch_is_loaded: bool = False) -> Device | None:
    """Return the devices of a trial: those in `text`, or by default this machine's CPU for a CPU study, else None.

    A single device such as `A5000` stands for one device per rank.

    Raises:
        UsageError: If the device is unknown or the number of devices differs from the study's ranks.
    """
    if text is None:
        return None if config.devices.kind != "cpu" else this_cpu() if torch_is_loaded else cpu()
    device, ranks = parse_device(text), config.devices.ranks
    if device.name == "cpu" or device.count == ranks:
        return device
    if device.count == 1:
        return replace(device, count=ranks)
    raise UsageError(f"--device {text} does not match [devices] ranks = {ranks}: use --device {device.name}.")


def actual(folder: Path, config: StudyConfig) -> dict[str, Any]:
    """Return what the study in `folder` has used so far: the keys of `priced_plan` that its files can show."""
    tokens, flops, seconds, trials = 0, 0.0, 0.0, 0
    for trial in find_trials(folder).trials:
        trials += 1
        if _was_taken(trial.folder):
            continue  # trained by another study
        metrics = read_metrics(trial.folder)
        a = Architecture.parse(trial.config.architecture)
        tokens += metrics.tokens
        flops += metrics.tokens * float(speed.flops_per_token(a, study_setup(config)))
        seconds += _seconds(metrics.lines)
    kind, together = config.devices.kind, config.devices.parallel_trials
    devices = config.devices.ranks if kind == "cuda" else 1 / together  # concurrent trials share the CPU
    files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {
        "trials": trials,
        "tokens": tokens,
        "flops": flops,
        "device_hours": seconds / 3600 * devices,
        "disk_bytes": sum(files),
    }


def _was_taken(folder: Path) -> bool:
    """Return whether a trial was taken over from another study; False if its outcome.json is damaged."""
    try:
        return "taken_from" in (read_outcome(folder) or {})
    except StorageError:
        return False


def price_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a plan's device-hours, memory and disk as (label, value) pairs."""
    rows = []
    if plan["device_hours"] is not None:
        money = "" if plan["money"] is None or plan["rate"] is None else f" × {plan['rate']:g} = {plan['money']:,.2f}"
        whole = "" if len(plan["stages"]) > 1 else " if no trial stops early"
        hours = f"{plan['device_hours']:,.3g} on {plan['device']}{money}{whole}"
        rows.append(("device-hours", f"{hours}; {plan['basis']}"))
    else:
        rows.append(("device-hours", "add --device 8xA5000 to see the time, and --rate PRICE_PER_HOUR to see the cost"))
    if plan["memory"] is not None:
        rows.append(("memory", _memory_words(plan["memory"])))
    disk = plan["disk_bytes"]
    parts = ", ".join(f"{size(value)} {key.replace('_', ' ')}" for key, value in disk.items())
    rows.append(("disk", f"{size(sum(disk.values()))} at most: {parts}"))
    return rows


def comparison_rows(plan: dict[str, Any], took: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (label, value) pairs that compare planned and actual use."""
    pairs = [
        ("trials", plan["trials"], took["trials"], count),
        ("tokens", plan["tokens"], took["tokens"], si),
        ("FLOPs", plan["flops"], took["flops"], si),
        ("device time", plan["device_hours"], took["device_hours"], lambda hours: duration(hours * 3600)),
        ("disk", sum(plan["disk_bytes"].values()) or None, took["disk_bytes"], size),
    ]
    return [
        (label, f"{show(used)}, {'not planned' if not goal else f'{used / goal:.0%} of the {show(goal)} planned'}")
        for label, goal, used, show in pairs
    ]


def _memory(a: Architecture, setup: Setup, config: StudyConfig) -> dict[str, Any]:
    """Return the largest candidate's memory per device, at the configured micro batch or the largest that fits."""
    if config.training.micro_batch_sequences is None and setup.device.memory_bytes:
        micro_batch = largest_micro_batch(a, setup, config.batch.share, setup.device.memory_bytes)
        setup = replace(setup, micro_batch=micro_batch)
    return {
        "architecture": a.name,
        "bytes": round(memory(a, setup).total),
        "device_bytes": setup.device.memory_bytes,
        "micro_batch": setup.micro_batch,
    }


def _memory_words(memory_plan: dict[str, Any]) -> str:
    """Describe the largest candidate's memory and whether it fits."""
    words = f"{size(memory_plan['bytes'])} at most, for {memory_plan['architecture']}"
    words += f" at micro batch {memory_plan['micro_batch']}"
    if not memory_plan["device_bytes"]:
        return words
    remedy = "use a smaller micro batch or a higher ZeRO stage"
    verdict = "fits" if memory_plan["bytes"] <= USABLE * memory_plan["device_bytes"] else f"DOES NOT FIT: {remedy}"
    return f"{words}; a device has {size(memory_plan['device_bytes'])}: {verdict}"


def _disk(
    config: StudyConfig, shapes: Sequence[Architecture], stages: Sequence[tuple[int, int]], paused: bool
) -> dict[str, int]:
    """Return peak bytes by kind: two checkpoints per running or paused trial, and the weights of finished ones."""
    training, seeds = config.training, len(config.search.seeds)
    params = max(a.num_params for a in shapes)
    setup = study_setup(config)
    state = setup.scalar_bytes + (8 if setup.stage == 0 else 12)
    open_trials = stages[0][1] * seeds if paused else min(config.devices.parallel_trials, stages[0][1] * seeds)
    evaluations = len(training.evaluation_steps) * (4 * config.data.validation_sequences + 300)
    return {
        "checkpoints": 2 * state * params * open_trials * bool(training.checkpoints or paused),
        "weights": setup.scalar_bytes * params * stages[-1][1] * seeds * training.keep_weights,
        "metrics": (evaluations + 250 * training.steps) * stages[0][1] * seeds,
        "text": (2 if config.data.vocab_size <= 2**16 else 4) * training.tokens,
    }


def _seconds(lines: Sequence[dict[str, Any]]) -> float:
    """Return the seconds that a trial spent on training and evaluation, from its metric lines."""
    train = [line for line in lines if line.get("kind") == "train" and line.get("tokens_per_second")]
    before = [0, *(line["tokens"] for line in train)]
    trained = sum((line["tokens"] - b) / line["tokens_per_second"] for line, b in zip(train, before, strict=False))
    return float(trained + sum(line.get("seconds") or 0.0 for line in lines if line.get("kind") == "evaluation"))
