"""Slurm: the job script fits the study, and a real cluster on this machine runs it, kills it and queues it again."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import local_slurm
import pytest
from helpers.command_line import imported_by, json_of, one_line_error, run_command
from helpers.toy_studies import TOY_CONFIG, optuna_study
from helpers.trials import wait_until
from optuna.trial import TrialState

from march_search.commands.studies import named_study
from march_search.config import DevicesConfig, StudyConfig
from march_search.errors import ConfigError, UsageError
from march_search.planning import gpus
from march_search.storage.leases import Lease
from march_search.study.slurm import SlurmOptions, job_script
from march_search.trial.metrics import read_metrics

PAGE = Path(__file__).parent.parent / "docs" / "workers.md"
STUDY = """space = "cpu-demo"
heartbeat_seconds = 0.5
[search]
strategy = "list"
architectures = ["L1-D32-H2x16-F64-V400", "L1-D32-H2x16-F128-V400"]
[confirm]
max_seeds = 1
[data]
corpus = "texts"
vocab_size = 400
sequence_length = 32
validation_fraction = 0.3
validation_sequences = 4
[training]
tokens = 393_216
global_batch_tokens = 256
precision = "fp32"
[devices]
kind = "cpu"
threads = 1
"""
"""Two trials of 1,536 steps: long enough to be stopped in the middle, short enough for a test."""

SHAPE = StudyConfig(space="cpu-demo")


def script_of(folder: Path, trials: int = 100, options: SlurmOptions | None = None, **devices: object) -> str:
    """Return the job script of a study with these devices."""
    config = replace(TOY_CONFIG, training=SHAPE.training, data=SHAPE.data, devices=DevicesConfig(**devices))
    return job_script(folder / "my-study", config, trials, options or SlurmOptions())


def directives(script: str) -> dict[str, str]:
    """Return the values of a script's #SBATCH lines by option."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))


@pytest.mark.parametrize(
    ("devices", "sizes"),
    [
        ({"kind": "cuda", "ranks": 4, "parallel_trials": 2}, ("1", "1", "64", "gpu:8")),
        ({"kind": "auto", "ranks": 1}, ("1", "1", "8", "gpu:1")),
        ({"kind": "cuda", "ranks": 16, "nodes": 2, "launcher": "srun", "threads": 6}, ("2", "8", "6", "gpu:8")),
        ({"kind": "cpu", "ranks": 2, "parallel_trials": 3, "threads": 2}, ("1", "1", "12", None)),
        ({"kind": "cpu"}, ("1", "1", "4", None)),
    ],
    ids=["own", "auto", "srun", "cpu", "cpu, one rank"],
)
def test_a_job_asks_for_what_one_worker_needs(
    tmp_path: Path, devices: dict[str, object], sizes: tuple[str | None, ...]
) -> None:
    found = directives(script_of(tmp_path, **devices))
    assert tuple(found.get(key) for key in ("nodes", "ntasks-per-node", "cpus-per-task", "gres")) == sizes


@pytest.mark.parametrize(
    ("trials", "together", "workers", "array"),
    [(100, 1, None, "1-8"), (3, 1, None, "1-3"), (7, 4, None, "1-2"), (100, 1, 20, "1-20"), (5, 1, 20, "1-5")],
)
def test_there_are_no_more_workers_than_trials(
    tmp_path: Path, trials: int, together: int, workers: int | None, array: str
) -> None:
    script = script_of(tmp_path, trials, SlurmOptions(workers=workers), kind="cpu", parallel_trials=together)
    assert directives(script)["array"] == array


def test_the_script_has_the_users_options_and_writes_to_the_study(tmp_path: Path) -> None:
    folder = tmp_path / "with space, 100%"
    options = SlurmOptions(account="lab", partition="gpu", time="2-00", cpus=3, others=("--qos=long", "--exclusive"))
    found = directives(script_of(folder, options=options, kind="cpu"))
    wanted = {"account": "lab", "partition": "gpu", "time": "2-00", "cpus-per-task": "3", "qos": "long"}
    assert found.items() >= wanted.items()
    assert found["exclusive"] == ""
    assert found["output"] == f'"{tmp_path}/with space, 100%%/my-study/slurm/%A_%a.log"'
    assert (folder / "my-study" / "slurm").is_dir()
    assert found["chdir"] == str(Path.cwd())


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"time": "tomorrow"}, '--time "tomorrow": use minutes, HH:MM:SS or D-HH:MM:SS.'),
        ({"account": "a b"}, '--account "a b": use one word, without quotes.'),
        ({"others": ("qos=x\nrm",)}, "use an option of sbatch, as in --qos=long."),
    ],
)
def test_a_value_that_would_break_the_script_is_refused(values: dict[str, object], fault: str) -> None:
    with pytest.raises(UsageError, match=re.escape(fault)):
        SlurmOptions(**values)


def test_deepspeeds_launcher_does_not_run_in_a_job(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'set launcher = "srun" in \[devices\]'):
        script_of(tmp_path, kind="cpu", ranks=2, launcher="deepspeed", hostfile="hosts")


def test_the_environment_of_this_process_is_activated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.prefix != sys.base_prefix:
        assert f"\nsource {sys.prefix}/bin/activate\n" in script_of(tmp_path, kind="cpu")
    base, prefix = tmp_path / "conda", tmp_path / "conda" / "envs" / "my env"
    (base / "etc/profile.d").mkdir(parents=True)
    (base / "etc/profile.d/conda.sh").touch()
    (prefix / "conda-meta").mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setattr(sys, "base_prefix", str(prefix))
    monkeypatch.setenv("CONDA_EXE", str(base / "bin" / "conda"))
    lines = f"\nsource {base}/etc/profile.d/conda.sh\nconda activate '{prefix}'\n"
    assert lines in script_of(tmp_path, kind="cpu")
    monkeypatch.delenv("CONDA_EXE")
    assert f"\nexport PATH='{prefix}/bin':\"$PATH\"\n" in script_of(tmp_path, kind="cpu")


def test_a_login_node_does_not_decide_the_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = STUDY.replace('kind = "cpu"', 'kind = "auto"').replace('precision = "fp32"', 'precision = "auto"')
    file, root = write_study(tmp_path, "my-study", text), ["--root", str(tmp_path / "runs")]
    monkeypatch.setattr(gpus, "exist", lambda: False)
    study = named_study(str(file), tmp_path / "runs")
    with pytest.raises(ConfigError, match=r"add devices\.kind=cuda, or devices\.kind=cpu, to the command"):
        study.loaded(is_created=True)
    assert study.loaded("cuda", is_created=True).config.training.precision == "bf16"
    chosen = replace(study, overrides=("devices.kind=cuda",)).loaded(is_created=True)
    assert chosen.config.training.precision == "bf16"
    given = ("training.precision=fp32", "training.global_batch_tokens=256")
    assert replace(study, overrides=given).loaded(is_created=True).config.training.precision == "fp32"
    if not gpus.number():
        error = one_line_error(run_command("study", "create", str(file), *root))
        assert 'my-study.toml: [devices] kind is "auto" and this machine has no GPU' in error
        assert not (tmp_path / "runs").exists()
    ended = run_command("study", "create", str(file), "--device", "A100", *root)
    assert ended.returncode == 0, ended.stderr
    record = json.loads((tmp_path / "runs/my-study/study.json").read_text())
    assert record["settings"]["training"]["precision"] == "bf16"


@pytest.mark.parametrize("launcher", ["own", "srun"])
def test_the_script_is_correct_bash(tmp_path: Path, launcher: str) -> None:
    script = script_of(tmp_path / "a b", kind="cuda", ranks=2, launcher=launcher)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    if not shutil.which("shellcheck"):
        assert os.environ.get("CI") != "true", "shellcheck is missing: install shellcheck"
        pytest.skip("needs shellcheck (Debian's package shellcheck)")
    checked = subprocess.run(["shellcheck", "-"], input=script, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def write_study(folder: Path, name: str, text: str = STUDY) -> Path:
    """Write a study's file with its texts, and return the file."""
    (folder / "texts").mkdir(exist_ok=True)
    words = [f"w{number * 7919 % 211}" for number in range(6000)]
    for number in range(60):
        (folder / "texts" / f"{number}.txt").write_text(" ".join(words[100 * number : 100 * number + 100]) + "\n")
    (folder / f"{name}.toml").write_text(text)
    return folder / f"{name}.toml"


def test_a_study_is_created_without_training(tmp_path: Path) -> None:
    file, root = write_study(tmp_path, "my-study"), ["--root", str(tmp_path / "runs")]
    error = one_line_error(run_command("study", "worker", str(file), "--sbatch", *root))
    assert f"my-study has not been started in {tmp_path}/runs: run march-search study create {file} first." in error
    assert "torch" not in imported_by("study", "create", str(file), "training.tokens=2048", *root)
    assert {t.state for t in optuna_study(tmp_path / "runs", "my-study").trials} == {TrialState.WAITING}
    assert not list((tmp_path / "runs/my-study/trials").iterdir())
    status = json_of(run_command("study", "status", "my-study", "--format", "json", *root))
    assert (status["trials_ended"], status["trials_total"], status["states"]) == (0, 2, {"waiting": 2})
    again = run_command("study", "create", str(tmp_path / "runs/my-study"), *root)
    worker = f"run march-search study worker my-study --root {tmp_path}/runs."
    assert f"my-study was created already: {worker}" in one_line_error(again)
    ended = run_command("study", "worker", "my-study", *root)
    assert ended.returncode == 0, ended.stderr
    assert "my-study: 2 complete, 0 pruned, 0 failed, 0 left" in ended.stderr
    script = run_command("study", "worker", "my-study", "--sbatch", *root).stdout
    assert f"march-search study worker my-study --root {tmp_path}/runs &" in script


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """Environment of a real Slurm cluster of one node. In CI it must be installed."""
    missing = local_slurm.why_not()
    if missing:
        assert os.environ.get("CI") != "true", missing
        pytest.skip(missing)
    with local_slurm.cluster() as environment:
        path = f"{Path(sys.executable).parent}:{environment['PATH']}"
        yield environment | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""}


def shell(command: str, folder: Path, environment: dict[str, str]) -> str:
    """Run a command line that must succeed, and return what it prints."""
    command_line = ["bash", "-o", "pipefail", "-c", command]
    ended = subprocess.run(
        command_line, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def queue(environment: dict[str, str]) -> str:
    """Return the jobs that are not over, one per line, with their states."""
    return shell("squeue --noheader --array --format='%i %T'", Path("/"), environment)


def logs(folder: Path) -> str:
    """Return what the jobs of a study printed."""
    return "".join(path.read_text() for path in sorted(folder.glob("slurm/*.log")))


@pytest.mark.torture
def test_the_plan_of_the_page_runs_on_a_cluster_and_survives_a_requeue(tmp_path: Path, slurm: dict[str, str]) -> None:
    [block] = re.findall(r"```\n(march-search study create .*?)```", PAGE.read_text(), re.DOTALL)
    create, worker, submit, watch, status, rank = block.splitlines()
    write_study(tmp_path, "my-study")
    for command in (create, worker):
        shell(command, tmp_path, slurm)
    [job] = re.findall(r"Submitted batch job (\d+)", shell(submit, tmp_path, slurm))
    assert f"{job}_[1-2]" in shell(watch, tmp_path, slurm) or f"{job}_1" in shell(watch, tmp_path, slurm)
    folder = tmp_path / "runs" / "my-study"
    trained = folder / "trials"
    assert wait_until(lambda: sum(bool(read_metrics(p).tokens) for p in trained.iterdir()) == 2, 180), logs(folder)
    shell(f"scontrol requeue {job}_1; scancel --batch --signal=TERM {job}_2", tmp_path, slurm)  # preemption; time limit
    assert wait_until(lambda: not queue(slurm), 180), queue(slurm) + logs(folder)
    trials = optuna_study(tmp_path / "runs", "my-study").trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2, logs(folder)
    assert len(list(trained.iterdir())) == 2
    assert logs(folder).count("interrupted; run the same command again to resume") == 2
    leases = [Lease.of(trial) for trial in trials]
    assert [lease.attempt for lease in leases] == [2, 2]  # both were saved, and resumed by the requeued jobs
    assert all(lease.spent == 393_216 and lease.orphaned + lease.retries == 0 for lease in leases)
    for path in trained.iterdir():
        tokens = [line["tokens"] for line in read_metrics(path).of_kind("train")]
        assert tokens == list(range(256, 393_216 + 1, 256))
    assert "2 of 2 trials ended (2 complete)" in shell(status, tmp_path, slurm)
    assert "2 of 2 trials complete" in shell(rank, tmp_path, slurm)


@pytest.mark.torture
def test_srun_trains_a_trial_on_two_ranks(tmp_path: Path, slurm: dict[str, str]) -> None:
    text = STUDY.replace("393_216", "4096").replace(', "L1-D32-H2x16-F128-V400"', "") + 'ranks = 2\nlauncher = "srun"\n'
    write_study(tmp_path, "two", text)
    shell("march-search study create two.toml", tmp_path, slurm)
    shell("march-search study worker two --sbatch --workers 1 | sbatch", tmp_path, slurm)
    folder = tmp_path / "runs" / "two"
    assert wait_until(lambda: not queue(slurm), 180), queue(slurm) + logs(folder)
    assert [trial.state for trial in optuna_study(tmp_path / "runs", "two").trials] == [TrialState.COMPLETE], logs(
        folder
    )
    for path in (folder / "trials").iterdir():
        launched = json.loads((path / "launch.json").read_text())
        assert launched["command"][:5] == shlex.split("srun --nodes 1 --ntasks 2")


@pytest.mark.torture
def test_a_cancelled_job_is_not_queued_again(tmp_path: Path, slurm: dict[str, str]) -> None:
    write_study(tmp_path, "gone")
    shell("march-search study create gone.toml", tmp_path, slurm)
    shell("march-search study worker gone --sbatch --workers 1 | sbatch", tmp_path, slurm)
    folder = tmp_path / "runs" / "gone"
    assert wait_until(lambda: any(read_metrics(p).tokens for p in (folder / "trials").iterdir()), 180), logs(folder)
    shell("scancel --user root", tmp_path, slurm)
    assert wait_until(lambda: not queue(slurm), 180), queue(slurm) + logs(folder)
    assert "interrupted; run the same command again to resume" in logs(folder)
    assert {t.state for t in optuna_study(tmp_path / "runs", "gone").trials} == {TrialState.WAITING}


@pytest.mark.torture
def test_a_cluster_leaves_no_process_when_its_user_fails(tmp_path: Path) -> None:
    if missing := local_slurm.why_not():
        pytest.skip(missing)
    configuration = ""

    def fail() -> None:
        nonlocal configuration
        with local_slurm.cluster() as environment:
            configuration = environment["SLURM_CONF"]
            shell("sbatch --output=/dev/null --wrap='sleep 300 & wait'", tmp_path, environment)
            assert wait_until(lambda: "RUNNING" in queue(environment), 30)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert local_slurm.processes(configuration) == []
    assert not Path(configuration).parent.exists()
