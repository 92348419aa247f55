"""This process among its ranks: device, process group, DeepSpeed's traps, and what to record about the machine."""

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

from march_search.config import DevicesConfig
from march_search.errors import TrialError
from march_search.training import ranks

GROUP_TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before the trial fails; under a supervisor that much longer than it waits."""

_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"


@dataclass(frozen=True)
class Place:
    """One process of a trial."""

    rank: int
    """Its number among all."""
    world_size: int
    """How many there are."""
    device: torch.device
    """Where it computes."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0


def take_place(config: DevicesConfig) -> Place:
    """Sets threads, device and process group of this process.

    Alone, or under `ranks.supervise`, the group meets without a port; under a launcher of DeepSpeed or torch, which
    sets MASTER_ADDR, it meets where that says.

    Raises:
        TrialError: the device is not there, or the number of ranks is not the one the trial was planned for.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if world_size != config.ranks:
        raise TrialError(f"the trial is planned for {config.ranks} ranks, and {world_size} were started.")
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size // config.nodes)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(config.threads or max(1, cores // (local_size * config.parallel_trials)))
    device = _device(config, local_rank)
    waits = timedelta(seconds=config.hang_seconds if ranks.PULSE in os.environ else 0)
    _join(rank, world_size, "nccl" if device.type == "cuda" else "gloo", GROUP_TIMEOUT + waits)
    return Place(rank, world_size, device)


def _device(config: DevicesConfig, local_rank: int) -> torch.device:
    """The device of this rank."""
    if config.kind == "cpu" or (config.kind == "auto" and not torch.cuda.is_available()):
        os.environ["DS_ACCELERATOR"] = "cpu"
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise TrialError(
            f"rank {local_rank} of this machine needs GPU {local_rank}, and torch finds {torch.cuda.device_count()}."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _join(rank: int, world_size: int, backend: str, timeout: timedelta) -> None:
    """Makes the process group."""
    told = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": int(os.environ.get("LOCAL_RANK", "0"))}
    os.environ.update({name: str(value) for name, value in told.items()})
    meeting = os.environ.get("MARCH_SEARCH_MEETING")
    if world_size == 1:
        dist.init_process_group(
            backend,
            store=dist.HashStore(),  # type: ignore[attr-defined]
            rank=0,
            world_size=1,
            timeout=timeout,
        )
    elif meeting:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK)
        store = dist.FileStore(meeting, world_size)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    else:
        if os.environ.get("MASTER_ADDR", "").startswith(("127.", "localhost")):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK)
        dist.init_process_group(backend, timeout=timeout)
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        os.environ.setdefault(name, value)  # DeepSpeed asks for them, and uses the group that exists


def quiet_deepspeed(device: torch.device) -> None:
    """On a CPU, tells DeepSpeed that its compiled operations are not there: it would compile one, or fail to.

    Uses an internal name of DeepSpeed 0.19; where that is gone nothing is changed.
    """
    import deepspeed.ops

    if device.type == "cpu":
        deepspeed.ops.__dict__["__compatible_ops__"] = collections.defaultdict(bool)


def keep_gradient_norm(engine: Any) -> None:
    """Has DeepSpeed keep the gradient norm of a step without ZeRO too, which it forgets once it has clipped by it.

    `engine.clip_fp32_gradients` is an internal name of DeepSpeed 0.19; where that is gone the norm stays unknown.
    """
    from deepspeed.runtime.utils import clip_grad_norm_

    def clip() -> None:
        engine._global_grad_norm = clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping())

    def look(optimizer: torch.optim.Optimizer, _arguments: Any, _keywords: Any) -> None:
        every = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        engine._global_grad_norm = torch.nn.utils.get_total_norm(every)

    if not engine.zero_optimization_stage():
        if engine.gradient_clipping():
            engine.clip_fp32_gradients = clip
        else:
            engine.optimizer.register_step_pre_hook(look)


def memory_of_all(place: Place) -> dict[str, int]:
    """Most memory any rank has held, in bytes, of its device and of the host. All ranks call it together."""
    host = _peak_host_bytes()
    own = int(torch.cuda.max_memory_allocated(place.device)) if place.device.type == "cuda" else host
    most = torch.tensor([own, host], dtype=torch.int64, device=place.device)
    if place.world_size > 1:
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return {"peak_memory_bytes": int(most[0]), "peak_host_memory_bytes": int(most[1])}


def _peak_host_bytes() -> int:
    """Most memory of the host that this process has held."""
    with contextlib.suppress(OSError):  # not what the program that this one replaced, or the parent, once held
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_name(device: torch.device) -> str:
    """The GPU's name, or `cpu` and its kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def describe_machine(place: Place) -> dict[str, object]:
    """Device, ranks and versions, for the result."""
    return {
        "device": device_name(place.device),
        "ranks": place.world_size,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("march-search", "torch", "deepspeed", "numpy")},
    }


def leave() -> None:
    """Ends the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
