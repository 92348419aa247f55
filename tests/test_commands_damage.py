"""Damaged files, strays and changed settings in a started study: named in one line, and they cost only themselves."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers.command_line import Command, json_of, one_line_error
from helpers.damage import HOSTILE, WRONG_TYPES, change_file, flip_bit, flip_digit
from helpers.studies import SHAPES, write_study
from helpers.toy_studies import TOY_CONFIG, run_toy_study, start_toy_study
from helpers.trials import wait_until

from march_search.commands.studies import named_study
from march_search.errors import StorageError
from march_search.files.json_tables import sealed, write_json
from march_search.planning import candidates, price
from march_search.study.runner import Summary

READERS = (("rank", "toy", "--format", "json"), ("study", "status", "toy", "--format", "json"), ("study", "list"))
"""Commands that read a study and write nothing."""

FILES = (
    "study.json",
    "plan.json",
    "reference.json",
    "trials/0001-*/trial.json",
    "trials/0001-*/started.json",
    "trials/0001-*/outcome.json",
    "trials/0001-*/result.json",
    "trials/0001-*/metrics.jsonl",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a finished study of six toys with all files that a study has."""
    root = tmp_path_factory.mktemp("finished")
    assert run_toy_study(root).complete == 6
    config = TOY_CONFIG
    write_json(root / "toy" / "plan.json", sealed(price.priced_plan(config, candidates.choose(config, root))))
    write_json(root / "toy" / "reference.json", sealed({"target_unigram_nats": 7.0, "target_bigram_nats": 6.0}))
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished study that may be damaged."""
    shutil.copytree(finished, tmp_path / "root")
    return tmp_path / "root"


def file_of(root: Path, pattern: str) -> Path:
    """Return a file of the study; started.json, which toys do not write, is made."""
    if pattern.endswith("started.json"):
        [folder] = (root / "toy").glob(pattern.rpartition("/")[0])
        (folder / "started.json").write_text("{}")
    [path] = (root / "toy").glob(pattern)
    return path


def check_readers(command: Command, root: Path, path: Path, is_study: bool = False) -> None:
    """Check that each command that reads the study succeeds and names `path`, or refuses in one line that names it."""
    for arguments in READERS:
        ended = command(*arguments, "--root", str(root))
        if ended.returncode:
            assert is_study, ended.stderr
            assert str(path if arguments[0] == "study" else path.parent) in one_line_error(ended)
        elif arguments[0] == "rank":
            ranked = json.loads(ended.stdout)
            names = [row["name"] for row in ranked["ranked"]]
            assert len(names) >= (0 if is_study else 5)
            is_stray = path.parent.name in " ".join(ranked["damage"])
            assert len(names) + len(ranked["not_ranked"]) + is_stray >= 6


@pytest.mark.parametrize("pattern", FILES)
def test_hostile_files_are_named_and_cost_only_themselves(root: Path, command: Command, pattern: str) -> None:
    path = file_of(root, pattern)
    for content in HOSTILE.values():
        path.write_text(content)
        if content in ("{", HOSTILE["nested"]):
            check_readers(command, root, path, is_study=pattern == "study.json")
        ended = command("rank", "toy", "--root", str(root), "--format", "json")
        if pattern not in ("study.json", "plan.json") and not (pattern.endswith("metrics.jsonl") and not content):
            printed = json.loads(ended.stdout)
            reasons = [*printed["damage"], *(row["reason"] for row in printed["not_ranked"])]
            fits = content == "{}" and pattern == "reference.json"  # an empty table is a valid one
            assert fits or any(str(path) in reason for reason in reasons), (content[:40], reasons)


@pytest.mark.parametrize("pattern", FILES)
def test_values_of_wrong_types_are_named_and_cost_only_themselves(root: Path, command: Command, pattern: str) -> None:
    path = file_of(root, pattern)
    if pattern.endswith("started.json"):
        path.write_text(json.dumps({"settings": json.loads(path.with_name("trial.json").read_text()), "sha256": ""}))
    texts = path.read_text().splitlines(keepends=True)
    table = json.loads(texts[-1] if path.suffix == ".jsonl" else "".join(texts))
    table.pop("sha256", None)
    rng = random.Random(0)
    for key in table:
        for value in rng.sample(WRONG_TYPES, 2):
            changed = json.dumps({name: value if name == key else own for name, own in table.items()})
            path.write_text("".join(texts[:-1]) + changed + "\n" if path.suffix == ".jsonl" else changed)
            check_readers(command, root, path, is_study=pattern == "study.json")


def test_a_report_of_a_damaged_study_is_written(root: Path, command: Command) -> None:
    for pattern in ("plan.json", "reference.json", "trials/0001-*/trial.json", "trials/0002-*/outcome.json"):
        file_of(root, pattern).write_text("{")
    ended = command("report", "toy", "--root", str(root), "-o", str(root / "page.html"))
    assert (ended.returncode, ended.stderr.count("\n")) == (0, 1)
    assert "plan.json: is damaged: it is not valid JSON (line 1, column 2). Delete it to plan again." in ended.stderr
    page = (root / "page.html").read_text()
    for name in ("reference.json", "trial.json", "outcome.json"):
        assert f"{name}: " in page


@pytest.mark.parametrize("pattern", FILES)
def test_a_report_is_written_or_refused_in_one_line_whatever_is_damaged(
    root: Path, command: Command, pattern: str
) -> None:
    path = file_of(root, pattern)
    for content in HOSTILE.values():
        path.write_text(content)
        ended = command("report", "toy", "--root", str(root), "-o", "-")
        assert ended.returncode == 0 or one_line_error(ended), content[:40]


def flipped(root: Path, key: str, pattern: str, line: int | None = None) -> Path:
    """Change a number in a file of trial 1, and return the file."""
    path = file_of(root, pattern)
    flip_digit(path, key, line)
    return path


@pytest.mark.parametrize(
    ("name", "key"),
    [("result.json", "loss"), ("outcome.json", "loss"), ("trial.json", "seed"), ("trial.json", "study")],
)
def test_a_flipped_digit_in_a_trial_costs_only_that_trial(root: Path, command: Command, name: str, key: str) -> None:
    path = file_of(root, f"trials/0001-*/{name}")
    if key == "study":
        change_file(path, study="0" * 32)
    else:
        flip_digit(path, key)
    printed = json_of(command("rank", "toy", "--root", str(root), "--format", "json"))
    if name == "outcome.json":  # its result is intact
        assert len(printed["ranked"]) == 6
        assert printed["damage"][0].startswith(f"trial 1: {path}: is damaged: it does not match its sha256")
    elif key == "study":
        assert len(printed["ranked"]) == 5
        assert printed["damage"][0] == (
            f"Ignored in trials/, because this study did not write it: {path.parent.name} (a trial of another study)."
        )
    else:
        assert len(printed["ranked"]) == 5
        [row] = printed["not_ranked"]
        assert (row["trial"], row["state"]) == (1, "damaged")
        assert row["reason"].startswith(f"{path}: ")


def test_a_metrics_line_that_contradicts_the_result_is_left_out(root: Path, command: Command) -> None:
    path = flipped(root, "loss", "trials/0001-*/metrics.jsonl", line=8)
    printed = json_of(command("rank", "toy", "--root", str(root), "--format", "json"))
    assert len(printed["ranked"]) == 6
    assert printed["damage"][0] == (
        f"trial 1: {path}: the evaluation after 4,096 tokens contradicts result.json and was left out."
    )


def test_a_damaged_metrics_line_is_named_by_every_reader(root: Path, command: Command) -> None:
    path = file_of(root, "trials/0001-*/metrics.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3][:20], *lines[4:]]) + "\n")
    fault = f"trial 1: {path}: line 4 is damaged and was left out."
    assert fault in " ".join(command("rank", "toy", "--root", str(root)).stdout.split())
    assert fault in command("rank", "toy", "--root", str(root), "--format", "csv").stderr
    status = json_of(command("study", "status", "toy", "--root", str(root), "--format", "json"))
    assert status["remarks"] == [fault]
    assert (
        command("report", "toy", "--root", str(root), "-o", "-").stdout.count("line 4 is damaged and was left out") == 1
    )


def test_a_changed_reference_is_not_used(root: Path, command: Command) -> None:
    path = flipped(root, "target_unigram_nats", "reference.json")
    printed = json_of(command("rank", "toy", "--root", str(root), "--format", "json"))
    assert printed["reference"] == {}
    assert printed["damage"][0].startswith(f"{path}: is damaged: it does not match its sha256")


def test_losses_of_examples_that_changed_are_named_and_not_used(tmp_path: Path, command: Command) -> None:
    folder = write_study(tmp_path, {name: [4.0 + n / 10] for n, name in enumerate(SHAPES)}, examples=64)
    assert "Data noise: losses are paired" in command("rank", "synthetic", "--root", str(tmp_path), "--explain").stdout
    losses = next(folder.glob("trials/0001-*/validation/*.npy"))
    flip_bit(losses, random.Random(3))
    text = " ".join(command("rank", "synthetic", "--root", str(tmp_path), "--explain").stdout.split())
    assert f"trial 1: {losses}: does not match its sha256 in result.json, so it was changed." in text
    assert "Data noise: not measured" in text


def test_strays_and_copies_never_count(root: Path, command: Command) -> None:
    before = json_of(command("rank", "toy", "--root", str(root), "--format", "json"))
    trials = root / "toy" / "trials"
    first = next(trials.glob("0001-*"))
    shutil.copytree(first, trials / f"{first.name} (copy)")
    shutil.copytree(first, trials / first.name.replace("0001-", "0009-"))
    shutil.copytree(first, trials / first.name.replace("-s0", "-s1"))
    (trials / "notes.txt").write_text("mine")
    (trials / "0010-what").mkdir()
    after = json_of(command("rank", "toy", "--root", str(root), "--format", "json"))
    assert after["ranked"] == before["ranked"]
    assert after["not_ranked"] == before["not_ranked"] == []
    assert after["damage"][0].startswith("Ignored in trials/, because this study did not write it: ")
    for name in (f"{first.name} (copy)", "0009-", "-s1 (", "notes.txt", "0010-what"):
        assert name in after["damage"][0]
    assert after["damage"][1:] == before["damage"]
    [row] = [
        row
        for row in json_of(command("study", "list", "--root", str(root), "--format", "json"))["studies"]
        if row["trials"]
    ]
    assert (row["trials"], row["states"]) == (6, "6 complete")


def test_copies_in_a_study_of_an_earlier_version_never_count(tmp_path: Path, command: Command) -> None:
    folder = write_study(tmp_path, {name: [4.0, 4.1] for name in SHAPES})
    first = next((folder / "trials").glob("0000-*"))
    shutil.copytree(first, first.with_name(first.name.replace("0000-", "0050-")))
    printed = json_of(command("rank", "synthetic", "--root", str(tmp_path), "--format", "json"))
    assert [row["num_seeds"] for row in printed["ranked"]] == [2, 2, 2, 2]
    assert "(the same trial as 0)" in printed["damage"][0]


@pytest.mark.parametrize("action", ["run", "resume", "worker", "confirm", "retry"])
def test_a_file_that_differs_from_the_started_study_is_refused(tmp_path: Path, command: Command, action: str) -> None:
    text = (
        'space = "cpu-demo"\n[search]\ntrials = 2\n[pruner]\nkind = "none"\n[data]\ncorpus = "text.txt"\n'
        "vocab_size = 2048\nsequence_length = 64\n[training]\ntokens = 4096\nglobal_batch_tokens = 1024\n"
        'evaluations = 4\nlearning_rate = 1e-4\n[devices]\nkind = "cpu"\n'
    )
    file = tmp_path / "mine.toml"
    file.write_text(text)
    (tmp_path / "text.txt").write_text("some words " * 1000)
    config = named_study(str(file), tmp_path).load()[0]
    run_toy_study(tmp_path, config, name="mine")
    file.write_text(text.replace("1e-4", "2e-4").replace("evaluations = 4", "evaluations = 2"))
    before = sorted(path.name for path in (tmp_path / "mine" / "trials").iterdir())
    error = command("study", action, str(file), "--root", str(tmp_path)).stderr.splitlines()[-1]
    assert "mine was started with different settings: " in error
    assert "training.evaluations was 4 and is now 2; training.learning_rate was 0.0001 and is now 0.0002" in error
    assert sorted(path.name for path in (tmp_path / "mine" / "trials").iterdir()) == before


@pytest.mark.torture
def test_random_flips_are_noticed_or_change_nothing(root: Path, command: Command) -> None:
    rng, good = random.Random(0), json_of(command("rank", "toy", "--root", str(root), "--format", "json"))
    for _ in range(200):
        path = file_of(root, rng.choice([name for name in FILES if "started" not in name]))
        data = path.read_bytes()
        at = flip_bit(path, rng)
        ended = command("rank", "toy", "--root", str(root), "--format", "json")
        if ended.returncode:
            assert str(path) in one_line_error(ended)
        else:
            now = json.loads(ended.stdout)
            named = path.name in str(now["damage"]) + str(now["not_ranked"]) or path.parent.name in str(now["damage"])
            assert named or now == good or path.name == "metrics.jsonl", (path, at)
        path.write_bytes(data)


def test_reading_a_study_needs_no_write_access(finished: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:  # outside the folders of pytest, which are private
        shared = Path(folder) / "shared"
        shutil.copytree(finished, shared)
        subprocess.run(["chmod", "-R", "a+rX,a-w", folder], check=True)
        code = "import sys; from march_search.cli import main; sys.exit(max(main(a.split()) for a in sys.argv[1:]))"
        arguments = [" ".join([*words, "--root", str(shared)]) for words in (*READERS, ("report", "toy", "-o", "-"))]
        # root may write everything
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
        if nobody and subprocess.run([*nobody, sys.executable, "-c", "import march_search"], check=False).returncode:
            pytest.skip("another user cannot use this installation")
        try:
            ended = subprocess.run(
                [*nobody, sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
            )
        finally:
            subprocess.run(["chmod", "-R", "u+w", folder], check=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("name", ["trial.json", "outcome.json", "study.json"])
def test_a_file_damaged_between_two_runs_costs_only_its_trial(tmp_path: Path, name: str) -> None:
    process = start_toy_study(tmp_path, seconds=0.3)
    assert wait_until(lambda: list(tmp_path.glob("toy/trials/*/metrics.jsonl")))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    folder = min(path.parent for path in tmp_path.glob("toy/trials/*/metrics.jsonl"))
    path = tmp_path / "toy" / name if name == "study.json" else folder / name
    path.write_text("{")
    if name == "study.json":
        with pytest.raises(
            StorageError, match=r"study\.json: is damaged: it is not valid JSON .* delete the study's folder"
        ):
            run_toy_study(tmp_path)
        assert path.read_text() == "{"
    elif name == "trial.json":
        assert run_toy_study(tmp_path) == Summary(complete=5, pruned=0, failed=1, left=0, signum=0)
        assert path.read_text() == "{"
    else:
        assert run_toy_study(tmp_path).complete == 6
        assert (folder / "outcome.json.damaged").read_text() == "{"
