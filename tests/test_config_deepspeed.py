"""DeepSpeed files as people write them: read, checked before a trial starts, and merged with the study's settings."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import Command, run_command
from helpers.trials import DATA, TINY_TRAINING, MakeTrial, change_config, lines, train

from march_search.config import BatchPlan, DataConfig, TrainingConfig
from march_search.config.deepspeed_check import KNOWN, PARSED, UNPARSED, check_deepspeed
from march_search.config.deepspeed_config import ds_config, read_deepspeed_file
from march_search.config.shipped import shipped_folder
from march_search.errors import ConfigError

FILES = Path(__file__).parent / "reference" / "deepspeed"

STUDIES: dict[str, dict[str, Any]] = {
    "zero2-auto.json": {"zero_stage": 2},
    "zero3-aliases.json": {"zero_stage": 3, "micro_batch_sequences": 4},
    "zero2-cpu-offload.json": {"zero_stage": 2, "precision": "bf16"},
    "zero3-nvme.json": {"zero_stage": 3, "precision": "bf16"},
    "bf16-recipe.json": {"precision": "bf16", "schedule": "linear", "warmup_tokens": 4 * 256},
    "auto-everywhere.json": {},
    "commented.hjson": {"zero_stage": 2, "precision": "bf16"},
    "byte-order-mark.json": {"precision": "bf16"},
}
"""Settings of a study that each file agrees with."""


def check(own: dict[str, Any], rates: tuple[float, ...] = (), **training: Any) -> dict[str, Any]:
    """Check DeepSpeed keys in a study of the tiny model, and return the configuration of its trials."""
    settings = replace(TINY_TRAINING, deepspeed=own, **training)
    plan = BatchPlan.of(settings, DATA, ranks=1)
    check_deepspeed(settings, plan, rates)
    return ds_config(settings, plan)


def faults(own: dict[str, Any], rates: tuple[float, ...] = (), **training: Any) -> list[str]:
    """Return the faults that `check` finds, without the name of the table."""
    with pytest.raises(ConfigError) as caught:
        check(own, rates, **training)
    assert all(fault.startswith("[training.deepspeed]: ") and "\n" not in fault for fault in caught.value.faults)
    return [fault.removeprefix("[training.deepspeed]: ") for fault in caught.value.faults]


def make_study(folder: Path, table: object, settings: str = "") -> str:
    """Write the study of the CPU demo with a DeepSpeed file, and return its path."""
    study = (shipped_folder("studies") / "cpu-demo.toml").read_text()
    (folder / "mine.toml").write_text(study.replace("[training]", f'[training]\ndeepspeed = "ds.json"\n{settings}'))
    (folder / "ds.json").write_text(table if isinstance(table, str) else json.dumps(table))
    return str(folder / "mine.toml")


def test_deepspeeds_configuration_is_complete() -> None:
    training = TrainingConfig(
        tokens=2**21, global_batch_tokens=2**20, micro_batch_sequences=32, zero_stage=2, precision="bf16"
    )
    config = ds_config(training, BatchPlan.of(training, DataConfig(), ranks=8))
    assert config["train_batch_size"] == 2048 == 32 * 8 * config["gradient_accumulation_steps"]
    assert config["zero_optimization"]["stage"] == 2
    assert config["bf16"] == {"enabled": True}


def test_every_reference_file_is_tried() -> None:
    assert {path.name for path in FILES.iterdir()} == STUDIES.keys()


@pytest.mark.parametrize("name", STUDIES)
def test_files_as_people_write_them_are_accepted_by_us_and_by_deepspeed(name: str) -> None:
    from deepspeed import DeepSpeedConfig

    own = read_deepspeed_file(FILES / name)
    config = check(own, **STUDIES[name])
    parsed = DeepSpeedConfig(json.loads(json.dumps(config)))
    assert "auto" not in json.dumps(config)
    assert not {"optimizer", "scheduler"} & config.keys()
    assert parsed.bfloat16_config.enabled == (STUDIES[name].get("precision") == "bf16")
    assert parsed.zero_optimization_stage == max(STUDIES[name].get("zero_stage", 0), parsed.bfloat16_config.enabled)


def test_aliases_and_own_values_reach_deepspeed() -> None:
    from deepspeed import DeepSpeedConfig

    zero = DeepSpeedConfig(
        check(read_deepspeed_file(FILES / "zero3-nvme.json"), **STUDIES["zero3-nvme.json"])
    ).zero_config
    assert zero.max_live_parameters == 1e9
    assert (zero.offload_param.device, str(zero.offload_optimizer.nvme_path)) == ("nvme", "/local_nvme")
    zero = check(read_deepspeed_file(FILES / "commented.hjson"), **STUDIES["commented.hjson"])["zero_optimization"]
    assert zero == {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 50_000_000}


def test_a_file_that_agrees_with_the_study_trains_to_the_same_bits(make_trial: MakeTrial) -> None:
    own = read_deepspeed_file(FILES / "zero2-auto.json")
    folders = [
        make_trial("plain", tokens=512, zero_stage=2),
        make_trial("own", tokens=512, zero_stage=2, deepspeed=own),
    ]
    for folder in folders:
        ended = train(folder)
        assert ended.returncode == 0, ended.stderr
    assert lines(folders[0], "train") == lines(folders[1], "train")


def test_a_trial_whose_file_was_changed_to_contradict_itself_is_refused(make_trial: MakeTrial) -> None:
    folder = change_config(make_trial("odd", tokens=512), "training", deepspeed={"train_batch_size": 9, "fp_16": {}})
    ended = train(folder)
    assert ended.returncode == 2
    reason = json.loads((folder / "failure.rank0.json").read_text())["reason"]
    assert 'has no key "fp_16"' in reason
    assert '"train_batch_size" is 9, but [training] global_batch_tokens (256) makes it 8' in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"zero_optimisation": {"stage": 1}}, 'has no key "zero_optimisation". Did you mean "zero_optimization"?'),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu", "pin_memry": True}}},
            'zero_optimization.offload_optimizer has no key "pin_memry". Did you mean "pin_memory"?',
        ),
        (
            {"activation_checkpointing": {"partition_activation": True}},
            'activation_checkpointing has no key "partition_activation". Did you mean "partition_activations"?',
        ),
        ({"aio": {"blok_size": 1}}, 'aio has no key "blok_size". Did you mean "block_size"?'),
        ({"aio": {"block_size": "1M"}}, '"aio.block_size" must be a number, not "1M".'),
        (
            {"activation_checkpointing": {"profile": "no"}},
            '"activation_checkpointing.profile" must be true or false, not "no".',
        ),
        ({"comms_logger": {"enabld": True}}, 'comms_logger has no key "enabld". Did you mean "enabled"?'),
        ({"tensorboard": {"job_nam": "x"}}, 'tensorboard has no key "job_nam". Did you mean "job_name"?'),
        ({"timers": {"througput": {}}}, 'timers has no key "througput". Did you mean "throughput"?'),
        ({"timers": {"throughput": {"enabled": "q"}}}, '"timers.throughput.enabled" is "q": Input should be a valid'),
        ({"checkpoint": {"tag_validaton": "Fail"}}, 'checkpoint has no key "tag_validaton".'),
        ({"optimizer": {"params": {"epsilon": 1e-8}}}, 'optimizer.params has no key "epsilon". Did you mean "eps"?'),
        ({"zero_optimization": {"sub_group_size": "1e9"}}, '"zero_optimization.sub_group_size" is "1e9": Input should'),
        ({"zero_optimization": {"offload_param": {"device": "gpu"}}}, "should be 'none', 'cpu' or 'nvme'."),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, "set nvme_path beside it."),
        ({"zero_optimization": {"offload_param": "cpu"}}, 'offload_param" must be a table, not "cpu".'),
        (
            {"zero_optimization": {"max_live_parameters": 1, "stage3_max_live_parameters": 2}},
            '"zero_optimization.max_live_parameters" is given twice, under two names: keep one.',
        ),
        (
            {"zero_optimization": {"cpu_offload": True, "offload_optimizer": {"device": "cpu"}}},
            "DeepSpeed rejects it: Cannot provide deprecated parameter 'cpu_offload'",
        ),
        ({"zero_optimization": True}, '"zero_optimization" must be a table, not true.'),
        ({"bf16": None}, '"bf16" must be a table, not null.'),
        ({"communication_data_type": "fp33"}, '"communication_data_type": DeepSpeed rejects it: Invalid'),
        ({"elasticity": {"enabled": False}}, '"elasticity": DeepSpeed rejects it: Elastic training has been removed'),
        ({"train_batch_size": 64}, '"train_batch_size" is 64, but [training] global_batch_tokens (256) makes it 8: '),
        ({"bf16": {"enabled": True}}, '"bf16.enabled" is true, but [training] precision is "fp32": remove it or use'),
        ({"bfloat16": {"enabled": True}}, '"bf16.enabled" is true, but [training] precision is "fp32": remove it'),
        (
            {"bfloat16": {"enabled": False}, "bf16": {"enabled": "auto"}},
            '"bfloat16" is the old name of "bf16", and the two differ: keep one.',
        ),
        ({"zero_optimization": {"stage": True}}, '"zero_optimization.stage" is true, but [training] zero_stage is 0'),
        ({"train_micro_batch_size_per_gpu": 4}, "but [training] micro_batch_sequences is not set, so each trial"),
        ({"optimizer": {"type": "Lamb", "params": {"x": "auto"}}}, '"optimizer.type" is "Lamb", but march-search'),
        ({"optimizer": {"params": {"betas": [0.9, 0.999]}}}, "is [0.9, 0.999], but [training] betas is [0.9, 0.95]"),
        ({"optimizer": {"params": {"adam_w_mode": False}}}, '"optimizer.params.adam_w_mode" is false, but march'),
        ({"scheduler": {"type": "WarmupCosineLR"}}, '"scheduler.type" is "WarmupCosineLR", but [training] schedule is'),
        ({"scheduler": {"params": {"warmup_type": "log"}}}, "the warm-up of march-search is linear and starts at 0"),
        ({"scheduler": {"params": {"warmup_num_steps": 10}}}, "is 10, but [training] warmup_tokens (0) makes it 0"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, 'is "bf16", but march-search sets it to "fp32": remove it'),
        ({"zero_force_ds_cpu_optimizer": True}, "is true, but march-search trains with torch's AdamW: remove it"),
    ],
)  # fmt: skip
def test_unknown_rejected_and_contradictory_keys_are_refused(own: dict, message: str) -> None:
    assert any(message in fault for fault in faults(own)), faults(own)


def test_values_are_compared_with_what_the_study_wrote() -> None:
    def rate(value: float) -> dict[str, Any]:
        return {"optimizer": {"type": "AdamW", "params": {"lr": value}}}

    assert check(rate(0.01))
    assert check(rate(0.02), rates=(0.02,))
    assert faults(rate(0.01), rates=(0.01, 0.02)) == [
        '"optimizer.params.lr" is 0.01, but [search] learning_rates is [0.01, 0.02]: remove it or use "auto".'
    ]
    assert check({"zero_optimization": {"stage": 0}}, precision="bf16")["zero_optimization"]["stage"] == 1
    assert "zero_stage is 0, which bf16 raises to 1" in faults({"zero_optimization": {"stage": 3}}, precision="bf16")[0]
    assert "(4) makes it 2" in faults({"gradient_accumulation_steps": 1}, micro_batch_sequences=4)[0]
    decay = {"scheduler": {"type": "WarmupDecayLR"}}
    assert 'schedule is "wsd"' in faults(decay, schedule="wsd")[0]
    assert "final_learning_rate is 0.1" in faults(decay, schedule="linear", final_learning_rate=0.1)[0]
    total = {"gradient_allreduce_op": "sum", "zero_optimization": {}}
    assert "'sum' is not supported with ZeRO stage 3" in faults(total, zero_stage=3)[0]


def test_a_halved_micro_batch_does_not_contradict_the_file() -> None:
    own = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2}
    assert check(own, micro_batch_sequences=4)["train_micro_batch_size_per_gpu"] == 4
    halved = replace(TINY_TRAINING, deepspeed=own, micro_batch_sequences=2)  # by the trial, after the check
    config = ds_config(halved, BatchPlan.of(halved, DATA, ranks=1))
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (2, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"bf16": {}, "bf16": {}}', 'invalid JSON: "bf16" is given twice.'),
        ('{"zero_optimization": {"stage": 2}', "invalid JSON: "),
        ("[1]", "expected a table of keys at the top level, got a list."),
        ("stage", "expected a table of keys at the top level, got a str."),
        ('{"a":' * 3000, "invalid JSON: nested too deeply."),
        ("{bf16: {enabled: true},,", "invalid JSON: "),
        ("/*", "invalid JSON: the text ends too early."),
        ('{"a": 1e400}', "invalid JSON: a number is too large"),
        ('{"a": ' + "9" * 5000 + "}", "invalid JSON: Exceeds the limit"),
    ],
)
def test_damaged_deepspeed_files_are_one_line(text: str, message: str, tmp_path: Path, command: Command) -> None:
    ended = command("study", "run", make_study(tmp_path, text), "--dry-run")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert f"ds.json: {message}" in ended.stderr


def test_a_study_may_name_an_hjson_file_in_its_folder(tmp_path: Path, command: Command) -> None:
    text = "// ours\n{steps_per_print: 10, zero_optimization: {stage3_max_live_parameters: 1e9,}}"
    ended = command("study", "run", make_study(tmp_path, text), "--dry-run", "--device", "A5000")
    assert ended.returncode == 0, ended.stderr
    assert "candidates" in ended.stdout


def test_all_mistakes_are_found_in_one_dry_run_before_the_space_is_solved(tmp_path: Path, command: Command) -> None:
    own = {
        "fp_16": {},
        "activation_checkpointing": {"partition_activation": True},
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memry": True}},
        "optimizer": {"params": {"lr": 7}},
    }
    (tmp_path / "hosts").write_text("h1:8\n")
    study = make_study(tmp_path, own)
    text = Path(study).read_text()
    assert "[devices]" in text
    text = text.replace("parallel_trials = 2", "parallel_trials = 1")
    hosts = f'[devices]\nlauncher = "deepspeed"\nhostfile = "{tmp_path / "hosts"}"'
    Path(study).write_text(text.replace("[devices]", hosts).replace('space = "', 'space = "no-'))
    ended = command("study", "run", study, "--dry-run")
    assert ended.returncode == 2, ended.stderr
    printed = ended.stderr.splitlines()
    for words in (
        '"fp_16"',
        '"partition_activation"',
        '"pin_memry"',
        "zero_stage is",
        '"optimizer.params.lr" is 7',
        "h1:8",
    ):
        assert sum(words in line for line in printed) == 1, (words, printed)
    assert len(printed) == 7


def test_the_check_prints_nothing_of_deepspeeds(tmp_path: Path) -> None:
    own = {"zero_optimization": {"cpu_offload": False}}
    ended = run_command("study", "run", make_study(tmp_path, own), "--dry-run", "--root", str(tmp_path / "runs"))
    assert ended.returncode == 0, ended.stderr
    assert "WARNING" not in ended.stdout + ended.stderr
    assert logging.root.manager.disable == logging.NOTSET


def test_the_known_keys_are_those_that_deepspeed_reads() -> None:
    """A listed key that DeepSpeed no longer reads would be ignored in silence."""
    import deepspeed

    package = Path(deepspeed.__file__).parent
    source = "\n".join(
        path.read_text() for path in package.rglob("*.py") if "config" in path.name or path.stem == "constants"
    )
    nested = {f"{block}.{key}" for block, keys in UNPARSED.items() for key in keys}
    names = [*KNOWN, *PARSED, *(name.split(".")[1] for name in nested)]
    assert [name for name in names if f'"{name}"' not in source and f"'{name}'" not in source] == []
