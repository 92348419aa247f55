"""Set up a rank's device and process group, work around DeepSpeed's pitfalls, and describe the machine."""

import collections
import contextlib
import os
import platform
import resource
import sys
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from march_search.config import DevicesConfig, TrainingConfig
from march_search.errors import TrialError
from march_search.model.attention_path import missing_compiler
from march_search.training import ranks

GROUP_TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before the trial fails. Under a supervisor, `hang_seconds` is added."""

_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"


@dataclass(frozen=True)
class RankInfo:
    """Rank and device of one process of a trial."""

    rank: int
    """Index of this process among all ranks."""
    world_size: int
    """Number of ranks."""
    device: torch.device
    """Device that this rank computes on."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.rank == 0


def join_ranks(config: DevicesConfig) -> RankInfo:
    """Set the threads and device of this process and join the process group.

    A single rank, or ranks under `supervisor.supervise`, connect without a port. Ranks started by DeepSpeed's or
    torch's launcher connect to its MASTER_ADDR.

    Raises:
        TrialError: If the device does not exist, or the number of ranks differs from `config.ranks`.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if world_size != config.ranks:
        raise TrialError(f"the trial needs {config.ranks} ranks, but {world_size} were started.")
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size // config.nodes)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(config.threads or max(1, cores // (local_size * config.parallel_trials)))
    device = _device(config, local_rank)
    waits = timedelta(seconds=config.hang_seconds if ranks.PULSE in os.environ else 0)
    _join(rank, world_size, device, GROUP_TIMEOUT + waits, config.nodes == 1)
    return RankInfo(rank, world_size, device)


def _device(config: DevicesConfig, local_rank: int) -> torch.device:
    """Return the device of this rank."""
    if config.kind == "cpu" or (config.kind == "auto" and not torch.cuda.is_available()):
        os.environ["DS_ACCELERATOR"] = "cpu"
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise TrialError(
            f"local rank {local_rank} needs GPU {local_rank}, but torch finds {torch.cuda.device_count()} GPUs."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _join(rank: int, world_size: int, device: torch.device, timeout: timedelta, is_one_node: bool) -> None:
    """Join the process group. Ranks on one machine connect over the loopback interface only."""
    backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    if is_one_node:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", _LOOPBACK)
    variables = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": int(os.environ.get("LOCAL_RANK", "0"))}
    os.environ.update({name: str(value) for name, value in variables.items()})
    meeting = os.environ.get("MARCH_SEARCH_MEETING")
    if world_size == 1:
        dist.init_process_group(
            backend,
            store=dist.HashStore(),  # type: ignore[attr-defined]
            rank=0,
            world_size=1,
            timeout=timeout,
            device_id=device_id,
        )
    elif meeting:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK)
        store = dist.FileStore(meeting, world_size)  # type: ignore[attr-defined]
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=timeout, device_id=device_id
        )
    else:
        if os.environ.get("MASTER_ADDR", "").startswith(("127.", "localhost")):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK)
        dist.init_process_group(backend, timeout=timeout, device_id=device_id)
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        os.environ.setdefault(name, value)  # DeepSpeed requires them, but uses the existing group


def from_first(number: int, rank_info: RankInfo) -> int:
    """Return the number that rank 0 passes. All ranks must call it together; nothing is pickled."""
    shared = torch.tensor([number], dtype=torch.int64, device=rank_info.device)
    dist.broadcast(shared, src=0)
    return int(shared[0])


def use_deterministic_operations() -> None:
    """Make torch use operations whose results do not vary from run to run, or raise where it has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch requires it for deterministic products
    torch.use_deterministic_algorithms(True)


def check_compiler(training: TrainingConfig, rank_info: RankInfo) -> None:
    """Check that torch.compile has the compiler that it needs, if the settings use it.

    Raises:
        TrialError: If a compiler or Triton is missing.
    """
    lacks = missing_compiler(rank_info.device.type) if training.compile != "none" else ""
    if lacks:
        raise TrialError(
            f'[training]: compile = "{training.compile}" needs {lacks}, which is not installed. Install it, or set '
            'compile = "none".'
        )


def quiet_deepspeed(device: torch.device) -> None:
    """On a CPU, mark DeepSpeed's compiled operations as unavailable; DeepSpeed would otherwise try to compile one.

    This uses an internal name of DeepSpeed 0.19 and has no effect on versions without it.
    """
    import deepspeed.ops

    if device.type == "cpu":
        deepspeed.ops.__dict__["__compatible_ops__"] = collections.defaultdict(bool)


def keep_gradient_norm(engine: Any) -> None:
    """Make DeepSpeed keep the gradient norm of each step without ZeRO too; by default it discards it after clipping.

    `engine.clip_fp32_gradients` is an internal name of DeepSpeed 0.19. On versions without it, the norm is unknown.
    """
    from deepspeed.runtime.utils import clip_grad_norm_

    def clip() -> None:
        engine._global_grad_norm = clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping())

    def look(optimizer: torch.optim.Optimizer, _arguments: Any, _keywords: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        engine._global_grad_norm = torch.linalg.vector_norm(torch.stack(norms))

    if not engine.zero_optimization_stage():
        if engine.gradient_clipping():
            engine.clip_fp32_gradients = clip
        else:
            engine.optimizer.register_step_pre_hook(look)


def memory_of_all(rank_info: RankInfo) -> dict[str, int]:
    """Return the peak device and host memory of any rank, in bytes. All ranks must call it together.

    On a GPU, the memory that torch reserved is returned too, which fragmentation makes larger than the allocated one.
    """
    host, is_gpu = _peak_host_bytes(), rank_info.device.type == "cuda"
    peaks = {"peak_memory_bytes": host, "peak_host_memory_bytes": host}
    if is_gpu:
        peaks["peak_memory_bytes"] = int(torch.cuda.max_memory_allocated(rank_info.device))
        peaks["peak_reserved_memory_bytes"] = int(torch.cuda.max_memory_reserved(rank_info.device))
    largest = torch.tensor(list(peaks.values()), dtype=torch.int64, device=rank_info.device)
    if rank_info.world_size > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return dict(zip(peaks, largest.tolist(), strict=True))


def _peak_host_bytes() -> int:
    """Return the peak host memory of this process, in bytes."""
    with contextlib.suppress(OSError):  # excludes the parent and the program that this one replaced
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or `cpu` and the machine type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def describe_machine(rank_info: RankInfo) -> dict[str, object]:
    """Return the device, ranks, threads and versions to record in the result."""
    return {
        "device": device_name(rank_info.device),
        "ranks": rank_info.world_size,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("march-search", "torch", "deepspeed", "numpy")},
    }


def leave() -> None:
    """Destroy the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
