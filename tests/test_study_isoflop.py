"""Ladders with compute budgets: settings, points, the fit on known laws, and what `rank` and `report` show."""

import csv
import io
import json
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import Command, json_of, one_line_error, run_command
from helpers.ladders import LADDER, SPACE, isoflop_loss, write_isoflop
from helpers.studies import write_study
from tokenizers import Tokenizer, models

from march_search.commands.studies import NamedStudy, named_study
from march_search.commands.study_isoflop import run_isoflop
from march_search.config.ladder_config import flops_name, parse_training_flops
from march_search.errors import BudgetError, ConfigError, UsageError
from march_search.files.json_tables import sealed, write_json
from march_search.ladders.isoflop_fit import ArmPoints, fit_arm, growth
from march_search.ladders.isoflop_record import chosen_rate, find_isoflop, point_studies
from march_search.planning.isoflop_points import isoflop_points, keep_isoflop

EQUAL = (
    LADDER.replace("tokens_per_parameter = 0.05", 'training_flops = "3e9"')
    .replace('["30K", "60K"]', '["10K", "20K", "30K", "45K"]')
    .replace('[[ladder.arms]]\nname = "wide"\ndirections = { "d_model / num_layers" = 64 }\n', "")
)
"""A ladder with one compute budget, four sizes and two arms."""


@pytest.fixture
def file(tmp_path: Path, corpus: Path) -> Path:
    """A ladder's file beside its space, with a corpus of made-up words."""
    (tmp_path / "space.toml").write_text(SPACE)
    path = tmp_path / "equal.toml"
    path.write_text(EQUAL.replace("CORPUS", str(corpus)))
    return path


def points(
    sizes: list[float],
    budgets: list[float],
    noise: float,
    best: float = 2e6,
    exponents: tuple[float, ...] = (0.34, 0.28),
) -> ArmPoints:
    """Return what is seen of a law whose optimum at 1e14 FLOPs is `best`, with 6 FLOPs per parameter and token."""
    flops, parameters = np.repeat(budgets, len(sizes)), np.tile(sizes, len(budgets))
    rng = np.random.default_rng(1)
    means = [isoflop_loss(n, c, best, *exponents) for n, c in zip(parameters, flops, strict=True)]
    return ArmPoints(
        flops_P=flops,
        parameters_P=parameters,
        tokens_P=flops / parameters / 6,
        per_token_P=6 * parameters,
        means_P=np.array(means) + noise * rng.standard_normal(len(means)),
        errors_P=np.full(len(means), noise),
        degrees_P=np.full(len(means), 8.0),
    )


SIZES = [5e5, 1e6, 2.2e6, 4e6, 9e6]


@pytest.mark.parametrize(
    ("text", "flops", "name"), [("1e14", 1e14, "1e14"), ("3.2E+18", 3.2e18, "3.2e18"), ("2500000000", 2.5e9, "2.5e9")]
)
def test_compute_budgets_are_read_and_named(text: str, flops: float, name: str) -> None:
    assert parse_training_flops(text) == flops
    assert flops_name(flops) == name


@pytest.mark.parametrize("text", ["1e5", "1e31", "-1e14", "many", "nan", ""])
def test_other_compute_budgets_are_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="invalid training_flops"):
        parse_training_flops(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"3e9"', '["6e9", "3e9"]', "[ladder]: training_flops must be ascending"),
        ('"3e9"', '"many"', 'invalid training_flops "many": use a number above 0 such as 600M, 1.5T or 1e19'),
        ('"3e9"', '"1e8"', "1e8 training FLOPs are 3 steps of plain at 45K, and rounding needs at least 50"),
        ('["10K", "20K", "30K", "45K"]', '["10K", "20K", "30K"]', "training_flops needs at least 4 sizes"),
        ('"3e9"', '"3e9"\ntokens_per_parameter = 2', "training_flops sets the tokens: remove tokens_per_parameter"),
        ('["10K", "20K"', '["10K", "10.1K"', "the parameters of plain do not grow from size to size"),
        ('name = "gated"', 'name = "plain"', "arms must be at least one, with distinct short names"),
    ],
)
def test_an_invalid_compute_budget_is_one_line(file: Path, command: Command, old: str, new: str, message: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    ended = command("study", "run", str(file), "--dry-run", "--device", "A5000", "--root", str(file.parent / "runs"))
    assert message in one_line_error(ended).replace("\\", "")


def test_tokens_follow_from_the_flops_of_each_shape(file: Path, tmp_path: Path) -> None:
    study = named_study(str(file), tmp_path)
    config, base = study.load()
    found = isoflop_points(config, base, study.name)
    assert [point.study.study for point in found[:3]] == [
        "equal-3e9-10K-plain", "equal-3e9-10K-gated", "equal-3e9-20K-plain",
    ]  # fmt: skip
    for point in found:
        shape, data = point.study.arms[0].architecture, config.data
        per_token = shape.flops_per_token(data.sequence_length, data.noise_density, data.mean_span_length)
        assert point.flops_per_token == per_token
        assert point.study.tokens % point.study.batch_tokens == 0
        assert abs(point.study.tokens - 3e9 / per_token) <= point.study.batch_tokens / 2
        assert point.trained_flops == pytest.approx(3e9, rel=0.01)
        assert point.parameters == shape.num_params_non_embedding
    assert found[0].study.tokens > found[-1].study.tokens


@pytest.mark.parametrize("count", ["total", "non-embedding", "active"])
def test_the_parameters_of_a_point_are_those_that_the_budget_counts(count: str, file: Path, tmp_path: Path) -> None:
    space = file.with_name("space.toml")
    space.write_text(space.read_text().replace('count = "non-embedding"', f'count = "{count}"'))
    file.write_text(file.read_text().replace('["10K", "20K", "30K", "45K"]', '["30K", "40K", "52K", "66K"]'))
    study = named_study(str(file), tmp_path)
    config, base = study.load()
    for point in isoflop_points(config, base, study.name):
        shape = point.study.arms[0].architecture
        assert point.parameters == (shape.num_params_non_embedding if count == "non-embedding" else shape.num_params)
        assert point.parameters == pytest.approx(point.study.parameters, rel=0.2)


def test_points_of_a_started_study_cannot_change(file: Path, tmp_path: Path) -> None:
    study = named_study(str(file), tmp_path)
    config, base = study.load()
    found = isoflop_points(config, base, study.name)
    keep_isoflop(tmp_path / "equal", config, found)
    record = find_isoflop(tmp_path / "equal")
    assert record is not None
    assert [point.study for point in record.points] == [point.study.study for point in found]
    assert [point.training_flops for point in record.points] == [point.trained_flops for point in found]
    more = tuple(replace(p, study=replace(p.study, tokens=p.study.tokens + 128)) for p in found)
    keep_isoflop(tmp_path / "equal", config, more)  # no study was started
    (tmp_path / found[0].study.study).mkdir()
    (tmp_path / found[0].study.study / "study.json").write_text("{}")
    with pytest.raises(ConfigError, match="equal-3e9-10K-plain was started with L1-D24"):
        keep_isoflop(tmp_path / "equal", config, found)


def test_a_ladder_of_several_budgets_is_planned(file: Path, command: Command) -> None:
    file.write_text(file.read_text().replace('"3e9"', '["3e9", 6e9]'))
    root = ("--root", str(file.parent / "runs"))
    ended = command("study", "run", str(file), "--dry-run", "--device", "A5000", *root)
    assert ended.returncode == 0, ended.stderr
    assert "3e9 FLOPs: 10 trials" in ended.stdout  # two learning rates at the smallest size
    assert "6e9 FLOPs: 8 trials" in ended.stdout
    assert "all budgets: 18 trials" in ended.stdout
    wrong = command("study", "run", str(file), "--up-to", "3e8", *root)
    assert '--up-to 3e8: the ladder has no such budget. Did you mean "3e9"?' in one_line_error(wrong)
    assert not (file.parent / "runs").exists()


@pytest.mark.parametrize("exponents", [(0.34, 0.28), (0.25, 0.5), (0.5, 0.25)])
def test_the_minimum_is_recovered_without_noise(exponents: tuple[float, float]) -> None:
    found = fit_arm(points(SIZES, [1e14], 1e-5, exponents=exponents), [1e14]).optima[1e14]
    low, middle, high = (found.parameters_X[index] for index in found.ends)
    assert middle == pytest.approx(2e6, rel=0.02)
    assert low <= 2e6 * 1.01
    assert high >= 2e6 * 0.99
    assert high / low < 1.05
    assert found.tokens_X[found.ends[1]] == pytest.approx(1e14 / 6 / middle, rel=0.01)
    assert np.median(found.loss_B) == pytest.approx(isoflop_loss(2e6, 1e14, 2e6, *exponents), abs=1e-3)


def test_intervals_of_the_optimum_cover_the_truth() -> None:
    rng, held = np.random.default_rng(2), 0
    known = points(SIZES, [1e14], 0.005)
    truth = np.array([isoflop_loss(n, 1e14, 2e6) for n in SIZES])
    for seed in range(20):
        seen = replace(known, means_P=truth + 0.005 * rng.standard_normal(len(SIZES)))
        found = fit_arm(seen, [1e14], seed).optima[1e14]
        low, _, high = (found.parameters_X[index] for index in found.ends)
        held += low <= 2e6 * 1.01 and high * 1.01 >= 2e6
    assert held >= 18


@pytest.mark.parametrize(("sizes", "is_open"), [([*SIZES[2:], 2e7], (True, False)), ([3e5, *SIZES[:3]], (False, True))])
def test_a_minimum_outside_the_sizes_is_a_bound(sizes: list[float], is_open: tuple[bool, bool]) -> None:
    best = min(sizes) / 3 if is_open[0] else max(sizes) * 3
    found = fit_arm(points(sizes, [1e14], 0.003, best=best), [1e14]).optima[1e14]
    assert found.is_open == is_open


def test_the_growth_of_the_optimum_is_recovered() -> None:
    budgets = [2.5e13, 1e14, 4e14]
    fit = fit_arm(points(SIZES, budgets, 0.001), budgets)
    slopes = growth(fit.optima)
    assert slopes is not None
    assert np.median(slopes[0]) == pytest.approx(0.28 / 0.62, abs=0.04)
    assert np.median(slopes[1]) == pytest.approx(0.34 / 0.62, abs=0.04)
    assert fit.misfit_p is not None
    assert fit.misfit_p > 0.01
    assert growth({1e14: fit.optima[1e14]}) is None


def test_a_law_that_misses_the_losses_is_found() -> None:
    budgets = [2.5e13, 1e14, 4e14]
    seen = points(SIZES, budgets, 0.001)
    bent = replace(seen, means_P=seen.means_P + 0.05 * (seen.flops_P == 1e14))
    misfit = fit_arm(bent, budgets).misfit_p
    assert misfit is not None
    assert misfit < 1e-3


def test_losses_without_a_law_are_refused() -> None:
    seen = points(SIZES, [1e14], 1e-4)
    with pytest.raises(UsageError, match="the losses do not follow"):
        fit_arm(replace(seen, means_P=6 - seen.means_P), [1e14])


def test_rank_states_optima_bounds_and_differences(tmp_path: Path, command: Command) -> None:
    write_isoflop(tmp_path, {"plain": 1.6e6, "gated": 1e5})
    root = ("--root", str(tmp_path))
    found = json_of(command("rank", "equal", "--format", "json", *root))
    plain, gated = found["optima"]
    assert plain["is_inside"]
    low, high = plain["parameters"]["interval"]
    assert low < 1.6e6 < high
    assert plain["parameter_bounds"] == [low, high]
    assert not gated["is_inside"]
    assert (gated["parameters"], gated["tokens"], gated["parameter_bounds"][0]) == (None, None, None)
    [gap] = found["against_baseline"]
    assert (gap["arm"], gap["parameter_ratio"]) == ("gated", None)
    assert gap["loss_difference"]["value"] == pytest.approx(gated["loss"]["value"] - plain["loss"]["value"], abs=0.01)
    text = " ".join(command("rank", "equal", *root).stdout.split())
    assert "At 1e14 training FLOPs, the loss of plain is lowest at 1.6" in text
    assert "the loss of gated is lowest" in text
    assert "maybe below the smallest size: add smaller sizes." in text
    rows = list(csv.DictReader(io.StringIO(command("rank", "equal", "--format", "csv", *root).stdout)))
    assert len(rows) == 10
    assert {row["optimal_parameters"] for row in rows if row["arm"] == "gated"} == {""}
    assert float(rows[0]["optimal_parameters"]) == pytest.approx(plain["parameters"]["value"])
    assert "| 1e14 | plain |" in command("rank", "equal", "--format", "markdown", *root).stdout


def test_several_budgets_show_the_growth_also_while_one_is_unfinished(tmp_path: Path, command: Command) -> None:
    write_isoflop(tmp_path, {"plain": 1.6e6}, (2.5e13, 1e14, 4e14))
    root = ("--root", str(tmp_path))
    found = json_of(command("rank", "equal", "--format", "json", *root))
    [grown] = found["growth"]
    low, high = grown["parameters"]["interval"]
    assert low < 0.28 / 0.62 < high
    assert found["unfinished"] == []
    for path in (tmp_path / "equal-4e14-S2-plain" / "trials").glob("*"):
        (path / "result.json").unlink()
        (path / "outcome.json").unlink()
    found = json_of(command("rank", "equal", "--format", "json", *root))
    assert found["unfinished"] == ["equal-4e14-S2-plain"]
    assert [one["budget"] for one in found["optima"]] == ["2.5e13", "1e14", "4e14"]  # four of five sizes are enough
    for path in (tmp_path / "equal-4e14-S1-plain" / "trials").glob("*"):
        (path / "result.json").unlink()
        (path / "outcome.json").unlink()
    found = json_of(command("rank", "equal", "--format", "json", *root))
    assert [one["budget"] for one in found["optima"]] == ["2.5e13", "1e14"]
    assert found["faults"] == ["plain at 4e14 FLOPs has 3 of 4 sizes that a curve needs."]


def test_a_point_that_is_just_starting_has_no_trials(tmp_path: Path, command: Command) -> None:
    write_isoflop(tmp_path, {"plain": 3e5})
    study = find_isoflop(tmp_path / "equal").points[-1].study
    [trial, *others] = (tmp_path / study / "trials").iterdir()
    for path in (*others, trial):
        shutil.rmtree(path)
    trial.mkdir()
    found = json_of(command("rank", "equal", "--format", "json", "--root", str(tmp_path)))
    assert found["unfinished"] == [study]


def test_what_compute_budgets_lack_is_refused(tmp_path: Path, command: Command) -> None:
    write_isoflop(tmp_path, {"plain": 1.6e6})
    root = ("--root", str(tmp_path))
    assert "--at has no effect on equal" in one_line_error(command("rank", "equal", "--at", "4M", *root))
    assert "compares sizes by their seed noise" in one_line_error(
        command("rank", "equal", "--seed-noise", "none", *root)
    )
    assert "--tables has no effect on equal" in one_line_error(command("report", "equal", "--tables", "x", *root))
    needs = "equal is a ladder with training_flops, and {} needs one with tokens per parameter"
    assert needs.format("a forecast") in one_line_error(command("forecast", "equal", "--at", "4M", *root))
    assert needs.format("replay") in one_line_error(command("replay", "equal", *root))
    curves = command("export", "equal", "--format", "curves", *root)
    assert needs.format("--format curves") in one_line_error(curves)
    error = one_line_error(command("pareto", "equal", *root))
    assert "name one of its studies, equal-1e14-S0-plain, equal-1e14-S1-plain and 3 others." in error


def test_losses_without_a_law_are_said_to_have_none(tmp_path: Path, command: Command) -> None:
    write_isoflop(tmp_path, {"plain": 1.6e6}, noise=1.0)
    root = ("--root", str(tmp_path))
    found = json_of(command("rank", "equal", "--format", "json", *root))
    assert found["optima"] == []
    [fault] = found["faults"]
    assert fault.startswith("plain: the losses do not follow E + A N^-a + B D^-b")
    assert found["answer"] == f"No lowest loss can be stated. {fault}"
    assert command("report", "equal", *root).returncode == 0
    for path in tmp_path.glob("equal-1e14-S[34]-*/trials/*/result.json"):
        path.unlink()
    text = " ".join(command("rank", "equal", *root).stdout.split())
    assert "Answer: No budget has 4 sizes yet" in text
    assert "plain at 1e14 FLOPs has 3 of 4 sizes that a curve needs." in text


def test_the_page_has_curves_optima_and_growth(tmp_path: Path, command: Command) -> None:
    write_isoflop(tmp_path, {"plain": 1.6e6}, (2.5e13, 1e14))
    assert command("report", "equal", "--figures", str(tmp_path / "figures"), "--root", str(tmp_path)).returncode == 0
    page = (tmp_path / "equal" / "report.html").read_text()
    assert page.count('id="figure-isoflop"') == page.count('id="figure-growth"') == 1
    assert "Compute-optimal sizes" in page
    assert "the optimal parameters grow as C^0.4" in page
    assert {path.stem for path in (tmp_path / "figures").glob("*.svg")} == {"isoflop", "growth"}
    (tmp_path / "two").mkdir()
    write_isoflop(tmp_path / "two", {"plain": 1.6e6, "gated": 9e5}, (2.5e13, 1e14))
    assert command("report", "equal", "--root", str(tmp_path / "two")).returncode == 0
    page = (tmp_path / "two" / "equal" / "report.html").read_text()
    assert 'id="figure-isoflop-1"' in page
    assert 'id="figure-isoflop-2"' in page
    assert "Arms against plain" in page


def test_an_arm_without_an_optimum_inside_has_no_line_of_growth(tmp_path: Path, command: Command) -> None:
    write_isoflop(tmp_path, {"plain": 1.6e6, "gated": 1e9}, (2.5e13, 1e14))
    found = json_of(command("rank", "equal", "--format", "json", "--root", str(tmp_path)))
    assert {one["arm"] for one in found["optima"] if one["is_inside"]} == {"plain"}
    assert command("report", "equal", "--root", str(tmp_path)).returncode == 0
    page = (tmp_path / "equal" / "report.html").read_text()
    assert 'id="figure-growth"' in page
    assert 'd="M"' not in page


def test_the_studies_run_by_budget_and_size_and_one_that_fails_does_not_stop_them(file: Path, tmp_path: Path) -> None:
    text = file.read_text().replace("learning_rates = [1e-3, 4e-3]\n", "").replace('"3e9"', '["3e9", "6e9"]')
    file.write_text(text)
    study, ran = named_study(str(file), tmp_path), []
    options = Namespace(root=tmp_path, up_to=None, extend=False, dry_run=False, create=False)

    def run_one(own: NamedStudy, _: Namespace) -> int:
        ran.append(own)
        return int(own.name == "equal-3e9-20K-gated")

    assert run_isoflop(study, study.loaded(), options, run_one, lambda *_: ({}, None)) == 1
    assert [own.name for own in ran] == [
        f"equal-{budget}-{size}-{arm}"
        for budget in ("3e9", "6e9") for size in ("10K", "20K", "30K", "45K") for arm in ("plain", "gated")
    ]  # fmt: skip
    record = find_isoflop(tmp_path / "equal")
    assert record is not None
    assert [own.load()[0].training.tokens for own in ran] == [point.tokens for point in record.points]
    assert [own.load()[0].search.architectures for own in ran] == [(p.architecture.name,) for p in record.points]
    ran.clear()
    options.up_to = "3e9"
    assert run_isoflop(study, study.loaded(), options, run_one, lambda *_: ({}, None)) == 1
    assert len(ran) == 8
    ran.clear()
    options.create = True
    assert run_isoflop(study, study.loaded(), options, run_one, lambda *_: ({}, None)) == 0
    assert [own.name for own in ran] == ["equal-3e9-10K-plain", "equal-3e9-10K-gated"]


def trained(file: Path, root: Path) -> dict[str, tuple[tuple[float, ...], float, int]]:
    """Run a ladder whose trials get made-up losses, and return the rates, the rate and the warm-up of each study.

    Losses are lowest at the first of several rates.
    """
    study, ran = named_study(str(file), root), {}

    def run_one(own: NamedStudy, _: Namespace) -> int:
        config, _base = own.load()
        rates = config.search.learning_rates
        ran[own.name] = (rates, config.training.learning_rate, config.training.warmup_tokens)
        if not own.is_started:
            [shape] = config.search.architectures
            write_study(root, {shape: [3.0]}, name=own.name, rates=rates or (config.training.learning_rate,))
        return 0

    options = Namespace(root=root, up_to=None, extend=False, dry_run=False, create=False)
    assert run_isoflop(study, study.loaded(), options, run_one, lambda *_: ({}, None)) == 0
    return ran


@pytest.mark.parametrize(
    ("old", "new", "added"),
    [
        ('["10K", "20K"', '["8K", "10K", "20K"', "equal-3e9-8K-plain"),
        ('"3e9"', '["2.4e9", "3e9"]', "equal-2.4e9-10K-plain"),
        ('"3e9"', '["3e9", "6e9"]', "equal-6e9-10K-plain"),
        ("[data]", '[[ladder.arms]]\nname = "big"\ndirections = { "d_ff / d_model" = 8 }\n[data]', "equal-3e9-20K-big"),
    ],
)  # fmt: skip
def test_what_is_added_to_a_started_ladder_changes_no_rate_and_no_warm_up(
    file: Path, tmp_path: Path, command: Command, old: str, new: str, added: str
) -> None:
    root, text = tmp_path / "runs", file.read_text()
    root.mkdir()
    assert old in text
    before = trained(file, root)
    assert before["equal-3e9-10K-plain"] == ((1e-3, 4e-3), 4e-3, 128)
    file.write_text(text.replace(old, new, 1))
    after = trained(file, root)
    assert {name: after[name] for name in before} == before
    assert after[added][:2] == ((), 1e-3)
    record = find_isoflop(root / "equal")
    assert record is not None
    assert record.first == ("3e9", "10K")
    [point] = [point for point in record.points if point.study == added]
    [first] = [point for point in record.points if point.study == "equal-3e9-10K-plain"]
    assert after[added][2] == 128 * point.tokens // first.tokens
    plan = ("study", "run", str(file), "--dry-run", "--device", "A5000", "--root", str(root))
    assert command(*plan).returncode == 0
    assert json_of(command("rank", "equal", "--format", "json", "--root", str(root)))["learning_rate"] == 1e-3
    file.write_text(text.replace('["10K", "20K", "30K", "45K"]', '["20K", "30K", "45K", "60K"]'))
    error = one_line_error(command(*plan))
    assert "equal was started with its learning rates and its warm-up at 3e9 training FLOPs and 10K" in error


def test_a_retry_where_rates_are_tried_does_not_change_the_carried_rate(tmp_path: Path, file: Path) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    trained(file, root)
    record = find_isoflop(root / "equal")
    assert record is not None
    for arm in ("plain", "gated"):  # both arms would now be better at the other rate
        [path] = (root / f"equal-3e9-10K-{arm}" / "trials").glob("0001-*")
        table = json.loads((path / "result.json").read_text()) | {"loss": 2.0}
        write_json(path / "result.json", sealed({key: table[key] for key in table if key != "sha256"}))
    studies = point_studies(record, root)
    assert sorted(trial.loss or 0 for trial in studies["equal-3e9-10K-plain"].trials) == [2.0, 3.0]
    assert chosen_rate(record, studies) == 1e-3


@pytest.mark.torture
def test_a_tiny_ladder_trains_its_points_at_equal_flops(file: Path, command: Command, tmp_path: Path) -> None:
    text = file.read_text().replace(
        '[[ladder.arms]]\nname = "gated"\nfields = { feed_forward_proj = "gated-gelu" }\n', ""
    )
    file.write_text(text.replace('"3e9"', '"2e9"'))
    root = ("--root", str(tmp_path / "runs"))
    ended = run_command("study", "run", str(file), *root)
    assert ended.returncode == 0, ended.stderr
    assert "equal: 2e9 FLOPs ended. Ladder: march-search rank equal" in ended.stderr
    found = json_of(command("rank", "equal", "--format", "json", *root))
    assert [row["size"] for row in found["points"]] == ["10K", "20K", "30K", "45K"]
    assert found["unfinished"] == []
    for row in found["points"]:
        assert row["training_flops"] == pytest.approx(2e9, rel=0.01)
        [*_, path] = sorted((tmp_path / "runs" / f"equal-2e9-{row['size']}-plain" / "trials").glob("*/trial.json"))
        training = json.loads(path.read_text())["training"]
        assert training["tokens"] == row["tokens"]
        assert row["size"] == "10K" or training["learning_rate"] == found["learning_rate"]
    status = command("study", "status", "equal", *root)
    assert "equal-2e9-10K-plain: 2 of 2 trials ended" in status.stdout
    again = run_command("study", "run", str(file), *root)
    assert again.returncode == 0, again.stderr


def test_the_plan_of_an_encoder_decoder_needs_sentinels(file: Path, command: Command) -> None:
    vocabulary = {"<|endoftext|>": 511} | {f"t{number}": number for number in range(511)}
    Tokenizer(models.BPE(vocab=vocabulary, merges=[])).save(str(file.parent / "t.json"))
    file.write_text(file.read_text().replace("[data]\n", '[data]\ntokenizer = "t.json"\n'))
    ended = command("study", "run", str(file), "--dry-run", "--device", "A5000", "--root", str(file.parent / "runs"))
    assert ended.returncode != 0
    assert "encoder-decoders need 100 sentinels after its 512 tokens" in one_line_error(ended)
