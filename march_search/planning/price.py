"""Predict what a study will use: tokens, FLOPs, device-hours, money, disk, memory. `usage.py` has what it used."""

import json
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from march_search.architecture.architecture import Architecture
from march_search.config import StudyConfig
from march_search.cost import speed
from march_search.cost.devices import Device, parse_device
from march_search.cost.memory import largest_micro_batch, memory
from march_search.cost.setup import STUDY_DEVICES, Setup, study_setup
from march_search.errors import ConfigError, UsageError
from march_search.planning.candidates import Candidates, how_many, rates
from march_search.planning.rungs import reached
from march_search.processes import run_python
from march_search.units import plural, si

EVALUATION_PASSES = 2
"""Forward passes per evaluation, each a third of a training step's work: the second measures the context gain."""

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
        "seconds_range": None,
        "parallel_trials": config.devices.parallel_trials,
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
    trained = config.training.trained_tokens(before, tokens)
    use: dict[str, Any] = {"trained_tokens": trained * trials, "device_hours": None, "seconds": None}
    if device is not None:
        evaluated = _evaluated(config, before, tokens)
        seconds = fmean(
            (trained + evaluated * EVALUATION_PASSES / 3) / speed.tokens_per_second(a, setup) for a in shapes
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
        whole = config.training.trained_tokens(0, config.training.tokens)
        affordable = max(0, limit - searched) // (finalists * whole)
        rounds = affordable if rounds is None else min(rounds, affordable)
    more = "further seeds" if further is None else f"up to {plural(further, 'further seed')} each"
    number = f"{'at most ' if finalists > least else ''}{finalists} finalists"
    text = f"{number} get {more}, until the leader is separated"
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


def stand_ins(config: StudyConfig, chosen: Candidates) -> tuple[Architecture, ...]:
    """Return the candidates, or a uniform sample of the feasible set if a sampler will choose them."""
    if not config.search.adaptive:
        return chosen.architectures
    return tuple(chosen.found.sample(min(SAMPLE, len(chosen.found)), config.search.seed))


def _evaluated(config: StudyConfig, before: int, reached: int) -> int:
    """Return the validation tokens of a trial between two numbers of tokens, at the rung and as scheduled."""
    training = config.training
    ends = {step * training.global_batch_tokens for step in training.evaluation_steps} | {reached}
    times = sum(before < tokens <= reached for tokens in ends) + len(training.branches_between(before, reached))
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
    printed, _ = run_python(code + "print(json.dumps(dataclasses.asdict(this_cpu())))")
    return None if printed is None else Device(**json.loads(printed))


def device_of(config: StudyConfig, text: str) -> Device:
    """Return the devices of a trial that `--device` names. A single device, as in `A5000`, is one per rank.

    Raises:
        UsageError: If the device is unknown or the number of devices differs from the study's ranks.
    """
    device, ranks = parse_device(text), config.devices.ranks
    if device.name == "cpu" or device.count == ranks:
        return device
    if device.count == 1:
        return replace(device, count=ranks)
    raise UsageError(f"--device {text} does not match [devices] ranks = {ranks}: use --device {device.name}.")


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


def _disk(
    config: StudyConfig, shapes: Sequence[Architecture], stages: Sequence[dict[str, Any]], further: int
) -> dict[str, int]:
    """Return peak bytes by kind: two checkpoints per running or paused trial, and the weights of finished ones.

    The checkpoint from which a decay branch starts is one of the two, and the only one without `checkpoints`.

    `further` is the number of trials that the confirmation adds at most.
    """
    training, paused, trials = config.training, len(stages) > 1, stages[0]["trials"]
    params = max(a.num_params for a in shapes)
    setup = study_setup(config)
    state = setup.scalar_bytes + (8 if setup.stage == 0 else 12)
    open_trials = trials if paused else min(config.devices.parallel_trials, trials)
    evaluations = len(training.evaluation_steps) + len(training.branches)
    steps = training.trained_tokens(0, training.tokens) // training.global_batch_tokens
    saves = bool(training.checkpoints or training.branches or paused)
    return {
        "checkpoints": 2 * state * params * open_trials * saves,
        "weights": setup.scalar_bytes * params * (stages[-1]["trials"] + further) * training.keep_weights,
        "metrics": (evaluations * (4 * config.data.validation_sequences + 300) + 250 * steps) * (trials + further),
        "text": (2 if config.data.vocab_size <= 2**16 else 4) * training.tokens,
    }
