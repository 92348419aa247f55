"""The feasible set: complete and exact by comparison with brute force, its selections, and its errors."""

import itertools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.reference import march_architecture, march_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from march_search import Architecture, SearchSpace, solve
from march_search.architecture.architecture import CHOICES, DEFAULTS
from march_search.architecture.checkpoints import read_architecture
from march_search.config.shipped import shipped_path
from march_search.cost.setup import Setup
from march_search.errors import ArchitectureError, ConfigError, EmptySetError, UsageError
from march_search.space.axes import AXES
from march_search.space.budget import Budget
from march_search.space.conditions import parse_conditions, solve_where
from march_search.space.feasible_set import FeasibleSet
from march_search.space.infeasible import solve_or_explain
from march_search.space.rules import Rule

T5_BASE, T5_LARGE = Architecture(), Architecture(num_layers=24, d_model=1024, num_heads=16, d_ff=4096)
RULES = ["num_heads * d_kv == d_model", "1 <= d_ff / d_model <= 4", "d_ff % 128 == 0 or num_layers > 1", "d_ff != 192"]
RULES += ["num_heads <= 2 * num_key_value_heads", "attention_window < 8 or num_layers > 2"]


def lists(values: list, most: int) -> st.SearchStrategy[list]:
    """One to `most` distinct values."""
    return st.lists(st.sampled_from(values), min_size=1, max_size=most, unique=True)


@st.composite
def space_tables(draw: st.DrawFn) -> dict:
    """A small space in which any axis may vary."""
    axes: dict = {
        "num_layers": draw(lists([1, 2, 3, 4], 3)),
        "d_model": draw(lists([128, 192, 256], 2)),
        "num_heads": draw(lists([1, 2, 3, 4], 3)),
        "d_kv": draw(lists([32, 64], 2)),
        "d_ff": draw(lists([64, 128, 192, 256, 512, 640], 5)),
        "vocab_size": 500,
    }
    extra = {name: lists(list(known), 2) for name, known in CHOICES.items()} | {
        "num_decoder_layers": lists([1, 2, 3], 2),
        "share_layers": lists([1, 2, "all"], 2),
        "d_bottleneck": lists([64, 128], 2),
        "length_reduction": lists([1.0, 0.5], 2),
        "num_key_value_heads": lists([1, 2, 3, 4], 3),
        "rotary_fraction": lists([1.0, 0.5, 0.0625], 2),
        "rotary_base": lists([10000.0, 5e5], 2),
        "rotary_scaling": lists([1.0, 8.0], 1),
        "attention_window": lists(["none", 4, 64], 2),
        "global_every": lists([0, 1, 2], 2),
        "logit_softcap": lists(["none", 30], 2),
        "norm_epsilon": lists([1e-6, 1e-5], 2),
    }
    if draw(st.booleans()):  # two thirds of the fields make sense for one stack only, or in rotary positions
        axes |= {"structure": "decoder-only", "position": draw(lists(["rotary", "none"], 2))}
    for axis in draw(st.lists(st.sampled_from(sorted(extra)), max_size=4, unique=True)):
        axes[axis] = draw(extra[axis])
    budget = {
        "parameters": str(draw(st.integers(300_000, 2_000_000))),
        "tolerance": draw(st.sampled_from(["5%", "30%"])),
    }
    budget["count"] = draw(st.sampled_from(["total", "non-embedding"]))
    rules = draw(st.lists(st.sampled_from(RULES), max_size=2, unique=True))
    return {"axes": axes, "budget": budget, "rules": rules}


def brute_force(space: SearchSpace) -> set[Architecture]:
    """Return every feasible architecture, by building the whole grid."""
    found = set()
    for values in itertools.product(*(space.axes[axis] for axis in AXES)):
        fields = dict(zip(AXES, values, strict=True))
        if fields["bottleneck"] == "none":
            fields["d_bottleneck"] = None
        if fields["structure"] == "decoder-only":
            fields["num_decoder_layers"] = None
        try:
            a = Architecture(**fields)
        except ArchitectureError:
            continue
        count = a.num_params if space.budget.count == "total" else a.num_params_non_embedding
        shown = fields | {"num_decoder_layers": a.decoder_layers, "d_bottleneck": a.d_bottleneck or a.d_model}
        shown |= {"num_key_value_heads": a.key_value_heads, "attention_window": a.attention_window or 0}
        if space.budget.low <= count <= space.budget.high and all(eval(r.text, {}, shown) for r in space.rules):
            found.add(a)
    return found


@given(space_tables())
@settings(max_examples=150, deadline=None)
def test_the_set_equals_that_of_brute_force(table: dict) -> None:
    space = SearchSpace.from_table(table)
    found, expected = solve(space), brute_force(space)
    members = list(found)
    assert len(members) == len(found) == len(expected)
    assert set(members) == expected
    assert all(a in found for a in members)


def test_every_member_of_the_220m_space_is_on_the_grid_and_in_the_budget() -> None:
    found = solve(SearchSpace.load("t5-220m"))
    members = found.members()
    assert len(found) > 10_000
    assert ((members.counted >= found.budget.low) & (members.counted <= found.budget.high)).all()
    assert (members.axis("d_ff") % 64 == 0).all()
    assert (members.axis("num_heads") * members.axis("d_kv") % 64 == 0).all()
    for a in found.sample(200, seed=1):
        assert a in found
        assert found.budget.low <= a.num_params <= found.budget.high


@pytest.mark.parametrize(("name", "architecture"), [("t5-220m", T5_BASE), ("t5-740m", T5_LARGE)])
def test_the_shipped_spaces_contain_t5_base_and_t5_large(name: str, architecture: Architecture) -> None:
    found = solve(SearchSpace.load(name))
    assert architecture in found
    assert replace(architecture, d_ff=architecture.d_ff + 32) not in found


@pytest.mark.parametrize(
    ("name", "model", "parameters"),
    [
        ("gpt-124m", "gpt2", 124_439_808),
        ("llama-1b", "tinyllama-1.1b", 1_100_048_384),
        ("qwen3-0.6b", "qwen3-0.6b", 596_049_920),
        ("cpu-decoder", "L4-D128-H4x32-F528-swiglu-rope-dec-qknorm-V512-KV2", 1_074_560),
    ],
)
def test_the_shipped_decoder_spaces_contain_the_public_shape(name: str, model: str, parameters: int) -> None:
    space, shape = SearchSpace.load(name), read_architecture(model)
    found = solve(space)
    assert shape in found
    assert found[found.index(shape)] == shape
    assert shape.num_params == parameters
    assert replace(shape, d_ff=shape.d_ff + 4) not in found
    assert replace(shape, norm_epsilon=1e-3) not in found
    assert f"{shape.name}, " in re.sub(r"\n# ", " ", shipped_path("spaces", name).read_text())
    row = f"| `{name}` | `{model}` | {space.grid_size() / 1e9:.2g} billion | {len(found):,} |"
    assert row in (Path(__file__).parents[1] / "docs" / "solve.md").read_text()
    for a in found.sample(200, seed=1):
        assert found.budget.low <= a.num_params <= found.budget.high
        assert space.contains(a)


def test_indexing_slicing_and_iteration_agree() -> None:
    found = solve(SearchSpace.load("cpu-demo"))
    members = list(found)
    assert [found[i] for i in range(len(found))] == members
    assert list(found[3:9]) == members[3:9]
    assert list(found[::-7]) == members[::-7]
    assert found[-1] == members[-1]
    with pytest.raises(IndexError):
        found[len(found)]


def test_top_sorts_by_the_given_key() -> None:
    found = solve(SearchSpace.load("cpu-demo"))
    flops = [a.flops_per_token() for a in found.top(0, "flops")]
    assert flops == sorted(flops)
    assert len(flops) == len(found)
    deepest = found.top(3, "-num_layers")
    assert [a.num_layers for a in deepest] == sorted((a.num_layers for a in found), reverse=True)[:3]
    nearest = found.top(1)[0]
    distances = [abs(a.num_params - found.budget.parameters) for a in found]
    assert abs(nearest.num_params - found.budget.parameters) == min(distances)


def test_flops_of_a_selection_equal_those_of_its_architectures() -> None:
    picked = solve(SearchSpace.load("t5-220m")).sample(100, seed=3)
    assert picked.members().flops_per_token().tolist() == [a.flops_per_token() for a in picked]


def test_a_sample_repeats_with_its_seed_and_has_distinct_members() -> None:
    found = solve(SearchSpace.load("t5-220m"))
    first = list(found.sample(500, seed=7))
    assert first == list(found.sample(500, seed=7))
    assert first != list(found.sample(500, seed=8))
    assert len(set(first)) == 500
    with pytest.raises(ConfigError, match="cannot sample"):
        found.sample(len(found) + 1, seed=0)


def test_samples_are_uniform() -> None:
    found = solve(SearchSpace.load("cpu-demo"))
    draws = np.concatenate([found.sample(5, seed).numbers() for seed in range(4000)])
    counts = np.bincount(draws, minlength=len(found))
    assert stats.chisquare(counts).pvalue > 0.001


def test_a_design_spreads_over_its_axes_and_extends_smaller_designs() -> None:
    found = solve(SearchSpace.load("cpu-demo"))
    axes = ("num_layers", "d_model", "num_heads", "d_kv", "feed_forward_proj")
    eight, four = (list(found.design(n, axes)) for n in (8, 4))
    assert eight[:4] == four
    assert len(set(eight)) == 8
    for axis in axes:
        assert len({getattr(a, axis) for a in eight}) > 1
    with pytest.raises(ConfigError, match='Did you mean "d_model"'):
        found.design(3, ["d_mode"])


@given(space_tables())
@settings(max_examples=30, deadline=None)
def test_index_is_the_inverse_of_indexing(table: dict) -> None:
    found = solve(SearchSpace.from_table(table))
    assert [found.index(a) for a in found] == list(range(len(found)))


def test_an_architecture_outside_the_set_has_no_index() -> None:
    found = solve(SearchSpace.load("t5-220m"))
    last = found[-1]
    assert found.index(last) == len(found) - 1
    for other in (T5_LARGE, replace(T5_BASE, position="rotary"), "L12"):
        with pytest.raises(ValueError, match="is not in the feasible set"):
            found.index(other)
    with pytest.raises(ValueError, match="is not in the feasible set"):
        found.index(last, 0, 100)


def octaves(a: Architecture, b: Architecture) -> float:
    """Return the distance of two architectures, by its definition."""
    total = 0.0
    for axis in AXES:
        x, y = (one.decoder_layers if axis == "num_decoder_layers" else getattr(one, axis) or 1 for one in (a, b))
        is_number = type(x) is int and type(y) is int and axis != "share_layers"
        total += np.log2(x / y) ** 2 if is_number else float(x != y)
    return float(np.sqrt(total))


def test_an_axis_may_mix_numbers_and_words() -> None:
    found = solve(SearchSpace.load("cpu-demo"))
    found = solve(replace(found.space, axes=found.space.axes | {"share_layers": (1, 2, "all")}))
    for a in found.sample(30, seed=0):
        assert found.project(a) == a
        assert found.nearest(a, 2)[1] != a


@pytest.mark.parametrize(
    "target",
    [
        T5_BASE,
        T5_LARGE,
        Architecture(d_model=800, num_heads=12, d_ff=2500, feed_forward_proj="gated-silu"),
        Architecture(share_layers="all"),
    ],
)
def test_the_nearest_members_have_the_smallest_distances(target: Architecture) -> None:
    found = solve(SearchSpace.load("t5-220m"))
    nearest = found.nearest(target, 20)
    distances = [octaves(a, target) for a in nearest]
    assert distances == sorted(distances)
    assert distances == pytest.approx(sorted(octaves(a, target) for a in found)[:20])
    assert found.project(target) == nearest[0]


def test_a_member_projects_to_itself_and_an_empty_set_has_no_projection() -> None:
    found = solve(SearchSpace.load("cpu-demo"))
    assert all(found.project(a) == a for a in found.sample(20, seed=1))
    empty = solve(SearchSpace.load("t5").with_budget("1M"))
    with pytest.raises(EmptySetError, match="cannot project L12"):
        empty.project(T5_BASE)
    assert not len(empty.pareto())


@pytest.mark.parametrize(
    "by", [("flops", "memory", "-depth"), ("-num_heads", "params"), ("hours", "-d_ff", "num_layers")]
)
def test_the_pareto_set_equals_that_of_comparing_all_pairs(by: tuple[str, ...]) -> None:
    found, setup = solve(SearchSpace.load("cpu-demo")), Setup(sequence_length=32, precision="fp32")
    members = found.members()
    columns = [members.measure(key.removeprefix("-"), setup) * (-1 if key.startswith("-") else 1) for key in by]
    points = np.stack(columns, axis=1)
    beaten = [((points <= p).all(1) & (points < p).any(1)).any() for p in points]
    front = found.pareto(by, setup)
    assert set(front) == {a for a, is_beaten in zip(found, beaten, strict=True) if not is_beaten}
    assert 1 < len(front) < len(found)


def test_a_set_of_several_chunks_is_ordered_by_text_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    space = SearchSpace.load("cpu-demo")
    varied = {"feed_forward_proj": ("relu", "gated-gelu"), "structure": ("encoder-decoder", "decoder-only")}
    found = solve(replace(space, axes=space.axes | varied | {"tie_word_embeddings": (True, False)}))
    by = ("feed_forward_proj", "tie_word_embeddings", "-flops")
    whole = [list(found.top(0, key)) for key in ("feed_forward_proj", "-structure")], list(found.pareto(by))
    assert [a.feed_forward_proj for a in whole[0][0]] == sorted(a.feed_forward_proj for a in found)
    monkeypatch.setattr("march_search.space.feasible_set.CHUNK", len(found) // 7)
    parts = [list(found.top(0, key)) for key in ("feed_forward_proj", "-structure")], list(found.pareto(by))
    assert parts == whole


def test_rules_that_no_member_meets_are_refused_with_the_ranges_of_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    space, setup = SearchSpace.load("cpu-demo"), Setup(sequence_length=32)
    measured = parse_conditions(["params < depth", "flops < 0"])[1]

    def refusal() -> str:
        with pytest.raises(EmptySetError) as raised:
            solve_where(space, (), measured, setup)
        return str(raised.value)

    whole, decoded, decode = refusal(), [], FeasibleSet.decode
    assert re.search(r"meets params < depth and flops < 0: depth is between \d+ and \d+, flops is between", whole)
    size = len(solve(space)) // 3
    for module in ("feasible_set", "conditions"):
        monkeypatch.setattr(f"march_search.space.{module}.CHUNK", size)
    monkeypatch.setattr(FeasibleSet, "decode", lambda self, n: (decoded.append(len(n)), decode(self, n))[1])
    assert refusal() == whole
    assert max(decoded) == size


def test_a_pareto_set_needs_known_objectives() -> None:
    found = solve(SearchSpace.load("cpu-demo"))
    with pytest.raises(UsageError, match='Did you mean "flops"'):
        found.pareto(["flop"])
    with pytest.raises(UsageError, match="at least one objective"):
        found.pareto([])


def test_the_wide_space_is_stored_as_intervals_of_d_ff() -> None:
    space = SearchSpace.load("t5-220m-wide")
    found = solve(space)
    assert space.grid_size() > 10**9
    assert len(found) > 7_000_000
    stored = sum(column.nbytes for column in found.intervals)
    assert stored < 30 * len(found.intervals.mesh) < 12 * len(found)
    picked = found.sample(1_000_000, seed=0)
    assert len(np.unique(picked.numbers())) == 1_000_000
    assert all(a in found and found[found.index(a)] == a for a in picked[:200])


def test_the_wide_decoder_space_is_exact() -> None:
    space = SearchSpace.load("decoder-500m-wide")
    found = solve(space)
    assert space.grid_size() > 10**9
    for a in found.sample(300, seed=1):
        assert a in found
        assert found.budget.low <= a.num_params <= found.budget.high
    narrow = {"num_layers": (18, 24), "d_model": (1024,), "num_heads": (8, 12, 16), "d_ff": space.axes["d_ff"][::8]}
    part = replace(space, axes=space.axes | narrow)
    expected = brute_force(part)
    assert len(expected) > 100
    assert set(solve(part)) == expected


@pytest.mark.parametrize("run", march_runs(), ids=lambda run: run["name"])
def test_the_2023_spaces_contain_their_runs(run: dict) -> None:
    names = {"heads_vs_layers": "heads", "dim_vs_layers": "dims", "d_ff": "d-ff"}
    space = SearchSpace.load(f"march-2023-{names.get(run['family'], run['family'])}")
    on_budget, wider = solve(space), solve(space.with_budget(tolerance="7%"))
    a = march_architecture(run)
    assert a in wider
    assert (a in on_budget) == (abs(on_budget.budget.difference_percent(a.num_params)) <= 1.5)
    assert len(on_budget) < len(wider)


def test_an_empty_set_names_the_closest_on_both_sides() -> None:
    space = SearchSpace.load("t5").with_budget("220M", "0.0001%")
    narrowed = replace(
        space, axes=space.axes | {"num_layers": (12,), "d_model": (768,), "d_kv": (64,), "num_heads": (12,)}
    )
    with pytest.raises(EmptySetError, match=r"Closest: L12-D768-\S+ at -\S+% and L12-D768-\S+ at \+\S+%\. Widen"):
        solve_or_explain(narrowed)


def test_a_design_takes_from_the_strata_in_turn() -> None:
    found = solve(SearchSpace.load("t5-220m"))
    twelve = list(found.design(12, by=["num_layers", "d_model"], strata=["feed_forward_proj", "d_kv"]))
    counts = Counter((a.feed_forward_proj, a.d_kv) for a in twelve)
    assert len(counts) == 6
    assert set(counts.values()) == {2}
    assert len({a.num_layers for a in twelve}) > 4
    small = solve(SearchSpace.load("cpu-demo"))
    every = list(small.design(len(small), strata=["num_layers"]))  # strata of different sizes run out in turn
    assert set(every) == set(small)
    with pytest.raises(ConfigError, match='Did you mean "d_model"'):
        found.design(3, strata=["d_mode"])


def test_an_empty_set_names_the_range_that_would_make_it_feasible() -> None:
    axes = {"num_layers": 12, "d_model": 768, "num_heads": 12, "d_kv": 64}
    table = {
        "axes": axes | {"d_ff": {"min": 64, "max": 2048, "multiple_of": 64}},
        "budget": {"parameters": "220M", "tolerance": "0.5%"},
    }
    space = SearchSpace.from_table(table)
    with pytest.raises(EmptySetError) as caught:
        solve_or_explain(space)
    assert "The largest is L12-D768-H12x64-F2048 at -" in str(caught.value)
    assert "d_ff up to 3,008" in str(caught.value)
    for axis, value in (("d_ff", 3008), ("d_ff", 2944)):
        wider = replace(space, axes=space.axes | {axis: (*space.axes[axis], value)})
        assert len(solve(wider)) == (value == 3008)


@pytest.mark.parametrize(
    ("budget", "words"), [("1M", "The smallest is L2-D256-"), ("900B", "The largest is L48-D4096-")]
)
def test_a_budget_outside_the_space_names_the_nearest_end(budget: str, words: str) -> None:
    with pytest.raises(EmptySetError, match=words):
        solve_or_explain(SearchSpace.load("t5").with_budget(budget))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"axis": {}}, 'x.toml: unknown key "axis". Did you mean "axes"?'),
        ({"axes": {"d_modle": 64}}, 'x.toml: unknown axis "d_modle". Did you mean "d_model"?'),
        ({"axes": {"d_model": {"min": 64, "maximum": 128}}}, 'x.toml: unknown key "axes.d_model.maximum"'),
        ({"axes": {"d_model": "wide"}}, 'x.toml: "axes.d_model" must be whole numbers from 1'),
        ({"axes": {"d_model": {"min": 65, "max": 100, "multiple_of": 64}}}, 'x.toml: "axes.d_model" has no value'),
        ({"axes": {"d_model": [[64]]}}, 'x.toml: "axes.d_model" must be whole numbers from 1'),
        ({"axes": {"d_model": {"min": 1, "max": 10**12}}}, 'x.toml: "axes.d_model" must be whole numbers from 1'),
        ({"axes": {"position": "rotery"}}, 'Did you mean "rotary"?'),
        ({"rules": ["d_model = 3"]}, 'x.toml: the rule "d_model = 3" is not a valid expression'),
        ({"rules": ["__import__('os')"]}, "x.toml: the rule"),
        ({"rules": ["d_model * 2"]}, "is not a condition"),
        ({"rules": ["d_hid > 2"]}, 'unknown field "d_hid"'),
        ({"budget": {"parameters": "many"}}, 'x.toml: invalid parameter budget "many"'),
    ],
)
def test_an_invalid_space_file_names_file_and_key(table: dict, message: str) -> None:
    with pytest.raises(ValueError, match=r"x\.toml") as caught:
        SearchSpace.from_table(table, "x", "x.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_axes_are_all_fields_of_an_architecture() -> None:
    assert sorted(AXES) == sorted(DEFAULTS)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("num_heads * 9223372036854775807 > 0", "calculates with whole numbers of 2^63 or more: use smaller factors"),
        ("num_heads * num_heads * 4611686018427387904 > 0", "calculates with whole numbers of 2^63 or more"),
        ("(num_heads > 0) + 9223372036854775807 > 0", "calculates with whole numbers of 2^63 or more"),
        ("num_heads - -9223372036854775807 > 0", "calculates with whole numbers of 2^63 or more"),
        ("num_heads < 99999999999999999999", "calculates with whole numbers of 2^63 or more"),
        ("'a' * 99999999999 == 'b'", "calculates with a value that is not a number"),
        ("structure * 99999999999 == 'b'", "calculates with a value that is not a number"),
        ("-structure == 'b'", "calculates with a value that is not a number"),
        ("+".join(["num_heads"] * 3000) + " > 0", "has 30,003 characters: use several rules of at most 2,000"),
        ("not " * 400 + "num_heads > 0", "has too many operators: split it into several rules"),
        ("-" * 1900 + "num_heads > 0", "the rule"),
        ("(" * 900 + "num_heads" + ")" * 900 + " > 0", "is not a valid expression"),
    ],
    ids=range(12),
)
def test_a_rule_without_an_exact_value_is_refused_in_one_line(rule: str, words: str) -> None:
    space = SearchSpace.load("t5-220m")
    with pytest.raises(ConfigError) as caught:
        solve(replace(space, rules=(*space.rules, Rule.parse(rule, DEFAULTS))))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_rule_near_the_limit_of_64_bits_is_exact() -> None:
    space = SearchSpace.load("t5-220m")
    rule = Rule.parse("num_heads * 36028797018963968 > 0", DEFAULTS)
    assert len(solve(replace(space, rules=(*space.rules, rule)))) == len(solve(space))


WIDE = {"min": 1, "max": 1000}


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (dict.fromkeys(("num_layers", "d_model", "num_heads", "d_kv", "d_ff"), WIDE), "too large to search"),
        ({"num_layers": WIDE, "num_decoder_layers": WIDE}, "num_layers (1,000), num_decoder_layers (1,000)."),
        (
            {"num_layers": 1024, "d_model": 2**20, "num_heads": 2**20, "d_kv": 2**20},
            "has shapes of up to 3.8e+22 parameters, and at most 2.3e+18 can be counted",
        ),
    ],
    ids=["grid", "depths", "parameters"],
)
def test_a_space_that_cannot_be_searched_is_refused_at_once(axes: dict[str, object], words: str) -> None:
    space = SearchSpace.from_table({"budget": {"parameters": "220M"}, "axes": axes})
    with pytest.raises(ConfigError) as caught:
        solve(space)
    assert words in str(caught.value)


def test_all_faults_of_a_space_are_told_at_once() -> None:
    table = {
        "budget": {"parameters": "0,22B"},
        "axes": {"d_modle": 64, "d_ff": {"min": 0, "max": 2**30}, "num_heads": [1, "two", [3]], "position": "rope"},
        "rules": ["d_model", "num_heads > 0", "heads > 0"],
    }
    with pytest.raises(ConfigError) as caught:
        SearchSpace.from_table(table, source="x.toml")
    lines = str(caught.value).splitlines()
    assert lines[0] == "x.toml: 9 faults:"
    words = ("d_modle", "min and", "not 1073741824", '"two"', "[3]", '"rope"', '"d_model" is not', "heads", "0,22B")
    for word in words:
        assert any(word in line for line in lines[1:]), word


def test_a_space_takes_numbers_as_people_write_them() -> None:
    axes = {"vocab_size": "32K", "d_ff": {"min": 1e3, "max": "2K", "multiple_of": 500}, "num_layers": [2.0]}
    space = SearchSpace.from_table({"budget": {"parameters": 2.2e8, "tolerance": 0.02}, "axes": axes})
    assert (space.axes["vocab_size"], space.axes["d_ff"], space.axes["num_layers"]) == (
        (32000,),
        (1000, 1500, 2000),
        (2,),
    )
    assert space.budget == Budget.parse("220M", "2%")
