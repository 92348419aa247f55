"""Budgets of other kinds than parameters: complete and exact by comparison with brute force, and their errors."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_space_feasible_set import brute_force, space_tables

from march_search import Architecture, FeasibleSampler, SearchSpace, solve
from march_search.config.counts import parse_bytes, parse_hours, parse_operations
from march_search.cost.devices import Device, parse_device
from march_search.cost.inference import cache_bytes_per_token
from march_search.cost.memory import memory_bytes
from march_search.cost.setup import Setup
from march_search.cost.speed import flops_per_token, hours
from march_search.errors import BudgetError, ConfigError, EmptySetError
from march_search.space import solver
from march_search.space.budget import Budget
from march_search.space.infeasible import solve_or_explain
from march_search.space.limits import KINDS, Limit

PUBLIC: dict[str, Callable[[Architecture, Setup], float]] = {
    "flops_per_token": flops_per_token,
    "training_flops": lambda a, s: flops_per_token(a, s) * s.tokens,
    "hours": hours,
    "bytes_per_device": memory_bytes,
    "kv_cache_bytes_per_token": cache_bytes_per_token,
}
"""The public formula behind each kind, for one architecture."""

ANY_SIZE = Budget(10**12, Fraction(999_999_999, 10**9))

DEVICES = [parse_device("8xA100"), parse_device("H100"), parse_device("2xA5000")]
CPU = Device(name="cpu", memory_bytes=0, bf16_flops=1e11, fp32_flops=2e11, utilisation=0.8, keeps_scores=True)
SETUPS = st.builds(
    Setup,
    device=st.sampled_from([*DEVICES, CPU]),
    tokens=st.sampled_from([10**6, 10**9]),
    sequence_length=st.sampled_from([16, 64, 512]),
    micro_batch=st.sampled_from([1, 8]),
    precision=st.sampled_from(["fp32", "bf16"]),
    zero_stage=st.sampled_from([0, 2, 3]),
    checkpointing=st.booleans(),
    optimizer=st.sampled_from(["adamw", "muon"]),
)


def narrow(table: dict) -> dict:
    """Return a space table with fewer values per axis, so that brute force is quick; `d_ff` keeps all."""
    kept = {
        name: values[:2] if isinstance(values, list) and name != "d_ff" else values
        for name, values in table["axes"].items()
    }
    return table | {"axes": kept | {"d_kv": kept["d_kv"][:1]}}


def limit_around(draw: st.DrawFn, kind: str, values: list[float], setup: Setup) -> Limit:
    """Return a budget whose end is at, or just above, the value of an architecture of the grid."""
    value = draw(st.sampled_from(sorted(set(values)))) if values else 1e6
    is_exact = kind in ("flops_per_token", "kv_cache_bytes_per_token")
    high = value if is_exact and draw(st.booleans()) else value * (1 + 1e-9)
    low = high * draw(st.sampled_from([0.7, 0.95])) if KINDS[kind].has_target and draw(st.booleans()) else 0.0
    return Limit(kind=kind, aim=high, low=low, high=high, setup=setup)


@given(space_tables().map(narrow), SETUPS, st.data())
@settings(max_examples=10, deadline=None)
def test_the_set_under_each_budget_and_under_several_equals_brute_force(
    table: dict, setup: Setup, data: st.DataObject
) -> None:
    space = SearchSpace.from_table(table)
    grid = brute_force(replace(space, budget=ANY_SIZE))
    known = {a: {kind: PUBLIC[kind](a, setup) for kind in KINDS} for a in grid}
    limits = {
        kind: data.draw(st.composite(limit_around)(kind, [values[kind] for values in known.values()], setup))
        for kind in KINDS
    }
    several = data.draw(st.lists(st.sampled_from(list(KINDS)), min_size=2, max_size=4, unique=True))
    for budget, kinds in [*((None, [kind]) for kind in KINDS), (None, several), (space.budget, several[:2])]:
        chosen = [limits[kind] for kind in KINDS if kind in kinds]
        found = solve(replace(space, budget=budget, limits=tuple(chosen)))
        expected = {
            a
            for a in grid
            if (budget is None or budget.holds(a)) and all(one.low <= known[a][one.kind] <= one.high for one in chosen)
        }
        members = list(found)
        assert len(members) == len(found) == len(expected)
        assert set(members) == expected
        assert all(a in found and found.index(a) == index for index, a in enumerate(members[:20]))
        assert all(a not in found for a in list(grid - expected)[:20])


DECODER = {
    "budget": {},
    "rules": ["num_heads % 2 == 0", "d_ff <= 6 * d_model"],
    "axes": {
        "structure": "decoder-only",
        "position": "rotary",
        "num_layers": [2, 4, 6],
        "d_model": {"min": 64, "max": 256, "multiple_of": 64},
        "num_heads": [4, 8],
        "num_key_value_heads": [1, 2, 4],
        "d_kv": [16, 32],
        "d_ff": {"min": 64, "max": 1024, "multiple_of": 64},
        "feed_forward_proj": ["gelu", "gated-silu"],
        "tie_word_embeddings": [True, False],
        "vocab_size": 512,
    },
}


def decoder_table(**budget: object) -> dict:
    """A space of decoder-only models with shared keys and values, gated or not, tied or not."""
    return DECODER | {"budget": budget}


def test_decoders_with_shared_keys_and_values_meet_all_budgets_together() -> None:
    space = SearchSpace.from_table(
        decoder_table(
            parameters="1M",
            tolerance="10%",
            flops_per_token="<=6.3M",
            training_flops="5.9e13",
            hours=0.0109,
            bytes_per_device="119.7MB",
            kv_cache_bytes_per_token=500,
            device="2xA100",
            tokens="10M",
            sequence_length=64,
            micro_batch=4,
        )
    )
    assert [limit.kind for limit in space.limits] == list(KINDS)
    setup = Setup(device=parse_device("2xA100"), tokens=10**7, sequence_length=64, micro_batch=4)
    expected = {
        a
        for a in solve(replace(space, budget=Budget.parse("1M", "99%"), limits=()))
        if 900_000 <= a.num_params <= 1_100_000
        and a.flops_per_token(64) <= 6.3e6
        and 0.9 * 5.9e13 <= a.flops_per_token(64) * 10**7 <= 1.1 * 5.9e13
        and hours(a, setup) <= 0.0109
        and memory_bytes(a, setup) <= 119.7e6
        and cache_bytes_per_token(a, setup) <= 500
    }
    found = solve(space)
    assert set(found) == expected
    assert len(expected) > 50
    for one in ("parameters", *KINDS):  # each of the budgets leaves something out
        fewer = replace(space, limits=tuple(limit for limit in space.limits if limit.kind != one))
        fewer = fewer if one != "parameters" else replace(space, budget=None)
        assert len(solve(fewer)) > len(found), one
    values = {(a.num_key_value_heads, a.feed_forward_proj, a.tie_word_embeddings) for a in found}
    assert len(values) == 8


@given(space_tables(), SETUPS)
@settings(max_examples=10, deadline=None)
def test_no_measure_falls_as_d_ff_rises(table: dict, setup: Setup) -> None:
    table["axes"]["d_ff"] = {"min": 1, "max": 4096, "multiple_of": 1}
    table["budget"] |= {"tolerance": "99%"}
    found = solve(SearchSpace.from_table(table | {"rules": []}))
    start = found.begins[:-1][:3]
    for first, length in zip(start, found.intervals.length[:3], strict=True):
        members = found.decode(np.arange(first, first + length))
        for kind in KINDS.values():
            values = members.map(lambda shape, kind=kind: kind.measure(shape, setup))
            assert (np.diff(values) >= 0).all()


def test_selections_work_on_a_set_without_a_parameter_budget() -> None:
    space = SearchSpace.from_table(decoder_table(flops_per_token="6M", tolerance="5%", sequence_length=64))
    found = solve(space)
    assert found.budget is None
    assert found.condition == "6,000,000 FLOPs per token ± 5%"
    setup = space.limits[0].setup
    ordered = [abs(flops_per_token(a, setup) - 6e6) for a in found.top(0)]
    assert ordered == sorted(ordered)
    assert len(ordered) == len(found)
    percent = found.members().difference_percent()
    assert np.abs(percent).max() <= 5
    assert [found.difference_percent(a) for a in found[:9]] == pytest.approx(percent[:9].tolist())
    assert len(set(found.sample(50, seed=0))) == 50
    assert len(set(found.design(9))) == 9
    assert all(a in found for a in found.pareto(["params", "-depth"]))
    target = Architecture(structure="decoder-only", position="rotary", num_layers=3, d_model=128, num_heads=4, d_kv=32)
    assert found.project(target) in found
    distances = [found.select(np.array([i])).members().octaves_from(target)[0] for i in range(0, len(found), 9)]
    assert found.nearest(target)[0] in found
    assert found.members().octaves_from(target).min() <= min(distances)


def test_a_sampler_proposes_members_only() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = solve(
        SearchSpace.from_table(
            decoder_table(kv_cache_bytes_per_token="<=600", flops_per_token="6M", sequence_length=64)
        )
    )
    sampler = FeasibleSampler(found, inner="tpe", seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: float(sampler.suggest(trial).d_model), n_trials=20)
    names = [trial.user_attrs["architecture"] for trial in study.trials]
    assert len(set(names)) == 20
    assert all(Architecture.parse(name) in found for name in names)


def test_budgets_from_python_replace_those_of_the_same_kind() -> None:
    space = SearchSpace.load("cpu-demo")
    both = space.with_limits(hours=1, device="8xH100", tokens="1B").with_limits(tolerance="1%", flops_per_token="8M")
    assert [str(limit) for limit in both.limits] == [
        "8,000,000 FLOPs per token ± 1%",
        "at most 1 hour for 1,000,000,000 tokens on 8xH100",
    ]
    assert both.budget == space.budget
    assert both.condition.startswith("1,300,000 parameters ± 2%, 8,000,000 FLOPs per token ± 1% and at most 1 hour")
    again = both.with_limits(flops_per_token="<=9M", tokens=5 * 10**8)
    assert [limit.setup.tokens for limit in again.limits] == [5 * 10**8] * 2
    assert (again.limits[0].low, again.limits[0].high) == (0, 9e6)
    assert set(solve(both)) == {a for a in solve(space) if all(limit.holds(a) for limit in both.limits)}
    assert space.with_limits(flops_per_token="8M").limits[0].high == 8e6 * 1.02  # the tolerance of the space


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"hours": 4}, 'a budget of hours depends on the device: name one with --device 8xH100, or with device = "8x'),
        ({"bytes_per_device": "4GB"}, "a budget of bytes_per_device depends on the device"),
        ({"hours": 4, "device": "cpu"}, "hours on a cpu differ from measurement to measurement"),
        ({"hours": 4, "device": "B300"}, 'unknown device "B300"'),
        ({"hours": -4, "device": "H100"}, 'invalid hours "-4": use a number above 0 such as 48 or 0.5.'),
        ({"flops_per_token": "600MB"}, 'invalid flops_per_token "600MB": use a number above 0 such as 600M, 1.5T or'),
        ({"bytes_per_device": "24XB", "device": "H100"}, 'invalid bytes_per_device "24XB": use a number above 0 such'),
        ({"parameters": "1M", "device": "H100"}, '"budget.device" has no effect'),
        ({"flops_per_token": "6M", "count": "total"}, '"budget.count" has no effect without "budget.parameters"'),
        ({"tolerance": "1%"}, "[budget] has no budget: set parameters, flops_per_token, training_flops, hours, by"),
        ({"flops_per_tokens": "6M"}, 'unknown key "budget.flops_per_tokens". Did you mean "flops_per_token"?'),
        ({"flops_per_token": "6M", "sequence_length": 1}, "sequence"),
    ],
)
def test_an_invalid_budget_is_refused_in_one_line(budget: dict, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SearchSpace.from_table(decoder_table(**budget))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faults_of_a_budget_are_reported_together() -> None:
    with pytest.raises(ConfigError, match=r"2 faults:\n.*invalid parameter budget.*\n.*invalid flops_per_token"):
        SearchSpace.from_table(decoder_table(parameters="many", flops_per_token="0"))


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match='Did you mean "hours"'):
        SearchSpace.load("t5").with_limits(hour=3)


@pytest.mark.parametrize(
    ("text", "value"),
    [("24GB", 24e9), ("40 KB", 4e4), ("80GiB", 80 * 2**30), ("1.5kib", 1536), ("512", 512), ("7B", 7), ("1e6", 1e6)],
)
def test_bytes_have_decimal_or_binary_units(text: str, value: float) -> None:
    assert parse_bytes(text, "memory") == value


@pytest.mark.parametrize("text", ["", "GB", "0", "-1GB", "5iB", "1,5GB", "24 G B", "1e15", "9" * 500, "24GB\n1"])
def test_invalid_bytes_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(BudgetError, match="24GB, 40KB or 80GiB") as caught:
        parse_bytes(text, "memory")
    assert "\n" not in str(caught.value)


def test_operations_and_hours_are_numbers_above_0() -> None:
    assert parse_operations("1e19", "flops") == 10**19
    assert parse_operations("1.5T", "flops") == 15 * 10**11
    assert parse_hours("0.5", "hours") == Fraction(1, 2)
    for text in ("48M", "48h", "nan", "0"):
        with pytest.raises(BudgetError, match=r"48 or 0\.5"):
            parse_hours(text, "hours")
    with pytest.raises(BudgetError, match="1e19"):
        parse_operations("1e31", "flops")


def nearest_values(space: SearchSpace, kind: str) -> tuple[float, float]:
    """Return the smallest and largest measure of all architectures that meet the other budgets, by brute force."""
    others = [limit for limit in space.limits if limit.kind != kind]
    [one] = [limit for limit in space.limits if limit.kind == kind]
    every = solve(replace(space, budget=Budget.parse("1M", "99%"), limits=()))
    values = [
        one.measure(a)
        for a in every
        if all(limit.holds(a) for limit in others) and (space.budget is None or space.budget.holds(a))
    ]
    return min(values), max(values)


def test_an_empty_set_names_the_budget_that_rules_everything_out() -> None:
    space = SearchSpace.from_table(decoder_table(kv_cache_bytes_per_token=10, flops_per_token="<=6M"))
    with pytest.raises(EmptySetError) as caught:
        solve_or_explain(space)
    least, _ = nearest_values(replace(space, limits=space.limits[1:]), "kv_cache_bytes_per_token")
    assert str(caught.value).startswith(
        "No architecture in the space space has at most 6,000,000 FLOPs per token and at most 10B of key/value cache "
        "per token. This budget alone rules out every architecture (at most 10B of key/value cache per token). "
        f"Nearest: {least:g}B of key/value cache per token (L2-"
    )


def test_an_empty_set_names_the_nearest_value_of_each_budget_with_the_others_met() -> None:
    space = SearchSpace.from_table(
        decoder_table(parameters="1M", tolerance="1%", flops_per_token="2M", sequence_length=64)
    )
    with pytest.raises(EmptySetError) as caught:
        solve_or_explain(space)
    message = str(caught.value)
    assert "Each budget can be met alone, but not all together. Nearest, with the other met: " in message
    least, _ = nearest_values(space, "flops_per_token")
    assert f"{least:,.0f} FLOPs per token (" in message
    most = max(a.num_params for a in solve(replace(space, budget=None)))
    assert f"{most:,} parameters (" in message


def test_rules_without_any_grid_point_are_blamed_themselves() -> None:
    table = decoder_table(flops_per_token="2M") | {"rules": ["num_layers > 6"]}
    with pytest.raises(EmptySetError, match="No grid point satisfies the rules"):
        solve_or_explain(SearchSpace.from_table(table))


def test_a_set_of_too_many_intervals_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "MOST_INTERVALS", 100)
    space = SearchSpace.from_table(decoder_table(kv_cache_bytes_per_token="1MB"))
    with pytest.raises(ConfigError, match=r"more than 100 intervals of d_ff\. Add a parameter budget, or use fewer"):
        solve(space)


def test_operations_that_exceed_64_bits_are_refused() -> None:
    wide = {"num_layers": 1024, "d_model": 2**19, "num_heads": 2**10, "d_kv": 2**8, "d_ff": 2**20}
    table = {"axes": wide, "budget": {"flops_per_token": "1e20"}}
    with pytest.raises(ConfigError, match="operations exceed 64 bits at 512 tokens per sequence"):
        solve(SearchSpace.from_table(table))


def test_a_billion_grid_points_are_solved_without_listing_them() -> None:
    space = SearchSpace.load("t5").with_limits(tolerance="0.1%", flops_per_token="600M")
    found = solve(space)
    assert space.grid_size() > 10**9
    for a in found.sample(50, seed=0):
        assert abs(a.flops_per_token() / 600e6 - 1) <= 0.001
    one = found[0]
    fixed = {axis: (getattr(one, axis),) for axis in ("num_layers", "d_model", "num_heads", "d_kv")}
    part = replace(space, axes=space.axes | fixed)
    every = solve(replace(part, budget=Budget.parse("1B", "99%"), limits=()))
    assert one in solve(part)
    assert set(solve(part)) == {a for a in every if space.limits[0].holds(a)}


def test_a_space_file_may_have_any_budget(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[budget]\ntraining_flops = 1e15\ntokens = 100_000_000\nbytes_per_device = "1GB"\ndevice = "cpu"\n[axes]\n'
    )
    flops, size = SearchSpace.load(path).limits
    assert str(flops) == "1e+15 FLOPs for 100,000,000 tokens ± 1.5%"
    assert str(size) == "at most 1GB per device in training on cpu"
    assert size.setup.device.keeps_scores
