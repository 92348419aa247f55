"""Train a few real steps of a study's own shapes on this machine, and price the study with their speed."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from march_search.architecture.architecture import Architecture
from march_search.config import DataConfig, DevicesConfig, StudyConfig, TrialConfig
from march_search.config.data_config import LEAST_VOCABULARY
from march_search.cost import speed
from march_search.cost.devices import Device, parse_device
from march_search.cost.memory import memory_bytes
from march_search.cost.setup import study_setup
from march_search.doctor.bench import Bench
from march_search.errors import UsageError
from march_search.files.json_tables import read_json, write_json
from march_search.planning.candidates import Candidates, how_many, rates
from march_search.planning.price import cpu, stand_ins
from march_search.storage.study_folder import block_config
from march_search.storage.trial_process import TRAINING
from march_search.trial.metrics import read_metrics

STEPS, WARM_UP = 6, 2
"""Training steps of each shape, and the first of them, which are not counted."""

STEP_SECONDS = 1.5
"""Planned duration of a step, which sets its number of sequences."""


BATCH_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "scheduler",
)
"""DeepSpeed keys that follow from the tokens, the batch and the warm-up, which a rehearsed trial changes."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What the steps of the chosen shapes showed."""

    device: Device
    """The devices that each rehearsed trial used, with predicted speeds."""
    rows: tuple[dict[str, Any], ...]
    """One row per shape: name, and measured and predicted tokens per second and memory."""
    factor: float
    """Geometric mean of measured time over predicted time."""
    trial_hours: float
    """Hours of a trial, as the mean over the study's candidates: predicted hours times `factor`."""
    device_hours: float
    """Device-hours of all trials if none stops early, without evaluations."""


def rehearse(bench: Bench, config: StudyConfig, chosen: Candidates) -> Rehearsal:
    """Train the chosen shapes of the study, one after the other, on the devices of one trial.

    If a trial needs more GPUs than this machine has, it runs on these, and speeds are assumed to add up. Settings are
    the study's, except for the text, which is made up, and the batch, whose steps take a second or two. The time of the
    optimizer's step is scaled to the study's batch.

    Raises:
        UsageError: If the study needs GPUs and there are none, or its vocabulary is too small for made-up text.
        TrialError: If a trial failed or exceeded the time limit of `bench`.
    """
    if config.data.vocab_size < LEAST_VOCABULARY:
        raise UsageError(
            f"[data] vocab_size is {config.data.vocab_size}, and the made-up text of a rehearsal needs "
            f"{LEAST_VOCABULARY}: use march-search study run STUDY --dry-run, which predicts the speed."
        )
    device = _device(bench, config)
    setup = study_setup(config, device)
    shapes = stand_ins(config, chosen)
    times = {a: float(1 / speed.tokens_per_second(a, setup)) for a in shapes}
    rows = tuple(_trained(bench, config, a, device, 1 / times[a]) for a in spread(sorted(times, key=times.__getitem__)))
    factor = math.exp(statistics.fmean(math.log(row["predicted"] / row["tokens_per_second"]) for row in rows))
    ranks = config.devices.ranks if device.name != "cpu" else 1
    device_seconds = (
        factor
        * statistics.fmean(times.values())
        * device.count
        * config.training.trained_tokens(0, config.training.tokens)
    )
    trials = how_many(chosen, config) * len(rates(config)) * len(config.search.seeds)
    return Rehearsal(
        device=device,
        rows=rows,
        factor=factor,
        trial_hours=device_seconds / ranks / 3600,
        device_hours=device_seconds * trials / 3600,
    )


def spread(ordered: Sequence[Architecture]) -> list[Architecture]:
    """Return the first, the middle and the last of these architectures, or all if there are fewer."""
    last = len(ordered) - 1
    return [ordered[index] for index in sorted({0, last // 2, last})]


def _device(bench: Bench, config: StudyConfig) -> Device:
    """Return the devices of a trial on this machine, as the cost model knows them; an unknown GPU counts as an A100."""
    gpus = [] if config.devices.kind == "cpu" else bench.work("devices")["gpus"]
    if not gpus and config.devices.kind == "cuda":
        raise UsageError(
            '[devices] kind is "cuda", but torch finds no GPU here; see march-search doctor --only devices.'
        )
    if not gpus:
        here = cpu()
        if here is None:
            raise UsageError("this machine's CPU could not be measured; see march-search doctor --only devices.")
        return here
    try:
        device = parse_device(gpus[0]["name"])
    except UsageError:
        device = replace(parse_device("A100"), name=f"{gpus[0]['name']} (predicted as A100)")
    return replace(device, count=min(config.devices.ranks, len(gpus)), memory_bytes=gpus[0]["memory_bytes"])


def _trained(bench: Bench, config: StudyConfig, a: Architecture, device: Device, predicted: float) -> dict[str, Any]:
    """Train a few steps of one shape and return its row."""
    length, share = config.data.sequence_length, config.batch.share
    ranks = config.devices.ranks if device.name == "cpu" else device.count
    most = max(1, round(predicted * STEP_SECONDS / length / ranks))
    sequences = next(number for number in range(min(share, most), 0, -1) if share % number == 0)
    tokens = sequences * ranks * length
    micro = config.training.micro_batch_sequences
    training = replace(
        config.training,
        tokens=STEPS * tokens,
        global_batch_tokens=tokens,
        micro_batch_sequences=micro if micro and sequences % micro == 0 else None,
        warmup_tokens=0,
        branch_tokens=(),
        evaluations=1,
        evaluate_at=(),
        checkpoints=0,
        keep_weights=False,
        deepspeed={key: value for key, value in config.training.deepspeed.items() if key not in BATCH_KEYS},
    )
    folder = bench.folder / f"rehearsal-{a.name}"
    folder.mkdir()
    trial = TrialConfig(
        architecture=a.name,
        store=str(store(bench, config.data)),
        data=replace(config.data, validation_sequences=2),
        training=training,
        devices=DevicesConfig(kind=config.devices.kind, ranks=ranks, threads=config.devices.threads),
        block=block_config(a, folder),
    )
    write_json(folder / "trial.json", asdict(trial))
    result = bench.run(TRAINING, folder, "result.json")
    lines = read_metrics(folder).of_kind("train")[WARM_UP:]
    seconds = statistics.median(time_per_token(line, tokens, config.training.global_batch_tokens) for line in lines)
    micro_batch = result["training"]["micro_batch_sequences"]
    setup = replace(study_setup(config, device), micro_batch=micro_batch)
    return {
        "name": a.name,
        "tokens_per_second": 1 / seconds,
        "predicted": predicted,
        "micro_batch": micro_batch,
        "memory_bytes": result["peak_memory_bytes"],
        "predicted_memory_bytes": round(memory_bytes(a, setup)),
    }


def time_per_token(line: dict[str, Any], tokens: int, whole: int) -> float:
    """Return the seconds per token of a step over `tokens` tokens, with the optimizer's step as if over `whole`."""
    seconds, optimizer = tokens / line["tokens_per_second"], line["step_seconds"]
    return float((seconds - optimizer) / tokens + optimizer / whole)


def store(bench: Bench, data: DataConfig) -> Path:
    """Return a token store of made-up text for the study's vocabulary and sequence length; it is written once."""
    density = f"{Decimal(str(data.noise_density)):f}"  # without an exponent, whose sign would be a separator
    work = f"tokens-{data.vocab_size}-{data.sequence_length}-{density}-{data.mean_span_length}"
    written = read_json(bench.folder / work / "found.json") or bench.work(work)
    return Path(written["store"])
