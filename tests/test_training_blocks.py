"""A trial with one's own block: trained, resumed, ranked without its file's code, and exported with it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.command_line import command_in_process, json_of, one_line_error
from helpers.trials import DATA, TINY_TRAINING, lines, result, train, trial_config

from march_search import Architecture, SearchSpace, solve
from march_search.architecture import block as blocks
from march_search.config import DevicesConfig, SearchConfig, StudyConfig
from march_search.errors import ConfigError
from march_search.planning import study_state
from march_search.planning.candidates import Candidates
from march_search.planning.extension import extended_candidates
from march_search.planning.plan import plan_rows
from march_search.storage.study_folder import StudyFolder
from march_search.study.reuse import same_trial

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = [f"L1-D32-H2x16-F{f}-rope-dec-V400-moe+num_experts=4+top_k={k}" for f, k in ((64, 1), (32, 2))]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """No block and no counts are known, as in another process."""
    monkeypatch.setattr(blocks, "_BLOCKS", {})
    monkeypatch.setattr(blocks, "_RECORDED", {})


@pytest.fixture
def study(store: Path, tmp_path: Path, forget: None) -> StudyFolder:
    """A study of two shapes with a copy of the example's block, whose trials are written but not trained."""
    (tmp_path / "moe.py").write_text((EXAMPLES / "moe.py").read_text())
    axes = {
        "structure": "decoder-only",
        "position": "rotary",
        "num_layers": 1,
        "d_model": 32,
        "num_heads": 2,
        "d_kv": 16,
    }
    axes |= {"d_ff": [32, 64], "vocab_size": 400}
    table = {"model": {"module": "moe.py"}, "axes": axes, "budget": {"parameters": "35K", "tolerance": "50%"}}
    found = solve(SearchSpace.from_table(table, "space", str(tmp_path / "space.toml")))
    config = StudyConfig(
        space="space.toml",
        search=SearchConfig(strategy="list", architectures=tuple(NAMES)),
        data=DATA,
        training=TINY_TRAINING,
        devices=DevicesConfig(kind="cpu", threads=1),
    )
    folder = StudyFolder.of(tmp_path / "runs", "study")
    shapes = tuple(map(Architecture.parse, NAMES))
    folder.keep_settings(config, shapes)
    study_state.keep_candidates(folder.path, Candidates(found, shapes))
    folder.keep_store(store)
    for number, name in enumerate(NAMES):
        folder.write_trial(folder.trial(number, name, 0), config, name, 0, store)
    return folder


def folders(study: StudyFolder) -> list[Path]:
    return sorted(study.trials.iterdir())


def test_a_trial_with_a_block_learns_and_resumes_to_the_same_bits(study: StudyFolder) -> None:
    whole = folders(study)[0]
    assert train(whole).returncode == 0
    assert lines(whole, "evaluation")[-1]["loss"] < lines(whole, "train")[0]["loss"] - 0.3
    assert result(whole)["num_params"] == Architecture.parse(NAMES[0]).num_params
    pieces = study.trials / "0002-pieces"
    pieces.mkdir()
    (pieces / "trial.json").write_text((whole / "trial.json").read_text())
    assert train(pieces, "--until", "4096").returncode == train(pieces).returncode == 0
    losses = [[line["loss"] for line in lines(folder, "train")] for folder in (whole, pieces)]
    assert losses[0] == losses[1]
    config = trial_config(whole)
    assert config.block.module == "../../../../moe.py"
    assert same_trial(study.path.parent, config) == whole
    other_file = replace(config, block=replace(config.block, sha256="0" * 64))
    assert same_trial(study.path.parent, other_file) is None


def test_a_changed_file_is_refused(study: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "moe.py").write_text((EXAMPLES / "moe.py").read_text().replace("BALANCE = 0.01", "BALANCE = 0.1"))
    ended = train(folders(study)[0])
    assert ended.returncode == 2
    assert f"{tmp_path / 'moe.py'} has changed since it was first used here" in ended.stderr
    with pytest.raises(ConfigError, match="has changed since it was first used here"):
        study.load_block()
    record = json.loads((study.path / "study.json").read_text())
    table = {"model": {"module": "moe.py"}, "axes": {k: v for k, v in record["space"]["axes"].items() if k == "d_ff"}}
    changed = SearchSpace.from_table(table | {"budget": {"parameters": "35K"}}, "space", str(tmp_path / "space.toml"))
    with pytest.raises(ConfigError, match="the file of its block has changed"):
        extended_candidates(study.path, study.config(), Candidates(solve(changed), ()), False)


def test_workers_restore_the_space_with_its_block(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(study_state.restored_candidates(study.path).found)
    monkeypatch.setattr(blocks, "_BLOCKS", {})
    with pytest.raises(ValueError, match="the block moe is not known here"):
        study_state.restored_candidates(study.path)
    study.load_block()
    assert list(study_state.restored_candidates(study.path).found) == before
    assert len(before) > 3


@pytest.mark.parametrize(
    ("spread", "skipped"),
    [(("d_ff",), "block"), (("top_k",), "num_experts"), (("num_experts", "top_k"), ""), (("block",), "")],
)
def test_a_plan_names_the_fields_that_a_design_leaves_out(
    spread: tuple[str, ...], skipped: str, study: StudyFolder
) -> None:
    shapes = tuple(map(Architecture.parse, NAMES))
    chosen = Candidates(study_state.restored_candidates(study.path).found, shapes)
    config = replace(study.config(), search=SearchConfig(strategy="design", trials=2, spread=spread))
    row = dict(plan_rows(config, chosen, "text", study.path.parent))["candidates"]
    assert row.endswith(f"(design, not over {skipped}: see [search] spread)" if skipped else "(design)")


def test_the_text_of_a_started_study_is_inspected_by_its_name(
    study: StudyFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(blocks, "_BLOCKS", {})
    ended = command_in_process(capsys)("data", "inspect", study.path.name, "--root", str(study.path.parent))
    assert ended.returncode == 0, ended.stderr
    assert "unigram loss" in ended.stdout


def test_a_study_of_an_earlier_version_has_no_block_axis(study: StudyFolder) -> None:
    record = json.loads((study.path / "study.json").read_text())
    record["space"]["axes"] = {k: v for k, v in record["space"]["axes"].items() if k not in ("block", "qk_norm")}
    del record["space"]["block"], record["sha256"]
    record["space"]["budget"]["count"] = "total"
    (study.path / "study.json").write_text(json.dumps(record))
    found = study_state.restored_candidates(study.path).found
    assert {(a.block, a.qk_norm) for a in found} <= {(None, "none")}
    study.load_block()


def test_a_ranking_needs_no_code_of_the_block(
    study: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = [(a.num_params, a.num_active_params, a.flops_per_token(32)) for a in map(Architecture.parse, NAMES)]
    for folder in folders(study):
        assert train(folder).returncode == 0
    (tmp_path / "moe.py").write_text("raise SystemExit('this file was run')")
    monkeypatch.setattr(blocks, "_BLOCKS", {})
    command = command_in_process(capsys)
    rows = json_of(command("rank", "study", "--root", str(tmp_path / "runs"), "--format", "json"))["ranked"]
    by_name = {row["name"]: (row["num_params"], row["num_active_params"], row["flops_per_token"]) for row in rows}
    assert by_name == dict(zip(NAMES, counts, strict=True))
    assert {row["top_k"] for row in rows} == {1, 2}
    ended = command("report", "study", "--root", str(tmp_path / "runs"), "-o", str(tmp_path / "report.html"))
    assert ended.returncode == 0, ended.stderr
    assert "moe+num_experts=4+top_k=2" in (tmp_path / "report.html").read_text()


def test_an_export_has_the_file_of_the_block(
    study: StudyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folders(study)[0] / "trial.json"
    settings = json.loads(path.read_text())
    settings["training"]["keep_weights"] = True
    path.write_text(json.dumps(settings))
    assert train(path.parent).returncode == 0
    command, root = command_in_process(capsys), str(tmp_path / "runs")
    ended = command("export", "study", "0", "--root", root, "--format", "torch", "-o", str(tmp_path / "out"))
    assert ended.returncode == 0, ended.stderr
    code = (
        "import torch, load; torch.manual_seed(0); model = load.load(); "
        "print(model(None, torch.arange(2, 34)[None]).item(), sum(p.numel() for p in model.parameters()))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "out"), *sys.path])}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    loss, number = ran.stdout.split()
    assert int(number) == Architecture.parse(NAMES[0]).num_params
    assert torch.isfinite(torch.tensor(float(loss)))
    refused = command("export", "study", "0", "--root", root, "-o", str(tmp_path / "hf"))
    assert "block" in one_line_error(refused)
