"""Assign GPUs to this process's trials. A subprocess queries torch, so that this process need not load it."""

import json
import os
import tempfile
from pathlib import Path
from typing import IO, NamedTuple

from march_search.config import DevicesConfig
from march_search.errors import ConfigError
from march_search.files.atomic import private_folder, try_lock
from march_search.processes import run_python

_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))
"""Device files of the NVIDIA, AMD and WSL drivers; without any of them, the machine has no GPU."""

_HELD: list[IO[str]] = []
"""Locks of the GPUs that this process holds; the kernel releases them when the process ends."""


def claim(devices: DevicesConfig) -> None:
    """Reserve GPUs for this process's trials until the process ends, and hide all other GPUs from them.

    Every GPU has a lock file, named by its UUID, in a folder of this user on this machine. Parallel workers therefore
    use different GPUs, even in different studies. Ranks that a launcher starts use all GPUs of their machines. CUDA
    shows a process one MIG instance at most: give each worker its own with CUDA_VISIBLE_DEVICES=MIG-UUID.

    Raises:
        ConfigError: If too few GPUs are free, or if `kind` is "cuda" and too few exist.
    """
    wanted = devices.ranks // devices.nodes * devices.parallel_trials
    if devices.kind == "cpu" or (devices.kind == "auto" and not _has_driver()):
        return
    uuids, reason, *_ = _found()
    if len(uuids) < wanted and devices.kind == "cuda":
        raise ConfigError(
            f"[devices]: the study needs {wanted} GPUs, but torch finds {len(uuids)} here{reason and f' ({reason})'}; "
            'run it on another machine, lower ranks, or set kind = "cpu". Use --dry-run to plan it without GPUs.'
        )
    if len(uuids) < wanted or devices.launcher != "own":
        return
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = visible or [str(number) for number in range(len(uuids))]
    folder = private_folder(Path(tempfile.gettempdir()) / f"march-search-gpus-{os.getuid()}")
    mine: dict[str, IO[str]] = {}
    for name, uuid in zip(names, uuids, strict=False):
        key = name if name.startswith("MIG-") else f"GPU-{uuid.removeprefix('GPU-')}"  # the name may be abbreviated
        if len(mine) < wanted and (held := try_lock(folder / f"{key.replace('/', '_')}.lock")):
            mine[name] = held
    if len(mine) < wanted:
        for held in mine.values():
            held.close()
        raise ConfigError(
            f"[devices]: the study needs {wanted} GPUs, but only {len(mine)} of the {len(uuids)} here are free; other "
            "march-search workers use the rest. Wait for them, or lower ranks or parallel_trials."
        )
    _HELD.extend(mine.values())
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)


def exist() -> bool:
    """Return whether torch finds a GPU on this machine."""
    return number() > 0


def number() -> int:
    """Return how many GPUs torch finds on this machine."""
    return len(_found().uuids) if _has_driver() else 0


def support_bf16() -> bool:
    """Return whether the GPUs of this machine multiply bf16 numbers in hardware; True if it has none."""
    return not _has_driver() or _found().bf16


def _has_driver() -> bool:
    """Return whether this machine has the driver of a GPU."""
    return any(path.exists() for path in _DRIVERS)


class _Gpus(NamedTuple):
    """What torch finds on this machine."""

    uuids: list[str]
    """UUIDs of the GPUs, in torch's order."""
    reason: str
    """First line of torch's error; empty if there is none."""
    bf16: bool
    """Whether all of them multiply bf16 numbers in hardware; True without any."""


_LIST_GPUS = """
import json, torch
uuids, reason, bf16 = [], "", True
try:
    torch.cuda.init()
    found = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    uuids = [str(getattr(gpu, "uuid", n)) for n, gpu in enumerate(found)]
    bf16 = torch.version.hip is not None or all(gpu.major >= 8 for gpu in found)
except (RuntimeError, AssertionError) as error:
    reason = str(error).strip().splitlines()[0]
print(json.dumps([uuids, reason, bf16]))
"""


def _found() -> _Gpus:
    """Return the GPUs that torch can use; a subprocess loads it."""
    printed, fault = run_python(_LIST_GPUS)
    return _Gpus([], fault, True) if printed is None else _Gpus(*json.loads(printed))
