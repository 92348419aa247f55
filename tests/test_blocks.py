"""One's own block: named, counted and searched like the built-in layer, and checked against its module."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import command_in_process, one_line_error

import march_search
from march_search import Architecture, Block, SearchSpace, solve
from march_search.architecture import block as blocks
from march_search.architecture.block import BlockCounts, block_text, parse_block, remember_counts
from march_search.architecture.block_file import load_block
from march_search.errors import ArchitectureError, ConfigError, EmptySetError, UsageError
from march_search.space.axes import AXES
from march_search.space.budget import Budget
from march_search.space.infeasible import solve_or_explain

EXAMPLES = Path(__file__).parent.parent / "examples"
MOE = "moe+num_experts=4+top_k=2"


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks and counts that a test registers are forgotten."""
    monkeypatch.setattr(blocks, "_BLOCKS", {})
    monkeypatch.setattr(blocks, "_RECORDED", {})


@pytest.fixture
def moe() -> Block:
    """The block of the worked example."""
    return load_block("moe.py", EXAMPLES)


def low_rank(d_model, d_ff, rank, is_wide):
    """A formula that is not linear in d_ff: the rank is bounded by it."""
    return 2 * d_model * np.minimum(d_ff, rank) + d_ff * (2 if is_wide else 1)


def make_block(**changes: object) -> Block:
    """A block whose formula is not linear in d_ff, with two fields, and a rule that depends on d_ff."""
    settings = {
        "name": "low_rank",
        "fields": {"rank": (96, 160), "is_wide": (True, False)},
        "num_params": low_rank,
        "build": None,
        "refuse": lambda d_model, d_ff, rank, is_wide: [
            (d_ff * 2 < rank, "d_ff is too small"),
            (d_model == rank, "no"),
        ],
    }
    return Block(**settings | changes)


def test_a_name_with_a_block_is_read_without_the_file() -> None:
    fields = {"num_experts": 4, "top_k": 2, "scale": 0.5, "is_shared": True, "kind": "soft", "whole": 1.0}
    a = Architecture(d_ff=64, block=block_text("moe", dict(reversed(fields.items()))))
    assert a.name.endswith("-moe+is_shared=true+kind=soft+num_experts=4+scale=0.5+top_k=2+whole=1.0")
    assert {Architecture.parse(a.name)} == {a}
    assert a.block_fields == fields
    assert {k: type(v) for k, v in a.block_fields.items()} == {k: type(v) for k, v in fields.items()}
    plain = Architecture(block="none+")
    assert Architecture.parse(plain.name) == plain
    assert plain.block_fields == {}


@pytest.mark.parametrize("text", ["moe", "moe+a", "moe+a=1+a=2", "Moe+a=1", "moe+a=-1", "moe+a=1e9", "+a=1", 7])
def test_an_invalid_block_is_refused(text: object) -> None:
    with pytest.raises(ArchitectureError):
        Architecture(block=text)


def test_counting_needs_the_block_or_recorded_counts() -> None:
    a = Architecture(num_layers=2, d_model=64, num_heads=2, d_kv=32, d_ff=48, block=MOE)
    with pytest.raises(ArchitectureError, match=r"the block moe is not known here.*\[model\] module"):
        _ = a.num_params
    dense = Architecture(num_layers=2, d_model=64, num_heads=2, d_kv=32, d_ff=48)
    remember_counts(MOE, [(64, 48, 1000, 700, 1400, 9)])
    assert a.num_params == dense.num_params + 4 * (1000 - 2 * 64 * 48)
    assert a.num_active_params == a.num_params - 4 * 300


def test_a_registered_block_checks_its_fields(moe: Block) -> None:
    with pytest.raises(ArchitectureError, match="num_experts of the block moe must be one of 1, 2, 4, 8, not 3"):
        Architecture(block="moe+num_experts=3+top_k=1")
    with pytest.raises(ArchitectureError, match="the block moe has the fields num_experts, top_k, not top_k"):
        Architecture(block="moe+top_k=1")
    with pytest.raises(ArchitectureError, match=r"the block moe: top_k \(2\) exceeds num_experts \(1\)"):
        Architecture(block="moe+num_experts=1+top_k=2")
    with pytest.raises(ArchitectureError, match="leave feed_forward_proj at its default, not 'gated-gelu'"):
        Architecture(block=MOE, feed_forward_proj="gated-gelu")


@pytest.mark.parametrize(
    ("special", "sets"),
    [({}, 4), ({"share_layers": 2}, 2), ({"num_decoder_layers": 3}, 5), ({"bias": "all"}, 4)],
)
def test_only_the_feed_forward_parameters_differ(moe: Block, special: dict, sets: int) -> None:
    fields = {"num_layers": 2, "d_model": 64, "num_heads": 2, "d_kv": 32, "d_ff": 48} | special
    a, dense = Architecture(**fields, block=MOE).param_groups(), Architecture(**fields).param_groups()
    own = {name for name in a if name.endswith("feed_forward")}
    assert {n: c for n, c in a.items() if n not in own} == {n: c for n, c in dense.items() if n not in own}
    assert sum(a[name] for name in own) == sets * (64 * 4 + 2 * 64 * 48 * 4)


def test_active_parameters_and_operations_count_the_chosen_experts(moe: Block) -> None:
    fields = {"num_layers": 2, "d_model": 64, "num_heads": 2, "d_kv": 32, "structure": "decoder-only"}
    one, two = (Architecture(**fields, d_ff=48, block=f"moe+num_experts=8+top_k={k}") for k in (1, 2))
    assert one.num_params == two.num_params
    assert two.num_active_params - one.num_active_params == 2 * 2 * 64 * 48
    assert two.flops_per_token(64) - one.flops_per_token(64) == 3 * 2 * 2 * 2 * 64 * 48
    dense = Architecture(**fields, d_ff=48)
    assert dense.num_active_params == dense.num_params


def brute_force(space: SearchSpace) -> list[Architecture]:
    """Return every feasible architecture in the order of the set, by building the whole grid."""
    found = []
    for values in itertools.product(*(space.axes[axis] for axis in AXES)):
        fields = dict(zip(AXES, values, strict=True))
        try:
            a = Architecture(**fields)
        except ArchitectureError:
            continue
        is_inside = space.budget is None or space.budget.holds(a)
        if is_inside and space.contains(a) and all(limit.holds(a) for limit in space.limits):
            found.append(a)
    return found


SPACES = [
    {"count": "total"},
    {"count": "active", "structure": "decoder-only"},
    {"count": "non-embedding", "structure": "decoder-only", "share_layers": [1, "all"]},
    {"count": "active", "bottleneck": ["flat", "shrinking"], "d_bottleneck": [64, 128], "norm": ["rms", "layer"]},
]


@pytest.mark.parametrize("kind", ["linear", "not linear"])
@pytest.mark.parametrize("special", SPACES, ids=str)
def test_the_set_equals_brute_force(kind: str, special: dict, tmp_path: Path) -> None:
    axes = {
        "num_layers": [1, 3], "d_model": [128, 192], "num_heads": [2, 4], "d_kv": 32, "vocab_size": 500,
        "d_ff": [48, 100, 128, 192, 256],
    }  # fmt: skip
    axes |= {axis: value for axis, value in special.items() if axis != "count"}
    rules = ["num_heads * d_kv == d_model or d_ff != 100"]
    if kind == "linear":
        module, rules = str(EXAMPLES / "moe.py"), [*rules, "num_experts * top_k != 4"]
    else:
        (tmp_path / "low.py").write_text(
            "from test_blocks import make_block, low_rank\n"
            "BLOCK = make_block(active_params=lambda d_model, d_ff, rank, is_wide: d_model * rank)\n"
        )
        module = str(tmp_path / "low.py")
        axes["is_wide"] = True
    size = "300K" if kind == "not linear" and "structure" in special else "900K"
    budget = {"parameters": size, "tolerance": "60%", "count": special["count"]}
    space = SearchSpace.from_table({"model": {"module": module}, "axes": axes, "budget": budget, "rules": rules})
    found, expected = solve(space), brute_force(space)
    assert len(expected) > 20
    assert list(found) == expected
    assert found.members().counted.tolist() == [space.budget.counted(a) for a in expected]
    assert [found.index(a) for a in expected[::7]] == list(range(0, len(expected), 7))


FORMULAS = {
    "rising": {},
    "operations that fall": {"flops_per_token": "1_000_000 - 1000 * d_ff + 0 * d_model"},
    "operations up and down": {"flops_per_token": "100_000 * (d_ff // 16 % 4) + 0 * d_model"},
    "activations that fall": {"activation_scalars": "300 * (1000 - d_ff) + 0 * d_model"},
    "parameters in steps": {"num_params": "1000 * (d_ff // 48) + 0 * d_model"},
    "constant parameters": {"num_params": "300 * d_model + 0 * d_ff"},
}
"""Formulas of a block that differ from two matrices of rank 16, none of which rises with a slope at every `d_ff`."""

LIMITS: list[dict[str, object]] = [
    {"flops_per_token": "<=3M"},
    {"flops_per_token": "2.5M", "tolerance": "30%"},
    {"training_flops": "<=3e12", "tokens": 1_000_000},
    {"hours": 0.002, "device": "H100", "tokens": 100_000_000},
    {"bytes_per_device": "205MB", "device": "H100"},
    {"kv_cache_bytes_per_token": "600"},
    {"parameters": "300K", "tolerance": "40%", "count": "active", "flops_per_token": "<=3M"},
]


@pytest.mark.parametrize("d_ff", [list(range(16, 400, 16)), 64], ids=["many widths", "one width"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_the_set_under_budgets_of_other_kinds_equals_brute_force(formula: str, d_ff: object, tmp_path: Path) -> None:
    functions = {"num_params": "32 * (d_model + d_ff)"} | FORMULAS[formula]
    lines = ["import march_search", *(f"def {name}(d_model, d_ff): return {text}" for name, text in functions.items())]
    named = ", ".join(f"{name}={name}" for name in functions)
    (tmp_path / "own.py").write_text(
        "\n".join([*lines, f"BLOCK = march_search.Block(name='own', build=None, {named})", ""])
    )
    axes = {
        "structure": "decoder-only", "num_layers": [2, 3], "d_model": [64, 128], "num_heads": [2, 4], "d_kv": [16, 32],
        "vocab_size": 500, "d_ff": d_ff,
    }  # fmt: skip
    sizes = []
    for budget in LIMITS:
        table = {"model": {"module": str(tmp_path / "own.py")}, "axes": axes, "budget": budget}
        space = SearchSpace.from_table(table)
        found, expected = solve(space), brute_force(space)
        assert list(found) == expected, budget
        assert [found.index(a) for a in expected] == list(range(len(expected)))
        sizes.append(len(expected) / space.grid_size())
    assert any(0 < size < 1 for size in sizes)


def test_the_nearest_value_of_an_empty_set_is_right_where_operations_fall(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import march_search\n"
        "BLOCK = march_search.Block(\n"
        "    name='own', build=None, num_params=lambda d_model, d_ff: d_model + d_ff,\n"
        "    flops_per_token=lambda d_model, d_ff: 100_000 * (d_ff // 16 % 4) + 10 * d_ff + 0 * d_model,\n"
        ")\n"
    )
    axes = {"structure": "decoder-only", "num_layers": 2, "d_model": 64, "num_heads": 2, "d_kv": 32, "vocab_size": 500,
            "d_ff": list(range(48, 400, 16))}  # fmt: skip
    table = {"model": {"module": str(tmp_path / "own.py")}, "axes": axes, "budget": {"flops_per_token": "<=1000"}}
    space = SearchSpace.from_table(table)
    least = min(
        space.limits[0].measure(a) for a in brute_force(replace(space, limits=(), budget=Budget.parse("1M", "99%")))
    )
    with pytest.raises(EmptySetError, match=f"Nearest: {least:,.0f} FLOPs per token"):
        solve_or_explain(space)


def test_fields_of_a_block_are_axes_measures_and_names_in_rules(capsys: pytest.CaptureFixture[str]) -> None:
    found = solve(SearchSpace.load(EXAMPLES / "moe-space.toml"))
    assert {a.block_fields["num_experts"] for a in found} == {1, 4, 8}
    assert [a.block_fields["top_k"] for a in found.top(0, "top_k")] == sorted(a.block_fields["top_k"] for a in found)
    assert len(found.design(4, by=["num_experts", "d_model"])) == 4
    with pytest.raises(UsageError, match='Did you mean "top_k"'):
        found.top(1, "topk")
    command = command_in_process(capsys)
    space = ("solve", "--space", str(EXAMPLES / "moe-space.toml"))
    ended = command(
        *space, "--where", "top_k == 2", "--where", "params <= 1e6", "--columns", "params,top_k", "--format", "csv"
    )
    rows = [line.split(",") for line in ended.stdout.splitlines()]
    assert rows[0] == ["num_params", "top_k"]
    assert len(rows) > 1
    assert all(int(params) <= 1e6 and top_k == "2" for params, top_k in rows[1:])
    assert 'Did you mean "top_k"' in one_line_error(command(*space, "--sort", "topk"))
    counts = [
        int(command(*space, "--where", text, "--count").stdout) for text in ("top_k == 2", "top_k == 2 and depth > 0")
    ]
    assert counts[0] == counts[1] > 0
    ended = command(*space, "--flops-per-token", "<=4.9M", "--count")
    assert "Nearest, with the other met: 554,624 active parameters (" in one_line_error(ended)


def test_one_shape_is_explained_with_the_space_that_names_its_block(capsys: pytest.CaptureFixture[str]) -> None:
    command, name = command_in_process(capsys), "L3-D128-H4x32-F432-rope-dec-V512-" + MOE
    assert "(explain takes --space)" in one_line_error(command("explain", name))
    ended = command("explain", name, "--space", str(EXAMPLES / "moe-space.toml"), "--device", "H100")
    assert f"{Architecture.parse(name).num_params:,} parameters" in ended.stdout
    assert "tokens/s" in ended.stdout
    assert "which has no block" in one_line_error(command("explain", "gpt2", "--space", "t5"))
    assert "t5 has no block" in one_line_error(command("explain", name, "--space", "t5"))


def test_faults_of_a_space_with_a_block_are_one_line(tmp_path: Path) -> None:
    def fault(module: str, axes: dict | None = None, **files: str) -> str:
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        table = {"model": {"module": str(tmp_path / module) if module.endswith(".py") else module}, "axes": axes or {}}
        with pytest.raises(ConfigError) as error:
            SearchSpace.from_table(table)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "missing.py: cannot be read" in fault("missing.py")
    assert "cannot be loaded: ZeroDivisionError: division by zero" in fault("bad.py", bad="1 / 0")
    assert "has no block: define BLOCK" in fault("empty.py", empty="x = 1")
    assert 'module "no_such_module" is neither a file' in fault("no_such_module")
    moe = (EXAMPLES / "moe.py").read_text()
    assert "must be among 1, 2, 4, 8 of the block moe, not 3" in fault("moe.py", {"num_experts": [3]}, moe=moe)
    assert '"axes.block" cannot be set' in fault("moe.py", {"block": "x"})
    assert 'Did you mean "top_k"' in fault("moe.py", {"topk": 1})
    assert "a block named moe is known from" in fault("other.py", other=moe + "\n")


def test_a_block_is_refused_if_its_names_could_not_be_read() -> None:
    fields = {f"a_field_of_26_characters_{letter}": (1, 100) for letter in "abc"}
    block = make_block(name="long", fields=fields | {"d": ("x" * 5,)})
    name = Architecture(block=block.combinations({})[-1]).name
    assert len(name.partition("long+")[2]) == 100
    assert Architecture.parse(name).name == name
    with pytest.raises(ConfigError, match="the block long: its fields take 101 characters in names, and the limit is"):
        make_block(name="long", fields=fields | {"d": ("x", "x" * 6)})
    with pytest.raises(ConfigError, match="the value -1 of a block's field must be true, false, a whole or decimal"):
        make_block(fields={"a": (-1, 1)})


def test_a_formula_must_return_whole_numbers() -> None:
    march_search.register_block(make_block(num_params=lambda d_model, d_ff, rank, is_wide: d_ff / 2, refuse=None))
    with pytest.raises(ConfigError, match=r"num_params must return whole numbers of at least 0, not .*use // instead"):
        _ = Architecture(block="low_rank+rank=96+is_wide=true").num_params
    march_search.register_block(make_block(num_params=lambda d_model, d_ff: d_ff, refuse=None))
    with pytest.raises(ConfigError, match="num_params failed: TypeError"):
        _ = Architecture(block="low_rank+rank=96+is_wide=true").num_params
    with pytest.raises(ConfigError, match="a block's name must have"):
        make_block(name="Low-Rank")
    with pytest.raises(ConfigError, match="the name of a field"):
        make_block(fields={"d_ff": (1,)})
    with pytest.raises(ConfigError, match='replaces must be "feed_forward", not "attention"'):
        make_block(replaces="attention")


def test_hugging_face_cannot_express_a_block(moe: Block) -> None:
    for structure, position in (("encoder-decoder", "relative"), ("decoder-only", "rotary")):
        with pytest.raises(ArchitectureError, match="block"):
            Architecture(structure=structure, position=position, block=MOE).to_huggingface()


def test_loading_a_file_twice_runs_it_once_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "moe.py"
    file.write_text((EXAMPLES / "moe.py").read_text())
    first = load_block("moe.py", tmp_path)
    assert load_block("moe.py", tmp_path, first.source.sha256) is first
    file.write_text(file.read_text() + "raise SystemExit('run')\n")
    with pytest.raises(ConfigError, match="has changed since it was first used here"):
        load_block("moe.py", tmp_path, first.source.sha256)


def test_the_counts_of_a_layer_are_those_of_its_formulas(moe: Block) -> None:
    counts = moe.counts(64, 48, parse_block(MOE)[1])
    active = 64 * 4 + 2 * 64 * 48 * 2
    assert counts == BlockCounts(64 * 4 + 2 * 64 * 48 * 4, active, 2 * active, active // 64)
