"""Which GPUs this process's trials have: asked of torch in a process of its own, which need not be loaded here."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from march_search.config import DevicesConfig
from march_search.errors import ConfigError
from march_search.files import make_folder, try_lock

_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))
"""Of NVIDIA, AMD, and Windows' Linux; without any there is no GPU to ask for."""

_HELD: list[IO[str]] = []
"""Locks of the GPUs that this process has; the kernel releases them when it ends, however that is."""


def claim(devices: DevicesConfig) -> None:
    """Takes GPUs for this process's trials for as long as it lives, and hides all others from them.

    Every GPU has a lock file, named by its UUID, in a folder of this user's on this machine: workers that run side by
    side have different ones, whatever their studies. Ranks that a launcher starts have all GPUs of their machines.

    Raises:
        ConfigError: `kind` is "cuda", and too few are here, or free.
    """
    wanted = devices.ranks // devices.nodes * devices.parallel_trials
    if devices.kind == "cpu" or (devices.kind == "auto" and not any(path.exists() for path in _DRIVERS)):
        return
    found = _found()
    if len(found) < wanted and devices.kind == "cuda":
        raise ConfigError(
            f"[devices]: the study wants {wanted} GPUs and torch finds {len(found)} here: run it elsewhere, lower "
            'ranks, or say kind = "cpu". --dry-run plans it without them.'
        )
    if len(found) < wanted or devices.launcher != "own":
        return
    told = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = told or [str(number) for number in range(len(found))]
    folder = make_folder(Path(tempfile.gettempdir()) / f"march-search-gpus-{os.getuid()}")
    mine: dict[str, IO[str]] = {}
    for name, uuid in zip(names, found, strict=False):
        if len(mine) < wanted and (held := try_lock(folder / f"{uuid.replace('/', '_')}.lock")):
            mine[name] = held
    if len(mine) < wanted:
        for held in mine.values():
            held.close()
        raise ConfigError(
            f"[devices]: the study wants {wanted} GPUs, and {len(mine)} of the {len(found)} here are free: other "
            "workers of march-search have the rest. Wait for them, or lower ranks or parallel_trials."
        )
    _HELD.extend(mine.values())
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)


def _found() -> list[str]:
    """UUIDs of the GPUs that torch can use, in its order; none where torch cannot be loaded."""
    code = (
        "import json, torch; of = torch.cuda.get_device_properties;"
        "print(json.dumps([str(getattr(of(n), 'uuid', n)) for n in range(torch.cuda.device_count())]))"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return list(json.loads(asked.stdout)) if asked.returncode == 0 else []
