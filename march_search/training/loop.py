"""The trial itself: model, engine, steps, evaluations, checkpoints, result."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from march_search.architecture import Architecture
from march_search.config import TrialConfig
from march_search.data.batches import Batches, prefetch
from march_search.data.store import Store
from march_search.ds_config import ds_config
from march_search.errors import ConfigError, DivergedError, TrialError
from march_search.files import make_folder, read_lines, write_json
from march_search.model import build
from march_search.model.layers import FeedForward
from march_search.outcome import sealed
from march_search.scaling import base_shape
from march_search.training import checkpoints, environment, evaluation, fitting, ranks, weights
from march_search.training.environment import Place
from march_search.training.groups import parameter_groups
from march_search.training.metrics import MetricsFile
from march_search.training.ranks import InterruptedTrialError, StopRequest
from march_search.training.schedule import schedule

Batch = tuple[torch.Tensor | None, torch.Tensor]
"""Inputs, None for a decoder-only model, and targets."""

LOOK_SECONDS = 2.0
"""How often several ranks ask each other within a step whether one was told to stop."""


@dataclass
class _Trial:
    """Everything the loop needs."""

    folder: Path
    config: TrialConfig
    architecture: Architecture
    place: Place
    batches: Batches
    validation: evaluation.Validation
    engine: Any
    stop: StopRequest
    metrics: MetricsFile | None = None
    step: int = 0
    seconds: float = 0.0
    """Spent in training steps, evaluations left out, earlier processes included."""
    saved: int = 0
    """The step of the newest checkpoint."""
    micro_seconds: float = 0.0
    """What the last micro batch took, 0 before the first."""
    look_every: int = 1
    """After so many micro batches all ranks look whether one was told to stop."""


def train(folder: Path, config: TrialConfig, last_step: int) -> None:
    """Trains the trial in `folder` from its newest checkpoint to `last_step`.

    The last of its data budget ends with result.json, an earlier one with an evaluation and a checkpoint. Neither of
    them changes what comes later.

    Raises:
        InterruptedTrialError: SIGTERM or SIGINT came; a checkpoint is written.
        ConfigError, DataError: architecture, store and settings do not fit together.
        TrialError: the loss or the gradient is not finite.
    """
    stop = StopRequest()
    architecture = Architecture.parse(config.architecture)
    store = Store.open((folder / config.store).resolve())
    if store.vocab_size != architecture.vocab_size:
        raise ConfigError(
            f"the architecture has a vocabulary of {architecture.vocab_size:,}, the tokens {store.vocab_size:,}."
        )
    place = environment.take_place(config.devices)
    config = fitting.fitted(folder, config, place)
    batches = Batches(store, config.data, config.seed, architecture.structure)
    validation = evaluation.Validation.of(batches)
    engine = _engine(folder, config, architecture, place)
    trial = _Trial(folder, config, architecture, place, batches, validation, engine, stop)
    if place.is_first:
        write_json(folder / "ds_config.json", ds_config(config.training, config.batch))
        make_folder(folder / "checkpoints")
    ranks.beat(ranks.STARTING)
    trial.step, trial.seconds = checkpoints.load(trial.engine, folder / "checkpoints", place)
    trial.saved = trial.step
    ranks.beat_at(module for module in trial.engine.module.modules() if isinstance(module, FeedForward))
    if place.is_first:
        trial.metrics = MetricsFile(folder / "metrics.jsonl", trial.step)
    evaluated = _steps(trial, last_step)
    if last_step == config.training.steps:
        _finish(trial, evaluated)
    elif trial.saved < trial.step:
        _save(trial)
    environment.leave()


def _engine(folder: Path, config: TrialConfig, architecture: Architecture, place: Place) -> Any:
    """The model under DeepSpeed, with AdamW and its schedule; optimizer_groups.json tells its parameter groups."""
    environment.quiet_deepspeed(place.device)
    import deepspeed

    training, base = config.training, base_shape(config.training)
    torch.manual_seed(config.seed)
    model = build(architecture, training.init, training.activation_checkpointing, base)
    groups = parameter_groups(model, base)
    if place.is_first:
        write_json(folder / "optimizer_groups.json", [group.describe(training) for group in groups])
    optimizer = torch.optim.AdamW(
        [{"params": list(group.parameters.values()), **group.settings(training)} for group in groups],
        lr=training.learning_rate,
        betas=(training.betas[0], training.betas[1]),
        eps=training.epsilon,
        fused=True,
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(training))
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=rate,
        config=ds_config(training, config.batch),
        dist_init_required=False,
    )
    return engine


def _steps(trial: _Trial, last_step: int) -> dict[str, float]:
    """Takes every step up to `last_step` and evaluates there at the latest; returns the last evaluation."""
    training = trial.config.training
    evaluate_after, save_after = {*training.evaluation_steps, last_step}, set(training.checkpoint_steps)
    micro_batches = prefetch(_micro_batches(trial))
    last: dict[str, float] = {}
    if trial.step == last_step and not _is_evaluated(trial):  # it ended here, and was not told to evaluate
        last = _evaluate(trial)
    while trial.step < last_step:
        _one_step(trial, micro_batches)
        if trial.step in evaluate_after:
            last = _evaluate(trial)
        if trial.step in save_after:
            _save(trial)
    micro_batches.close()
    return last


def _is_evaluated(trial: _Trial) -> bool:
    """Whether the trial has been evaluated after the tokens it has seen; all ranks answer alike."""
    lines = read_lines(trial.folder / "metrics.jsonl") if trial.place.is_first else []
    found = [any(line["kind"] == "evaluation" and line["step"] == trial.step for line in lines)]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def _micro_batches(trial: _Trial) -> Iterator[Batch]:
    """This rank's examples from the current step on, a micro batch at a time."""
    plan, rank = trial.config.batch, trial.place.rank
    share = plan.micro_batch * plan.accumulation
    for step in range(trial.step, trial.config.training.steps):
        first = step * plan.sequences + rank * share
        for micro in range(plan.accumulation):
            inputs, targets = trial.batches.train(first + micro * plan.micro_batch, plan.micro_batch)
            yield None if inputs is None else torch.from_numpy(inputs), torch.from_numpy(targets)


def _one_step(trial: _Trial, micro_batches: Iterator[Batch]) -> None:
    """One optimizer step over the global batch; if a signal comes first, none: micro batches alone change no weight."""
    began, engine, plan = time.perf_counter(), trial.engine, trial.config.batch
    losses, waited = [], 0.0
    for micro in range(plan.accumulation):
        if micro % trial.look_every == 0:
            _obey(trial)
        asked = time.perf_counter()
        inputs, targets = next(micro_batches)
        waited += time.perf_counter() - asked
        inputs = None if inputs is None else inputs.to(trial.place.device)
        loss = engine(inputs, targets.to(trial.place.device))
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach().float())
        trial.micro_seconds = time.perf_counter() - asked
        ranks.beat()
    mean = torch.stack(losses).mean()
    if trial.place.world_size > 1:
        dist.all_reduce(mean)
        mean /= trial.place.world_size
    value, norm = float(mean), engine.get_global_grad_norm()
    seconds = time.perf_counter() - began
    trial.step += 1
    trial.seconds += seconds
    norm = None if norm is None else float(norm)
    if not math.isfinite(value) or (norm is not None and not math.isfinite(norm)):
        raise DivergedError(
            f"diverged at step {trial.step:,}: loss {value}, gradient norm {norm}. Lower the learning rate."
        )
    tokens = trial.config.training.global_batch_tokens
    if trial.metrics:
        trial.metrics.append(
            "train", step=trial.step, tokens=trial.step * tokens, loss=round(value, 6),
            gradient_norm=norm, learning_rate=_base_rate(trial), tokens_per_second=round(tokens / seconds, 1),
            data_wait_seconds=round(waited, 6),
        )  # fmt: skip


def _base_rate(trial: _Trial) -> float:
    """The scheduled learning rate before any group's factor."""
    rate = trial.engine.lr_scheduler
    return float(trial.config.training.learning_rate * rate.lr_lambdas[0](rate.last_epoch))


def _evaluate(trial: _Trial) -> dict[str, float]:
    """Evaluates now and writes the line."""
    began, training = time.perf_counter(), trial.config.training
    found = evaluation.evaluate(trial.engine, trial.validation, trial.config.batch.micro_batch, trial.place)
    values = found.values
    if not math.isfinite(values["loss"]):
        raise DivergedError(
            f"diverged at step {trial.step:,}: evaluation loss {values['loss']}. Lower the learning rate."
        )
    if trial.metrics:
        tokens = trial.step * training.global_batch_tokens
        found.keep(trial.folder / "validation" / f"{tokens:015d}.npy")
        seconds = round(time.perf_counter() - began, 3)
        trial.metrics.append("evaluation", step=trial.step, tokens=tokens, **values, seconds=seconds)
        trial.metrics.sync()
    return values


def _save(trial: _Trial) -> None:
    """Writes a checkpoint now, the metrics up to it first."""
    if trial.metrics:
        trial.metrics.sync()
    state = {"step": trial.step, "seconds": trial.seconds}
    checkpoints.save(trial.engine, trial.folder / "checkpoints", state, trial.place)
    trial.saved = trial.step


def _obey(trial: _Trial) -> None:
    """After a signal: all ranks save together and end; the state is that of the last step, whatever has begun since."""
    signum = trial.stop.signum
    if trial.place.world_size > 1:
        told = torch.tensor([signum, trial.micro_seconds], dtype=torch.float64, device=trial.place.device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        signum, slowest = int(told[0]), float(told[1])
        trial.look_every = max(1, int(LOOK_SECONDS / slowest)) if slowest else 1
    if signum:
        if trial.step > trial.saved:
            _save(trial)
        raise InterruptedTrialError(signum)


def _finish(trial: _Trial, last: dict[str, float]) -> None:
    """Writes the weights, then the result, last of all files and whole; checkpoints are of no use after it."""
    training, place = trial.config.training, trial.place
    memory = torch.tensor([environment.peak_memory_bytes(place.device)], dtype=torch.int64, device=place.device)
    if place.world_size > 1:
        dist.all_reduce(memory, op=dist.ReduceOp.MAX)
    skipped = int(getattr(trial.engine, "skipped_steps", 0))
    if skipped:
        raise TrialError(f"DeepSpeed skipped {skipped} of {training.steps} steps: the data budget was not trained on.")
    if training.keep_weights:
        weights.save(trial.engine, trial.folder, place)
    if place.is_first:
        write_json(
            trial.folder / "result.json",
            sealed(
                {
                    "schema_version": 2,
                    "state": "complete",
                    "architecture": trial.architecture.name,
                    "num_params": trial.architecture.num_params,
                    "seed": trial.config.seed,
                    "tokens": trial.step * training.global_batch_tokens,
                    "steps": trial.step,
                    "epochs": round(trial.batches.epochs(training.tokens), 4),
                    "perplexity": math.exp(min(last["loss"], 700.0)),
                    **last,
                    "tokens_per_second": round(training.tokens / trial.seconds, 1),
                    "train_seconds": round(trial.seconds, 2),
                    "peak_memory_bytes": int(memory),
                    "micro_batch_halvings": fitting.halvings(trial.folder),
                    "training": asdict(training),
                    **environment.describe_machine(place),
                }
            ),
        )
        checkpoints.remove(trial.folder / "checkpoints")
