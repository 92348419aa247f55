"""Start ranks on several machines with DeepSpeed's launcher or srun, and tell them when to stop.

Signals and pipes do not reach other machines, so the ranks watch launch.json in the shared trial folder.
"""

import contextlib
import fcntl
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.version import Version

from march_search.config import DevicesConfig
from march_search.config.hostfile import addresses
from march_search.errors import ConfigError, StorageError, TrialError, shown
from march_search.files.json_tables import find_table, write_json

NAME = "launch.json"
"""File with the port where the ranks meet, the command that started them, and the signal to stop, if any."""

LOOK_SECONDS = 1.0
"""Seconds between two reads of launch.json by a rank."""

SRUN = "MARCH_SEARCH_SRUN"
"""Environment variable that marks ranks started by srun. SLURM_PROCID does not, as batch scripts have it too."""


def command(devices: DevicesConfig, folder: Path, port: int, arguments: Sequence[str]) -> list[str]:
    """Return the command that starts `ranks / nodes` ranks on each host, in the order of the hosts.

    Raises:
        ConfigError: If DeepSpeed's launcher is used and the host file is invalid or has too few hosts or slots.
    """
    share, rank = str(devices.ranks // devices.nodes), ["march_search.training", str(folder.resolve()), *arguments]
    if devices.launcher == "srun":
        sizes = ["--nodes", str(devices.nodes), "--ntasks", str(devices.ranks), "--ntasks-per-node", share]
        return ["srun", *sizes, "--kill-on-bad-exit=1", sys.executable, "-m", *rank]
    hostfile = Path(devices.hostfile or "").resolve()
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile), "--no_ssh_check"),
        *("--num_nodes", str(devices.nodes), "--num_gpus", share, "--master_addr", addresses(devices)[0]),
        *("--master_port", str(port), "--no_local_rank", "--module", *rank),
    ]


def environment(port: int) -> dict[str, str]:
    """Return the environment of the launcher, without the variables that mark a process as a rank or a child."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "MARCH_SEARCH_PARENT")}
    return inherited | {SRUN: str(port)}


def allocator_environment(kind: str, given: Mapping[str, str], torch_version: str) -> dict[str, str]:
    """Return the variables that let torch's CUDA allocator grow its segments, which leaves fewer gaps between tensors.

    torch 2.9 ignores the option under its new name PYTORCH_ALLOC_CONF (pytorch#183387), which works in 2.11.

    Args:
        kind: `kind` of `[devices]`; nothing is set for `cpu`.
        given: Environment. Nothing is set if it configures the allocator.
        torch_version: Version of the installed torch.
    """
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
    if kind == "cpu" or any(name in given for name in names):
        return {}
    return {names[Version(torch_version) < Version("2.11")]: "expandable_segments:True"}


def adopt_slurm_rank() -> None:
    """Set the variables that torch and DeepSpeed read if this process is a rank started by srun."""
    if SRUN in os.environ and "RANK" not in os.environ and "SLURM_PROCID" in os.environ:
        os.environ.update(rank_environment(os.environ))


def rank_environment(slurm: Mapping[str, str]) -> dict[str, str]:
    """Return RANK and related variables from Slurm's. The ranks meet on the first host of the job step."""
    return {
        "RANK": slurm["SLURM_PROCID"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "WORLD_SIZE": slurm["SLURM_NTASKS"],
        "MASTER_ADDR": first_host(slurm["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": slurm[SRUN],
    }


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list, as `scontrol show hostnames` expands it.

    The first host of `rack[1-2]-n[03-05,9],login` is `rack1-n03`.

    Raises:
        TrialError: If the brackets are not balanced.
    """
    element = re.match(r"(?:[^][,\s]|\[[^][]+\])+(?=,|$)", nodes)
    if element is None:
        raise TrialError(f"SLURM_STEP_NODELIST: invalid node list {shown(nodes)}.")
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", element[0])


def choose_port(wanted: int | None) -> int:
    """Return `wanted`, or a free port on this machine if it is None.

    Raises:
        ConfigError: If the port is not available.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", wanted or 0))
        except OSError as error:
            raise ConfigError(f"[devices]: port {wanted}: {error.strerror}. Omit port to use a free one.") from None
        return int(probe.getsockname()[1])


def announce(folder: Path, record: dict[str, object], stop: int = 0) -> None:
    """Write launch.json. If `stop` is a signal number, the ranks save and exit as if they had received that signal."""
    write_json(folder / NAME, record | {"host": socket.gethostname(), "stop": stop})


class StopOrders:
    """Stop orders that a launched rank reads from launch.json."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._looked = folder, 0.0
        orders = self._read()
        if orders is None:
            raise TrialError(f"{folder / NAME}: is damaged. Delete it, and start the trial again.")
        self._id = orders.get("id")

    def signum(self) -> int:
        """Return the signal to obey, or 0: the one in launch.json, or SIGTERM if its writer on this machine has died.

        A rank that a new launch has replaced exits at once, because the checkpoints now belong to the new ranks.
        """
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return 0
        self._looked = time.monotonic()
        orders = self._read()
        if orders is None:  # its writer replaces the whole file when it has a new order
            return 0
        if orders.get("id") != self._id:
            os._exit(128 + signal.SIGTERM)
        gone = orders.get("host") == socket.gethostname() and not _is_held(self._folder / "lock")
        return int(orders.get("stop", 0)) or (signal.SIGTERM if gone else 0)

    def _read(self) -> dict[str, Any] | None:
        """Return the content of launch.json; empty if it is missing, None if it is damaged."""
        try:
            orders = find_table(self._folder / NAME, {"id?": str, "host?": str, "stop?": int}) or {}
        except StorageError:
            return None
        return orders if orders.get("stop", 0) in (0, signal.SIGINT, signal.SIGTERM) else None


def _is_held(path: Path) -> bool:
    """Return whether another process holds the lock on this file."""
    with path.open("a") as file, contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    return True
