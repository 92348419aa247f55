"""`march-search study new`, and the settings that a study leaves to the program."""

import os
import random
import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.command_line import Command, one_line_error, run_command

from march_search.commands.studies import named_study
from march_search.config import StudyConfig, TrainingConfig
from march_search.config.loader import build, read_file
from march_search.cost.devices import parse_device
from march_search.errors import ConfigError
from march_search.planning import beginning, candidates, defaults, measured_cpu
from march_search.planning.price import priced_plan

DEMO = {
    "description": "shipped studies have one",
    "question": "the demo asks about one layer",
    "answer": "the demo says what would answer it",
    "space": "the demo's shapes are those of a named space, so that the printed ones stay the same",
    "budget": "as `space`, which has the budget and its tolerance",
    "tolerance": "as `space`",
    "search.architectures": "the demo's question has a baseline",
    "search.trials": "fixed, so that the printed ranking stays the same; a new study has what fits its minutes",
    "training.tokens": "as `search.trials`",
}
"""Settings in which the demo differs from a new study with its budget, text and machine, and why."""

PAGE = Path(__file__).parent.parent / "docs" / "first-study.md"


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of text files, beside which the test runs."""
    monkeypatch.chdir(tmp_path)
    rng, folder = random.Random(0), tmp_path / "texts"
    folder.mkdir()
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(300)]
    for number in range(400):
        (folder / f"{number}.txt").write_text(" ".join(rng.choices(words, k=300)))
    return folder


def seconds(config: StudyConfig, plan: dict) -> float:
    """Return the most time on a machine that trains 50,000 tokens per second."""
    return (plan["tokens"] + plan["confirm"]["tokens"]) / 50_000


def wish(**changed: object) -> beginning.Wish:
    """Return a wish for a small study."""
    settings = {"budget": "0.5M", "corpus": "texts", "seconds": 600.0, "parallel": 2, "is_cpu": True}
    return beginning.Wish(**settings | {"precision": "fp32"} | changed)


@pytest.mark.parametrize("minutes", [3, 10, 60, 600])
def test_the_plan_of_a_new_study_fits_its_time_and_uses_most_of_it(minutes: int) -> None:
    asked = wish(seconds=60.0 * minutes)
    config = beginning.fitted(beginning.draft(asked, None), asked, None, None, seconds)
    most = seconds(config, priced_plan(config, candidates.choose(config, Path())))
    assert 0.8 * 60 * minutes <= most / beginning.SPARED <= 60 * minutes
    assert config.training.steps >= beginning.FEWEST_STEPS
    assert len(config.pruner.rung_tokens(config.training)) == 2


def test_a_study_that_is_refused_at_every_size_has_the_reason() -> None:
    config = beginning.draft(wish(), None)
    config = replace(config, search=replace(config.search, warm_start=("missing",), warm_start_trials=1))
    with pytest.raises(ConfigError, match='warm_start has "missing", which is not a study folder'):
        beginning.fitted(config, wish(), None, None, seconds)


def test_more_time_compares_more_shapes_and_then_trains_them_longer() -> None:
    sized = []
    for minutes in (2, 20, 200):
        asked = wish(seconds=60.0 * minutes)
        sized.append(beginning.fitted(beginning.draft(asked, None), asked, None, None, seconds))
    assert [config.search.trials for config in sized] == sorted(config.search.trials for config in sized)
    assert sized[0].search.trials < sized[-1].search.trials == max(beginning.SHAPES)
    assert sized[-1].training.tokens > sized[1].training.tokens
    assert sized[-1].training.global_batch_tokens > sized[0].training.global_batch_tokens


def settings(config: StudyConfig) -> dict[str, object]:
    """Return the settings of a study by name, those of tables as `table.key`."""
    flat: dict[str, object] = {}
    for name, value in asdict(config).items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def test_the_demo_is_a_study_that_study_new_writes(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SimpleNamespace(
        device=parse_device("cpu"), tokens_per_second=30_000.0, seconds=thirty_thousand_per_second
    )
    monkeypatch.setattr(measured_cpu, "measured_cpu", lambda *_: machine)
    monkeypatch.setattr(defaults, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.chdir(tmp_path)
    ended = command("study", "new", "demo.toml", "--budget", "456k", "--minutes", "8")
    assert ended.returncode == 0, ended.stderr
    new = settings(build(StudyConfig, read_file(Path("demo.toml")), "demo.toml"))
    demo = settings(named_study("cpu-demo", Path("runs")).load()[0])
    assert {key for key in demo if demo[key] != new[key]} == set(DEMO)
    assert 0.9 < new["training.tokens"] / demo["training.tokens"] < 1.1


def thirty_thousand_per_second(config: StudyConfig, plan: dict) -> tuple[float, float, float]:
    """Return the time of a study on two cores that train 30,000 tokens per second together (studies/LOG.md)."""
    time = (plan["tokens"] + plan["confirm"]["tokens"]) / 30_000
    return time, time, 1.6 * time


def test_evaluations_are_large_only_where_text_and_tokens_are_enough() -> None:
    def sized(minutes: int, num_bytes: int) -> StudyConfig:
        asked = wish(seconds=60.0 * minutes)
        return beginning.fitted(beginning.draft(asked, num_bytes), asked, num_bytes, None, seconds)

    assert [sized(10, size).data.validation_fraction for size in (2_000_000, 6_000_000)] == [0.05, 0.02]
    assert [sized(10, size).data.validation_sequences for size in (2_000_000, 6_000_000)] == [512, 1024]
    short = sized(1, 6_000_000)
    assert (short.data.validation_sequences, short.training.tokens < 437_000) == (512, True)


def test_small_text_limits_tokens_and_vocabulary() -> None:
    asked = wish(seconds=36_000.0)
    config = beginning.fitted(beginning.draft(asked, 800_000), asked, 800_000, None, seconds)
    assert config.data.vocab_size == 384
    assert config.training.tokens <= 400_000 * beginning.MOST_REPEATS


def test_a_new_study_for_gpus_explains_every_key_and_loads(texts: Path, command: Command) -> None:
    ended = command("study", "new", "my.toml", "--budget", "60M", "--device", "8xH100", "--hours", "400",
                    "--corpus", "wikipedia")  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    lines = Path("my.toml").read_text().splitlines()
    assert all(" # " in line for line in lines if " = " in line and not line.startswith("question"))
    config = build(StudyConfig, read_file(Path("my.toml")), "my.toml")
    assert (config.devices.parallel_trials, config.training.precision) == (8, "bf16")
    assert "small models learn" not in Path("my.toml").read_text()  # about short examples, which are for CPUs
    assert "march-search study run my.toml --dry-run --device H100" in ended.stdout
    plan = command("study", "run", "my.toml", "--dry-run", "--device", "H100")
    assert plan.returncode == 0, plan.stderr


@pytest.mark.parametrize(
    ("device", "name", "count"),
    [("a100-sxm4-80gb", "A100", 1), ("8×H100", "H100", 8), ("2x312TFLOPs,80GB", "312TFLOPs,80GB", 2)],
)
def test_every_form_of_a_device_is_taken(device: str, name: str, count: int, texts: Path, command: Command) -> None:
    (texts / "long.txt").write_text("some words\n" * 1_000_000)
    texts.rename("my 😀 texts")
    ended = command("study", "new", "my.toml", "--budget", "1M", "--device", device, "--hours", "1",
                    "--corpus", "my 😀 texts")  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    config = build(StudyConfig, read_file(Path("my.toml")), "my.toml")
    assert config.data.corpus == "my 😀 texts"
    assert config.devices.parallel_trials == count
    assert f"--dry-run --device {name}\n" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("there.toml", "--minutes", "5"), "there.toml exists: use another name, or delete it."),
        (("my.txt", "--minutes", "5"), "my.txt: a study's file ends in .toml: use my.txt.toml."),
        (("no/my.toml", "--minutes", "5"), "the folder no does not exist: create it."),
        (("my.toml", "--minutes", "5", "--corpus", "nowhere/"), 'corpus "nowhere/": no such file or folder'),
        (("my.toml", "--minutes", "5", "--device", "8xZ9"), 'unknown device'),
        (("my.toml", "--minutes", "0.01", "--device", "A5000", "--corpus", "wikipedia"), "does not fit into 1s: allow"),
        (("my.toml", "--minutes", "99", "--device", "A5000", "--corpus", "one.txt"), "one.txt has 5 bytes of text"),
        (("my.toml", "--minutes", "9999999", "--device", "A5000", "--corpus", "wikipedia", "--budget", "3B"),
         "per device, which has 24GB: use a smaller --budget than 3B, or a larger --device"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_one_line(
    arguments: tuple[str, ...], fault: str, texts: Path, command: Command
) -> None:
    Path("there.toml").write_text("")
    Path("one.txt").write_text("a b c")
    ended = command("study", "new", "--budget", "0.5M", *arguments)
    assert ended.returncode != 0
    assert fault in one_line_error(ended)
    assert not Path("my.toml").exists()


def study(text: str) -> StudyConfig:
    """Return the settings of a study that is written to s.toml, with what it leaves out."""
    Path("s.toml").write_text(text)
    return named_study("s.toml", Path("runs")).load()[0]


def test_a_cpu_study_without_a_batch_takes_thousands_of_tokens_and_others_a_million(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = 'space = "cpu-1m"\n[training]\ntokens = 1_000_000\n[data]\nsequence_length = 32\n[devices]\nkind = "cpu"\n'
    config = study(text)
    assert config.training.global_batch_tokens == 800
    assert config.data.vocab_size == 512
    assert study(text.replace("1_000_000", "1_000_000_000")).training.global_batch_tokens == 8000
    gpu = study('space = "t5-220m"\n[devices]\nkind = "cuda"\n')
    assert gpu.training.global_batch_tokens == TrainingConfig.global_batch_tokens
    assert gpu.training.precision == "bf16"


@pytest.mark.parametrize("flags", ["flags\t\t: fpu avx512_bf16 sse", "Features\t: fp asimd bf16", "flags : sse avx2"])
def test_precision_follows_the_cpu(flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(defaults, "cpu_has_bf16", lambda: bool(defaults._BF16_FLAG.search(f"model: x\n{flags}\n")))
    text = 'space = "cpu-1m"\n[training]\ntokens = 1_000_000\n[devices]\nkind = "cpu"\n[data]\nsequence_length = 32\n'
    assert study(text).training.precision == ("bf16" if "bf16" in flags else "fp32")
    assert study(text.replace("[devices]", 'precision = "fp32"\n[devices]')).training.precision == "fp32"


def test_fp16_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r'cannot be "fp16": fp16 gradients underflow .* use "bf16"'):
        study('space = "cpu-1m"\n[training]\nprecision = "fp16"\n')


def test_a_started_study_keeps_what_was_chosen(tmp_path: Path) -> None:
    table = {"space": "cpu-1m", "training": {"tokens": 1000, "precision": "auto"}, "data": {}}
    recorded = {"training": {"precision": "bf16", "global_batch_tokens": 2**20}, "data": {"vocab_size": 32128}}
    assert defaults.as_started(table, recorded) == {
        "space": "cpu-1m",
        "training": {"tokens": 1000, "precision": "bf16", "global_batch_tokens": 2**20},
        "data": {"vocab_size": 32128},
    }
    given = {"training": {"precision": "fp32", "global_batch_tokens": 8}, "data": {"vocab_size": 400}}
    assert defaults.as_started(given, recorded) == given


def test_the_study_sets_the_vocabulary_of_an_open_space_and_a_disagreement_tells_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    space = Path("mine.toml")
    space.write_text('[budget]\nparameters = "1M"\n[axes]\nd_model = [64, 128]\nd_ff = { min = 64, max = 4096 }\n')
    found = candidates.load_space(study('space = "mine.toml"\n[data]\nvocab_size = 640\n'), tmp_path)
    assert found.axes["vocab_size"] == (640,)
    with pytest.raises(ConfigError, match=r"\[data\] vocab_size is 640, but \[axes\] vocab_size of the space cpu-1m"):
        candidates.load_space(study('space = "cpu-1m"\n[data]\nvocab_size = 640\n'), tmp_path)


@pytest.mark.torture
def test_the_commands_of_the_first_study_page_rank_a_folder_of_text(texts: Path) -> None:
    blocks = re.findall(r"```\n\$ (march-search [^\n]+)", PAGE.read_text())
    assert 3 <= len(blocks) <= 6
    for line in blocks:
        words = shlex.split(line)[1:]
        if words[:2] == ["study", "new"]:  # a smaller study, for ten minutes on two cores would be too much here
            words = [*words, "--budget", "60K", "--minutes", "20"]
        ended = run_command(*words, **{"OMP_NUM_THREADS": "1"} | dict(os.environ))
        assert ended.returncode == 0, ended.stderr
        if words[:2] == ["study", "new"]:
            file = Path(words[2])
            sizes = {"trials": "4", "tokens": "16_384", "warmup_tokens": "0", "validation_sequences": "32",
                     "evaluations": "1", "max_seeds": "1"}  # fmt: skip
            for key, value in sizes.items():
                file.write_text(re.sub(rf"(?m)^{key} = \S+", f"{key} = {value}", file.read_text()))
    ranked = run_command("rank", "my", "--format", "csv")
    assert len(ranked.stdout.splitlines()) == 1 + 4, ranked.stderr  # the heading and the shapes
