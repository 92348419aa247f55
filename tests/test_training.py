"""A trial trains to its exact token budget, in one process or several, and goes on where it was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, TINY, TINY_TRAINING, alive, lines, result, run_trial, start_trial

from march_search import Architecture
from march_search.architecture.flops import flops_per_token
from march_search.config import BatchPlan, DataConfig, TrainingConfig, TrialConfig
from march_search.config.deepspeed_config import ds_config
from march_search.config.loader import build
from march_search.errors import ConfigError
from march_search.training.optimizer import schedule
from march_search.trial import outcome
from march_search.trial.result import complete_result, seal_result

MakeTrial = Callable[..., Path]
BROAD = "L2-D64-H4x16-F256-geglu-rope-V400"
"""Its activations are what takes memory."""


def trial_config(folder: Path) -> TrialConfig:
    """What a trial was told."""
    return build(TrialConfig, json.loads((folder / "trial.json").read_text()), "trial.json")


def wait_for_step(folder: Path, step: int, process: "subprocess.Popen[bytes]") -> None:
    """Returns once the trial has written that step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        metrics = folder / "metrics.jsonl"
        if metrics.is_file() and f'"train", "step": {step},' in metrics.read_text():
            return
        assert process.poll() is None, (folder / "trial.log").read_text()
        time.sleep(0.002)
    raise AssertionError("the trial does not get on")


def test_a_trial_sees_exactly_its_tokens_and_learns(straight: Path) -> None:
    folder = straight
    got = result(folder)
    assert (got["tokens"], got["steps"], got["architecture"]) == (48 * 256, 48, TINY)
    assert got["num_params"] == Architecture.parse(TINY).num_params
    assert [line["tokens"] for line in lines(folder, "evaluation")] == [4096, 8192, 12288]
    assert [line["step"] for line in lines(folder, "train")] == list(range(1, 49))
    assert got["loss"] == lines(folder, "evaluation")[-1]["loss"] < lines(folder, "train")[0]["loss"] - 0.3
    assert got["context_gain"] == lines(folder, "evaluation")[-1]["context_gain"]
    assert {"torch", "deepspeed", "python"} <= set(got["versions"])
    assert got["peak_memory_bytes"] == got["peak_host_memory_bytes"] > 10**8
    assert not (folder / "checkpoints").exists()
    assert json.loads((folder / "ds_config.json").read_text())["gradient_clipping"] == 1.0


def test_every_step_says_where_its_seconds_went_and_its_share_of_the_peak(straight: Path) -> None:
    told = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    tokens, got = TINY_TRAINING.global_batch_tokens, result(straight)
    cost = flops_per_token(Architecture.parse(TINY), DATA.sequence_length)
    [peak] = json.loads((straight / "device_peak.json").read_text()).values()
    assert (got["flops_per_token"], got["peak_flops"]) == (cost, peak)
    assert got["flop_utilisation"] == pytest.approx(got["tokens_per_second"] * cost / peak, abs=1e-4)
    for line in (line for line in told if line["kind"] == "train"):
        parts = [line[f"{name}_seconds"] for name in ("data_wait", "forward", "backward", "step")]
        assert min(parts) > 0
        assert sum(parts) < 1.01 * tokens / line["tokens_per_second"] + 1e-4
        assert line["flop_utilisation"] == pytest.approx(line["tokens_per_second"] * cost / peak, abs=1e-4)
        assert line["gradient_norm"] > 0
    for line in (line for line in told if line["kind"] == "evaluation"):
        assert line["peak_memory_bytes"] == line["peak_host_memory_bytes"] > 10**8


def test_the_gradient_norm_is_that_before_clipping(make_trial: MakeTrial, straight: Path) -> None:
    folder = make_trial("unclipped", gradient_clipping=0.0, tokens=256, evaluations=1, checkpoints=0)
    assert run_trial(folder).returncode == 0
    norm = lines(folder, "train")[0]["gradient_norm"]
    assert norm == pytest.approx(lines(straight, "train")[0]["gradient_norm"], rel=1e-5)
    assert norm > TINY_TRAINING.gradient_clipping


def test_tensorboard_shows_each_step_once_though_the_trial_was_killed(make_trial: MakeTrial, straight: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = make_trial("killed")
    process = start_trial(folder)
    wait_for_step(folder, 14, process)
    process.kill()
    process.wait()
    with (folder / "events.out.tfevents.0.march-search").open("ab") as file:
        file.write(b"\x18\0\0")  # a record torn by the kill
    assert run_trial(folder).returncode == 0
    shown = EventAccumulator(str(folder))
    shown.Reload()
    for kind, name in (("train", "loss"), ("train", "gradient_norm"), ("evaluation", "context_gain")):
        curve = [(event.step, event.value) for event in shown.Scalars(f"{kind}/{name}")]
        told = [(line["step"], line[name]) for line in lines(straight, kind)]
        assert [step for step, _ in curve] == [step for step, _ in told]
        assert [value for _, value in curve] == pytest.approx([value for _, value in told], rel=1e-6)
    assert len(shown.Scalars("train/flop_utilisation")) == 48


def test_every_evaluation_keeps_the_loss_of_each_validation_example(make_trial: MakeTrial, straight: Path) -> None:
    two = make_trial("two", ranks=2)
    assert run_trial(two).returncode == 0
    for line in lines(straight, "evaluation"):
        kept, other = (np.load(folder / "validation" / f"{line['tokens']:015d}.npy") for folder in (straight, two))
        assert kept.dtype == np.float32
        assert kept.shape == (DATA.validation_sequences,)
        assert kept.mean() == pytest.approx(line["loss"], abs=1e-5)
        assert kept.std() > 0
        assert other == pytest.approx(kept, abs=2e-3)


def test_a_complete_trial_is_not_trained_again(make_trial: MakeTrial) -> None:
    other_order = "L1-D32-H2x16-F64-V400-rope-geglu"
    folder = make_trial("one", tokens=256, checkpoints=0, architecture=other_order)
    assert run_trial(folder).returncode == 0
    before = (folder / "result.json").read_bytes()
    ended = run_trial(folder)
    assert ended.returncode == 0
    assert "is already complete" in ended.stderr
    assert (folder / "result.json").read_bytes() == before


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_two_ranks_have_the_loss_of_one_at_the_same_global_batch(
    make_trial: MakeTrial, straight: Path, zero_stage: int
) -> None:
    two = make_trial("two", ranks=2, zero_stage=zero_stage)
    ended = run_trial(two)
    assert ended.returncode == 0, ended.stderr
    assert result(two)["ranks"] == 2
    assert result(two)["loss"] == pytest.approx(result(straight)["loss"], abs=1e-4)
    assert result(two)["context_gain"] == pytest.approx(result(straight)["context_gain"], abs=1e-4)
    for line_one, line_two in zip(lines(straight, "train"), lines(two, "train"), strict=True):
        assert line_two["loss"] == pytest.approx(line_one["loss"], abs=1e-4)
        assert line_two["gradient_norm"] == pytest.approx(line_one["gradient_norm"], rel=1e-3)


def test_accumulation_changes_nothing_but_the_memory(make_trial: MakeTrial, straight: Path) -> None:
    cut = make_trial("cut", micro_batch_sequences=2)
    assert run_trial(cut).returncode == 0
    assert result(cut)["loss"] == pytest.approx(result(straight)["loss"], abs=1e-4)


def test_bf16_trains_to_nearly_the_same_loss(make_trial: MakeTrial, straight: Path) -> None:
    bf16 = make_trial("bf16", precision="bf16")
    ended = run_trial(bf16)
    assert ended.returncode == 0, ended.stderr
    assert result(bf16)["tokens"] == 48 * 256
    assert result(bf16)["loss"] == pytest.approx(result(straight)["loss"], abs=0.05)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_trial_ends_as_if_it_had_not_been(make_trial: MakeTrial, straight: Path, signum: int) -> None:
    stopped = make_trial("stopped")
    process = start_trial(stopped)
    wait_for_step(stopped, 14, process)
    process.send_signal(signum)
    code = process.wait(timeout=30)
    assert code == (-signum if signum == signal.SIGKILL else 128 + signum)
    assert not (stopped / "result.json").exists()
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # a line torn by the kill
    for number, path in enumerate(sorted(stopped.rglob("*"))):  # by a clock that went back an hour, and again
        os.utime(path, (time.time() + 3600 - number,) * 2)
    assert run_trial(stopped).returncode == 0
    for kind in ("train", "evaluation"):
        assert lines(stopped, kind) == lines(straight, kind)
    assert result(stopped)["loss"] == result(straight)["loss"]


@pytest.mark.parametrize(("ranks", "stops"), [(1, (12, 18, 18)), (2, (18,))])
def test_a_paused_trial_ends_as_if_it_had_not_been(
    make_trial: MakeTrial, straight: Path, straight_on_two: Path, ranks: int, stops: tuple[int, ...]
) -> None:
    paused, whole = make_trial("paused", ranks=ranks), straight if ranks == 1 else straight_on_two
    for steps in stops:  # where a checkpoint is written and nothing evaluated; where neither is; where it is already
        ended = run_trial(paused, "--until", str(steps * 256))
        assert ended.returncode == 0, ended.stderr
        assert lines(paused, "train") == lines(whole, "train")[:steps]
        assert [line["step"] for line in lines(paused, "evaluation")] == sorted({*stops, 16})[: 3 if steps > 16 else 1]
        assert not (paused / "result.json").exists()
        assert complete_result(paused, trial_config(paused)) is None
    assert run_trial(paused, "--until", str(48 * 256)).returncode == 0
    assert lines(paused, "train") == lines(whole, "train")
    added = [line for line in lines(paused, "evaluation") if line["step"] in (12, 18)]
    assert [line for line in lines(paused, "evaluation") if line not in added] == lines(whole, "evaluation")
    assert (paused / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert result(paused)["loss"] == result(whole)["loss"]


def test_a_trial_that_ended_where_it_is_now_to_pause_is_evaluated_there(make_trial: MakeTrial) -> None:
    folder = make_trial("stopped")
    process = start_trial(folder)
    wait_for_step(folder, 14, process)
    process.kill()
    process.wait()
    assert run_trial(folder, "--until", str(12 * 256)).returncode == 0
    assert [line["step"] for line in lines(folder, "train")] == list(range(1, 13))
    assert [line["step"] for line in lines(folder, "evaluation")] == [12]


@pytest.mark.parametrize(("tokens", "nearest"), [("300", 256), ("0", 256), ("12544", 12288)])
def test_a_trial_pauses_after_whole_steps_only(make_trial: MakeTrial, tokens: str, nearest: int) -> None:
    ended = run_trial(make_trial("odd"), "--until", tokens)
    assert ended.returncode == 2
    rule = "must be a multiple of global_batch_tokens (256) up to tokens (12,288)"
    assert ended.stderr == f"march-search: --until {tokens}: {rule}; the nearest is {nearest}.\n"


def test_a_result_counts_only_as_it_was_written(make_trial: MakeTrial, straight: Path) -> None:
    folder, config, good = make_trial("other"), trial_config(straight), result(straight)
    assert complete_result(straight, config) == good
    for change in ({"loss": 0.1}, {"sha256": "0" * 64}, {"schema_version": 1}, {"peak_memory_bytes": None}):
        (folder / "result.json").write_text(json.dumps(good | change))
        assert complete_result(folder, config) is None
    unsealed = {name: value for name, value in good.items() if name != "sha256"}
    (folder / "result.json").write_text(json.dumps(unsealed))
    assert complete_result(folder, config) is None
    (folder / "result.json").write_text(json.dumps(unsealed | {"schema_version": 1}))  # of a version without seals
    assert complete_result(folder, config) is not None
    (folder / "result.json").write_text(json.dumps(seal_result(good | {"tokens": 256})))
    assert complete_result(folder, config) is None


def test_two_ranks_stop_together_and_go_on_together(make_trial: MakeTrial, straight_on_two: Path) -> None:
    stopped = make_trial("stopped", ranks=2)
    process = start_trial(stopped)
    wait_for_step(stopped, 14, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert alive(str(stopped)) == []
    assert run_trial(stopped).returncode == 0
    assert lines(stopped, "evaluation") == lines(straight_on_two, "evaluation")


def test_killing_the_supervisor_leaves_no_rank_behind(make_trial: MakeTrial) -> None:
    folder = make_trial("ranks", ranks=2, tokens=4000 * 256)
    process = start_trial(folder)
    wait_for_step(folder, 2, process)
    assert len(alive(str(folder))) == 3
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while alive(str(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(str(folder)) == []


def test_a_killed_rank_ends_the_trial(make_trial: MakeTrial) -> None:
    folder = make_trial("ranks", ranks=2, tokens=4000 * 256)
    process = start_trial(folder)
    wait_for_step(folder, 2, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    assert process.wait(timeout=30) != 0
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


def test_the_2023_baseline_trains_on_two_ranks_though_its_last_encoder_layer_is_hardly_read(
    make_trial: MakeTrial,
) -> None:
    folder = make_trial("baseline", ranks=2, tokens=1024, zero_stage=1, architecture="L2-D32-H2x16-F64-abs-xlayer-V400")
    ended = run_trial(folder)
    assert ended.returncode == 0, ended.stderr


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(make_trial: MakeTrial, straight: Path) -> None:
    stopped = make_trial("stopped")
    process = start_trial(stopped)
    wait_for_step(stopped, 14, process)
    process.kill()
    process.wait()
    newest = max(p for p in (stopped / "checkpoints").glob("step-*/manifest.json")).parent
    weights = next(newest.glob("*model_states.pt"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert run_trial(stopped).returncode == 0
    assert lines(stopped, "train") == lines(straight, "train")


def test_a_diverging_trial_says_at_which_step(make_trial: MakeTrial) -> None:
    folder = make_trial("wild", learning_rate=9.0, gradient_clipping=0.0, weight_decay=0.0, precision="bf16")
    config = json.loads((folder / "trial.json").read_text())
    config["architecture"] = "L6-D32-H2x16-F64-rope-V400"
    config["training"] |= {"learning_rate": 9.9, "tokens": 256 * 400, "betas": [0.0, 0.0], "epsilon": 1e-30}
    (folder / "trial.json").write_text(json.dumps(config))
    ended = run_trial(folder)
    assert ended.returncode == 1
    told = json.loads((folder / "failure.json").read_text())
    assert told["state"] == "diverged"
    assert "diverged at step" in told["reason"]
    assert not (folder / "result.json").exists()


def run_with_memory(folder: Path, gigabytes: float, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Trains to the end in processes that get so much memory each."""
    code = (
        f"import resource, runpy; resource.setrlimit(resource.RLIMIT_DATA, ({int(gigabytes * 2**30)},) * 2);"
        "runpy.run_module('march_search.training', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", code, str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(("ranks", "gigabytes"), [(1, 1.5), (2, 1.0)])
def test_out_of_memory_halves_the_micro_batch_and_trains_the_same_tokens(
    make_trial: MakeTrial, ranks: int, gigabytes: float
) -> None:
    batch = {"tokens": 4096 * 32, "global_batch_tokens": 4096 * 32, "checkpoints": 0, "evaluations": 1}
    whole = make_trial("whole", architecture=BROAD, micro_batch_sequences=256, **batch)
    assert run_trial(whole).returncode == 0
    tight = make_trial("tight", architecture=BROAD, ranks=ranks, micro_batch_sequences=4096 // ranks, **batch)
    ended = run_with_memory(tight, gigabytes)
    assert ended.returncode == 0, ended.stderr
    assert "out of memory: restarting with half the micro batch." in ended.stderr
    got, kept = result(tight), json.loads((tight / "micro_batch.json").read_text())
    assert got["micro_batch_halvings"] == kept["halvings"] >= 1
    assert got["training"]["micro_batch_sequences"] == kept["micro_batch"] == 4096 // ranks >> kept["halvings"]
    assert got["tokens"] == result(whole)["tokens"]
    assert got["loss"] == pytest.approx(result(whole)["loss"], abs=1e-5)
    assert not (tight / "failure.json").exists()


def test_a_study_is_told_of_a_smaller_micro_batch_and_starts_the_trial_again(make_trial: MakeTrial) -> None:
    batch = {"tokens": 4096 * 32, "global_batch_tokens": 4096 * 32, "checkpoints": 0, "evaluations": 1}
    tight = make_trial("tight", architecture=BROAD, micro_batch_sequences=4096, **batch)
    codes = [run_with_memory(tight, 1.5, "--once").returncode]
    while codes[-1] == outcome.SMALLER:
        codes.append(run_with_memory(tight, 1.5, "--once").returncode)
    assert codes == [outcome.SMALLER] * result(tight)["micro_batch_halvings"] + [0]
    assert len(codes) > 1


def test_a_model_that_fits_at_no_micro_batch_is_infeasible(make_trial: MakeTrial) -> None:
    huge = "L1-D512-H2x16-F131072-rope-V400"
    folder = make_trial("huge", architecture=huge, tokens=256, micro_batch_sequences=2, checkpoints=0)
    ended = run_with_memory(folder, 1.0)
    assert ended.returncode == 1
    told = json.loads((folder / "failure.json").read_text())
    assert (told["state"], told["halvings"]) == ("infeasible_memory", 1)
    assert told["reason"].startswith("out of memory: ")


def test_the_first_micro_batch_is_what_the_memory_is_expected_to_hold(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from march_search.training import micro_batch
    from march_search.training.engine import RankInfo

    config = build(TrialConfig, json.loads((make_trial("one", architecture=BROAD) / "trial.json").read_text()), "")
    config = replace(config, training=replace(config.training, tokens=4096 * 32, global_batch_tokens=4096 * 32))
    place, found = RankInfo(0, 1, torch.device("cpu")), []
    for free in (2**22, 2**28, 2**29, 2**36):
        monkeypatch.setattr(micro_batch, "_free_bytes", lambda *_, free=free: free)
        found.append(micro_batch._predicted(config, place))
    assert found[0] == 1 < found[1] < found[2] < found[3] == 4096
    assert all(4096 % micro == 0 for micro in found)


def test_who_killed_a_rank_is_read_from_the_kernels_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = tmp_path / "vmstat"
    monkeypatch.setattr(result, "_KERNEL_COUNTS", counts)
    assert outcome.kill_reason(outcome.memory_kills()) == "the machine may have run out of memory"
    counts.write_text("nr_free_pages 5\noom_kill 3\n")
    before = outcome.memory_kills()
    assert "another process sent it" in outcome.kill_reason(before)
    counts.write_text("nr_free_pages 5\noom_kill 4\n")
    assert "the machine ran out of memory; decrease micro_batch_sequences" in outcome.kill_reason(before)


def test_a_trial_that_cannot_be_meant_says_so_in_one_line(make_trial: MakeTrial) -> None:
    folder = make_trial("odd")
    config = json.loads((folder / "trial.json").read_text())
    config["training"]["learning_rte"] = 1
    (folder / "trial.json").write_text(json.dumps(config))
    ended = run_trial(folder)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert 'unknown key "training.learning_rte". Did you mean "learning_rate"?' in ended.stderr


def test_a_decoder_only_model_trains_on_the_text_as_it_is(make_trial: MakeTrial, store: Path) -> None:
    from march_search.data.ngrams import reference_nats
    from march_search.data.store import Store

    folder = make_trial("text", architecture="L1-D32-H2x16-F64-geglu-dec-rope-V400")
    ended = run_trial(folder)
    assert ended.returncode == 0, ended.stderr
    got = result(folder)
    assert got["tokens"] == 48 * 256
    assert "context_gain" not in got
    assert got["loss"] == lines(folder, "evaluation")[-1]["loss"]
    assert got["loss"] < lines(folder, "train")[0]["loss"] - 1
    assert abs(got["loss"] - reference_nats(Store.open(store), DATA)["text_unigram_nats"]) < 0.2
    two = make_trial("two", ranks=2, architecture="L1-D32-H2x16-F64-geglu-dec-rope-V400", micro_batch_sequences=2)
    assert run_trial(two).returncode == 0
    assert result(two)["loss"] == pytest.approx(got["loss"], abs=1e-4)


def test_a_vocabulary_that_does_not_fit_the_store_is_refused(make_trial: MakeTrial) -> None:
    ended = run_trial(make_trial("odd", architecture="L1-D32-H2x16-F64-rope-V500"))
    assert ended.returncode == 2
    assert "the architecture has a vocabulary of 500, but the token store has 400." in ended.stderr


def test_the_engine_is_told_every_number() -> None:
    training = TrainingConfig(tokens=2**21, global_batch_tokens=2**20, micro_batch_sequences=32, zero_stage=2)
    config = ds_config(training, BatchPlan.of(training, DataConfig(), ranks=8))
    assert config["train_batch_size"] == 2048 == 32 * 8 * config["gradient_accumulation_steps"]
    assert config["zero_optimization"]["stage"] == 2
    assert config["bf16"] == {"enabled": True}


def test_a_persons_own_deepspeed_keys_stand_beside_the_studys(make_trial: MakeTrial) -> None:
    own = {
        "train_batch_size": "auto",
        "gradient_clipping": 1.0,
        "communication_data_type": "fp32",
        "zero_optimization": {"stage": "auto", "reduce_bucket_size": 1_000_000, "allgather_partitions": False},
    }
    folder = make_trial("own", tokens=512, zero_stage=2, deepspeed=own)
    ended = run_trial(folder)
    assert ended.returncode == 0, ended.stderr
    told = json.loads((folder / "ds_config.json").read_text())
    assert told["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1_000_000, "allgather_partitions": False}
    assert (told["train_batch_size"], told["communication_data_type"]) == (8, "fp32")


@pytest.mark.parametrize(
    ("zero_stage", "offloaded"), [(2, ("offload_optimizer",)), (3, ("offload_optimizer", "offload_param"))]
)
def test_offloading_needs_no_compiler_and_trains_the_same(
    make_trial: MakeTrial, straight: Path, zero_stage: int, offloaded: tuple[str, ...]
) -> None:
    own = {"zero_optimization": {name: {"device": "cpu"} for name in offloaded}}
    folder = make_trial("offloaded", tokens=4 * 256, zero_stage=zero_stage, deepspeed=own, evaluations=1, checkpoints=0)
    ended = run_trial(folder)
    assert ended.returncode == 0, ended.stderr
    for ours, plain in zip(lines(folder, "train"), lines(straight, "train"), strict=False):
        assert ours["loss"] == pytest.approx(plain["loss"], abs=1e-4)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"zero_optimisation": {"stage": 1}}, 'has no key "zero_optimisation". Did you mean "zero_optimization"?'),
        ({"zero_optimization": {"offload_optimiser": {}}}, 'Did you mean "offload_optimizer"?'),
        ({"train_batch_size": 64}, '"train_batch_size" is 64, but it is set to 8 by [training] global_batch_tokens'),
        ({"bf16": {"enabled": True}}, '"bf16.enabled" is True, but it is set to False by [training] precision'),
        (
            {"optimizer": {"type": "Adam"}},
            "but it is set by [training] learning_rate, betas, epsilon and weight_decay",
        ),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "but it is set to 'fp32' by march-search: remove it"),
    ],
)
def test_deepspeed_keys_that_are_unknown_or_contradict_are_refused(own: dict, message: str) -> None:
    training = replace(TINY_TRAINING, deepspeed=own)
    with pytest.raises(ConfigError) as caught:
        ds_config(training, BatchPlan.of(training, DATA, ranks=1))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_schedules_rise_and_fall_where_they_say() -> None:
    recipe = {"tokens": 100 * 256, "global_batch_tokens": 256, "warmup_tokens": 10 * 256}
    linear = schedule(TrainingConfig(**recipe, schedule="linear"))
    assert [linear(0), linear(9), linear(10), linear(55), linear(100)] == [0.1, 1.0, 1.0, 0.5, 0.0]
    cosine = schedule(TrainingConfig(**recipe, schedule="cosine", final_learning_rate=0.1))
    assert cosine(55) == pytest.approx(0.55)
    assert cosine(100) == pytest.approx(0.1)
    assert schedule(TINY_TRAINING)(11) == 1.0


def test_weight_decay_leaves_out_norms_keys_and_position_tables() -> None:
    from march_search.model import build
    from march_search.training.optimizer import parameter_groups

    a = Architecture.parse("L1-D32-H2x16-F64-abs-noop-V400")
    for architecture in (a, Architecture.parse("L1-D32-H2x16-F64-V400")):
        model = build(architecture)
        names = dict(model.named_parameters())
        decayed, others = (set(group.parameters) for group in parameter_groups(model, None))
        assert len(decayed) + len(others) == len(names)
        assert "embedding" in decayed
        assert not any("norm" in name or "bias" in name or "position" in name for name in decayed)


def test_our_adamw_is_torchs_to_the_bit_hooks_and_state_included() -> None:
    import torch

    from march_search.training.optimizer import AdamW

    seen, ends = [], []
    for kind in (torch.optim.AdamW, AdamW):
        torch.manual_seed(0)
        layer = torch.nn.Linear(8, 8)
        matrices = {"params": [layer.weight], "weight_decay": 0.1}
        optimizer = kind([matrices, {"params": [layer.bias]}], lr=1e-2, fused=True)
        optimizer.register_step_pre_hook(lambda one, *_: seen.append(type(one)))
        for _ in range(4):
            layer(torch.randn(4, 8)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert layer.weight.grad is None
            optimizer.load_state_dict(optimizer.state_dict())
        ends.append(torch.cat([layer.weight.detach().flatten(), layer.bias.detach()]))
    assert torch.equal(*ends)
    assert seen == [torch.optim.AdamW] * 4 + [AdamW] * 4


def test_a_trial_starts_without_torchs_compiler(make_trial: MakeTrial) -> None:
    code = (
        "import os, sys; from march_search.training.__main__ import main; os.environ['RANK'] = '0';"
        "assert main(sys.argv[1:]) == 0; assert 'torch._dynamo' not in sys.modules"
    )
    folder = make_trial("one", tokens=256, checkpoints=0, evaluations=1)
    ended = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert complete_result(folder, trial_config(folder)) is not None


def test_nothing_that_a_trial_decides_hangs_on_the_clock_of_the_wall() -> None:
    package = Path(outcome.__file__).parent.parent
    files = [package / "trial/result.py", package / "files.py", *(package / "training").glob("*.py")]
    told = [f.name for f in files if "time.time(" in f.read_text() or "datetime.now" in f.read_text()]
    assert told == ["events.py"]  # which only shows it


def test_the_supervisor_does_not_load_torch() -> None:
    code = "import sys, march_search.training.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
