"""What a study was planned to use and what it has used."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any

from march_search.architecture.architecture import Architecture
from march_search.config import DevicesConfig, StudyConfig
from march_search.cost import speed
from march_search.cost.setup import study_setup
from march_search.errors import StorageError
from march_search.files.json_tables import MAYBE_NUMBER, NUMBER, Kinds, find_table, table_fault
from march_search.trial.metrics import read_metrics
from march_search.trial.outcome import read_outcome
from march_search.trial.own_trials import find_trials
from march_search.units import count, duration, si, size

_PLAN: dict[str, Kinds] = {
    "trials": int, "tokens?": NUMBER, "flops?": NUMBER, "device_hours?": MAYBE_NUMBER, "rate?": MAYBE_NUMBER,
    "money?": MAYBE_NUMBER, "device?": (str, NoneType), "basis?": (str, NoneType), "stages?": list,
    "confirm?": (dict, NoneType), "seconds?": MAYBE_NUMBER, "memory?": (dict, NoneType), "disk_bytes?": dict,
    "architectures?": int, "seconds_range?": (list, NoneType), "parallel_trials?": (int, NoneType),
}  # fmt: skip
_STAGE: dict[str, Kinds] = {
    "tokens": NUMBER,
    "trials": int,
    "text?": str,
    "trained_tokens?": NUMBER,
    "device_hours?": MAYBE_NUMBER,
    "seconds?": MAYBE_NUMBER,
}
_CONFIRM: dict[str, Kinds] = {
    "text": str,
    "trials": MAYBE_NUMBER,
    "tokens": MAYBE_NUMBER,
    "device_hours": MAYBE_NUMBER,
    "seconds": MAYBE_NUMBER,
}
_MEMORY: dict[str, Kinds] = {"architecture": str, "bytes": NUMBER, "device_bytes": NUMBER, "micro_batch": int}


def saved_plan(folder: Path) -> dict[str, Any] | None:
    """Return the plan that the study in `folder` was launched with; None before the launch.

    Raises:
        StorageError: If plan.json is damaged.
    """
    path, remedy = folder / "plan.json", "Delete it to plan again."
    plan = find_table(path, _PLAN, remedy)
    if plan is None:
        return None
    parts = [(plan.get("memory") or None, _MEMORY), (plan.get("confirm") or None, _CONFIRM)]
    parts += [(stage, _STAGE) for stage in plan.get("stages", [])]
    faults = [table_fault(part, expected) for part, expected in parts if isinstance(part, dict)]
    faults += ["must have tables as stages" for part, _ in parts if not isinstance(part, dict | None)]
    numbers = [*plan.get("disk_bytes", {}).values(), *(plan.get("seconds_range") or [])]
    faults += [table_fault({"size": number}, {"size": NUMBER}) for number in numbers]
    if fault := next(filter(None, faults), ""):
        raise StorageError(f"{path}: is damaged: it {fault}. {remedy}")
    return dict.fromkeys(key.removesuffix("?") for key in _PLAN) | {"stages": [], "disk_bytes": {}} | plan


def planned_trials(folder: Path, config: StudyConfig) -> int:
    """Return the planned number of trials of a study with a sampler; 0 for any other study or a damaged plan."""
    try:
        plan = saved_plan(folder) if config.search.adaptive else None
    except StorageError:  # `study status` reports it
        plan = None
    return int(plan["trials"]) if plan else 0


def actual(folder: Path, config: StudyConfig) -> dict[str, Any]:
    """Return what the study in `folder` has used so far: the keys of `priced_plan` that its files can show."""
    tokens, flops, device_seconds, trials = 0, 0.0, 0.0, 0
    for trial in find_trials(folder).trials:
        trials += 1
        if _was_taken(trial.folder):
            continue  # trained by another study
        metrics = read_metrics(trial.folder)
        a = Architecture.parse(trial.config.architecture)
        tokens += metrics.trained_tokens
        flops += metrics.trained_tokens * float(speed.flops_per_token(a, study_setup(config)))
        device_seconds += _seconds(metrics.lines) * _devices(config.devices, metrics.lines)
    return {
        "trials": trials,
        "tokens": tokens,
        "flops": flops,
        "device_hours": device_seconds / 3600,
        "disk_bytes": _disk_bytes(folder),
    }


def _devices(devices: DevicesConfig, lines: Sequence[dict[str, Any]]) -> float:
    """Return the number of devices that a trial used, from its metric lines; trials at the same time share a CPU."""
    is_gpu = devices.kind == "cuda" or (devices.kind == "auto" and any(map(_shows_gpu, lines)))
    return devices.ranks if is_gpu else 1 / devices.parallel_trials


def _shows_gpu(line: dict[str, Any]) -> bool:
    """Return whether a metric line was written on a GPU: only there, the device has a memory of its own."""
    device, host = line.get("peak_memory_bytes"), line.get("peak_host_memory_bytes")
    return "peak_reserved_memory_bytes" in line or (None not in (device, host) and device != host)


def _disk_bytes(folder: Path) -> int:
    """Return the size of all files in `folder`, without those that another process deletes meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(parent, name).stat().st_size
    return total


def _was_taken(folder: Path) -> bool:
    """Return whether a trial was taken over from another study; False if its outcome.json is damaged."""
    try:
        return "taken_from" in (read_outcome(folder) or {})
    except StorageError:
        return False


def comparison_rows(plan: dict[str, Any], took: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (label, value) pairs that compare planned and actual use."""
    confirm = plan.get("confirm") or {}
    flops = plan["flops"] / plan["tokens"] * (confirm.get("tokens") or 0) if plan["tokens"] else 0
    pairs: list[tuple[str, float | None, float, float, Callable[[float], str]]] = [
        ("trials", plan["trials"], confirm.get("trials") or 0, took["trials"], count),
        ("tokens", plan["tokens"], confirm.get("tokens") or 0, took["tokens"], si),
        ("FLOPs", plan["flops"], flops, took["flops"], si),
        (
            "device time",
            plan["device_hours"],
            confirm.get("device_hours") or 0,
            took["device_hours"],
            lambda hours: duration(hours * 3600),
        ),
        ("disk", sum(plan["disk_bytes"].values()) or None, 0, took["disk_bytes"], size),
    ]
    return [(label, f"{show(used)}, {_of_plan(goal, more, used, show)}") for label, goal, more, used, show in pairs]


def _of_plan(goal: float | None, more: float, used: float, show: Callable[[float], str]) -> str:
    """Return how a use compares with the plan of the search, and of the confirmation at most."""
    if not goal:
        return "not planned"
    if more:
        return f"of {show(goal)} planned to search and at most {show(more)} to confirm"
    return f"{used / goal:.0%} of the {show(goal)} planned"


def _seconds(lines: Sequence[dict[str, Any]]) -> float:
    """Return the seconds that a trial spent on training and evaluation, from its metric lines."""
    train = [line for line in lines if line.get("kind") == "train" and line.get("tokens_per_second")]
    before = [0, *(line["tokens"] for line in train)]
    trained = sum((line["tokens"] - b) / line["tokens_per_second"] for line, b in zip(train, before, strict=False))
    evaluations = [line for line in lines if line.get("kind") in ("evaluation", "branch_evaluation")]
    return float(trained + _branch_seconds(lines) + sum(line.get("seconds") or 0.0 for line in evaluations))


def _branch_seconds(lines: Sequence[dict[str, Any]]) -> float:
    """Return the seconds that a trial spent on the steps of its decay branches."""
    seconds, reached = 0.0, dict[int, int]()
    for line in lines:
        if line.get("kind") == "branch_train" and line.get("tokens_per_second"):
            before = reached.get(line["branch"], line["tokens"])
            seconds += (line["branch_tokens"] - before) / line["tokens_per_second"]
            reached[line["branch"]] = line["branch_tokens"]
    return seconds
