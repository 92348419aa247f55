"""Write the Slurm job script of a study's workers: an array of jobs that save, stop and queue again when asked to."""

import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from march_search.config import DevicesConfig, StudyConfig
from march_search.errors import UsageError, shown
from march_search.files.atomic import make_folder
from march_search.storage.trial_process import STOP_SECONDS
from march_search.tracking.tracking_process import LIMIT_SECONDS

LOGS = "slurm"
"""Folder in a study's folder for the output of its jobs. Slurm does not create it: a job without it fails silently."""

MOST_WORKERS = 8
"""Workers of the array unless the user says otherwise; fewer if the study has fewer trials."""

WARNING_SECONDS = STOP_SECONDS + round(LIMIT_SECONDS) + 30
"""Seconds before its time limit at which a job is asked to stop: its trials may take `STOP_SECONDS` to save, then its
trackers `LIMIT_SECONDS` to send the rest."""

CPUS_PER_GPU = 8
"""CPUs per GPU without `threads` in the settings: for the rank and for reading its data."""

CPUS_PER_RANK = 4
"""CPUs per rank of a study on CPUs without `threads` in the settings."""

_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", re.ASCII)
_WORD = re.compile(r"[^\s\"'\\#]+")
_OPTION = re.compile(r"--[a-z][a-z-]*(=[^\x00-\x1f]*)?")


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """What the user chooses about the jobs."""

    workers: int | None = None
    """Jobs in the array; None for at most `MOST_WORKERS`."""
    time: str = "24:00:00"
    """Time limit of a job, as sbatch reads it."""
    account: str | None = None
    partition: str | None = None
    cpus: int | None = None
    """CPUs of a task; None for those that the study's threads need."""
    others: tuple[str, ...] = ()
    """Further options of sbatch, such as `--qos=long`, one directive each."""

    def __post_init__(self) -> None:
        """Raise a UsageError if a value would not be one word of a directive."""
        if not _TIME.fullmatch(self.time):
            raise UsageError(f"--time {shown(self.time)}: use minutes, HH:MM:SS or D-HH:MM:SS.")
        for name, value in (("account", self.account), ("partition", self.partition)):
            if value is not None and not _WORD.fullmatch(value):
                raise UsageError(f"--{name} {shown(value)}: use one word, without quotes.")
        for option in self.others:
            if not _OPTION.fullmatch(option):
                raise UsageError(f"--sbatch-option={shown(option)}: use an option of sbatch, as in --qos=long.")


def job_script(folder: Path, config: StudyConfig, trials: int, options: SlurmOptions) -> str:
    """Return the job script, and create the folder that its jobs write their output to.

    Args:
        folder: The study's folder.
        config: The study's settings.
        trials: Number of trials that the study has or plans; no more workers are started than can train one each.
        options: What the user chooses.

    Raises:
        UsageError: If the study's launcher does not run in a Slurm job.
    """
    devices = config.devices
    if devices.launcher == "deepspeed":
        raise UsageError(
            'launcher = "deepspeed" starts ranks on the hosts of a file, which Slurm does not choose: set launcher = '
            '"srun" in [devices] for trials on several nodes.'
        )
    workers = max(1, min(options.workers or MOST_WORKERS, -(-trials // devices.parallel_trials)))
    logs = make_folder(folder / LOGS).resolve()
    given = {"account": options.account, "partition": options.partition}
    directives = [
        f"--job-name={folder.name}",
        f"--array=1-{workers}",
        *(f"--{name}={value}" for name, value in given.items() if value is not None),
        f"--time={options.time}",
        *_sizes(devices, options.cpus),
        f"--signal=B:TERM@{WARNING_SECONDS}",
        "--requeue",
        "--open-mode=append",
        f"--output={_quoted(str(logs).replace('%', '%%') + '/%A_%a.log')}",
        f"--chdir={_quoted(str(Path.cwd()))}",
        *options.others,
    ]
    worker = shlex.join(["march-search", "study", "worker", folder.name, "--root", str(folder.parent.resolve())])
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {directive}" for directive in directives),
        *_remarks(config),
        "",
        *_activation(),
        *(['export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'] if devices.launcher == "srun" else []),
    ]
    return "\n".join(lines) + "\n" + _BODY.replace("WORKER", worker)


_BODY = f"""
# Slurm sends SIGTERM {WARNING_SECONDS} seconds before the time limit and on preemption. The worker then saves its
# trials and exits with 143, and the job is queued again. Other workers may resume its trials before that.
signals=0
worker=
trap 'signals=$((signals + 1)); kill -TERM "$worker" 2>/dev/null' TERM
WORKER &
worker=$!
while true; do
  before=$signals
  wait "$worker"
  code=$?
  [ "$signals" = "$before" ] && break # else a signal interrupted the wait
done
job="${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
if [ "$signals" != 0 ] && [ "$code" = 143 ] && [ "$(squeue --noheader --jobs="$job" --format=%T)" = RUNNING ]; then
  scontrol requeue "$job" # neither cancelled nor queued by Slurm already
fi
exit "$code"
"""


def _sizes(devices: DevicesConfig, cpus: int | None) -> list[str]:
    """Return the directives for nodes, tasks, CPUs and GPUs of one worker."""
    share = devices.ranks // devices.nodes * devices.parallel_trials
    tasks = share if devices.launcher == "srun" else 1
    per_rank = devices.threads or (CPUS_PER_RANK if devices.kind == "cpu" else CPUS_PER_GPU)
    sizes = [f"--nodes={devices.nodes}", f"--ntasks-per-node={tasks}"]
    sizes.append(f"--cpus-per-task={cpus or per_rank * share // tasks}")
    return sizes if devices.kind == "cpu" else [*sizes, f"--gres=gpu:{share}"]


def _remarks(config: StudyConfig) -> list[str]:
    """Return comments on what the jobs need, beyond what the script asks Slurm for."""
    remarks = ["# All nodes must see the study's folder, on a file system with locks."]
    storage = config.storage or ""
    if not storage:
        remarks.append("# Its records are in a journal file there; for workers on many nodes, use PostgreSQL.")
    elif storage.startswith("env:"):
        remarks.append(f"# {storage.removeprefix('env:')} must be exported where sbatch is run; jobs inherit it.")
    if config.devices.kind == "auto":
        remarks.append('# [devices] kind is "auto", so GPUs are requested; for none, set kind = "cpu".')
    return remarks


def _activation() -> list[str]:
    """Return the lines that activate the Python environment of this process: a venv, conda's, or its folder in PATH."""
    prefix = Path(sys.prefix)
    script = prefix / "bin" / "activate"
    conda = Path(os.environ.get("CONDA_EXE", "/")).parent.parent / "etc" / "profile.d" / "conda.sh"
    if sys.prefix != sys.base_prefix and script.is_file():
        return ["# shellcheck source=/dev/null", f"source {shlex.quote(str(script))}"]
    if (prefix / "conda-meta").is_dir() and conda.is_file():
        activate = f"conda activate {shlex.quote(str(prefix))}"
        return ["# shellcheck source=/dev/null", f"source {shlex.quote(str(conda))}", activate]
    return [f'export PATH={shlex.quote(str(prefix / "bin"))}:"$PATH"']


def _quoted(text: str) -> str:
    """Return the value of a directive, in quotes if sbatch would split it.

    Raises:
        UsageError: If sbatch cannot read it.
    """
    if re.search(r"[\x00-\x1f\"\\]", text):
        raise UsageError(f"{shown(text)}: sbatch cannot read a path with quotes, backslashes or line breaks.")
    return f'"{text}"' if re.search(r"[\s'#;]", text) else text
