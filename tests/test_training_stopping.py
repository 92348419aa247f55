"""A trial that is stopped, paused or killed resumes to the same bits, and leaves no process behind."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from helpers.trials import (
    MakeTrial,
    alive,
    child_processes,
    lines,
    result,
    run_trial,
    start_trial,
    stop_at_step,
    train,
    trial_config,
    wait_for_step,
    wait_until,
)

from march_search.trial.result import complete_result


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_trial_resumes_to_the_same_bits(make_trial: MakeTrial, undisturbed: Path, signum: int) -> None:
    stopped = make_trial("stopped")
    code = stop_at_step(stopped, 14, signum)
    assert code == (-signum if signum == signal.SIGKILL else 128 + signum)
    assert not (stopped / "result.json").exists()
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # a line torn by the kill
    for number, path in enumerate(sorted(stopped.rglob("*"))):  # as if the clock had been set back twice
        os.utime(path, (time.time() + 3600 - number,) * 2)
    assert train(stopped).returncode == 0
    for kind in ("train", "evaluation"):
        assert lines(stopped, kind) == lines(undisturbed, kind)
    assert result(stopped)["loss"] == result(undisturbed)["loss"]


@pytest.mark.parametrize(("ranks", "stops"), [(1, (12, 18, 18)), (2, (18,))])
def test_a_paused_trial_resumes_to_the_same_bits(
    make_trial: MakeTrial, undisturbed: Path, undisturbed_on_two: Path, ranks: int, stops: tuple[int, ...]
) -> None:
    paused, whole = make_trial("paused", ranks=ranks), undisturbed if ranks == 1 else undisturbed_on_two
    for steps in stops:  # at a checkpoint, at neither a checkpoint nor an evaluation, and twice at one step
        ended = train(paused, "--until", str(steps * 256))
        assert ended.returncode == 0, ended.stderr
        assert lines(paused, "train") == lines(whole, "train")[:steps]
        assert [line["step"] for line in lines(paused, "evaluation")] == sorted({*stops, 16})[: 3 if steps > 16 else 1]
        assert not (paused / "result.json").exists()
        assert complete_result(paused, trial_config(paused)) is None
    assert train(paused, "--until", str(48 * 256)).returncode == 0
    assert lines(paused, "train") == lines(whole, "train")
    added = [line for line in lines(paused, "evaluation") if line["step"] in (12, 18)]
    assert [line for line in lines(paused, "evaluation") if line not in added] == lines(whole, "evaluation")
    assert (paused / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert result(paused)["loss"] == result(whole)["loss"]


def test_a_trial_killed_beyond_its_pause_is_evaluated_at_the_pause(make_trial: MakeTrial) -> None:
    folder = make_trial("stopped")
    stop_at_step(folder, 14)
    assert train(folder, "--until", str(12 * 256)).returncode == 0
    assert [line["step"] for line in lines(folder, "train")] == list(range(1, 13))
    assert [line["step"] for line in lines(folder, "evaluation")] == [12]


@pytest.mark.parametrize(("tokens", "nearest"), [("300", 256), ("0", 256), ("12544", 12288)])
def test_a_trial_pauses_only_after_whole_steps(make_trial: MakeTrial, tokens: str, nearest: int) -> None:
    ended = run_trial(make_trial("odd"), "--until", tokens)
    assert ended.returncode == 2
    rule = "must be a multiple of global_batch_tokens (256) up to tokens (12,288)"
    assert ended.stderr == f"march-search: --until {tokens}: {rule}; the nearest is {nearest}.\n"


def test_two_ranks_stop_and_resume_together(make_trial: MakeTrial, undisturbed_on_two: Path) -> None:
    stopped = make_trial("stopped", ranks=2)
    assert stop_at_step(stopped, 14, signal.SIGTERM) == 143
    assert alive(str(stopped)) == []
    assert train(stopped).returncode == 0
    assert lines(stopped, "evaluation") == lines(undisturbed_on_two, "evaluation")


def test_killing_the_supervisor_leaves_no_rank_behind(make_trial: MakeTrial) -> None:
    folder = make_trial("ranks", ranks=2, tokens=4000 * 256)
    process = start_trial(folder)
    wait_for_step(folder, 2, process)
    assert len(alive(str(folder))) == 3
    process.kill()
    process.wait()
    wait_until(lambda: not alive(str(folder)), 5)
    assert alive(str(folder)) == []


def test_a_killed_rank_ends_the_trial(make_trial: MakeTrial) -> None:
    folder = make_trial("ranks", ranks=2, tokens=4000 * 256)
    process = start_trial(folder)
    wait_for_step(folder, 2, process)
    os.kill(child_processes(process)[1], signal.SIGKILL)
    assert process.wait(timeout=30) == 128 + signal.SIGKILL
    assert alive(str(folder)) == []
    reason = json.loads((folder / "failure.json").read_text())["reason"]
    assert reason.startswith("rank 1 was killed by SIGKILL: ")


def test_two_processes_never_train_one_trial(make_trial: MakeTrial) -> None:
    folder = make_trial("one", tokens=4000 * 256)
    process = start_trial(folder)
    wait_for_step(folder, 2, process)
    ended = run_trial(folder)
    process.kill()
    process.wait()
    assert ended.returncode == 4
    assert "is being trained by another process" in ended.stderr


def test_a_trial_with_a_damaged_checkpoint_resumes_from_the_one_before(
    make_trial: MakeTrial, undisturbed: Path
) -> None:
    stopped = make_trial("stopped")
    stop_at_step(stopped, 14)
    newest = max(p for p in (stopped / "checkpoints").glob("step-*/manifest.json")).parent
    weights = next(newest.glob("*model_states.pt"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert train(stopped).returncode == 0
    assert lines(stopped, "train") == lines(undisturbed, "train")


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.torture)])
def test_a_stop_within_a_step_drops_only_that_step(make_trial: MakeTrial, ranks: int) -> None:
    step = 256 * ranks * 6  # long enough to be stopped within
    batch = {"tokens": 6 * step, "global_batch_tokens": step, "micro_batch_sequences": 1}
    recipe = batch | {"zero_stage": 2, "precision": "bf16", "evaluations": 1, "checkpoints": 0}
    untouched, stopped = (make_trial(name, ranks=ranks, **recipe) for name in ("untouched", "stopped"))
    assert train(untouched).returncode == 0
    shutil.copy(untouched / "device_peak.json", stopped)  # measuring it takes seconds in bf16
    process = start_trial(stopped)
    wait_for_step(stopped, 1, process)
    process.terminate()
    assert process.wait(timeout=60) == 143
    done = [line["step"] for line in lines(stopped, "train")]
    assert done == list(range(1, len(done) + 1))
    assert len(done) < 6
    assert [path.name for path in (stopped / "checkpoints").glob("step-*")] == [f"step-{len(done):09d}"]
    assert train(stopped).returncode == 0
    for kind in ("train", "evaluation"):
        assert lines(stopped, kind) == lines(untouched, kind)
    assert (stopped / "weights.safetensors").read_bytes() == (untouched / "weights.safetensors").read_bytes()
