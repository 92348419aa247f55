"""Train a trial: build the model and engine, take steps, evaluate, write checkpoints and the result."""

import logging
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from march_search.architecture.architecture import Architecture
from march_search.architecture.block_file import load_block
from march_search.config import TrialConfig
from march_search.config.deepspeed_check import check_deepspeed
from march_search.config.deepspeed_config import ds_config
from march_search.config.scaling import base_shape
from march_search.config.training_config import Branch
from march_search.data.batches import Batches, prefetch
from march_search.data.store import Store
from march_search.data.text_bytes import token_bytes
from march_search.errors import ConfigError, DivergedError, TrialError
from march_search.files.atomic import file_sha256, make_folder
from march_search.files.json_tables import sealed, write_json
from march_search.model import build
from march_search.training import branches, checkpoint, evaluation, launch, micro_batch, ranks, timing, weights
from march_search.training.engine import (
    RankInfo,
    check_compiler,
    describe_machine,
    from_first,
    join_ranks,
    keep_gradient_norm,
    leave,
    memory_of_all,
    quiet_deepspeed,
    use_deterministic_operations,
)
from march_search.training.metrics_file import MetricsFile
from march_search.training.muon import MuonAndAdamW
from march_search.training.optimizer import AdamW, parameter_groups, schedule
from march_search.training.ranks import InterruptedTrialError, StopRequest
from march_search.training.timing import Phases, Utilisation
from march_search.trial.metrics import read_metrics
from march_search.trial.result import VALIDATION_SEAL, WEIGHTS_SEAL, validation_file

_LOGGER = logging.getLogger(__name__)

Batch = tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None]
"""Inputs, targets, and where the documents of each target begin. Inputs are None for a decoder-only model, and the last
unless documents are masked."""

LOOK_SECONDS = 2.0
"""Seconds between two checks, within a step, whether any rank has received a stop signal."""


@dataclass(kw_only=True)
class _Trial:
    """State of the training loop."""

    folder: Path
    config: TrialConfig
    architecture: Architecture
    rank_info: RankInfo
    batches: Batches
    validation: evaluation.Validation
    token_bytes_V: torch.Tensor
    """Bytes of text of each token of the vocabulary, float64."""
    engine: Any
    stop: StopRequest
    phases: Phases
    utilisation: Utilisation
    metrics: MetricsFile | None = None
    losses_sha256: str = ""
    """SHA-256 of the file with the losses of the last evaluation; empty on other ranks than the first."""
    step: int = 0
    seconds: float = 0.0
    """Time spent in training steps, without evaluations, over all processes of the trial so far."""
    saved: int = 0
    """Step of the newest checkpoint."""
    micro_seconds: float = 0.0
    """Mean duration of a micro batch in the last step; 0 before the first."""
    look_every: int = 1
    """Number of micro batches between two checks for a stop signal."""
    branch: Branch | None = None
    """Decay branch that is trained; None for the stable run."""


def train(folder: Path, config: TrialConfig, last_step: int) -> None:
    """Train the trial in `folder` from its newest checkpoint to `last_step`.

    At the end of the data budget, write result.json. At an earlier step, evaluate and write a checkpoint. Pausing does
    not change the steps that follow.

    Raises:
        InterruptedTrialError: If SIGTERM or SIGINT arrives. A checkpoint is written first.
        ConfigError, DataError: If the architecture, token store and settings do not fit together.
        TrialError: If the loss or the gradient is not finite.
    """
    stop = StopRequest(launch.StopOrders(folder).signum if config.devices.launcher != "own" else None)
    if config.block is not None:
        load_block(config.block.module, folder, config.block.sha256)
    architecture = Architecture.parse(config.architecture)
    store = Store.open((folder / config.store).resolve())
    if store.vocab_size != architecture.vocab_size:
        raise ConfigError(
            f"the architecture has a vocabulary of {architecture.vocab_size:,}, but the token store has "
            f"{store.vocab_size:,}."
        )
    store.verify(lambda: ranks.beat(ranks.STARTING))
    batches = Batches(store, config.data, config.seed, architecture.structure)
    rank_info = join_ranks(config.devices)
    if config.training.deterministic:
        use_deterministic_operations()
    check_deepspeed(config.training, config.batch)
    check_compiler(config.training, rank_info)
    config = micro_batch.fit_micro_batch(folder, config, rank_info)
    use = timing.measure_utilisation(folder, config, architecture, rank_info)
    validation = evaluation.Validation.of(batches, store)
    engine = _engine(folder, config, architecture, rank_info)
    engine.module.start_token = store.special.start
    trial = _Trial(
        folder=folder,
        config=config,
        architecture=architecture,
        rank_info=rank_info,
        batches=batches,
        validation=validation,
        token_bytes_V=torch.from_numpy(token_bytes(store)),
        engine=engine,
        stop=stop,
        phases=Phases(rank_info.device),
        utilisation=use,
    )
    if rank_info.is_first:
        write_json(folder / "ds_config.json", ds_config(config.training, config.batch))
        make_folder(folder / "checkpoints")
    ranks.beat(ranks.STARTING)
    trial.step, trial.seconds = checkpoint.load(trial.engine, folder / "checkpoints", rank_info)
    trial.saved = trial.step
    ranks.send_heartbeats_from(trial.engine.module.stacks.values())
    if rank_info.is_first:
        trial.metrics = MetricsFile(folder / "metrics.jsonl", trial.step)
    evaluated = _steps(trial, last_step)
    if last_step == config.training.steps:
        _finish(trial, evaluated)
    elif trial.saved < trial.step:
        _save(trial)
    leave()


def _engine(folder: Path, config: TrialConfig, architecture: Architecture, rank_info: RankInfo) -> Any:
    """Build the model, optimizer and schedule under DeepSpeed; record the groups in optimizer_groups.json."""
    quiet_deepspeed(rank_info.device)
    import deepspeed

    training, base = config.training, base_shape(config.training)
    torch.manual_seed(config.seed)
    # The trial run of FlexAttention calls layers out of order, which has not been tried with the hooks of ZeRO 3.
    attention = "sdpa" if training.zero_stage == 3 and training.attention == "auto" else training.attention
    model = build(architecture, training.init, training.activation_checkpointing, base, attention)
    model.z_loss = training.z_loss
    groups = parameter_groups(model, base, training.optimizer)
    if rank_info.is_first:
        write_json(folder / "optimizer_groups.json", [group.describe(training) for group in groups])
    optimizer = (MuonAndAdamW if training.optimizer == "muon" else AdamW)(
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
    keep_gradient_norm(engine)
    if training.compile == "layers":
        for stack in model.stacks.values():
            stack.compile_layers()
    return engine


def _steps(trial: _Trial, last_step: int) -> dict[str, float]:
    """Take all steps up to `last_step`, evaluate at the end, and return the last evaluation."""
    training = trial.config.training
    evaluate_after, save_after = {*training.evaluation_steps, last_step}, set(training.checkpoint_steps)
    micro_batches = prefetch(_micro_batches(trial))
    last: dict[str, float] = {}
    if trial.step == last_step and not _is_evaluated(trial):  # an earlier process stopped here without evaluating
        last = _evaluate(trial)
    began_at = trial.step
    while trial.step < last_step:
        for branch in training.branches:
            if branch.start == trial.step and not branches.is_done(trial.folder, branch, trial.rank_info):
                _take_branch(trial, branch)
        _one_step(trial, micro_batches)
        if trial.step == began_at + 1 and trial.rank_info.is_first:
            paths = trial.engine.module.attention_paths.items()
            _LOGGER.info(f"attention: {'; '.join(f'{name}: {path.name} ({path.reason})' for name, path in paths)}.")
        if trial.step in evaluate_after:
            last = _evaluate(trial)
        if trial.step in save_after:
            _save(trial)
    micro_batches.close()
    return last


def _take_branch(trial: _Trial, branch: Branch) -> None:
    """Decay from the current step to the branch's end, evaluate there, and load the state of the stable run again.

    A process that dies in between resumes from the checkpoint at the branch's start.
    """
    if trial.saved < trial.step:
        _save(trial)
    config = replace(trial.config, training=branches.shorter(trial.config.training, branch))
    decaying = replace(trial, config=config, branch=branch, seconds=0.0)
    branches.set_rate(trial.engine, schedule(config.training))
    micro_batches = prefetch(_micro_batches(decaying))
    while decaying.step < config.training.steps:
        _one_step(decaying, micro_batches)
    micro_batches.close()
    branches.check_steps(trial.engine, branch)
    _evaluate(decaying)
    branches.reload(trial.engine, trial.folder / "checkpoints", trial.step, trial.rank_info)
    branches.set_rate(trial.engine, schedule(trial.config.training))


def _is_evaluated(trial: _Trial) -> bool:
    """Return whether the trial has been evaluated at the current step; all ranks get the same answer."""
    lines = read_metrics(trial.folder).of_kind("evaluation") if trial.rank_info.is_first else ()
    return bool(from_first(any(line.get("step") == trial.step for line in lines), trial.rank_info))


def _micro_batches(trial: _Trial) -> Iterator[Batch]:
    """Yield this rank's micro batches, starting from the current step."""
    plan, rank = trial.config.batch, trial.rank_info.rank
    share = plan.micro_batch * plan.accumulation
    for step in range(trial.step, trial.config.training.steps):
        first = step * plan.sequences + rank * share
        for micro in range(plan.accumulation):
            inputs, targets = trial.batches.train(first + micro * plan.micro_batch, plan.micro_batch)
            starts = trial.batches.document_starts(targets)
            yield _host_tensor(inputs, trial), _host_tensor(targets, trial), _host_tensor(starts, trial)


@overload
def _host_tensor(array: NDArray[np.int64], trial: _Trial) -> torch.Tensor: ...
@overload
def _host_tensor(array: None, trial: _Trial) -> None: ...
def _host_tensor(array: NDArray[np.int64] | None, trial: _Trial) -> torch.Tensor | None:
    """Return an array as a tensor, in pinned memory if it will be copied to a GPU: such a copy does not block."""
    if array is None:
        return None
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if trial.rank_info.device.type == "cuda" else tensor


def _one_step(trial: _Trial, micro_batches: Iterator[Batch]) -> None:
    """Take one optimizer step over the global batch; a stop signal abandons the step before any weight changes."""
    began, engine, plan = time.perf_counter(), trial.engine, trial.config.batch
    losses, waited, text_bytes, num_targets = [], 0.0, 0.0, 0
    for micro in range(plan.accumulation):
        if micro % trial.look_every == 0:
            _obey(trial)
        asked = time.perf_counter()
        inputs, targets, starts = next(micro_batches)
        text_bytes, num_targets = text_bytes + float(trial.token_bytes_V[targets].sum()), num_targets + targets.numel()
        waited += time.perf_counter() - asked
        trial.phases.mark()
        inputs, starts = (x if x is None else x.to(trial.rank_info.device, non_blocking=True) for x in (inputs, starts))
        loss = engine(inputs, targets.to(trial.rank_info.device, non_blocking=True), starts_BT=starts)
        trial.phases.mark("forward_seconds")
        engine.backward(loss)
        trial.phases.mark("backward_seconds")
        engine.step()
        trial.phases.mark("step_seconds")
        losses.append(loss.detach().float())
        ranks.beat()
    mean = torch.stack([torch.stack(losses).mean().double(), losses[0].new_tensor(text_bytes, dtype=torch.float64)])
    if trial.rank_info.world_size > 1:
        dist.all_reduce(mean)
        mean /= trial.rank_info.world_size
    (value, text_bytes), norm = mean.tolist(), engine.get_global_grad_norm()
    bits = {"bits_per_byte": round(value * num_targets / text_bytes / math.log(2), 6)} if text_bytes else {}
    seconds = time.perf_counter() - began
    trial.micro_seconds = seconds / plan.accumulation  # of a whole step, because a GPU runs behind the loop above
    trial.step += 1
    trial.seconds += seconds
    norm = None if norm is None else float(norm)
    if not math.isfinite(value) or (norm is not None and not math.isfinite(norm)):
        raise DivergedError(
            f"diverged at step {trial.step:,}{branches.words(trial.branch)}: loss {value}, gradient norm {norm}. "
            "Lower the learning rate."
        )
    tokens, phases = trial.config.training.global_batch_tokens, trial.phases.seconds()
    if trial.metrics:
        kind, where = branches.position("train", trial.step, tokens, trial.branch)
        trial.metrics.append(
            kind, **where, loss=round(value, 6), **bits,
            gradient_norm=norm, learning_rate=_base_rate(trial), tokens_per_second=round(tokens / seconds, 1),
            flop_utilisation=trial.utilisation.at(tokens / seconds), data_wait_seconds=round(waited, 6),
            **{name: round(taken, 6) for name, taken in phases.items()},
        )  # fmt: skip


def _base_rate(trial: _Trial) -> float:
    """Return the scheduled learning rate, without the factor of any parameter group."""
    rate = trial.engine.lr_scheduler
    return float(trial.config.training.learning_rate * rate.lr_lambdas[0](rate.last_epoch))


def _evaluate(trial: _Trial) -> dict[str, float]:
    """Evaluate the model, write a metrics line and return the values."""
    began, training = time.perf_counter(), trial.config.training
    evaluated = evaluation.evaluate(trial.engine, trial.validation, trial.config.batch.micro_batch, trial.rank_info)
    values, memory = evaluated.values, memory_of_all(trial.rank_info)
    if not math.isfinite(values["loss"]):
        raise DivergedError(
            f"diverged at step {trial.step:,}{branches.words(trial.branch)}: evaluation loss {values['loss']}. "
            "Lower the learning rate."
        )
    if trial.metrics:
        file = validation_file(trial.folder, trial.step * training.global_batch_tokens, trial.branch is not None)
        trial.losses_sha256 = evaluated.keep(file)
        kind, where = branches.position("evaluation", trial.step, training.global_batch_tokens, trial.branch)
        if trial.branch:
            where[VALIDATION_SEAL] = trial.losses_sha256
        seconds = round(time.perf_counter() - began, 3)
        trial.metrics.append(kind, **where, **values, **memory, seconds=seconds)
        trial.metrics.sync()
    return values


def _save(trial: _Trial) -> None:
    """Sync the metrics to disk, then write a checkpoint."""
    if trial.metrics:
        trial.metrics.sync()
    state = {"step": trial.step, "seconds": trial.seconds}
    checkpoint.save(trial.engine, trial.folder / "checkpoints", state, trial.rank_info)
    trial.saved = trial.step


def _obey(trial: _Trial) -> None:
    """If any rank has received a stop signal, save the state after the last whole step and raise on all ranks."""
    signum = trial.stop.look()
    if trial.rank_info.world_size > 1:
        largest = torch.tensor([signum, trial.micro_seconds], dtype=torch.float64, device=trial.rank_info.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        signum, slowest = int(largest[0]), float(largest[1])
        trial.look_every = max(1, int(LOOK_SECONDS / slowest)) if slowest else 1
    if signum:
        if trial.step > trial.saved and not trial.branch:
            _save(trial)
        raise InterruptedTrialError(signum)


def _finish(trial: _Trial, last: dict[str, float]) -> None:
    """Write the weights, then result.json atomically as the last file, and delete the checkpoints."""
    training, rank_info = trial.config.training, trial.rank_info
    memory, speed = memory_of_all(rank_info), training.tokens / trial.seconds
    skipped = int(getattr(trial.engine, "skipped_steps", 0))
    if skipped:
        raise TrialError(
            f"DeepSpeed skipped {skipped} of {training.steps} steps: the data budget was not used in full."
        )
    if training.keep_weights:
        weights.save(trial.engine, trial.folder, rank_info)
    if rank_info.is_first:
        seals = {VALIDATION_SEAL: trial.losses_sha256}
        if training.keep_weights:
            seals[WEIGHTS_SEAL] = file_sha256(trial.folder / weights.NAME)
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
                    "tokens_per_second": round(speed, 1),
                    "train_seconds": round(trial.seconds, 2),
                    "flop_utilisation": trial.utilisation.at(speed),
                    "flops_per_token": trial.utilisation.flops_per_token,
                    "peak_flops": trial.utilisation.peak_flops,
                    **memory,
                    **seals,
                    **branches.results(trial.folder),
                    "attention": {name: path.name for name, path in trial.engine.module.attention_paths.items()},
                    "micro_batch_halvings": micro_batch.halvings(trial.folder),
                    "training": asdict(training),
                    **describe_machine(rank_info),
                }
            ),
        )
        shutil.rmtree(trial.folder / "checkpoints", ignore_errors=True)
