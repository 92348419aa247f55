"""Ranks on several machines: the command of DeepSpeed's launcher or of srun, and what passes between them and here.

Signals and pipes do not reach other machines; a file in the trial's folder does, which all of them see.
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

from march_search.config import DevicesConfig
from march_search.errors import ConfigError, TrialError
from march_search.files import read_json, write_json

NAME = "launch.json"
"""Where the ranks meet, by which command they were started, and the signal that asks them to stop."""

LOOK_SECONDS = 1.0
"""How often a rank looks whether it is to stop."""

SRUN = "MARCH_SEARCH_SRUN"
"""Environment variable that tells a process of srun that it is a rank: the whole of a batch job has SLURM_PROCID."""


def command(devices: DevicesConfig, folder: Path, port: int, arguments: Sequence[str]) -> list[str]:
    """What starts the ranks, in the order of the hosts, `ranks / nodes` on each."""
    share, rank = str(devices.ranks // devices.nodes), ["march_search.training", str(folder.resolve()), *arguments]
    if devices.launcher == "srun":
        sizes = ["--nodes", str(devices.nodes), "--ntasks", str(devices.ranks), "--ntasks-per-node", share]
        return ["srun", *sizes, "--kill-on-bad-exit=1", sys.executable, "-m", *rank]
    hostfile = Path(devices.hostfile or "").resolve()
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile), "--no_ssh_check"),
        *("--num_nodes", str(devices.nodes), "--num_gpus", share, "--master_addr", _hosts(hostfile, devices)[0]),
        *("--master_port", str(port), "--no_local_rank", "--module", *rank),
    ]


def environment(port: int) -> dict[str, str]:
    """What the launcher is given: this environment, without those that make a process a rank or a child of this one."""
    told = {name: value for name, value in os.environ.items() if name not in ("RANK", "MARCH_SEARCH_PARENT")}
    return told | {SRUN: str(port)}


def take_part() -> None:
    """Translates what srun tells a rank to what torch and DeepSpeed read; elsewhere does nothing."""
    if SRUN in os.environ and "RANK" not in os.environ and "SLURM_PROCID" in os.environ:
        os.environ.update(rank_environment(os.environ))


def rank_environment(slurm: Mapping[str, str]) -> dict[str, str]:
    """RANK and its companions by the variables of Slurm; ranks meet on the step's first host."""
    first = re.match(r"([^,\[]*)(?:\[(\d+))?", slurm["SLURM_STEP_NODELIST"])  # "n1,n2", "n[03-05,9]"
    assert first is not None
    return {
        "RANK": slurm["SLURM_PROCID"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "WORLD_SIZE": slurm["SLURM_NTASKS"],
        "MASTER_ADDR": first[1] + (first[2] or ""),
        "MASTER_PORT": slurm[SRUN],
    }


def choose_port(wanted: int | None) -> int:
    """The port that was wanted, or one that is free on this machine.

    Raises:
        ConfigError: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", wanted or 0))
        except OSError as error:
            raise ConfigError(f"[devices]: port {wanted}: {error.strerror}. Leave it out for a free one.") from None
        return int(probe.getsockname()[1])


def announce(folder: Path, told: dict[str, object], stop: int = 0) -> None:
    """Writes launch.json; with `stop`, asks the ranks to save and end as after that signal."""
    write_json(folder / NAME, told | {"host": socket.gethostname(), "stop": stop})


class Orders:
    """What a launched rank is told through launch.json."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._looked = folder, 0.0
        self._id = self._told().get("id")

    def signum(self) -> int:
        """The signal to obey, 0 for none: what launch.json says, or SIGTERM once its writer on this machine is gone.

        A rank that others have been started in place of ends at once: what it would save is theirs by now.
        """
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return 0
        self._looked = time.monotonic()
        told = self._told()
        if told.get("id") != self._id:
            os._exit(128 + signal.SIGTERM)
        gone = told.get("host") == socket.gethostname() and not _is_held(self._folder / "lock")
        return int(told.get("stop", 0)) or (signal.SIGTERM if gone else 0)

    def _told(self) -> dict[str, Any]:
        """What launch.json says."""
        told = read_json(self._folder / NAME)
        return told if isinstance(told, dict) else {}


def _is_held(path: Path) -> bool:
    """Whether another process holds the lock on this file."""
    with path.open("a") as file, contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    return True


def _hosts(hostfile: Path, devices: DevicesConfig) -> list[str]:
    """Hosts of a hostfile, one a line: `name slots=8`.

    Raises:
        TrialError: it cannot be read, or has too few hosts.
    """
    try:
        lines = [line.split("#")[0].split() for line in hostfile.read_text().splitlines()]
    except OSError as error:
        raise TrialError(f"{hostfile}: cannot be read: {error.strerror}.") from None
    hosts = [words[0] for words in lines if words]
    if len(hosts) < devices.nodes:
        raise TrialError(f"{hostfile}: has {len(hosts)} hosts, and [devices] nodes is {devices.nodes}.")
    return hosts
