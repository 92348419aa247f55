"""`march-search doctor --study` prices a study with a few real steps of its own shapes."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from march_search import Architecture
from march_search.commands.studies import named_study
from march_search.config.data_config import SENTINELS
from march_search.config.deepspeed_check import check_deepspeed
from march_search.config.shipped import shipped_folder
from march_search.cost.devices import parse_device
from march_search.data.store import Store
from march_search.doctor import rehearsal
from march_search.doctor.bench import Bench
from march_search.doctor.probe import _tokens
from march_search.doctor.rehearsal import spread, time_per_token
from march_search.errors import UsageError
from march_search.planning import candidates
from march_search.planning.candidates import Candidates
from march_search.trial.settings import read_settings

EXAMPLES = Path(__file__).parent.parent / "examples"

STUDY = """
space = "cpu-1m"

[search]
strategy = "list"
architectures = ["L2-D64-H4x16-F128-rope-V4096"]
seeds = [0, 1]

[data]
corpus = "missing/*.txt"
vocab_size = 4096
sequence_length = 64

[training]
tokens = 1_048_576
global_batch_tokens = 4096
learning_rate = 2e-3
precision = "fp32"
warmup_tokens = 65_536

[devices]
kind = "cpu"
"""


def doctor(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command on the study in `folder`, with its files and runs there."""
    command = [sys.executable, "-m", "march_search", "doctor", "--study", str(folder / "small.toml"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=folder)


def test_a_study_is_priced_by_training_its_own_shapes(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(STUDY)
    ended = doctor(tmp_path, "--format", "json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    (row,) = found["shapes"]
    assert row["name"] == "L2-D64-H4x16-F128-rope-V4096"
    assert row["tokens_per_second"] > 100
    assert found["factor"] == pytest.approx(row["predicted"] / row["tokens_per_second"])
    assert found["trial_hours"] == pytest.approx(1_048_576 / row["tokens_per_second"] / 3600)
    assert found["device_hours"] == pytest.approx(2 * found["trial_hours"])
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


@pytest.mark.parametrize("size", [384, 4096])
def test_made_up_text_fits_the_vocabulary(tmp_path: Path, size: int) -> None:
    store = Store.open(Path(_tokens(tmp_path, str(size), "64", "0.15", "3.0")["store"]))
    assert store.index["data"]["vocab_size"] == size
    assert max(store.special.sentinel(number) for number in range(SENTINELS)) < size
    assert store.special.eos < size


def test_a_small_noise_density_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(STUDY.replace("4096\nsequence", "4096\nnoise_density = 1e-5\nsequence"))
    config, _ = named_study(str(tmp_path / "small.toml"), tmp_path).load()
    assert Store.open(rehearsal.store(Bench(tmp_path, 60.0), config.data)).index["data"]["vocab_size"] == 4096


def test_a_vocabulary_that_is_too_small_for_made_up_text_is_refused(tmp_path: Path) -> None:
    study = STUDY.replace("vocab_size = 4096", 'tokenizer = "tokenizer.json"\nvocab_size = 300')
    (tmp_path / "small.toml").write_text(study)
    config, _ = named_study(str(tmp_path / "small.toml"), tmp_path).load()
    with pytest.raises(
        UsageError, match=r"^\[data\] vocab_size is 300, and the made-up text of a rehearsal needs 384:"
    ):
        rehearsal.rehearse(Bench(tmp_path, 1.0), config, Candidates(None, ()))


def test_a_ladder_is_refused(tmp_path: Path) -> None:
    ladder = shipped_folder("studies") / "cpu" / "ladder.toml"
    (tmp_path / "small.toml").write_text(ladder.read_text())
    ended = doctor(tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "small is a ladder, whose studies differ in size: march-search study run" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_trial_of_a_shape_with_ones_own_block_has_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, base = named_study(str(EXAMPLES / "moe-study.toml"), tmp_path).load()
    shape = candidates.choose(config, base).architectures[1]
    trials = []

    class Started(Exception):
        """The trial's process would start now."""

    def started(_bench: Bench, _command: object, folder: Path, *_: object) -> None:
        trials.append(read_settings(folder))
        raise Started

    monkeypatch.setattr(Bench, "run", started)
    monkeypatch.setattr(rehearsal, "store", lambda *_: tmp_path)
    keys = {"train_batch_size": config.batch.sequences, "gradient_accumulation_steps": "auto"}
    keys |= {"scheduler": {"params": {"total_num_steps": config.training.steps}}, "steps_per_print": 7}
    config = replace(config, training=replace(config.training, deepspeed=keys))
    check_deepspeed(config.training, config.batch)
    with pytest.raises(Started):
        rehearsal._trained(Bench(tmp_path, 1.0), config, shape, parse_device("A5000"), 1000.0)
    check_deepspeed(trials[0].training, trials[0].batch)
    assert trials[0].training.deepspeed == {"steps_per_print": 7}
    assert trials[0].architecture == shape.name
    assert (tmp_path / "any" / trials[0].block.module).resolve() == (EXAMPLES / "moe.py").resolve()


def test_options_of_the_checks_have_no_effect_on_a_study(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(STUDY)
    ended = doctor(tmp_path, "--only", "python")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "march-search: --only has no effect with --study, which runs no checks.\n"


def test_a_study_that_needs_a_gpu_is_refused_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "small.toml").write_text(STUDY.replace('kind = "cpu"', 'kind = "cuda"\nranks = 2'))
    ended = doctor(tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith('march-search: [devices] kind is "cuda", but torch finds no GPU here; see ')
    assert ended.stderr.count("\n") == 1


def test_the_step_of_the_optimizer_counts_once_per_batch_of_the_study() -> None:
    line = {"tokens_per_second": 1000.0, "step_seconds": 0.5}
    assert time_per_token(line, tokens=1000, whole=1000) == pytest.approx(1 / 1000)
    assert time_per_token(line, tokens=1000, whole=100_000) == pytest.approx((0.5 + 0.005) / 1000)


def test_the_fastest_the_median_and_the_slowest_shape_are_trained() -> None:
    shapes = [Architecture(num_layers=layers) for layers in range(1, 8)]
    assert [a.num_layers for a in spread(shapes)] == [1, 4, 7]
    assert [len(spread(shapes[:number])) for number in (1, 2, 3)] == [1, 2, 3]
    assert math.prod(a.num_layers for a in spread(shapes[:2])) == 2
