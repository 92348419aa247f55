"""Train Hugging Face's T5 from the same weights, on the same micro batches, with the same optimizer."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from training_throughput import in_fp32

from gpu_acceptance.acceptance_run import known_device
from gpu_acceptance.scale import SCALES
from gpu_acceptance.session import figures, release, settings
from march_search import Architecture
from march_search.config import TrialConfig
from march_search.data.batches import Batches, prefetch
from march_search.data.store import Store
from march_search.model import build
from march_search.model.huggingface_folder import save_huggingface
from march_search.training import loop
from march_search.training.engine import RankInfo, join_ranks, memory_of_all
from march_search.training.micro_batch import is_out_of_memory


def huggingface(folder: Path, scale: str, kind: str, store: str, out: str, compiled: bool) -> dict[str, Any]:
    """Return one row for T5 as it is, or with torch.compile on each block; the micro batch is halved until it fits."""
    size = SCALES[scale]
    config = settings(scale, kind, store, size.shape, size.middle)
    a, rank_info = Architecture.parse(size.shape), join_ranks(config.devices)
    torch.manual_seed(config.seed)
    weights = folder / "weights"
    weights.mkdir(exist_ok=True)
    save_huggingface(a, build(a).state_dict(), weights, {"eos_token_id": 1, "pad_token_id": 0})
    micro_batch = size.middle
    while True:
        try:
            return _trained(weights, config, a, rank_info, size.compared_steps, size.warm_up, compiled)
        except RuntimeError as error:
            if micro_batch == 1 or not is_out_of_memory(error):
                raise
        release()
        micro_batch //= 2
        config = settings(scale, kind, store, size.shape, micro_batch)


def _trained(
    weights: Path, config: TrialConfig, a: Architecture, rank_info: RankInfo, steps: int, warm_up: int, compiled: bool
) -> dict[str, Any]:
    """Train some steps and return the medians of the measured ones."""
    from transformers import T5ForConditionalGeneration, logging

    logging.disable_progress_bar()
    training, device = config.training, rank_info.device
    dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
    model: Any = T5ForConditionalGeneration.from_pretrained(weights, dtype=dtype).to(device)
    model.config.dropout_rate = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    model.train()
    for block in [*model.encoder.block, *model.decoder.block] if compiled else ():
        block.compile()
    parameters = list(model.parameters())
    copies = [p.detach().float().clone() for p in parameters] if dtype == torch.bfloat16 else parameters
    optimizer = torch.optim.AdamW(
        copies, lr=training.learning_rate, betas=training.betas, weight_decay=training.weight_decay, fused=True
    )
    batches = Batches(Store.open(Path(config.store)), config.data, config.seed, a.structure)
    source = SimpleNamespace(step=0, config=config, batches=batches, rank_info=rank_info)
    micro_batches, lines = prefetch(loop._micro_batches(source)), []  # type: ignore[arg-type]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(warm_up + compiled + steps):
        began, losses = time.perf_counter(), []
        for _ in range(config.batch.accumulation):
            inputs, targets, _ = next(micro_batches)
            assert inputs is not None
            inputs, targets = (tensor.to(device, non_blocking=True) for tensor in (inputs, targets))
            loss = model(input_ids=inputs, labels=targets, use_cache=False).loss
            (loss / config.batch.accumulation).backward()
            losses.append(loss.detach().float())
        torch.nn.utils.clip_grad_norm_(parameters, training.gradient_clipping)
        if copies is parameters:
            optimizer.step()
        else:
            in_fp32(parameters, copies, optimizer)
        optimizer.zero_grad()
        value = float(torch.stack(losses).mean())
        speed = training.global_batch_tokens / (time.perf_counter() - began)
        lines.append({"loss": value, "tokens_per_second": speed, "data_wait_seconds": 0.0})
    micro_batches.close()
    peaks = memory_of_all(rank_info)
    del model, parameters, copies, optimizer
    release()
    name = "Hugging Face T5, compiled" if compiled else "Hugging Face T5"
    config = replace(config, training=replace(config.training, compile="layers" if compiled else "none"))
    found = figures(lines[-steps:], config, a, known_device(device.type))
    for key in [key for key in found if key.startswith("predicted")]:
        del found[key]
    return {"name": name} | found | peaks | {"losses": [line["loss"] for line in lines]}
