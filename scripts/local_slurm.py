"""Start a temporary Slurm cluster of one node on the loopback interface, for tests."""

import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "srun")
CPUS = 4
"""CPUs of the node, whatever the machine has."""
START_SECONDS = 20.0
"""Longest time until the node is idle."""

CONFIGURATION = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
ReturnToService=2
JobRequeue=1
KillWait=20
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Return why no cluster can be started on this machine; empty if one can."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} missing (Debian: apt install slurmctld slurmd slurm-client munge)"
    if os.getuid() != 0:
        return "slurmd needs root"
    return ""


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Start a cluster and yield the environment that its commands need; stop and delete it afterwards.

    No process of the cluster or of its jobs outlives the block, whatever happens in it.

    Raises:
        RuntimeError: If the node is not ready after `START_SECONDS`.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _configure(folder)
        _start(folder, environment, daemons)
        yield environment
    finally:
        _end(environment["SLURM_CONF"], daemons)
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path) -> None:
    """Write the files of the cluster into its folder."""
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    host = platform.node().partition(".")[0]
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        ports = {"controller_port": first.getsockname()[1], "node_port": second.getsockname()[1]}
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(host=host, folder=folder, user="root", cpus=CPUS, **ports).lstrip()
    )
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")


def _start(folder: Path, environment: dict[str, str], daemons: "list[subprocess.Popen[bytes]]") -> None:
    """Start munge, the controller and the node as `daemons`, and wait until the node takes jobs."""
    munge = [
        "munged", "--foreground", "--force", "--num-threads=2", f"--socket={folder}/munge.socket",
        f"--key-file={folder}/munge.key", f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed",
        f"--log-file={folder}/munge.log",
    ]  # fmt: skip
    for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
        with (folder / f"{command[0]}.out").open("w") as output:
            daemons.append(
                subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder,
                    start_new_session=True,
                )
            )  # fmt: skip
        if command is munge:
            _wait_for((folder / "munge.socket").exists, "munge does not start", folder)
    _wait_for(lambda: _node_state(environment) == "idle", "the node is not ready", folder)


def _node_state(environment: dict[str, str]) -> str:
    """Return the state of the node in one word; empty if the controller does not answer."""
    command = ["sinfo", "--noheader", "--format=%T"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()


def _wait_for(is_met: Callable[[], bool], fault: str, folder: Path) -> None:
    """Wait until a condition is met."""
    end = time.monotonic() + START_SECONDS
    while not is_met():
        if time.monotonic() > end:
            files = (*folder.glob("*.log"), *folder.glob("*.out"))
            logs = "".join(f"\n--- {path.name}\n{path.read_text()[-2000:]}" for path in files)
            raise RuntimeError(f"{fault}:{logs}")
        time.sleep(0.1)


def processes(configuration: str) -> list[int]:
    """Return the processes of a cluster and of its jobs: those whose environment names its slurm.conf."""
    mark, found = f"SLURM_CONF={configuration}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in path.read_bytes().split(b"\0") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


def _end(configuration: str, daemons: "list[subprocess.Popen[bytes]]") -> None:
    """Kill all processes of a cluster and of its jobs, and wait until they are gone."""
    while pids := processes(configuration):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    for daemon in daemons:
        daemon.wait()
