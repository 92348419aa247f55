"""Predict what a study will use and measure what it used: tokens, FLOPs, device-hours, money, disk, memory."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import NoneType
from typing import Any

from march_search.architecture.architecture import Architecture
from march_search.config import StudyConfig
from march_search.cost import speed
from march_search.cost.devices import Device, parse_device, this_cpu
from march_search.cost.memory import USABLE, largest_micro_batch, memory
from march_search.cost.setup import STUDY_DEVICES, Setup, study_setup
from march_search.display.tables import count, duration, plural, si, size
from march_search.errors import ConfigError, StorageError, UsageError
from march_search.files.json_tables import MAYBE_NUMBER, NUMBER, Kinds, find_table, table_fault
from march_search.processes import run_python
from march_search.study.candidates import Candidates, how_many, rates
from march_search.study.rungs import reached
from march_search.trial.metrics import read_metrics
from march_search.trial.outcome import read_outcome
from march_search.trial.own_trials import find_trials

_PLAN: dict[str, Kinds] = {
    "trials": int, "tokens?": NUMBER, "flops?": NUMBER, "device_hours?": MAYBE_NUMBER, "rate?": MAYBE_NUMBER,
    "money?": MAYBE_NUMBER, "device?": (str, NoneType), "basis?": (str, NoneType), "stages?": list,
    "confirm?": (dict, NoneType), "seconds?": MAYBE_NUMBER, "memory?": (dict, NoneType), "disk_bytes?": dict,
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

SAMPLE = 64
"""Number of members sampled to represent those that a sampler will choose."""


def priced_plan(
    config: StudyConfig, chosen: Candidates, device: Device | None = None, rate: float | None = None
) -> dict[str, Any]:
    """Return the predicted cost of a study; its device-hours include evaluations. Unknown values are None.

    The totals are those of the search. With rungs, they are the most that it can take: the baseline counts in addition
    to the best, and the mean over all candidates stands in for the promoted ones. With another pruner, no trial is
    assumed to stop early, because a pruner's savings cannot be predicted. The confirmation takes from nothing, if the
    leader is separated at once, to what `confirm` has.

    Args:
        config: The study's settings.
        chosen: The study's candidates.
        device: Devices of one trial, all ranks together.
        rate: Price per device-hour, in any currency.
    """
    shapes, seeds = stand_ins(config, chosen), len(config.search.seeds)
    setup, number = study_setup(config, device or STUDY_DEVICES), how_many(chosen, config)
    points = reached(config, number * len(rates(config)), len(rates(config)))
    stages: list[dict[str, Any]] = []
    for index, (tokens, many) in enumerate(points):
        before = points[index - 1][0] if index else 0
        text = _stage_text(config, number, points, index)
        use = _use(config, shapes, setup, device, many * seeds, (before, tokens))
        stages.append({"tokens": tokens, "trials": many * seeds, "text": text, **use})
    confirm = _confirm(config, shapes, setup, device, number, sum(stage["trained_tokens"] for stage in stages))
    tokens = sum(stage["trained_tokens"] for stage in stages)
    hours = None if device is None else sum(stage["device_hours"] for stage in stages)
    tightest = max(shapes, key=lambda a: memory(a, setup).total)
    return {
        "architectures": number,
        "trials": number * seeds * len(rates(config)),
        "stages": stages,
        "confirm": confirm,
        "tokens": tokens,
        "flops": fmean(float(speed.flops_per_token(a, setup)) for a in shapes) * tokens,
        "device": None if device is None else str(device),
        "basis": None if device is None else device.basis,
        "device_hours": hours,
        "seconds": None if device is None else sum(stage["seconds"] for stage in stages),
        "rate": rate,
        "money": None if hours is None or rate is None else hours * rate,
        "memory": None if device is None else _memory(tightest, setup, config),
        "disk_bytes": _disk(config, shapes, stages, int((confirm or {}).get("trials") or 0)),
    }


def _use(
    config: StudyConfig,
    shapes: Sequence[Architecture],
    setup: Setup,
    device: Device | None,
    trials: int,
    span: tuple[int, int],
) -> dict[str, Any]:
    """Return tokens, device-hours and seconds of training `trials` trials from one number of tokens to another.

    Trials run `parallel_trials` at a time on devices of their own, by one worker. On a CPU, they share it.
    """
    before, tokens = span
    use: dict[str, Any] = {"trained_tokens": (tokens - before) * trials, "device_hours": None, "seconds": None}
    if device is not None:
        evaluated = _evaluated(config, before, tokens)
        seconds = fmean(
            (tokens - before + evaluated * _passes(a) / 3) / speed.tokens_per_second(a, setup) for a in shapes
        )
        at_a_time = config.devices.parallel_trials if device.name != "cpu" else 1
        use["device_hours"] = seconds * trials / 3600 * device.count
        use["seconds"] = seconds * -(-trials // at_a_time)
    return use


def _confirm(
    config: StudyConfig,
    shapes: Sequence[Architecture],
    setup: Setup,
    device: Device | None,
    architectures: int,
    searched: int,
) -> dict[str, Any] | None:
    """Return the most that the confirmation can take; None if there is none, and values None without a limit."""
    confirm, least = config.confirm, config.pruner.finalists
    finalists = min(architectures, least + (least > 1))
    further, limit = confirm.further(len(config.search.seeds)), config.search.max_tokens
    if finalists < 2 or further == 0:
        return None
    rounds = further
    if limit is not None:
        affordable = max(0, limit - searched) // (finalists * config.training.tokens)
        rounds = affordable if rounds is None else min(rounds, affordable)
    more = "further seeds" if further is None else f"up to {plural(further, 'further seed')} each"
    number = f"{'at most ' if finalists > least else ''}{finalists} finalists"
    until = f"until the leader is separated from the others at {confirm.confidence:.0%} confidence"
    text = f"{number} are trained with {more}, {until}"
    if rounds is None:
        return {"text": text, "trials": None, "tokens": None, "device_hours": None, "seconds": None}
    use = _use(config, shapes, setup, device, finalists, (0, config.training.tokens))
    known = {key: None if value is None else value * rounds for key, value in use.items()}
    return {"text": text, "trials": rounds * finalists, "tokens": known.pop("trained_tokens"), **known}


def _stage_text(config: StudyConfig, architectures: int, points: Sequence[tuple[int, int]], index: int) -> str:
    """Return one sentence about a rung, without its full stop: how many candidates train to which token count."""
    (tokens, many), finalists, several = points[index], config.pruner.finalists, len(rates(config))
    to = f"to {si(tokens)} tokens" if index < len(points) - 1 else f"to the end, {si(tokens)} tokens"
    seeds = f" with {plural(len(config.search.seeds), 'seed')} each" if len(config.search.seeds) > 1 else ""
    if not index:
        product = f" ({architectures} architectures × {several} learning rates)" if several > 1 else ""
        noun = "candidates" if several > 1 else "architectures" if many > 1 else "architecture"
        return f"{many:,} {noun}{product} train{'s' * (many == 1)} {to}{seeds}"
    if many == points[index - 1][1]:
        return f"all {many:,} continue {to}"
    if several > 1 and finalists > 1:
        return f"at most {many:,} continue {to}, of at least {finalists} architectures and the baseline"
    best = f"the best {many - 1:,} and the baseline" if finalists > 1 else "the best" + f" {many:,}" * (many > 1)
    return f"{best} continue{'s' * (best == 'the best')} {to}"


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
    faults += [table_fault({"size": size}, {"size": NUMBER}) for size in plan.get("disk_bytes", {}).values()]
    if fault := next(filter(None, faults), ""):
        raise StorageError(f"{path}: is damaged: it {fault}. {remedy}")
    return dict.fromkeys(key.removesuffix("?") for key in _PLAN) | {"stages": [], "disk_bytes": {}} | plan


def stand_ins(config: StudyConfig, chosen: Candidates) -> tuple[Architecture, ...]:
    """Return the candidates, or a uniform sample of the feasible set if a sampler will choose them."""
    if not config.search.adaptive:
        return chosen.architectures
    return tuple(chosen.found.sample(min(SAMPLE, len(chosen.found)), config.search.seed))


def _evaluated(config: StudyConfig, before: int, reached: int) -> int:
    """Return the validation tokens of a trial between two numbers of tokens, at the rung and as scheduled."""
    training = config.training
    ends = {step * training.global_batch_tokens for step in training.evaluation_steps} | {reached}
    times = sum(before < tokens <= reached for tokens in ends)
    return times * config.data.validation_sequences * config.data.sequence_length


def _passes(a: Architecture) -> int:
    """Return the forward passes per evaluation, each a third of a training step's work.

    Encoder-decoders need a second pass, with another example's input, to measure the context gain.
    """
    return 2 if a.structure == "encoder-decoder" else 1


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
    """Return a plan's phases, device-hours, memory and disk as (label, value) pairs."""
    rows = _phase_rows(plan)
    if plan["device_hours"] is not None:
        most = (plan["confirm"] or {"device_hours": 0})["device_hours"]
        ends = [plan["device_hours"]] + ([plan["device_hours"] + most] if most else [])
        hours, money = " to ".join(f"{end:,.3g}" for end in ends), ""
        if plan["rate"] is not None:
            money = f" × {plan['rate']:g} = " + " to ".join(f"{end * plan['rate']:,.2f}" for end in ends)
        bound = " and more without a limit on seeds" if most is None else ""
        whole = "" if len(plan["stages"]) > 1 or most != 0 else " if no trial stops early"
        rows.append(("device-hours", f"{hours}{bound} on {plan['device']}{money}{whole}; {plan['basis']}"))
    else:
        rows.append(("device-hours", "add --device 8xA5000 to see the time, and --rate PRICE_PER_HOUR to see the cost"))
    if plan["memory"] is not None:
        rows.append(("memory", _memory_words(plan["memory"])))
    disk = plan["disk_bytes"]
    parts = ", ".join(f"{size(value)} {key.replace('_', ' ')}" for key, value in disk.items())
    rows.append(("disk", f"{size(sum(disk.values()))} at most: {parts}"))
    return rows


def _phase_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Return one row per rung of the search, one for the confirmation, and one for both; none for an earlier plan."""
    stages, confirm, rows = plan["stages"], plan["confirm"], []
    if not all("text" in stage for stage in stages):
        return []
    for number, stage in enumerate(stages, start=1):
        label = "search" if len(stages) == 1 else "search, end" if number == len(stages) else f"search, rung {number}"
        rows.append((label, f"{stage['text']}: {_spent(stage['trained_tokens'], stage['seconds'])}"))
    if confirm is None:
        return [*rows, ("confirm", "no further seeds: the study ends with the search")]
    most = "no limit" if confirm["tokens"] is None else f"0 to {_spent(confirm['tokens'], confirm['seconds'])}"
    rows.append(("confirm", f"{confirm['text']}: {most}"))
    least = _spent(plan["tokens"], plan["seconds"])
    total = f"{least} and more"
    if confirm["tokens"] is not None:
        seconds = None if plan["seconds"] is None else plan["seconds"] + confirm["seconds"]
        total = f"{least} to {_spent(plan['tokens'] + confirm['tokens'], seconds)}"
    return [*rows, ("both phases", total)]


def _spent(tokens: float, seconds: float | None) -> str:
    """Return tokens and, where it is known, the time of one worker."""
    return f"{si(tokens)} tokens" + ("" if seconds is None else f" in {duration(seconds)}")


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
    config: StudyConfig, shapes: Sequence[Architecture], stages: Sequence[dict[str, Any]], further: int
) -> dict[str, int]:
    """Return peak bytes by kind: two checkpoints per running or paused trial, and the weights of finished ones.

    `further` is the number of trials that the confirmation adds at most.
    """
    training, paused, trials = config.training, len(stages) > 1, stages[0]["trials"]
    params = max(a.num_params for a in shapes)
    setup = study_setup(config)
    state = setup.scalar_bytes + (8 if setup.stage == 0 else 12)
    open_trials = trials if paused else min(config.devices.parallel_trials, trials)
    evaluations = len(training.evaluation_steps) * (4 * config.data.validation_sequences + 300)
    return {
        "checkpoints": 2 * state * params * open_trials * bool(training.checkpoints or paused),
        "weights": setup.scalar_bytes * params * (stages[-1]["trials"] + further) * training.keep_weights,
        "metrics": (evaluations + 250 * training.steps) * (trials + further),
        "text": (2 if config.data.vocab_size <= 2**16 else 4) * training.tokens,
    }


def _seconds(lines: Sequence[dict[str, Any]]) -> float:
    """Return the seconds that a trial spent on training and evaluation, from its metric lines."""
    train = [line for line in lines if line.get("kind") == "train" and line.get("tokens_per_second")]
    before = [0, *(line["tokens"] for line in train)]
    trained = sum((line["tokens"] - b) / line["tokens_per_second"] for line, b in zip(train, before, strict=False))
    return float(trained + sum(line.get("seconds") or 0.0 for line in lines if line.get("kind") == "evaluation"))
