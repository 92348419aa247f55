"""`march-search study run` before any training: invalid files, plans without training, and missing devices."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.command_line import Command, imported_by, one_line_error, run_command
from helpers.trials import child_processes, wait_until

from march_search import Architecture
from march_search.architecture.checkpoints import CHECKPOINTS
from march_search.config.shipped import shipped_folder
from march_search.planning import measured_cpu

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


SEARCH = """[search]
strategy = "list"
architectures = ["L1-D32-H2x16-F64-geglu-rope-V400", "L2-D32-H2x16-F64-geglu-rope-V400"]

[confirm]
max_seeds = 1

"""


INVALID = [
    ("vocab_sise = 3", "", 2, 'unknown key "data.vocab_sise". Did you mean "vocab_size"?'),
    ("", 'precision = "fp16"', 2, '"training.precision" cannot be "fp16": fp16 gradients underflow'),
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
    ('corpus = "hub:~nouser/x"', "", 5, "no such user"),
    ('tokenizer = "~nouser/x"', "", 5, "no such user"),
    ('corpus = "text/**.txt"', "", 5, 'corpus "text/**.txt": invalid glob: '),
    ("", 'deepspeed = "~nouser/x.json"', 5, "no such user"),
    ("", "[", 2, "s.toml: invalid TOML: "),
]


@pytest.mark.parametrize(("data", "training", "code", "words"), INVALID, ids=[words for *_, words in INVALID])
def test_an_invalid_study_is_refused_before_anything_starts(
    tmp_path: Path, command: Command, data: str, training: str, code: int, words: str
) -> None:
    (tmp_path / "s.toml").write_text(STUDY.format(data=data, training=training))
    ended = command("study", "run", str(tmp_path / "s.toml"), "--root", str(tmp_path / "runs"))
    assert ended.returncode == code
    assert words in one_line_error(ended)
    assert not (tmp_path / "runs").exists()


def test_a_root_that_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path, command: Command) -> None:
    (tmp_path / "s.toml").write_text(STUDY.format(data="", training=""))
    (tmp_path / "file").write_text("not a folder")
    ended = command("study", "run", str(tmp_path / "s.toml"), "--root", str(tmp_path / "file"))
    assert ended.returncode == 4
    assert f"{tmp_path / 'file'}: cannot be written" in one_line_error(ended)


@pytest.mark.parametrize("root", ["file", "runs"])
def test_an_unusable_root_or_storage_is_refused_before_the_machine_is_measured(
    tmp_path: Path, command: Command, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"sqlite:///{tmp_path}/no/such/folder.db"
    (tmp_path / "s.toml").write_text(f'storage = "{storage}"\n' + STUDY.format(data="", training=""))
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(measured_cpu, "measured_cpu", lambda *_: pytest.fail("the machine is measured"))
    ended = command("study", "run", str(tmp_path / "s.toml"), "--root", str(tmp_path / root))
    assert ended.returncode == 4
    assert "cannot be" in one_line_error(ended)
    assert not (tmp_path / "runs").exists()


def descendants(mark: str) -> list[int]:
    """Return the process IDs of all running processes with the environment variable MARK=`mark`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
                if f"MARK={mark}".encode() in (entry / "environ").read_bytes().split(b"\0") and state != "Z":
                    found.append(int(entry.name))
    return found


def started_run(tmp_path: Path, corpus: Path, mark: str) -> "subprocess.Popen[bytes]":
    """Start `study run` on a small text; all its processes have the environment variable MARK=`mark`."""
    study = STUDY.format(data=f'corpus = "{corpus}"', training="").replace("2048", "400")
    study = study.replace("[data]", SEARCH + "[data]\nvalidation_fraction = 0.2\nvalidation_sequences = 16")
    (tmp_path / "s.toml").write_text(study)
    command = [sys.executable, "-m", "march_search", "study", "run", str(tmp_path / "s.toml")]
    with (tmp_path / "log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--root", str(tmp_path / "runs")], env=os.environ | {"MARK": mark}, stdout=log, stderr=log
        )


def kill_and_count(process: "subprocess.Popen[bytes]", mark: str) -> list[int]:
    """Kill `study run` and return which of its processes are still there after 5 seconds."""
    process.kill()
    process.wait()
    wait_until(lambda: not descendants(mark), 5)
    left = descendants(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def test_a_run_killed_while_the_machine_is_measured_leaves_no_process(tmp_path: Path, corpus: Path) -> None:
    mark = f"measured-{uuid.uuid4().hex}"
    process = started_run(tmp_path, corpus, mark)

    def loading() -> list[int]:
        """Return the child once it loads torch."""
        return [pid for pid in child_processes(process) if "libtorch" in Path(f"/proc/{pid}/maps").read_text()]

    assert wait_until(loading)
    os.kill(loading()[0], signal.SIGSTOP)  # or it could end by itself within five seconds
    assert kill_and_count(process, mark) == []


@pytest.mark.torture
def test_a_run_killed_at_any_moment_leaves_no_process_and_completes_later(tmp_path: Path, corpus: Path) -> None:
    rng, folder = random.Random(0), tmp_path / "runs" / "s"
    moments = [lambda: True, *[lambda: descendants(mark)[1:]] * 2]  # at once; while a child measures the machine
    moments += [lambda: "preparing the text" in (tmp_path / "log").read_text()]
    moments += [lambda: list(folder.glob("trials/*/trial.log"))]
    moments += [lambda: list(folder.glob("trials/*/metrics.jsonl"))]
    for number, moment in enumerate(moments):
        mark = f"{number}-{uuid.uuid4().hex}"
        process = started_run(tmp_path, corpus, mark)
        assert wait_until(moment, 120), (tmp_path / "log").read_text()
        time.sleep(rng.uniform(0, 1))
        assert kill_and_count(process, mark) == []
    assert started_run(tmp_path, corpus, "last").wait(timeout=300) == 0
    assert len(list(folder.glob("trials/*/result.json"))) == 2


@pytest.mark.parametrize("study", ["cpu-demo", "t5-220m", "t5-740m", "gpt-124m"])
def test_every_shipped_study_can_be_planned_without_its_data_and_devices(
    study: str, tmp_path: Path, command: Command
) -> None:
    ended = command("study", "run", study, "--dry-run", "--root", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    for word in ("candidates", "tokens", "batch", "data", "devices", "accumulation", "L"):
        assert word in ended.stdout
    is_measured = study == "cpu-demo"
    assert ("models build with the predicted parameter count." in ended.stdout) == is_measured
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_measures_nothing_does_not_import_torch(tmp_path: Path) -> None:
    words = ["study", "run", "t5-220m", "--dry-run", "--device", "8xH100", "--root", str(tmp_path)]
    assert imported_by(*words) & {"torch", "deepspeed", "datasets", "tokenizers", "scipy"} == set()


def test_the_demo_ends_with_its_baseline_and_three_others_and_fits_into_five_minutes(command: Command) -> None:
    printed = " ".join(command("study", "run", "cpu-demo", "--dry-run").stdout.split())
    assert "the best 3 and the baseline continue to the end, 492k tokens" in printed
    # two cores train at least 30,000 tokens/s together (studies/LOG.md): 210 seconds
    assert "tokens 2.36M to 6.29M over all trials; the search would take 3.93M without rungs" in printed
    assert re.search(r"time \S+ to \S+ on this CPU, 2 trials at a time", printed)
    assert printed.index("L1-D128-H1x64-F616") < printed.index("L2-D96-H3x32-F248")


def test_the_plan_of_t5_large_states_the_2023_recipe(command: Command) -> None:
    printed = " ".join(command("study", "run", "t5-740m", "--dry-run").stdout.split())
    assert "1,048,576,000 tokens = 1,000 steps × 1,048,576" in printed
    assert "AdamW, learning rate 0.0001, constant schedule numerics betas 0.9 and 0.95, weight decay 0.1" in printed
    assert "L24-D1024-H16x64-F4096 " in printed


def test_the_plan_of_gpt_2_has_its_rungs_recipe_and_price(command: Command) -> None:
    words = ("study", "run", "gpt-124m", "--dry-run", "--device", "8xA100", "--rate", "2")
    printed = " ".join(command(*words).stdout.split())
    for text in (
        "trials 24 = 24 architectures × 1 seed; at most 8 more to confirm",
        "24 architectures train to 52.4M tokens: 1.26G tokens in ",
        "the best 12 and the baseline continue to 105M tokens",
        "the best 3 and the baseline continue to the end, 1.05G tokens",
        "at most 4 finalists get up to 2 further seeds each",
        " on 8xA100 ",
        "a device has 80GB: fits",
        "1,048,576,000 tokens = 2,000 steps × 524,288",
        "AdamW, learning rate 0.0006 at L12-D768-H12x64-F3072, scaled by width and depth, wsd schedule",
        "HuggingFaceFW/fineweb-edu sample-10BT",
    ):
        assert text in printed
    listed = re.findall(r"L\d+-D\d+-H\S+-dec-\S+", printed.partition("candidates, in order")[2])
    assert listed[0] == CHECKPOINTS["gpt2"]
    plans = Counter((a.feed_forward_proj, a.position, a.norm) for a in map(Architecture.parse, listed))
    assert len(listed) == sum(plans.values()) == 24
    assert len(plans) == 8
    assert min(plans.values()) >= 2


def test_the_plan_states_scaled_learning_rates_and_their_base_shape(tmp_path: Path, command: Command) -> None:
    scaled = 'learning_rate = 5e-3\nlearning_rate_scaling = "width"\nbase_shape = "L2-D128-H4x32-F512"'
    (tmp_path / "s.toml").write_text(STUDY.format(data="", training=scaled))
    ended = command("study", "run", str(tmp_path / "s.toml"), "--dry-run", "--device", "A5000")
    assert ended.returncode == 0, ended.stderr
    recipe = (
        "AdamW, learning rate 0.005 at L2-D128-H4x32-F512, scaled by width and depth, constant schedule numerics betas"
    )
    assert recipe in " ".join(ended.stdout.split())


def test_a_study_may_name_a_deepspeed_file_in_its_folder(tmp_path: Path, command: Command) -> None:
    study = (shipped_folder("studies") / "cpu-demo.toml").read_text()
    (tmp_path / "mine.toml").write_text(study.replace("[training]", '[training]\ndeepspeed = "ds.json"'))
    for table, code, words in (
        ({"steps_per_print": 10}, 0, "candidates"),
        ({"fp_16": {}}, 2, 'mine.toml: [training.deepspeed]: DeepSpeed has no key "fp_16". Did you mean "fp16"?'),
    ):
        (tmp_path / "ds.json").write_text(json.dumps(table))
        ended = command("study", "run", str(tmp_path / "mine.toml"), "--dry-run", "--device", "A5000")
        assert ended.returncode == code, ended.stderr
        assert words in (ended.stderr or ended.stdout)


def test_missing_gpus_are_reported_before_any_text_is_prepared(tmp_path: Path) -> None:
    import torch

    if torch.cuda.device_count() >= 8:
        pytest.skip("this machine has the GPUs")
    ended = run_command("study", "run", "t5-220m", "--root", str(tmp_path / "runs"))
    assert ended.returncode == 2
    assert "the study needs 8 GPUs, but torch finds" in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("columns", ["80", "160"])
def test_the_plan_fits_the_terminal_with_two_lines_per_row(
    columns: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    printed = command("study", "run", "t5-220m", "--dry-run", "--device", "8xA5000", "--rate", "0.5").stdout
    lines = printed.partition("24 candidates, in order")[0].splitlines()
    assert max(map(len, lines)) <= int(columns)
    labels = [line[:16].strip() for line in lines[lines.index(next(x for x in lines if x.startswith("trials"))) :]]
    continued = "".join("." if label else "|" for label in labels)
    assert "||" not in continued
    order = [label for label in labels if label]
    assert order[:2] == ["trials", "search, rung 1"]
    for first, second in itertools.pairwise(
        ["confirm", "tokens", "FLOPs", "time", "device-hours", "money", "disk", "memory", "candidates", "batch"]
    ):
        assert order.index(first) < order.index(second)


def test_a_plan_opens_the_storage_and_creates_nothing(tmp_path: Path, command: Command) -> None:
    file, database = tmp_path / "s.toml", tmp_path / "s.db"
    text = STUDY.format(data="", training="")
    words = ("study", "run", str(file), "--dry-run", "--device", "A5000", "--root", str(tmp_path / "runs"))
    file.write_text(f'storage = "sqlite:///{database}"\n{text}')
    ended = command(*words)
    assert ended.returncode == 0, ended.stderr
    assert f"storage sqlite:///{database}" in " ".join(ended.stdout.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.toml"]
    database.write_text("not a database, whatever its name is; it is long enough to have a header of 100 bytes" * 2)
    assert "s.db is damaged" in one_line_error(command(*words))
    file.write_text(f'storage = "sqlite:///{tmp_path}/no/s.db"\n{text}')
    assert "cannot be opened" in one_line_error(command(*words))
    file.write_text(f'storage = "postgresql://nobody@127.0.0.1:1/none"\n{text}')
    ended = command(*words)
    assert ended.returncode == 4
    assert "127.0.0.1" in one_line_error(ended)


def test_overrides_are_checked_like_the_file_and_shown_in_the_plan(tmp_path: Path, command: Command) -> None:
    root = ("--root", str(tmp_path), "--dry-run", "--device", "A5000")
    file = str(shipped_folder("studies") / "cpu-demo.toml")
    given = ("training.tokens=1_024_000", "devices.ranks=2", "search.trials=3")
    for study in (("cpu-demo",), (file,), ("--config", file)):
        ended = command("study", "run", *study, *given, *root)
        assert ended.returncode == 0, ended.stderr
        plan = " ".join(ended.stdout.split())
        assert f"overrides {' '.join(given)}" in plan
        assert "1,024,000 tokens = " in plan
        assert "2 ranks" in plan
    ended = command("study", "run", "cpu-demo", "training.tokens=1M", "training.lr=3", "devices.rank=2", *root)
    assert ended.returncode == 2
    for words in ("with training.tokens=1M", "3 faults", "set training.learning_rate to", '"ranks"', "nearest is"):
        assert words in ended.stderr
    refused = command("study", "run", "training.tokens=2M", *root)
    assert "name a STUDY before training.tokens=2M" in one_line_error(refused)
    assert "name a STUDY to run" in one_line_error(command("study", "run", *root))
    assert "is not KEY=VALUE" in one_line_error(command("study", "run", "cpu-demo", "tokens", *root))


def test_a_decoder_only_study_may_have_examples_that_are_too_long_for_span_corruption(
    tmp_path: Path, command: Command
) -> None:
    given = ("data.sequence_length=2048", "training.global_batch_tokens=8192", "training.tokens=1_048_576")
    given += ("--dry-run", "--device", "A5000", "--root", str(tmp_path))
    ended = command(
        "study", "run", "cpu/decoder-only", *given, "training.warmup_tokens=8192", "data.noise_density=0.15"
    )
    assert ended.returncode == 0, ended.stderr
    assert "2048 tokens of plain text" in " ".join(ended.stdout.split())
    ended = command("study", "run", "cpu/baseline", *given, "training.warmup_tokens=8192", "data.noise_density=0.15")
    assert ended.returncode == 2
    assert "2048 tokens give 102 spans, but there are only 100 sentinels" in one_line_error(ended)


def test_documents_are_masked_by_a_key_of_decoder_only_studies(tmp_path: Path, command: Command) -> None:
    given = ("data.documents=masked", "--dry-run", "--device", "A5000", "--root", str(tmp_path))
    ended = command("study", "run", "cpu/decoder-only", *given)
    assert ended.returncode == 0, ended.stderr
    assert "each predicted from the preceding ones of its document" in " ".join(ended.stdout.split())
    ended = command("study", "run", "cpu/baseline", *given)
    assert ended.returncode == 2
    assert '[data]: documents = "masked" needs decoder-only models: a corrupted span may' in one_line_error(ended)
    ended = command("study", "run", "cpu/decoder-only", "data.documents=packed", *given[1:])
    assert ended.returncode == 2
    assert '"data.documents" cannot be "packed". Did you mean "masked"?' in one_line_error(ended)
    ended = command("keys", "data")
    assert "documents" in ended.stdout
    assert "the first token of each document is predicted from the start token" in " ".join(ended.stdout.split())


def test_the_plan_names_axes_over_which_the_design_does_not_spread(tmp_path: Path, command: Command) -> None:
    study = tmp_path / "groups.toml"
    study.write_text(
        'space = "cpu-decoder"\n[search]\ntrials = 4\n[data]\nsequence_length = 128\n[training]\nprecision = "fp32"\n'
    )
    plan = ("study", "run", str(study), "--dry-run", "--device", "A5000")
    assert "not over qk_norm, attention_window, global_every, num_key_value_heads" in " ".join(
        command(*plan).stdout.split()
    )
    assert "not over" not in command(*plan, "search.spread=[]").stdout
