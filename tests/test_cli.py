"""The command line: what it prints, how it fails, what it does not import."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from march_search.cli import main
from march_search.config.shipped import shipped_folder


def cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `march-search` in a process of its own."""
    command = [sys.executable, "-m", "march_search", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, timeout=120, check=False
    )


def test_solve_prints_a_ranked_table_with_its_tolerance() -> None:
    ended = cli("solve", "--budget", "220M", "--top", "5")
    assert ended.returncode == 0
    assert "220,000,000 parameters ± 1.5%" in ended.stdout
    for word in ("name", "layers", "d_model", "heads×d_kv", "d_ff", "GLU", "parameters", "difference", "FLOPs/token"):
        assert word in ended.stdout
    assert "\x1b" not in ended.stdout


@pytest.mark.parametrize("columns", ["80", "160"])
def test_a_table_fits_its_terminal(columns: str) -> None:
    ended = cli("solve", "--budget", "740M", COLUMNS=columns)
    assert max(len(line) for line in ended.stdout.splitlines()) <= int(columns)
    names = [line.split()[0] for line in ended.stdout.splitlines() if line.strip().startswith("L") and "-D" in line]
    assert len(names) == 20


def test_solve_in_json_and_csv_holds_the_same_architectures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "--budget", "t5-base", "--format", "json", "--top", "7"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema_version"] == 1
    assert told["budget"] == {"parameters": 222_903_552, "tolerance": 0.015, "count": "total"}
    assert main(["solve", "--budget", "t5-base", "--format", "csv", "--top", "7"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["name"] for row in rows] == [a["name"] for a in told["architectures"]]
    assert [int(row["num_params"]) for row in rows] == [a["num_params"] for a in told["architectures"]]


def test_solve_counts_filters_and_sorts(capsys: pytest.CaptureFixture[str]) -> None:
    main(["solve", "--budget", "220M", "--count"])
    every = int(capsys.readouterr().out)
    main(["solve", "--budget", "220M", "--count", "--where", "num_layers <= 6", "--where", "d_kv == 64"])
    assert 0 < int(capsys.readouterr().out) < every
    main(["solve", "--budget", "220M", "--sort", "num_heads", "--descending", "--top", "3", "--format", "json"])
    heads = [a["num_heads"] for a in json.loads(capsys.readouterr().out)["architectures"]]
    assert heads == sorted(heads, reverse=True)


WRONG = [
    (["solve", "--budget", "many"], 2, 'invalid parameter budget "many"'),
    (["solve", "--budget", "1M"], 3, "No architecture in the space t5 has 1,000,000 parameters ± 1.5%"),
    (["solve", "--budget", "220M", "--space", "t5-220"], 2, 'Did you mean "t5-220m"?'),
    (["solve", "--budget", "220M", "--sort", "flop"], 2, 'Did you mean "flops"?'),
    (["solve", "--budget", "220M", "--where", "heads > 3"], 2, 'unknown field "heads"'),
    (["solve", "--budget", "220M", "--top", "-1"], 2, "must be a whole number of at least 0"),
    (["solve"], 2, "has no budget: set one with --budget"),
    (["solve", "--budget", ""], 2, 'invalid parameter budget ""'),
    (["solve", "--budget", "220M", "--tolerance", ""], 2, 'invalid tolerance ""'),
    (["solve", "--budget", "220M", "--where", "num_heads % 0 == 0"], 3, "No architecture"),
    (["solve", "--budget", "220M", "--where", "d_model / 0 != 5"], 3, "No architecture"),
    (["solve", "--budget", "220M", "--sample", "0"], 2, "must be a whole number of at least 1"),
    (["solve", "--budget", "220M", "--device", "8xB200"], 2, 'unknown device "8xB200"'),
    (["solve", "--budget", "220M", "--tokens", "lots"], 2, 'invalid data budget "lots": use a number such as 220M'),
    (["solve", "--budget", "220M", "--columns", "name,hour"], 2, 'unknown column "hour". Did you mean "hours"?'),
    (["solve", "--budget", "220M", "--pareto", "flop,-depth"], 2, 'by "flop". Did you mean "flops"?'),
    (["solve", "--budget", "220M", "--near", "T5"], 2, "is not an architecture name"),
    (["solve", "--budget", "220M", "--sample", "3", "--pareto"], 2, "not allowed with argument"),
    (["solve", "--explain", "L" + "9" * 5000 + "-D1-H1x1-F1"], 2, "is not an architecture name"),
    (["slove"], 2, "invalid choice: 'slove'"),
    (["rank", "nothing"], 4, "no study 'nothing' in"),
    (["study", "run", "cpu-dmo"], 2, 'unknown study "cpu-dmo". Did you mean "cpu-demo"?'),
    (["study", "run", "missing.toml"], 2, "missing.toml: file not found"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "words"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else None
)
def test_what_a_person_gets_wrong_is_one_line(arguments: list[str], code: int, words: str, tmp_path: Path) -> None:
    extra = ["--root", str(tmp_path)] if arguments[0] in ("rank", "study") else []
    ended = cli(*arguments, *extra)
    assert ended.returncode == code
    assert words in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stdout == ""


STUDY = """space = "cpu-demo"
[data]
vocab_size = 2048
sequence_length = 64
{data}
[training]
tokens = 8192
global_batch_tokens = 4096
{training}
[devices]
kind = "cpu"
"""


@pytest.mark.parametrize(
    ("data", "training", "code", "words"),
    [
        ("vocab_sise = 3", "", 2, 'unknown key "data.vocab_sise". Did you mean "vocab_size"?'),
        ("", 'precision = "fp16"', 2, '"training.precision" cannot be "fp16". Did you mean "bf16"?'),
        ("", "learning_rate = true", 2, '"training.learning_rate" must be a number, not True'),
        (
            "",
            "micro_batch_sequences = 7",
            2,
            "micro_batch_sequences (7) must divide the 64 sequences per rank; the nearest",
        ),
        ('corpus = "wikipedia-summary"', "", 5, 'Did you mean "wikipedia-summaries"?'),
        ("", 'init = "nonsense"', 2, '"training.init" cannot be "nonsense"'),
        (
            "",
            'learning_rate_scaling = "width"\ninit = "normal-0.02"',
            2,
            '"width" needs init "t5", which scales matrices',
        ),
        ("", 'learning_rate_scaling = "width"\nbase_shape = "T5"', 2, "is not an architecture name"),
        ("", 'learning_rate_scaling = "widht"', 2, 'Did you mean "width"?'),
        ("", "weight_decay = nan", 2, "weight_decay must be a finite number, not nan"),
        ("mean_span_length = inf", "", 2, "mean_span_length must be a finite number, not inf"),
        ("", "micro_batch_sequences = 0", 2, "micro_batch_sequences must be at least 1"),
        ("", "warmup_tokens = 999999", 2, "warmup_tokens must not exceed tokens"),
        ("", 'zero_stage = "1"', 2, '"training.zero_stage" must be one of 0, 1, 2, 3'),
        ('corpus = "~nouser/x"', "", 5, "no such user"),
        ("", "[", 2, "s.toml: invalid TOML: "),
    ],
)
def test_a_wrong_study_is_refused_before_anything_starts(
    tmp_path: Path, data: str, training: str, code: int, words: str
) -> None:
    (tmp_path / "s.toml").write_text(STUDY.format(data=data, training=training))
    ended = cli("study", "run", str(tmp_path / "s.toml"), "--root", str(tmp_path / "runs"))
    assert ended.returncode == code
    assert words in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_is_named_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(STUDY.format(data="", training=""))
    (tmp_path / "file").write_text("in the way")
    ended = cli("study", "run", str(tmp_path / "s.toml"), "--root", str(tmp_path / "file"))
    assert ended.returncode == 4
    assert f"{tmp_path / 'file'}: cannot be written" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("study", ["cpu-demo", "t5-220m", "t5-740m"])
def test_every_shipped_study_can_be_planned_without_its_data_or_devices(study: str, tmp_path: Path) -> None:
    ended = cli("study", "run", study, "--dry-run", "--root", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    for word in ("candidates", "tokens", "batch", "data", "devices", "accumulation", "L"):
        assert word in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_t5_large_states_the_2023_recipe() -> None:
    ended = cli("study", "run", "t5-740m", "--dry-run")
    assert "1,048,576,000 a trial = 1,000 steps × 1,048,576" in ended.stdout
    assert "AdamW 0.0001 constant, betas 0.9 0.95, weight decay 0.1" in ended.stdout
    assert "L24-D1024-H16x64-F4096 " in ended.stdout


def test_a_dry_run_says_that_rates_are_scaled_and_from_which_shape(tmp_path: Path) -> None:
    scaled = 'learning_rate = 5e-3\nlearning_rate_scaling = "width"\nbase_shape = "L2-D128-H4x32-F512"'
    (tmp_path / "s.toml").write_text(STUDY.format(data="", training=scaled))
    ended = cli("study", "run", str(tmp_path / "s.toml"), "--dry-run")
    assert ended.returncode == 0, ended.stderr
    told = " ".join(ended.stdout.split())
    recipe = "AdamW, learning rate 0.005 at L2-D128-H4x32-F512, scaled by width and depth, constant schedule, betas"
    assert recipe in told


def test_solve_imports_neither_torch_nor_optuna_nor_scipy() -> None:
    code = (
        "import sys; from march_search.cli import main; main(['solve', '--budget', '220M', '--top', '1']);"
        "heavy = {'torch', 'optuna', 'scipy', 'datasets', 'tokenizers', 'deepspeed', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_reader_that_stops_early_is_no_error() -> None:
    command = f"{sys.executable} -m march_search solve --budget 740M --top 3000 --format csv | head -1"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert ended.stdout.startswith("num_layers,")
    assert ended.stderr == ""


def test_the_version_is_the_packages() -> None:
    from march_search import __version__

    assert cli("--version").stdout.strip() == __version__


def test_an_architecture_is_explained_group_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "--explain", "L12-D768-H12x64-F3072", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sum(told["groups"].values()) == told["num_params"] == 222_903_552
    assert main(["solve", "--explain", "L12-D768-H12x64-F3072"]) == 0
    assert "222,903,552 parameters" in capsys.readouterr().out
    assert main(["solve", "--explain", "T5"]) == 2
    assert "is not an architecture name" in capsys.readouterr().err


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    """What a command prints as JSON."""
    assert main([*arguments, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_device_adds_memory_speed_and_hours_and_says_on_what_they_rest(capsys: pytest.CaptureFixture[str]) -> None:
    price = ("--device", "8xA5000", "--zero", "2", "--micro-batch", "4", "--tokens", "100M")
    whole = told(capsys, "solve", "--budget", "220M", "--top", "3", *price)
    assert whole["setup"]["device"]["name"] == "A5000"
    assert (whole["setup"]["zero_stage"], whole["setup"]["tokens"]) == (2, 100_000_000)
    for row in whole["architectures"]:
        assert row["hours"] == pytest.approx(100e6 / row["tokens_per_second"] / 3600, rel=1e-3)
        assert 1e9 < row["memory_bytes"] < 24e9
    for columns in ("80", "160"):
        ended = cli("solve", "--budget", "220M", "--top", "3", *price, COLUMNS=columns)
        assert max(map(len, ended.stdout.splitlines())) <= int(columns)
        text = " ".join(ended.stdout.split())
        assert "100,000,000 tokens on 8xA5000, calibrated on 25 recorded runs of 2023" in text
        assert "bf16, ZeRO 2, micro batch 4; 512 tokens per sequence." in text


def test_an_explanation_with_a_device_has_memory_by_kind(capsys: pytest.CaptureFixture[str]) -> None:
    explain = ("solve", "--explain", "L12-D768-H12x64-F3072", "--device", "H100")
    value = told(capsys, *explain)
    assert sum(value["memory"].values()) == pytest.approx(value["memory_bytes"], abs=4)
    assert list(value["memory"]) == ["weights", "gradients", "optimizer", "activations"]
    assert main(list(explain)) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("on each device", "optimizer", "tokens/s", "at 40% of the peak"))


def test_the_pareto_set_is_printed_whole_or_sorted(capsys: pytest.CaptureFixture[str]) -> None:
    space = ("solve", "--space", "cpu-demo", "--top", "0")
    front = told(capsys, *space, "--pareto")["architectures"]
    assert 1 < len(front) < told(capsys, *space)["total"]
    deepest = max(a["num_layers"] for a in front)
    assert deepest == 6
    by_two = told(capsys, *space, "--pareto", "params,-num_heads", "--sort", "num_heads")["architectures"]
    assert [a["num_heads"] for a in by_two] == sorted(a["num_heads"] for a in by_two)
    assert main([*space, "--pareto"]) == 0
    assert f"{len(front)} Pareto-optimal in flops,memory,-depth" in " ".join(capsys.readouterr().out.split())


def test_those_near_an_architecture_begin_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    value = told(capsys, "solve", "--budget", "220M", "--near", "L12-D768-H12x64-F3072", "--top", "3")
    assert value["architectures"][0]["name"] == "L12-D768-H12x64-F3072"
    assert main(["solve", "--budget", "220M", "--near", "L12-D800-H12x64-F3000", "--top", "3"]) == 0
    assert "nearest to L12-D800-H12x64-F3000 first" in capsys.readouterr().out


def test_columns_are_those_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("solve", "--budget", "220M", "--top", "2", "--columns", "name,num_heads,params,hours")
    value = told(capsys, *asked)
    assert [list(a) for a in value["architectures"]] == [["name", "num_heads", "num_params", "hours"]] * 2
    assert "setup" in value
    assert main([*asked, "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("name,num_heads,num_params,hours\n")
    assert main(list(asked)) == 0
    printed = capsys.readouterr().out
    assert "num_heads" in printed
    assert "FLOPs" not in printed


def test_a_terminal_gets_bold_headings_and_with_no_color_no_colour() -> None:
    command = [sys.executable, "-m", "march_search", "solve", "--budget", "220M", "--top", "2"]
    master, slave = os.openpty()
    settings = os.environ | {"TERM": "xterm-256color", "NO_COLOR": "1"}
    assert subprocess.run(command, stdout=slave, env=settings, check=False).returncode == 0
    os.close(slave)
    printed = os.read(master, 100_000).decode()
    os.close(master)
    assert "L23-D512" in printed
    assert "\x1b[1m" in printed
    assert not re.search(r"\x1b\[(?:\d+;)*[349]\d", printed)


@pytest.mark.parametrize("option", ["--sample", "--design"])
def test_samples_and_designs_repeat_with_their_seed(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    def names(seed: str) -> list[str]:
        assert main(["solve", "--budget", "220M", option, "9", "--seed", seed, "--format", "json"]) == 0
        return [a["name"] for a in json.loads(capsys.readouterr().out)["architectures"]]

    assert names("1") == names("1") != names("2")
    assert len(set(names("1"))) == 9


def test_a_study_may_name_a_deepspeed_file_beside_it(tmp_path: Path) -> None:
    study = (shipped_folder("studies") / "cpu-demo.toml").read_text()
    (tmp_path / "mine.toml").write_text(study.replace("[training]", '[training]\ndeepspeed = "ds.json"'))
    for table, code, words in (
        ({"steps_per_print": 10}, 0, "candidates"),
        ({"fp_16": {}}, 2, 'mine.toml: [training.deepspeed]: DeepSpeed has no key "fp_16". Did you mean "fp16"?'),
    ):
        (tmp_path / "ds.json").write_text(json.dumps(table))
        ended = cli("study", "run", str(tmp_path / "mine.toml"), "--dry-run")
        assert ended.returncode == code, ended.stderr
        assert words in (ended.stderr or ended.stdout)


def test_gpus_that_are_not_there_are_missed_before_any_text_is_fetched(tmp_path: Path) -> None:
    import torch

    if torch.cuda.device_count() >= 8:
        pytest.skip("this machine has the GPUs")
    ended = cli("study", "run", "t5-220m", "--root", str(tmp_path / "runs"))
    assert ended.returncode == 2
    assert "the study needs 8 GPUs, but torch finds" in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_output_that_cannot_be_written_is_one_line() -> None:
    command = f"{sys.executable} -m march_search solve --budget 220M > /dev/full"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert ended.returncode == 4
    assert ended.stderr == "march-search: the output: No space left on device.\n"


def test_a_terminal_without_unicode_still_gets_its_table() -> None:
    ended = cli("solve", "--budget", "220M", "--top", "2", PYTHONIOENCODING="ascii")
    assert ended.returncode == 0
    assert "L23-D512" in ended.stdout
