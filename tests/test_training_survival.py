"""Trials survive hung ranks, full and read-only disks, and random kills and damage."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.trials import (
    DATA,
    TINY,
    TINY_TRAINING,
    MakeTrial,
    alive,
    change_config,
    child_processes,
    lines,
    result,
    run_trial,
    start_trial,
    stop_at_step,
    train,
    trial_maker,
    wait_for_step,
    wait_until,
)

from march_search.cli import main
from march_search.config import ConfirmConfig, DevicesConfig, SearchConfig, StudyConfig
from march_search.errors import ConfigError, StorageError
from march_search.planning import candidates
from march_search.storage import study_storage
from march_search.storage.leases import Lease
from march_search.storage.study_folder import StudyFolder
from march_search.storage.trial_process import TrialProcess
from march_search.study.runner import StudyRun, Summary
from march_search.training import ranks
from march_search.trial import manifest
from march_search.trial.outcome import HUNG

SCRIPT = Path(__file__).parent.parent / "scripts" / "torture.py"


def torture(*arguments: str) -> str:
    """Run scripts/torture.py, which exits with code 0 only if all trials end with the same bits."""
    command = [sys.executable, str(SCRIPT), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.torture
def test_random_kills_change_no_bit_and_random_damage_is_noticed() -> None:
    report = torture("--kills", "6", "--damages", "60")
    assert "60 damages" in report
    assert "60 seen" in report


@pytest.mark.torture
def test_random_kills_in_and_between_decay_branches_change_no_bit() -> None:
    assert " the same\n" in torture("--kills", "6", "--damages", "0", "--branches")


@pytest.mark.torture
def test_random_kills_of_one_of_two_ranks_change_no_bit() -> None:
    assert " the same\n" in torture("--kills", "3", "--damages", "0", "--ranks", "2")


def impatient(folder: Path) -> Path:
    """Let the trial count as hung after eight seconds, longer than a busy machine delays a step; return its folder."""
    return change_config(folder, "devices", hang_seconds=8)


def test_a_hung_trial_resumes_from_its_checkpoint(make_trial: MakeTrial, undisturbed: Path) -> None:
    folder = impatient(make_trial("hung"))
    process = start_trial(folder)
    wait_for_step(folder, 14, process)
    os.kill(child_processes(process)[0], signal.SIGSTOP)
    assert process.wait(timeout=120) == 0
    log = (folder / "trial.log").read_text()
    assert " seconds (rank 0: stopped by a signal): resuming from the last checkpoint.\n" in log
    for kind in ("train", "evaluation"):
        assert lines(folder, kind) == lines(undisturbed, kind)
    assert result(folder)["loss"] == result(undisturbed)["loss"]
    assert not (folder / "failure.json").exists()


def test_with_once_a_hung_trial_is_left_to_the_caller(make_trial: MakeTrial, undisturbed: Path) -> None:
    folder = impatient(make_trial("hung"))
    process = start_trial(folder, "--once")
    wait_for_step(folder, 14, process)
    os.kill(child_processes(process)[0], signal.SIGSTOP)
    assert process.wait(timeout=120) == HUNG
    (folder / ".rendezvous.killed").touch()
    assert start_trial(folder, "--once").wait(timeout=120) == 0
    assert list(folder.glob(".rendezvous.*")) == []
    assert lines(folder, "train") == lines(undisturbed, "train")
    assert result(folder)["loss"] == result(undisturbed)["loss"]


@pytest.mark.torture
@pytest.mark.parametrize(("signum", "victim"), [("STOP", "rank"), ("KILL", "rank"), ("KILL", "supervisor")])
def test_a_study_resumes_a_hung_or_killed_trial_and_counts_what_it_repeats(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: str, victim: str
) -> None:
    recipe = replace(TINY_TRAINING, tokens=400 * 256)
    config = StudyConfig(
        space="cpu-demo", search=SearchConfig(strategy="list", architectures=(TINY,)), data=DATA,
        training=recipe, devices=DevicesConfig(kind="cpu", threads=1, hang_seconds=8),
    )  # fmt: skip
    folder, chosen = StudyFolder.of(tmp_path, "hung"), candidates.choose(config, tmp_path)
    folder.keep_settings(config, chosen.architectures)
    folder.keep_store(store)
    study = StudyRun(config, folder, store, candidates.with_seeds(chosen, config))
    read, stopped = TrialProcess.new_lines, []

    def stopping(child: TrialProcess) -> list[dict]:
        found = read(child)
        if not stopped and any(line["kind"] == "train" and line["step"] >= 110 for line in found):
            stopped.extend(child_processes(child.process))
            os.kill(stopped[0] if victim == "rank" else child.process.pid, signal.Signals[f"SIG{signum}"])
        return found

    monkeypatch.setattr(TrialProcess, "new_lines", stopping)
    assert study.run() == Summary(complete=1, pruned=0, failed=0, left=0, signum=0)
    trial = study_storage.open_study("hung", folder.path, None, config.pruner, 0).trials[0]
    assert len(stopped) == 1
    lease = Lease.of(trial)
    assert (lease.attempt, lease.retries) == (2, 1)
    assert recipe.tokens < lease.spent < 2 * recipe.tokens


@pytest.mark.torture
def test_a_retried_trial_resumes_from_its_checkpoint_to_the_same_bits(
    store: Path, tmp_path: Path, undisturbed: Path
) -> None:
    config = StudyConfig(
        space="cpu-demo", search=SearchConfig(strategy="list", architectures=(TINY,)), data=DATA,
        training=TINY_TRAINING, devices=DevicesConfig(kind="cpu", threads=1),
    )  # fmt: skip
    folder, chosen = StudyFolder.of(tmp_path, "retried"), candidates.choose(config, tmp_path)
    folder.keep_settings(config, chosen.architectures)
    folder.keep_store(store)
    wanted = candidates.with_seeds(chosen, config)
    failing = f'unset MARCH_SEARCH_PARENT; {sys.executable} -m march_search.training "$0" --until {30 * 256}; exit 3'
    assert StudyRun(config, folder, store, wanted, ("sh", "-c", failing)).run().failed == 1
    [trial] = folder.trials.iterdir()
    assert [path.name for path in (trial / "checkpoints").iterdir()] == ["step-000000030"]
    kept = [line for line in (trial / "metrics.jsonl").read_text().splitlines() if '"step": 30,' in line]
    assert main(["study", "retry", "retried", "--root", str(tmp_path)]) == 0
    assert main(["study", "resume", "retried", "--root", str(tmp_path)]) == 0
    assert list(folder.trials.iterdir()) == [trial]
    assert all(line in (trial / "metrics.jsonl").read_text() for line in kept)  # with its times: not trained again
    assert lines(trial, "train") == lines(undisturbed, "train")
    assert result(trial)["loss"] == result(undisturbed)["loss"]
    assert (trial / "weights.safetensors").read_bytes() == (undisturbed / "weights.safetensors").read_bytes()
    assert not (trial / "checkpoints").exists()


@pytest.mark.torture
def test_a_trial_that_hangs_twice_fails_with_the_stacks_of_its_ranks(make_trial: MakeTrial) -> None:
    folder = impatient(make_trial("hung", ranks=2, tokens=9000 * 256, checkpoints=0))
    process, metrics = start_trial(folder), folder / "metrics.jsonl"
    wait_for_step(folder, 2, process)
    first = metrics.stat().st_ino
    os.kill(child_processes(process)[1], signal.SIGSTOP)
    wait_until(lambda: process.poll() is not None or metrics.stat().st_ino != first)
    wait_for_step(folder, 2, process)
    os.kill(child_processes(process)[1], signal.SIGSTOP)
    assert process.wait(timeout=120) == 1
    assert alive(str(folder)) == []
    failure = json.loads((folder / "failure.json").read_text())
    assert failure["state"] == "failed"
    assert failure["reason"].startswith("no rank made progress for ")
    assert "(rank 1: stopped by a signal); increase [devices] hang_seconds if" in failure["reason"]
    log = (folder / "trial.log").read_text()
    assert log.count("resuming from the last checkpoint") == 1
    assert log.count("most recent call first") >= 2
    assert "in _one_step" in log or "in _obey" in log


def test_layers_send_heartbeats_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from march_search import Architecture
    from march_search.model import build

    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    monkeypatch.setenv(ranks.PULSE, str(writing))
    model = build(Architecture.parse(TINY.replace("L1", "L3")))
    ranks.send_heartbeats_from(model.stacks.values())
    tokens = torch.ones(1, 8, dtype=torch.int64)
    loss = model(tokens, tokens)
    assert os.read(reading, 99) == 6 * ranks.TRAINING
    loss.backward()
    assert os.read(reading, 99) == 6 * ranks.TRAINING
    os.close(reading)
    os.close(writing)
    ranks.beat()  # nobody reads: no error


def test_negative_hang_seconds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hang_seconds must not be negative, got -1\.0; set 0 to disable"):
        DevicesConfig(hang_seconds=-1.0)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 megabytes."""
    point = tmp_path / "disk"
    point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "march-search", str(point)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        assert os.environ.get("CI") != "true", mounted.stderr
        pytest.skip("only root can mount a small disk")
    yield point
    subprocess.run(["umount", "--lazy", str(point)], check=True)


def leave(disk: Path, free: int) -> None:
    """Fill the disk until `free` bytes are left."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    there = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, there.f_bavail * there.f_bsize - free))


def test_a_trial_on_a_full_disk_resumes_when_there_is_room(store: Path, disk: Path, undisturbed: Path) -> None:
    folder = trial_maker(store, disk)("full")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    ended = run_trial(folder)
    assert (ended.returncode, ended.stderr) == (
        4,
        f"march-search: {folder / 'lock'}: cannot be written: Read-only file system.\n",
    )
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    for free, checkpoints in ((12_000, 0), (300_000, 0), (700_000, 1)):
        leave(disk, free)
        ended = run_trial(folder)
        assert ended.returncode == 4
        assert len([line for line in ended.stderr.splitlines() if "march-search: attention: " not in line]) == 1
        assert ": cannot be written: " in ended.stderr
        assert not (folder / "result.json").exists()
        assert len(list((folder / "checkpoints").glob("step-*/manifest.json"))) == checkpoints
    (disk / "ballast").unlink()
    assert train(folder).returncode == 0
    for kind in ("train", "evaluation"):
        assert lines(folder, kind) == lines(undisturbed, kind)
    assert (folder / "weights.safetensors").read_bytes() == (undisturbed / "weights.safetensors").read_bytes()


@pytest.mark.torture
def test_a_disk_that_fills_before_the_result_costs_only_the_last_steps(
    disk: Path, undisturbed: Path, tmp_path: Path, store: Path
) -> None:
    folder = trial_maker(store, disk)("full")
    stop_at_step(folder, 40)  # the last checkpoint is that of step 36
    code = (  # fills the disk once all but the result is written
        "import os, sys; from march_search.training import weights; from march_search.training.__main__ import main\n"
        "def save(engine, folder, rank_info, real=weights.save):\n"
        "    real(engine, folder, rank_info); there = os.statvfs(sys.argv[2])\n"
        "    ballast = os.open(sys.argv[2] + '/ballast', os.O_CREAT | os.O_WRONLY)\n"
        "    os.posix_fallocate(ballast, 0, there.f_bavail * there.f_bsize)\n"
        "weights.save = save; os.environ['RANK'] = '0'; sys.exit(main(sys.argv[1:2]))"
    )
    command = [sys.executable, "-c", code, str(folder), str(disk)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 4, ended.stderr
    assert f"{folder / 'result.json'}: cannot be written: No space left on device." in ended.stderr
    assert not (folder / "result.json").exists()
    assert (folder / "checkpoints" / "step-000000036" / "manifest.json").is_file()
    (disk / "ballast").unlink()
    assert train(folder).returncode == 0
    assert lines(folder, "train") == lines(undisturbed, "train")
    assert result(folder)["loss"] == result(undisturbed)["loss"]


@pytest.mark.torture
def test_a_study_on_a_full_disk_keeps_its_results_and_resumes_when_there_is_room(
    store: Path, disk: Path, make_trial: MakeTrial
) -> None:
    large = TINY.replace("F64", "F8192")
    recipe = replace(TINY_TRAINING, tokens=4 * 256, evaluations=1, checkpoints=1, keep_weights=False)
    search = SearchConfig(strategy="list", architectures=(TINY, large))
    config = StudyConfig(
        space="cpu-demo", search=search, confirm=ConfirmConfig(max_seeds=1), data=DATA, training=recipe,
        devices=DevicesConfig(kind="cpu", threads=1),
    )  # fmt: skip

    def run() -> Summary:
        folder, chosen = StudyFolder.of(disk, "full"), candidates.choose(config, disk)
        folder.keep_settings(config, chosen.architectures)
        folder.keep_store(store)
        return StudyRun(config, folder, store, candidates.with_seeds(chosen, config)).run()

    leave(disk, 2_000_000)
    with pytest.raises(StorageError, match=rf"{large}-s0/checkpoints/step-\d+: cannot be written: .*bytes free"):
        run()
    first, second = sorted((disk / "full" / "trials").iterdir())
    before = (first / "result.json").stat().st_mtime_ns
    assert not (second / "outcome.json").exists()
    (disk / "ballast").unlink()
    assert run() == Summary(complete=2, pruned=0, failed=0, left=0, signum=0)
    assert (first / "result.json").stat().st_mtime_ns == before
    elsewhere = make_trial("elsewhere", architecture=large, tokens=4 * 256, evaluations=1, keep_weights=False)
    assert train(elsewhere).returncode == 0
    assert result(elsewhere)["loss"] == result(second)["loss"]
    trials = study_storage.open_study("full", disk / "full", None, config.pruner, 0).trials
    assert len(trials) == 2


class _Planted:
    """Object whose unpickling writes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.canary,)


def planted(folder: Path, canary: Path) -> Path:
    """Replace the newest checkpoint's model by a pickle that writes `canary`, seal it, and return its file."""
    tag = sorted((folder / "checkpoints").iterdir())[-1]
    file = tag / "mp_rank_00_model_states.pt"
    torch.save({"module": _Planted(canary)}, file)
    manifest.write_manifest(tag)
    return file


def test_checkpoints_are_private_and_resume(make_trial: MakeTrial, undisturbed: Path) -> None:
    folder = make_trial("private")
    (folder / "checkpoints").mkdir(mode=0o777)
    (folder / "checkpoints").chmod(0o777)
    assert train(folder, "--until", str(24 * 256)).returncode == 0
    assert (folder / "checkpoints").stat().st_mode & 0o777 == 0o700
    for path in (folder / "checkpoints").rglob("*"):  # a default ACL can do this; nobody else can reach the files
        path.chmod(0o777)
    assert train(folder).returncode == 0
    assert result(folder)["loss"] == result(undisturbed)["loss"]


@pytest.mark.parametrize("open_path", [".", "step-000000012", "step-000000012/mp_rank_00_model_states.pt"])
def test_a_checkpoint_that_others_can_write_is_not_loaded(
    make_trial: MakeTrial, tmp_path: Path, open_path: str
) -> None:
    folder = make_trial("open")
    assert train(folder, "--until", str(12 * 256)).returncode == 0
    checkpoints = folder / "checkpoints"
    for path in (checkpoints, *checkpoints.rglob("*")):  # as earlier versions left them
        path.chmod(0o755)
    file = planted(folder, tmp_path / "canary")
    (checkpoints / open_path).chmod(0o775)
    ended = train(folder)
    assert ended.returncode == 4
    assert f"{checkpoints / open_path} can be written by other users, and loading a checkpoint can run" in ended.stderr
    assert f"If you trust them, run chmod -R go-w {checkpoints}, or delete {checkpoints} to train from" in ended.stderr
    assert file.exists()
    assert not (tmp_path / "canary").exists()
    (checkpoints / open_path).chmod(0o755)
    train(folder)
    assert (tmp_path / "canary").exists(), "the pickle runs once it is trusted, so it would have run before"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to another user")
def test_a_checkpoint_of_another_user_is_not_loaded(make_trial: MakeTrial, tmp_path: Path) -> None:
    folder = make_trial("foreign", ranks=2)
    assert train(folder, "--until", str(12 * 256)).returncode == 0
    file = planted(folder, tmp_path / "canary")
    os.chown(file, 65534, 65534)
    ended = run_trial(folder)
    assert ended.returncode == 4
    assert f"{file} belongs to another user (number 65534), and loading a checkpoint can run code" in ended.stderr
    assert json.loads((folder / "failure.json").read_text())["reason"].startswith(f"{file} belongs to another user")
    assert not (tmp_path / "canary").exists()
    assert file.exists()


def test_a_link_in_a_checkpoint_is_not_followed(make_trial: MakeTrial, tmp_path: Path) -> None:
    folder = make_trial("linked")
    assert train(folder, "--until", str(12 * 256)).returncode == 0
    file = planted(folder, tmp_path / "canary")
    file.rename(tmp_path / "elsewhere.pt")
    file.symlink_to(tmp_path / "elsewhere.pt")
    ended = train(folder)
    assert ended.returncode == 4
    assert f"{file} is a link, and loading a checkpoint can run code" in ended.stderr
    assert not (tmp_path / "canary").exists()
