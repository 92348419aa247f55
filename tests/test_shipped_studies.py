"""The shipped studies of the 2023 experiments, for GPUs and for two cores: questions, architectures, results."""

import csv
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from helpers.reference import march_architecture, march_runs

from march_search import Architecture, SearchSpace, solve
from march_search.cli import main
from march_search.config.shipped import shipped_folder

FOLDER = shipped_folder("studies") / "march-2023"
STUDIES = {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def table(name: str) -> dict[str, Any]:
    """Return the content of a study's file."""
    return tomllib.loads(STUDIES[name].read_text())


def test_every_experiment_of_2023_is_a_study() -> None:
    at_220m = {
        "baseline", "heads-layers", "heads-layers-no-kv", "dims-layers", "dims-heads-layers", "heads-d-kv",
        "head-schedule", "glu", "d-ff", "baseline-v2", "length-reduction", "albert", "decoder-only", "bottlenecks",
    }  # fmt: skip
    assert set(STUDIES) == at_220m | {"large-baseline", "large-heads-layers", "large-dims-layers"}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_states_its_question_and_what_would_answer_it(name: str) -> None:
    study = table(name)
    assert study["question"].endswith(("?", ")"))
    assert len(study["answer"]) > 40
    assert study["search"]["seeds"] == [42, 43, 44]
    assert study["training"]["tokens"] == 1000 * 2**20


@pytest.mark.parametrize("name", STUDIES)
def test_architectures_are_in_the_budget_or_marked(name: str) -> None:
    study, text = table(name), STUDIES[name].read_text()
    space = SearchSpace.load(study["space"])
    found = solve(space)
    for arm in study["search"]["architectures"]:
        shape = Architecture.parse(arm)
        assert shape.name == arm
        assert shape.d_model % 64 == shape.d_ff % 64 == 0
        [line] = [line for line in text.splitlines() if f'"{arm}"' in line]
        assert (shape in found) == ("off the budget" not in line), line
        millions, percent = re.search(r"# ([\d.]+)M ([+-][\d.]+)%", line).groups()
        assert float(millions) == pytest.approx(shape.num_params / 1e6, abs=0.05)
        assert space.budget.difference_percent(shape.num_params) == pytest.approx(float(percent), abs=0.05)


def test_the_25_runs_of_2023_are_in_the_studies() -> None:
    arms = {arm for name in STUDIES for arm in table(name)["search"]["architectures"]}
    assert {march_architecture(run).name for run in march_runs()} <= arms


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_can_be_planned(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "run", f"march-2023/{name}", "--dry-run", "--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"{len(table(name)['search']['architectures'])} candidates, in order" in printed
    assert "8 GPUs per trial" in printed


DECODERS = {"gqa", "qk-norm", "windows"}
"""Studies for two cores of the parts of current decoders: they share a recipe of their own, and have not run yet."""

CPU = {path.stem: path for path in sorted((shipped_folder("studies") / "cpu").glob("*.toml")) if path.stem != "ladder"}


def test_every_experiment_has_a_study_for_two_cores() -> None:
    large = {name for name in STUDIES if name.startswith("large-")}
    assert set(CPU) == set(STUDIES) - large | {"learning-rates", *DECODERS}


@pytest.mark.parametrize("name", CPU)
def test_the_small_studies_share_a_budget_and_a_recipe(name: str) -> None:
    text = CPU[name].read_text()
    study, recipe = (tomllib.loads(text), tomllib.loads(CPU["gqa" if name in DECODERS else "baseline"].read_text()))
    assert study["question"].endswith(("?", ")"))
    assert len(study["answer"]) > 40
    assert [study[key] for key in ("data", "training", "pruner")] == [
        recipe[key] for key in ("data", "training", "pruner")
    ]
    space = SearchSpace.load(study["space"])
    for arm in study["search"]["architectures"]:
        shape = Architecture.parse(arm)
        assert shape.name == arm
        assert 0.97e6 < shape.num_params_non_embedding < 1.1e6
        assert abs(space.budget.difference_percent(shape.num_params)) <= 1
        [line] = [line for line in text.splitlines() if f'"{arm}"' in line]
        millions, percent = re.search(r"# ([\d.]+)M ([+-][\d.]+)%", line).groups()
        assert float(millions) == pytest.approx(shape.num_params / 1e6, abs=0.0005)
        assert space.budget.difference_percent(shape.num_params) == pytest.approx(float(percent), abs=0.05)


@pytest.mark.parametrize("name", CPU)
def test_every_small_study_can_be_planned(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = ["--device", "A5000"]  # this CPU would be timed
    assert main(["study", "run", f"cpu/{name}", "--dry-run", "--root", str(tmp_path), *device]) == 0
    printed = capsys.readouterr().out
    assert f"{len(tomllib.loads(CPU[name].read_text())['search']['architectures'])} candidates, in order" in printed


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_the_small_decoders_are_members_of_their_space_with_the_plain_one_first(name: str) -> None:
    study = tomllib.loads(CPU[name].read_text())
    arms = [Architecture.parse(arm) for arm in study["search"]["architectures"]]
    found = solve(SearchSpace.load(study["space"]))
    assert all(arm in found for arm in arms)
    assert (arms[0].key_value_heads, arms[0].qk_norm, arms[0].attention_window) == (arms[0].num_heads, "none", None)
    assert study["search"]["seeds"] == [42, 43]
    assert study["training"]["tokens"] == 2**20


def test_studies_without_results_are_those_that_have_not_run() -> None:
    results = shipped_folder("studies") / "results"
    assert {path.stem for path in results.glob("*.csv")} == set(CPU) - DECODERS
    names = [f"`{name}`" for name in sorted(DECODERS | {"ladder"})]
    text = " ".join((results / "README.md").read_text().split())
    assert f"{', '.join(names[:-1])} and {names[-1]} have not been run yet." in text


@pytest.mark.parametrize("name", sorted(set(CPU) - DECODERS))
def test_the_results_of_a_small_study_are_complete(name: str) -> None:
    results, search = shipped_folder("studies") / "results", tomllib.loads(CPU[name].read_text())["search"]
    rows = list(csv.DictReader((results / f"{name}.csv").read_text().splitlines()))
    rates = [f"{rate:g}" for rate in search.get("learning_rates", [2e-3])]
    arms = {(arm, str(seed), rate) for arm in search["architectures"] for seed in search["seeds"] for rate in rates}
    assert {(row["name"], row["seed"], row["learning_rate"]) for row in rows} == arms
    assert all(row["state"] == "complete" and row["tokens"] == "1048576" for row in rows)
    assert tomllib.loads(CPU[name].read_text())["question"] in (results / f"{name}.md").read_text()
    assert f"`{name}`" in (results.parent / "FINDINGS.md").read_text()


def test_trials_that_studies_share_have_one_result() -> None:
    losses: dict[tuple[str, str, str], set[str]] = {}
    for path in (shipped_folder("studies") / "results").glob("*.csv"):
        for row in csv.DictReader(path.read_text().splitlines()):
            losses.setdefault((row["name"], row["seed"], row["learning_rate"]), set()).add(row["loss"])
    assert all(len(found) == 1 for found in losses.values())
