"""A study on a space with budgets of other kinds than parameters: its candidates, its record, its plan, its changes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.toy_studies import TOY_CONFIG

from march_search.config import SearchConfig, StudyConfig
from march_search.cost.devices import parse_device
from march_search.cost.inference import cache_bytes_per_token
from march_search.cost.setup import study_setup
from march_search.cost.speed import flops_per_token, hours
from march_search.errors import ConfigError, EmptySetError
from march_search.planning import candidates, extension, study_state
from march_search.planning.plan import plan_rows
from march_search.space.directions import follow
from march_search.storage.study_folder import StudyFolder, read_record, write_record

SPACE = """
[budget]
{budget}
[axes]
num_layers = [1, 2, 3]
d_model = [96, 128, 192]
num_heads = 4
d_kv = [16, 32]
d_ff = {{ min = 64, max = 2048, multiple_of = 64 }}
vocab_size = 2048
position = "rotary"
"""

FLOPS = 'flops_per_token = "<=5M"\n'
HOURS = 'hours = 2.5e-6\ndevice = "H100"\n'
CONFIG = replace(TOY_CONFIG, space="own.toml", budget=None, tolerance=None, search=SearchConfig(trials=3))


def chosen(folder: Path, budget: str, config: StudyConfig = CONFIG) -> candidates.Candidates:
    """Return the candidates of a study on a space with this budget, which is written to `folder`."""
    (folder / "own.toml").write_text(SPACE.format(budget=budget))
    return candidates.choose(config, folder)


def start(folder: Path, budget: str) -> candidates.Candidates:
    """Record a study as its first start does, and return its candidates."""
    first = chosen(folder, budget)
    study = StudyFolder.of(folder, "toy")
    study.keep_settings(CONFIG, first.architectures)
    study_state.keep_candidates(study.path, first)
    study.keep_store(folder / "store")
    return first


@pytest.mark.parametrize("strategy", ["design", "sample", "all", "tpe"])
def test_candidates_meet_all_budgets_of_the_space(strategy: str, tmp_path: Path) -> None:
    config = replace(CONFIG, search=SearchConfig(trials=3, strategy=strategy))
    first = chosen(tmp_path, FLOPS + HOURS + "kv_cache_bytes_per_token = 1200", config)
    setup = study_setup(config, replace(parse_device("H100"), count=config.devices.ranks))
    for a in first.architectures or first.found:
        assert flops_per_token(a, setup) <= 5e6
        assert hours(a, setup) <= 2.5e-6
        assert cache_bytes_per_token(a, setup) <= 1200
    assert len(first.found) > 3


def test_the_set_is_that_of_the_trials_of_the_study(tmp_path: Path) -> None:
    training = TOY_CONFIG.training
    longer = replace(CONFIG, training=replace(training, tokens=2 * training.tokens))
    once, twice = (len(chosen(tmp_path, HOURS, config).found) for config in (CONFIG, longer))
    assert once > twice > 0
    for line, words in (
        ("tokens = 1000\n", f"[budget] tokens of the space own is 1000, but the study's trials have {training.tokens}"),
        ('precision = "fp32"\n', "[budget] precision of the space own is fp32, but the study's trials have bf16"),
    ):
        with pytest.raises(ConfigError) as caught:
            chosen(tmp_path, HOURS + line)
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match=r"device of the space own is 8xH100, but a trial has \[devices\] ranks = 1"):
        chosen(tmp_path, HOURS.replace("H100", "8xH100"))
    assert len(chosen(tmp_path, HOURS + f"tokens = {training.tokens}\n").found) == once


def test_a_worker_restores_the_same_set_from_the_record(tmp_path: Path) -> None:
    first = start(tmp_path, FLOPS + HOURS)
    (tmp_path / "own.toml").unlink()
    again = study_state.restored_candidates(tmp_path / "toy")
    assert list(again.found) == list(first.found)
    assert again.found.limits == first.found.limits
    assert again.architectures == first.architectures


def test_the_record_of_a_study_with_parameters_alone_is_unchanged(tmp_path: Path) -> None:
    start(tmp_path, 'parameters = "1.3M"\ntolerance = "5%"')
    space = read_record(tmp_path / "toy")["space"]
    assert list(space) == ["axes", "rules", "budget"]
    assert space["budget"] == {"parameters": 1_300_000, "tolerance": "1/20", "count": "total"}


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (FLOPS, FLOPS + HOURS, "narrower than when the study started: the budget of at most 2.5e-06 hours"),
        (FLOPS + HOURS, FLOPS, "wider than when the study started: the budget of at most 2.5e-06 hours"),
        (FLOPS, FLOPS.replace("5M", "4M"), "narrower than when the study started: the budget was at most 5,000,000 FL"),
        (FLOPS, FLOPS.replace("5M", "6M"), "wider than when the study started: the budget was at most 5,000,000 FLOPs"),
        (HOURS, HOURS.replace("H100", "A100"), "narrower than when the study started: the budget was at most 2.5e-06"),
        ('parameters = "1M"', 'parameters = "1M"\n' + FLOPS, "narrower than when the study started: the budget of at"),
        (
            'parameters = "700K"\ntolerance = "10%"\n' + FLOPS,
            FLOPS,
            "wider than when the study started: the budget of 700,000 param",
        ),
    ],
)
def test_a_changed_budget_is_noticed(before: str, now: str, words: str, tmp_path: Path) -> None:
    start(tmp_path, before)
    same = extension.extended_candidates(tmp_path / "toy", CONFIG, chosen(tmp_path, before), extend=False)
    assert same.architectures
    with pytest.raises(ConfigError) as caught:
        extension.extended_candidates(tmp_path / "toy", CONFIG, chosen(tmp_path, now), extend=False)
    assert words in str(caught.value)


def test_the_plan_names_every_budget(tmp_path: Path) -> None:
    first = chosen(tmp_path, FLOPS + HOURS)
    row = dict(plan_rows(CONFIG, first, "", tmp_path))["candidates"]
    assert row.startswith(
        f"3 of {len(first.found):,} feasible for at most 5,000,000 FLOPs per token and at most 2.5e-06 hours for "
        f"{CONFIG.training.tokens:,} tokens on H100 (design"
    )


def test_a_study_without_any_feasible_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmptySetError, match=r"This budget alone rules out every architecture\. Nearest: \d"):
        chosen(tmp_path, "kv_cache_bytes_per_token = 1")


def test_a_ladder_refuses_a_budget_that_depends_on_tokens(tmp_path: Path) -> None:
    space = chosen(tmp_path, 'parameters = "1M"\n' + HOURS).found.space
    with pytest.raises(ConfigError, match="has a budget of hours, which depends on the tokens of a trial"):
        follow(space, {"d_model / num_layers": 64}, {})
    space = chosen(tmp_path, 'parameters = "700K"\ntolerance = "20%"\n' + FLOPS).found.space
    arm = follow(space, {"d_model / num_layers": 64}, {})
    assert all(limit.holds(arm.architecture) for limit in space.limits)


def test_a_damaged_record_is_reported_in_one_line(tmp_path: Path) -> None:
    start(tmp_path, FLOPS)
    folder = tmp_path / "toy"
    record = json.loads(json.dumps(read_record(folder)))
    record["space"]["limits"][0]["kind"] = "joules"
    write_record(folder, record)
    with pytest.raises(Exception, match=r"study\.json: is damaged"):
        study_state.restored_candidates(folder)
