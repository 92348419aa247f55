"""A trial trains on exactly its token budget, in one process or several, and records each step."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.trials import (
    DATA,
    TINY,
    TINY_TRAINING,
    MakeTrial,
    change_config,
    lines,
    result,
    run_trial,
    stop_at_step,
    train,
    trial_config,
    trial_maker,
)

from march_search import Architecture
from march_search.architecture.flops import flops_per_token
from march_search.config import TrainingConfig
from march_search.data.batches import Batches
from march_search.data.ngrams import reference_nats
from march_search.data.store import Store
from march_search.data.text_bytes import bits_per_nat
from march_search.errors import ConfigError
from march_search.files.json_tables import sealed, write_json
from march_search.training.optimizer import schedule
from march_search.trial import outcome
from march_search.trial.result import complete_result


def test_a_trial_trains_on_exactly_its_tokens_and_learns(undisturbed: Path) -> None:
    folder = undisturbed
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


def test_every_step_records_its_times_and_its_share_of_the_peak(undisturbed: Path) -> None:
    every = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    tokens, got = TINY_TRAINING.global_batch_tokens, result(undisturbed)
    cost = flops_per_token(Architecture.parse(TINY), DATA.sequence_length)
    peaks = json.loads((undisturbed / "device_peak.json").read_text())
    [peak] = [value for key, value in peaks.items() if key != "sha256"]
    assert (got["flops_per_token"], got["peak_flops"]) == (cost, peak)
    assert got["flop_utilisation"] == pytest.approx(got["tokens_per_second"] * cost / peak, abs=1e-4)
    for line in (line for line in every if line["kind"] == "train"):
        parts = [line[f"{name}_seconds"] for name in ("data_wait", "forward", "backward", "step")]
        assert min(parts) > 0
        assert sum(parts) < 1.01 * tokens / line["tokens_per_second"] + 1e-4
        assert line["flop_utilisation"] == pytest.approx(line["tokens_per_second"] * cost / peak, abs=1e-4)
        assert line["gradient_norm"] > 0
    for line in (line for line in every if line["kind"] == "evaluation"):
        assert line["peak_memory_bytes"] == line["peak_host_memory_bytes"] > 10**8


def test_the_gradient_norm_is_recorded_before_clipping(make_trial: MakeTrial, undisturbed: Path) -> None:
    folder = make_trial("unclipped", gradient_clipping=0.0, tokens=256, evaluations=1, checkpoints=0)
    assert train(folder).returncode == 0
    norm = lines(folder, "train")[0]["gradient_norm"]
    assert norm == pytest.approx(lines(undisturbed, "train")[0]["gradient_norm"], rel=1e-5)
    assert norm > TINY_TRAINING.gradient_clipping


def test_tensorboard_shows_each_step_once_after_a_kill(make_trial: MakeTrial, undisturbed: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = make_trial("killed")
    stop_at_step(folder, 14)
    with (folder / "events.out.tfevents.0.march-search").open("ab") as file:
        file.write(b"\x18\0\0")  # a record torn by the kill
    assert run_trial(folder).returncode == 0
    shown = EventAccumulator(str(folder))
    shown.Reload()
    for kind, name in (("train", "loss"), ("train", "gradient_norm"), ("evaluation", "context_gain")):
        curve = [(event.step, event.value) for event in shown.Scalars(f"{kind}/{name}")]
        written = [(line["step"], line[name]) for line in lines(undisturbed, kind)]
        assert [step for step, _ in curve] == [step for step, _ in written]
        assert [value for _, value in curve] == pytest.approx([value for _, value in written], rel=1e-6)
    assert len(shown.Scalars("train/flop_utilisation")) == 48


def test_every_evaluation_saves_the_loss_of_each_validation_example(
    undisturbed: Path, undisturbed_on_two: Path
) -> None:
    for line in lines(undisturbed, "evaluation"):
        one, two = (
            np.load(folder / "validation" / f"{line['tokens']:015d}.npy")
            for folder in (undisturbed, undisturbed_on_two)
        )
        assert one.dtype == np.float32
        assert one.shape == (DATA.validation_sequences,)
        assert one.mean() == pytest.approx(line["loss"], abs=1e-5)
        assert one.std() > 0
        assert two == pytest.approx(one, abs=2e-3)


def test_a_complete_trial_is_not_trained_again(make_trial: MakeTrial) -> None:
    other_order = "L1-D32-H2x16-F64-V400-rope-geglu"
    folder = make_trial("one", tokens=256, checkpoints=0, architecture=other_order)
    assert train(folder).returncode == 0
    before = (folder / "result.json").read_bytes()
    ended = run_trial(folder)
    assert ended.returncode == 0
    assert "is already complete" in ended.stderr
    assert (folder / "result.json").read_bytes() == before


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_two_ranks_have_the_loss_of_one_at_the_same_global_batch(
    make_trial: MakeTrial, undisturbed: Path, zero_stage: int
) -> None:
    two = make_trial("two", ranks=2, zero_stage=zero_stage)
    ended = train(two)
    assert ended.returncode == 0, ended.stderr
    assert result(two)["ranks"] == 2
    assert result(two)["loss"] == pytest.approx(result(undisturbed)["loss"], abs=1e-4)
    assert result(two)["context_gain"] == pytest.approx(result(undisturbed)["context_gain"], abs=1e-4)
    for line_one, line_two in zip(lines(undisturbed, "train"), lines(two, "train"), strict=True):
        assert line_two["loss"] == pytest.approx(line_one["loss"], abs=1e-4)
        assert line_two["gradient_norm"] == pytest.approx(line_one["gradient_norm"], rel=1e-3)


def test_accumulating_micro_batches_gives_the_same_loss(make_trial: MakeTrial, undisturbed: Path) -> None:
    small = make_trial("small", micro_batch_sequences=2)
    assert train(small).returncode == 0
    assert result(small)["loss"] == pytest.approx(result(undisturbed)["loss"], abs=1e-4)


def test_deterministic_operations_give_the_same_bits_on_a_cpu(make_trial: MakeTrial, undisturbed: Path) -> None:
    folder = make_trial("deterministic", deterministic=True)
    assert train(folder).returncode == 0
    assert result(folder)["loss"] == result(undisturbed)["loss"]
    assert result(folder)["training"]["deterministic"] is True


def test_bf16_trains_to_nearly_the_same_loss(make_trial: MakeTrial, undisturbed: Path) -> None:
    bf16 = make_trial("bf16", precision="bf16")
    ended = train(bf16)
    assert ended.returncode == 0, ended.stderr
    assert result(bf16)["tokens"] == 48 * 256
    assert result(bf16)["loss"] == pytest.approx(result(undisturbed)["loss"], abs=0.05)


def test_the_2023_baseline_trains_on_two_ranks_with_a_mostly_unused_encoder_layer(
    make_trial: MakeTrial,
) -> None:
    folder = make_trial("baseline", ranks=2, tokens=1024, zero_stage=1, architecture="L2-D32-H2x16-F64-abs-xlayer-V400")
    ended = train(folder)
    assert ended.returncode == 0, ended.stderr


def test_a_decoder_only_model_trains_on_uncorrupted_text(make_trial: MakeTrial, store: Path) -> None:
    folder = make_trial("text", architecture="L1-D32-H2x16-F64-geglu-dec-rope-V400")
    ended = train(folder)
    assert ended.returncode == 0, ended.stderr
    got = result(folder)
    assert got["tokens"] == 48 * 256
    assert abs(got["context_gain"]) < 0.1  # no better than token frequencies
    assert got["context_gain"] == lines(folder, "evaluation")[-1]["context_gain"]
    assert got["loss"] == lines(folder, "evaluation")[-1]["loss"]
    assert got["loss"] < lines(folder, "train")[0]["loss"] - 1
    reference = reference_nats(Store.open(store), DATA)
    assert abs(got["loss"] - reference["text_unigram_nats"]) < 0.2
    assert got["bits_per_byte"] == lines(folder, "evaluation")[-1]["bits_per_byte"]
    assert got["bits_per_byte"] == pytest.approx(got["loss"] * reference["text_bits_per_nat"])
    two = make_trial("two", ranks=2, architecture="L1-D32-H2x16-F64-geglu-dec-rope-V400", micro_batch_sequences=2)
    assert train(two).returncode == 0
    assert result(two)["loss"] == pytest.approx(got["loss"], abs=1e-4)
    assert result(two)["context_gain"] == pytest.approx(got["context_gain"], abs=1e-4)
    for line_one, line_two in zip(lines(folder, "train"), lines(two, "train"), strict=True):
        assert line_two["bits_per_byte"] == pytest.approx(line_one["bits_per_byte"], abs=1e-4)
    text = Batches(Store.open(store), DATA, 0, "decoder-only").train(0, 8)[1]  # of the first step
    factor = bits_per_nat(Store.open(store), text)
    assert lines(folder, "train")[0]["bits_per_byte"] == pytest.approx(
        lines(folder, "train")[0]["loss"] * factor, abs=1e-5
    )


def test_a_diverging_trial_reports_its_step(make_trial: MakeTrial) -> None:
    folder = make_trial(
        "wild",
        architecture="L6-D32-H2x16-F64-rope-V400",
        learning_rate=9.0,
        gradient_clipping=0.0,
        weight_decay=0.0,
        precision="bf16",
    )
    change_config(folder, "training", learning_rate=9.9, tokens=256 * 400, betas=[0.0, 0.0], epsilon=1e-30)
    ended = run_trial(folder)
    assert ended.returncode == 1
    failure = json.loads((folder / "failure.json").read_text())
    assert failure["state"] == "diverged"
    assert "diverged at step" in failure["reason"]
    assert not (folder / "result.json").exists()


def test_a_changed_result_does_not_count(make_trial: MakeTrial, undisturbed: Path) -> None:
    folder, config, good = make_trial("other"), trial_config(undisturbed), result(undisturbed)
    assert complete_result(undisturbed, config) == good
    for change in ({"loss": 0.1}, {"sha256": "0" * 64}, {"schema_version": 1}, {"peak_memory_bytes": None}):
        (folder / "result.json").write_text(json.dumps(good | change))
        assert complete_result(folder, config) is None
    unsealed = {name: value for name, value in good.items() if name != "sha256"}
    (folder / "result.json").write_text(json.dumps(unsealed))
    assert complete_result(folder, config) is None
    # A version without hashes wrote results like this one.
    (folder / "result.json").write_text(json.dumps(unsealed | {"schema_version": 1}))
    assert complete_result(folder, config) is not None
    (folder / "result.json").write_text(json.dumps(sealed(good | {"tokens": 256})))
    assert complete_result(folder, config) is None


def test_invalid_settings_are_a_one_line_error(make_trial: MakeTrial) -> None:
    ended = run_trial(change_config(make_trial("odd"), "training", learning_rte=1))
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert 'unknown key "training.learning_rte". Did you mean "learning_rate"?' in ended.stderr


def test_a_vocabulary_that_does_not_fit_the_store_is_refused(make_trial: MakeTrial) -> None:
    ended = train(make_trial("odd", architecture="L1-D32-H2x16-F64-rope-V500"))
    assert ended.returncode == 2
    assert "the architecture has a vocabulary of 500, but the token store has 400." in ended.stderr


def flip_bit(file: Path) -> None:
    """Flip the lowest bit of a byte in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 4 * 2] ^= 1
    file.write_bytes(content)


def change_sentinel(store: Path) -> None:
    """Change the first sentinel in the index of a store."""
    text = (store / "index.json").read_text()
    assert '"first_sentinel": 399' in text
    (store / "index.json").write_text(text.replace('"first_sentinel": 399', '"first_sentinel": 398'))


def swap_tokenizer(store: Path) -> None:
    """Swap two tokens in the tokenizer of a store."""
    text = (store / "tokenizer.json").read_text()
    assert '"</s>": 1' in text
    (store / "tokenizer.json").write_text(text.replace('"</s>": 1', '"</s>": 0').replace('"<pad>": 0', '"<pad>": 1'))


DAMAGES = {
    "train-00000.bin": lambda store: flip_bit(store / "train-00000.bin"),
    "validation-00000.bin": lambda store: flip_bit(store / "validation-00000.bin"),
    "index.json": change_sentinel,
    "tokenizer.json": swap_tokenizer,
}


def own_store(store: Path, folder: Path, version: int = 3) -> Path:
    """Return a copy of a store that may be damaged; version 2 has no seal in its index."""
    shutil.copytree(store, folder)
    index = json.loads((folder / "index.json").read_text())
    if version == 2:
        del index["sha256"]
        write_json(folder / "index.json", index | {"schema_version": 2})
    return folder


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_text_is_refused_before_the_first_step(store: Path, tmp_path: Path, name: str, version: int) -> None:
    own = own_store(store, tmp_path / "store", version)
    folder = trial_maker(own, tmp_path)("trial")
    DAMAGES[name](own)
    assert train(folder).returncode == 5
    failure = json.loads((folder / "failure.rank0.json").read_text())
    assert (failure["state"], failure["exit_code"]) == ("failed", 5)
    assert str(own) in failure["reason"]
    assert name in failure["reason"]
    assert failure["reason"].endswith("epair it: march-search data prepare STUDY --repair.")
    assert "\n" not in failure["reason"]
    assert not (folder / "metrics.jsonl").exists()


def test_text_that_was_damaged_since_the_checkpoint_is_refused(store: Path, tmp_path: Path) -> None:
    own = own_store(store, tmp_path / "store")
    folder = trial_maker(own, tmp_path)("trial")
    assert train(folder, "--until", str(12 * 256)).returncode == 0
    before = (folder / "metrics.jsonl").read_bytes()
    flip_bit(own / "train-00000.bin")
    ended = run_trial(folder)
    assert ended.returncode == 5
    line = (
        f"{own}: train-00000.bin has changed since it was written; repair it: march-search data prepare STUDY --repair."
    )
    assert json.loads((folder / "failure.json").read_text())["reason"] == line
    assert "Traceback" not in ended.stderr
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_trial_on_a_store_of_an_earlier_version_has_the_same_loss(
    store: Path, tmp_path: Path, undisturbed: Path
) -> None:
    folder = trial_maker(own_store(store, tmp_path / "store", 2), tmp_path)("trial")
    assert train(folder).returncode == 0
    assert lines(folder, "evaluation") == lines(undisturbed, "evaluation")


def test_deepspeed_keys_of_the_user_are_merged(make_trial: MakeTrial) -> None:
    own = {
        "train_batch_size": "auto",
        "gradient_clipping": 1.0,
        "communication_data_type": "fp32",
        "zero_optimization": {"stage": "auto", "reduce_bucket_size": 1_000_000, "allgather_partitions": False},
    }
    folder = make_trial("own", tokens=512, zero_stage=2, deepspeed=own)
    ended = train(folder)
    assert ended.returncode == 0, ended.stderr
    config = json.loads((folder / "ds_config.json").read_text())
    assert config["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1_000_000, "allgather_partitions": False}
    assert (config["train_batch_size"], config["communication_data_type"]) == (8, "fp32")


@pytest.mark.parametrize(
    ("zero_stage", "offloaded"), [(2, ("offload_optimizer",)), (3, ("offload_optimizer", "offload_param"))]
)
def test_offloading_needs_no_compiler_and_trains_the_same(
    make_trial: MakeTrial, undisturbed: Path, zero_stage: int, offloaded: tuple[str, ...]
) -> None:
    own = {"zero_optimization": {name: {"device": "cpu"} for name in offloaded}}
    folder = make_trial("offloaded", tokens=4 * 256, zero_stage=zero_stage, deepspeed=own, evaluations=1, checkpoints=0)
    ended = train(folder)
    assert ended.returncode == 0, ended.stderr
    for ours, plain in zip(lines(folder, "train"), lines(undisturbed, "train"), strict=False):
        assert ours["loss"] == pytest.approx(plain["loss"], abs=1e-4)


def test_schedules_rise_and_fall_as_configured() -> None:
    recipe = {"tokens": 100 * 256, "global_batch_tokens": 256, "warmup_tokens": 10 * 256}
    linear = schedule(TrainingConfig(**recipe, schedule="linear"))
    assert [linear(0), linear(9), linear(10), linear(55), linear(100)] == [0.1, 1.0, 1.0, 0.5, 0.0]
    cosine = schedule(TrainingConfig(**recipe, schedule="cosine", final_learning_rate=0.1))
    assert cosine(55) == pytest.approx(0.55)
    assert cosine(100) == pytest.approx(0.1)
    assert schedule(TINY_TRAINING)(11) == 1.0
    stable = {"tokens": 10 * 256, "global_batch_tokens": 256, "warmup_tokens": 2 * 256}
    stable |= {"schedule": "wsd", "decay_fraction": 0.4}
    wsd = schedule(TrainingConfig(**stable, decay_shape="linear", final_learning_rate=0.1))
    assert [round(wsd(step), 3) for step in range(11)] == [0.5, 1, 1, 1, 1, 1, 1, 0.775, 0.55, 0.325, 0.1]
    root = schedule(TrainingConfig(**stable))
    assert [round(root(step), 3) for step in range(5, 11)] == [1, 1, 0.5, 0.293, 0.134, 0]


def test_a_stable_trial_decays_at_its_end_and_the_z_loss_changes_gradients_only(make_trial: MakeTrial) -> None:
    few = {"tokens": 8 * 256, "evaluations": 1, "checkpoints": 0, "schedule": "wsd", "decay_fraction": 0.5}
    plain, pulled = make_trial("plain", **few), make_trial("pulled", **few, z_loss=0.01)
    for folder in (plain, pulled):
        ended = train(folder)
        assert ended.returncode == 0, ended.stderr
    rates = [line["learning_rate"] for line in lines(plain, "train")]
    assert rates == pytest.approx([1e-2] * 4 + [5e-3, 1e-2 * (1 - 0.5**0.5), 1e-2 * (1 - 0.75**0.5), 0])
    first, *others = zip(lines(plain, "train"), lines(pulled, "train"), strict=True)
    assert first[0]["loss"] == first[1]["loss"]
    assert first[0]["gradient_norm"] != first[1]["gradient_norm"]
    assert any(one["loss"] != other["loss"] for one, other in others)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"z_loss": 2.0}, r"z_loss must be in \[0, 1\], not 2.0; PaLM uses 1e-4"),
        ({"decay_fraction": 0.0}, r"decay_fraction must be in \(0, 1\], not 0.0"),
        (
            {"schedule": "wsd", "warmup_tokens": 40 * 256},
            r"warmup_tokens \(10,240\) and the decay of wsd \(2,560 tokens, decay_fraction 0.2\) exceed tokens",
        ),
    ],
)
def test_recipes_that_cannot_be_are_refused(changed: dict, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        replace(TINY_TRAINING, **changed)


def test_weight_decay_excludes_norms_keys_and_position_tables() -> None:
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


def test_adamw_equals_torchs_to_the_bit_with_hooks_and_state() -> None:
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


def test_no_decision_of_a_trial_depends_on_the_wall_clock() -> None:
    package = Path(outcome.__file__).parent.parent
    files = [package / "trial/result.py", *(package / "files").glob("*.py"), *(package / "training").glob("*.py")]
    found = [f.name for f in files if "time.time(" in f.read_text() or "datetime.now" in f.read_text()]
    assert found == ["metrics_file.py"]  # TensorBoard events show the time


def test_supervisors_and_workers_do_not_load_torch() -> None:
    code = "import sys, march_search.training.__main__, march_search.study.runner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
