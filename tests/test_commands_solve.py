"""`march-search solve` and `march-search explain`: tables, selections, costs, figures and refused options."""

import csv
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.command_line import Command, json_of, one_line_error

from march_search import Architecture, SearchSpace, solve
from march_search.config.shipped import shipped_folder
from march_search.cost.devices import parse_device
from march_search.cost.inference import cache_bytes_per_token
from march_search.cost.memory import memory_bytes
from march_search.cost.setup import Setup
from march_search.cost.speed import flops_per_token, hours, tokens_per_second

T5_BASE = "L12-D768-H12x64-F3072"


def test_solve_prints_a_table_with_the_tolerance(command: Command) -> None:
    printed = command("solve", "--budget", "220M", "--top", "5").stdout
    assert "220,000,000 parameters ± 1.5%" in printed
    for word in ("name", "layers", "d_model", "heads×d_kv", "d_ff", "GLU", "parameters", "difference", "FLOPs/token"):
        assert word in printed


@pytest.mark.parametrize("columns", ["80", "160"])
def test_a_table_fits_the_terminal(command: Command, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = command("solve", "--budget", "740M", "--top", "20").stdout.splitlines()
    assert max(map(len, lines)) <= int(columns)
    names = [line.split()[0] for line in lines if line.strip().startswith("L") and "-D" in line]
    assert len(names) == 20


def test_every_format_has_the_same_architectures(command: Command) -> None:
    arguments = ("solve", "--budget", "t5-base", "--top", "7", "--format")
    value = json_of(command(*arguments, "json"))
    assert value["schema_version"] == 1
    assert value["budget"] == {"parameters": 222_903_552, "tolerance": 0.015, "count": "total"}
    names = [a["name"] for a in value["architectures"]]
    rows = list(csv.DictReader(io.StringIO(command(*arguments, "csv").stdout)))
    assert [row["name"] for row in rows] == names
    assert [int(row["num_params"]) for row in rows] == [a["num_params"] for a in value["architectures"]]
    markdown = command(*arguments, "markdown").stdout
    assert [
        line.split(" | ")[0].removeprefix("| ") for line in markdown.splitlines() if line.startswith("| L")
    ] == names
    assert "- 7 shown, sorted by difference; --top 0 shows all." in markdown


def test_solve_counts_filters_and_sorts(command: Command) -> None:
    every = int(command("solve", "--budget", "220M", "--count").stdout)
    rules = ("--where", "num_layers <= 6", "--where", "d_kv == 64")
    assert 0 < int(command("solve", "--budget", "220M", "--count", *rules).stdout) < every
    by_heads = ("--sort", "num_heads", "--descending", "--top", "3", "--format", "json")
    value = json_of(command("solve", "--budget", "220M", *by_heads))
    heads = [a["num_heads"] for a in value["architectures"]]
    assert heads == sorted(heads, reverse=True)


@pytest.mark.parametrize("option", ["--sample", "--design"])
def test_samples_and_designs_repeat_with_their_seed(option: str, command: Command) -> None:
    def names(seed: str) -> list[str]:
        value = json_of(command("solve", "--budget", "220M", option, "9", "--seed", seed, "--format", "json"))
        return [a["name"] for a in value["architectures"]]

    assert names("1") == names("1") != names("2")
    assert len(set(names("1"))) == 9


def test_a_device_adds_memory_speed_and_hours(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    price = ("--device", "8xA5000", "--zero", "2", "--micro-batch", "4", "--tokens", "100M")
    arguments = ("solve", "--budget", "220M", "--top", "3", *price)
    value = json_of(command(*arguments, "--format", "json"))
    assert value["setup"]["device"]["name"] == "A5000"
    assert (value["setup"]["zero_stage"], value["setup"]["tokens"]) == (2, 100_000_000)
    for row in value["architectures"]:
        assert row["hours"] == pytest.approx(100e6 / row["tokens_per_second"] / 3600, rel=1e-3)
        assert 1e9 < row["memory_bytes"] < 24e9
    for columns in ("80", "160"):
        monkeypatch.setenv("COLUMNS", columns)
        printed = command(*arguments).stdout
        assert max(map(len, printed.splitlines())) <= int(columns)
        text = " ".join(printed.split())
        assert "100,000,000 tokens on 8xA5000, calibrated on 25 recorded runs of 2023" in text
        assert "bf16, ZeRO 2, micro batch 4; 512 tokens per sequence." in text


def test_the_pareto_set_is_printed_in_order_of_its_objectives_or_sorted(command: Command) -> None:
    space = ("solve", "--space", "cpu-demo", "--top", "0")
    front = json_of(command(*space, "--pareto", "--format", "json"))["architectures"]
    assert 1 < len(front) < json_of(command(*space, "--format", "json"))["total"]
    assert max(a["num_layers"] for a in front) == 6
    by_two = command(*space, "--pareto", "params,-num_heads", "--sort", "num_heads", "--format", "json")
    heads = [a["num_heads"] for a in json_of(by_two)["architectures"]]
    assert heads == sorted(heads)
    assert f"{len(front)} Pareto-optimal in flops,memory,-depth" in " ".join(command(*space, "--pareto").stdout.split())


def test_near_prints_the_nearest_first(command: Command) -> None:
    value = json_of(command("solve", "--budget", "220M", "--near", T5_BASE, "--top", "3", "--format", "json"))
    assert value["architectures"][0]["name"] == T5_BASE
    printed = command("solve", "--budget", "220M", "--near", "L12-D800-H12x64-F3000", "--top", "3").stdout
    assert "nearest to L12-D800-H12x64-F3000 first" in printed


def test_only_the_requested_columns_are_printed(command: Command) -> None:
    arguments = ("solve", "--budget", "220M", "--top", "2", "--columns", "name,num_heads,params,hours")
    value = json_of(command(*arguments, "--format", "json"))
    assert [list(a) for a in value["architectures"]] == [["name", "num_heads", "num_params", "hours"]] * 2
    assert "setup" in value
    assert command(*arguments, "--format", "csv").stdout.startswith("name,num_heads,num_params,hours\n")
    printed = command(*arguments).stdout
    assert "num_heads" in printed
    assert "FLOPs" not in printed


SVG = "{http://www.w3.org/2000/svg}"


def test_a_figure_has_one_dot_per_depth_and_width(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "shapes.svg"
    printed = command(
        "solve", "--budget", "220M", "--where", "num_layers <= 8", "--count", "--figure", str(path)
    ).stdout
    found = solve(SearchSpace.load("t5").with_budget("220M"))
    members = [(a.num_layers, a.d_model) for a in found if a.num_layers <= 8]
    assert int(printed) == len(members)
    drawing = ET.parse(path).getroot()
    assert drawing.tag == f"{SVG}svg"
    dots = [dot for dot in drawing.iter(f"{SVG}circle") if dot.get("class") == "shapes"]
    titles = [dot.findtext(f"{SVG}title") for dot in dots]
    expected = {
        f"{depth} layers, d_model {width}: {members.count((depth, width)):,} architectures"
        for depth, width in set(members)
    }
    assert len(dots) == len(expected)
    assert set(titles) == expected
    places = {(dot.get("cx"), dot.get("cy")) for dot in dots}
    assert len(places) == len(dots)
    width, height = (float(drawing.get(side, "nan")) for side in ("width", "height"))
    assert all(0 < float(x) < width and 0 < float(y) < height for x, y in places)
    largest = max(dots, key=lambda dot: float(dot.get("r", "nan"))).findtext(f"{SVG}title")
    most = max(set(members), key=members.count)
    assert largest.endswith(f" {members.count(most):,} architectures")
    text = path.read_text()
    assert "var(" not in text
    assert "nan" not in text


def test_a_figure_that_cannot_be_written_is_refused_in_one_line(command: Command, tmp_path: Path) -> None:
    ended = command("solve", "--space", "cpu-demo", "--figure", str(tmp_path / "missing" / "f.svg"))
    assert ended.returncode == 4
    assert "missing/f.svg" in one_line_error(ended)


WITHOUT_EFFECT = [
    ("--by num_layers", "--by has no effect without --design N."),
    ("--sample 3 --by num_layers", "--by has no effect without --design N."),
    ("--strata num_layers", "--strata has no effect without --design N."),
    ("--sample 3 --top 4", "--top has no effect with --sample, which prints its own number."),
    ("--design 3 --top 0", "--top has no effect with --design, which prints its own number."),
    ("--sample 3 --sort flops", "--sort has no effect with --sample, which has its own order."),
    ("--near L12-D768-H12x64-F3072 --descending", "--descending has no effect with --near, which has its own order."),
    ("--pareto --descending", "--descending has no effect without --sort KEY."),
    ("--seed 0", "--seed has no effect without --sample N or --design N."),
    ("--count --top 0", "--top has no effect with --count, which prints its own number."),
    ("--count --columns name", "--columns has no effect with --count, which prints one number."),
    ("--count --device H100", "--device has no effect with --count, which prints one number."),
    ("--zero 0", "--zero has no effect without --device D, which adds memory, tokens/s and hours."),
    ("--tokens 1B", "--tokens has no effect without --device D"),
    ("--micro-batch 4", "--micro-batch has no effect without --device D"),
    ("--precision fp32", "--precision has no effect without --device D"),
    ("--checkpointing", "--checkpointing has no effect without --device D"),
]


@pytest.mark.parametrize(("options", "words"), WITHOUT_EFFECT, ids=[options for options, _ in WITHOUT_EFFECT])
def test_options_without_effect_are_refused(options: str, words: str, command: Command) -> None:
    ended = command("solve", "--budget", "220M", *options.split())
    assert ended.returncode == 2
    assert words in one_line_error(ended)


@pytest.mark.parametrize(
    "options", ["--sort hours --tokens 1B", "--pareto flops,memory --zero 2", "--columns hours --zero 1"]
)
def test_cost_options_are_accepted_where_a_cost_is_used(options: str, command: Command) -> None:
    assert command("solve", "--space", "cpu-demo", *options.split()).returncode == 0


def test_explain_prints_parameters_by_group_in_every_format(command: Command) -> None:
    explain = ("explain", T5_BASE)
    value = json_of(command(*explain, "--format", "json"))
    assert sum(group["parameters"] for group in value["groups"]) == value["num_params"] == 222_903_552
    assert sum(group["share_percent"] for group in value["groups"]) == pytest.approx(100, abs=0.01)
    printed = command(*explain).stdout
    assert "222,903,552 parameters" in printed
    rows = list(csv.DictReader(io.StringIO(command(*explain, "--format", "csv").stdout)))
    assert {row["group"]: int(row["parameters"]) for row in rows} == {
        group["group"]: group["parameters"] for group in value["groups"]
    }
    markdown = command(*explain, "--format", "markdown").stdout
    assert markdown.startswith(f"{T5_BASE}\n\n| group | parameters | share |\n")
    assert all(f"| {group['group']} | {group['parameters']:,} |" in markdown for group in value["groups"])


def test_explain_with_a_device_prints_memory_by_kind(command: Command) -> None:
    explain = ("explain", T5_BASE, "--device", "H100")
    value = json_of(command(*explain, "--format", "json"))
    assert sum(value["memory"].values()) == pytest.approx(value["memory_bytes"], abs=4)
    parts = value["seconds_per_token"]
    assert list(parts) == ["products", "attention", "traffic", "scores", "layers", "launches"]
    work = sum(parts.values()) - parts["launches"]
    assert 1 / value["tokens_per_second"] == pytest.approx((work**2 + parts["launches"] ** 2) ** 0.5, rel=1e-3)
    assert list(value["memory"]) == ["weights", "gradients", "optimizer", "activations", "transients"]
    for output_format in ("table", "markdown"):
        printed = command(*explain, "--format", output_format).stdout
        assert all(
            word in printed
            for word in ("on each device", "optimizer", "tokens/s", "of the time: products", "not been timed on a GPU")
        )


@pytest.mark.parametrize("option", ["--zero 2", "--micro-batch 4", "--precision bf16", "--checkpointing"])
def test_explain_refuses_options_without_effect(option: str, command: Command) -> None:
    ended = command("explain", T5_BASE, *option.split())
    assert ended.returncode == 2
    assert f"{option.split(maxsplit=1)[0]} has no effect without --device D" in one_line_error(ended)


def test_solve_has_no_explain_option(command: Command) -> None:
    ended = command("solve", "--explain", T5_BASE)
    assert ended.returncode == 2
    one_line_error(ended)


@pytest.mark.parametrize("columns", ["80", "160"])
def test_solve_prints_an_overview_that_counts_every_member(
    command: Command, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    printed = command("solve", "--budget", "220M").stdout
    assert printed == command("solve", "--budget", "220M").stdout
    lines = [line.strip() for line in printed.splitlines()]
    assert max(map(len, lines)) <= int(columns)
    assert lines[0] == "36,566 architectures have 220,000,000 parameters ± 1.5% (space t5)"
    heading = next(line for line in lines if line.startswith("layers ")).split()
    rows = [line.split() for line in lines if re.match(r"\d+(–\d+)?  ", line)]
    assert all(len(row) == len(heading) for row in rows)

    def inside(value: int, label: str) -> bool:
        low, _, high = label.partition("–")
        return int(low) <= value <= int(high or low)

    pairs = [(a.num_layers, a.d_model) for a in solve(SearchSpace.load("t5").with_budget("220M"))]
    for depths, *cells in rows:
        for widths, cell in zip(heading[1:-1], cells, strict=False):
            expected = sum(inside(depth, depths) and inside(width, widths) for depth, width in pairs)
            assert cell == (f"{expected:,}" if expected else "·")
    assert sum(int(row[-1].replace(",", "")) for row in rows) == len(pairs)
    names = {line.split()[0] for line in lines if re.match(r"L\d+-D", line)}
    design = json_of(command("solve", "--budget", "220M", "--design", "12", "--format", "json"))
    assert names == {a["name"] for a in design["architectures"]}
    assert "--design 24 --by num_layers,d_model" in " ".join(lines)


def test_other_formats_and_options_print_rows_without_an_overview(command: Command) -> None:
    for words in (("--format", "markdown"), ("--top", "20"), ("--sort", "flops"), ("--columns", "name,params")):
        assert "Shapes by depth" not in command("solve", "--budget", "220M", *words).stdout
    top = json_of(command("solve", "--budget", "220M", "--format", "json"))
    assert (len(top["architectures"]), top["total"]) == (20, 36_566)


MEASURED = [
    ("flops_per_token <= 5e8", lambda a, setup: flops_per_token(a, setup) <= 5e8),
    ("hours < 0.0013 and num_layers >= 2", lambda a, setup: hours(a, setup) < 0.0013 and a.num_layers >= 2),
    ("params_non_embedding / params > 0.8", lambda a, _: a.num_params_non_embedding / a.num_params > 0.8),
    ("depth >= 6 or memory < 5e8", lambda a, setup: 2 * a.num_layers >= 6 or memory_bytes(a, setup) < 5e8),
    ("tokens_per_second > 2.3e8", lambda a, setup: tokens_per_second(a, setup) > 2.3e8),
    ("difference <= 1000", lambda a, _: abs(a.num_params - 1_300_000) <= 1000),
    ("feed_forward_proj == 'relu' and flops < 6e6", lambda a, s: not a.is_gated and flops_per_token(a, s) < 6e6),
]


@pytest.mark.parametrize(("rule", "meets"), MEASURED, ids=[rule for rule, _ in MEASURED])
def test_measures_filter_the_whole_set_exactly(
    rule: str, meets: Callable[[Architecture, Setup], bool], command: Command
) -> None:
    setup = Setup(device=parse_device("8xA100"))
    every = list(solve(SearchSpace.load("cpu-demo")))
    expected = [a.name for a in every if meets(a, setup)]
    words = ("solve", "--space", "cpu-demo", "--device", "8xA100", "--where", rule, "--top", "0")
    if not expected:
        assert "None of the" in one_line_error(command(*words))
        return
    value = json_of(command(*words, "--format", "json"))
    assert sorted(a["name"] for a in value["architectures"]) == sorted(expected)
    assert value["total"] == len(expected)
    title = command(*words).stdout.splitlines()[0]
    assert title.startswith(f"{len(expected):,} of {len(every):,} architectures")
    assert title.endswith(rule)


UNSET = (
    "num_key_value_heads == num_heads", "num_decoder_layers == num_layers", "d_bottleneck == d_model",
    "attention_window == 0", "logit_softcap + 1 == 1", "block == 'none'",
)  # fmt: skip
"""Rules that hold for every architecture of a space that leaves these fields unset."""


@pytest.mark.parametrize("rule", UNSET)
def test_an_unset_field_has_the_same_value_beside_a_measure(rule: str, command: Command) -> None:
    words = ("solve", "--space", "cpu-demo", "--count", "--where")
    alone, beside = (command(*words, text) for text in (rule, f"{rule} and params > 0"))
    assert int(alone.stdout) == int(beside.stdout) > 0


def test_a_price_in_a_condition_needs_a_device(command: Command) -> None:
    ended = command("solve", "--budget", "220M", "--where", "hours < 3")
    assert "hours depends on the device: add one, such as --device 8xA100." in one_line_error(ended)
    words = ("solve", "--budget", "220M", "--count", "--where", "hours < 0.3", "--device", "8xA100")
    assert 0 < int(command(*words).stdout) < 36_566
    ended = command("solve", "--budget", "220M", "--where", "hours < 0.01", "--device", "8xA100")
    assert ended.returncode == 3
    assert "hours is between 0.1" in one_line_error(ended)


def test_a_budget_outside_the_space_names_spaces_that_reach_it(command: Command) -> None:
    message = one_line_error(command("solve", "--budget", "3M"))
    names = re.search(r"Shipped spaces that reach it: ([\w, -]+)\.", message)
    assert names
    assert "cpu-1m" in names[1].split(", ")
    for name in names[1].split(", "):
        assert int(command("solve", "--budget", "3M", "--space", name, "--count").stdout) > 0
    assert "--space auto" in message
    value = json_of(command("solve", "--budget", "3M", "--space", "auto", "--design", "5", "--format", "json"))
    assert (value["space"], len(value["architectures"])) == ("auto", 5)
    assert all(abs(a["num_params"] / 3e6 - 1) <= 0.015 for a in value["architectures"])
    assert 'the space "auto" is laid around a budget' in one_line_error(command("solve", "--space", "auto"))


def test_an_expression_for_an_axis_is_answered_with_the_rule_to_write(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[axes]\nd_ff = "4 * d_model"\n')
    message = one_line_error(command("solve", "--budget", "220M", "--space", str(path)))
    assert 'rules = ["d_ff == 4 * d_model"]' in message


@pytest.mark.parametrize("page", ["README.md", "docs/solve.md"])
def test_a_page_shows_the_overview_as_it_is_printed(
    page: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    printed = [line.rstrip() for line in command("solve", "--budget", "220M").stdout.splitlines()]
    text = (Path(__file__).parent.parent / page).read_text().split("36,566 architectures have", 1)[1]
    shown = ["36,566 architectures have" + line if not i else line for i, line in enumerate(text.splitlines())]
    end = next(i for i, line in enumerate(shown) if line.startswith(("```", "$ ")))
    kept = [line for line in shown[:end] if line.strip() not in ("", "…")]
    assert len(kept) >= 6
    assert set(kept) <= set(printed)


def test_the_help_has_the_usual_rules_on_heads_as_examples(command: Command) -> None:
    text = command("solve", "--help").stdout
    assert '--where "num_heads * d_kv == d_model"' in text
    assert '--space auto --where "d_model % num_heads == 0"' in text


def test_budgets_of_other_kinds_are_met_together(command: Command) -> None:
    words = ("solve", "--space", "cpu-demo", "--flops-per-token", "<=6.4M", "--kv-cache", "3.1KB", "--hours", "0.0185")
    words += ("--device", "8xA100", "--memory", "190MB")
    setup = Setup(device=parse_device("8xA100"))
    expected = {
        a.name
        for a in solve(SearchSpace.load("cpu-demo"))
        if flops_per_token(a, setup) <= 6.4e6
        and cache_bytes_per_token(a, setup) <= 3100
        and hours(a, setup) <= 0.0185
        and memory_bytes(a, setup) <= 1.9e8
    }
    assert int(command(*words, "--count").stdout) == len(expected) > 0
    value = json_of(command(*words, "--top", "0", "--format", "json"))
    assert {a["name"] for a in value["architectures"]} == expected
    assert [one["kind"] for one in value["budgets"]] == [
        "flops_per_token",
        "hours",
        "bytes_per_device",
        "kv_cache_bytes_per_token",
    ]
    assert all(one["low"] is None for one in value["budgets"])
    printed = " ".join(command(*words, "--top", "3").stdout.split())
    assert "have 1,300,000 parameters ± 2%, at most 6,400,000 FLOPs per token, at most 0.0185 hours for" in printed
    assert "(space cpu-demo; inverted)" in printed
    assert "so the set is complete" in printed
    filtered = " ".join(command(*words, "--where", "depth >= 2", "--top", "3").stdout.split())
    assert f"of {len(expected):,} architectures with 1,300,000 parameters" in filtered


def test_a_set_without_a_parameter_budget_is_sorted_by_its_first_budget(command: Command) -> None:
    words = ("solve", "--flops-per-token", "600M", "--tolerance", "0.1%", "--where", "num_layers == 6")
    value = json_of(command(*words, "--format", "json"))
    assert value["budget"] is None
    differences = [abs(a["flops_per_token"] / 600e6 - 1) for a in value["architectures"]]
    assert differences == sorted(differences)
    assert max(differences) <= 0.001
    assert [a["difference_percent"] for a in value["architectures"]] == pytest.approx(
        [100 * (a["flops_per_token"] / 600e6 - 1) for a in value["architectures"]], abs=1e-3
    )
    tokens = ("--training-flops", "6e17", "--tokens", "1B", *words[3:], "--count")
    assert int(command("solve", *tokens).stdout) == value["total"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("--hours 48", 2, "a budget of hours depends on the device: name one with --device 8xH100"),
        ("--budget 220M --memory 4", 2, "a budget of bytes_per_device depends on the device"),
        (
            "--flops-per-token many",
            2,
            'invalid flops_per_token "many": use a number above 0 such as 600M, 1.5T or 1e19.',
        ),
        ("--space auto --kv-cache 4KB", 2, 'the space "auto" is laid around a budget'),
        ("--kv-cache 4KB --counting total", 2, "has no parameter budget: set one with --budget"),
        ("--budget 220M --flops-per-token 1M", 3, "This budget alone rules out every architecture (1,000,000 FLOPs"),
    ],
)
def test_budgets_of_other_kinds_are_refused_in_one_line(options: str, code: int, words: str, command: Command) -> None:
    ended = command("solve", *options.split())
    assert ended.returncode == code
    assert words in one_line_error(ended)


def test_prices_on_the_cpu_of_a_space_file_are_those_of_this_machine(tmp_path: Path, command: Command) -> None:
    text = (shipped_folder("spaces") / "cpu-demo.toml").read_text()
    assert text.count("[budget]\n") == 1
    (tmp_path / "own.toml").write_text(
        text.replace("[budget]\n", '[budget]\nbytes_per_device = "1GB"\ndevice = "cpu"\nprecision = "fp32"\n')
    )
    words = ("solve", "--space", str(tmp_path / "own.toml"), "--top", "1", "--format", "json")
    [row] = json_of(command(*words))["architectures"]
    assert row["tokens_per_second"] > 100
    [row] = json_of(command(*words, "--where", "tokens_per_second > 100"))["architectures"]
    assert row["hours"] < 1e5


def test_parameters_cannot_be_counted_otherwise_without_a_budget_of_them(tmp_path: Path, command: Command) -> None:
    (tmp_path / "own.toml").write_text('[budget]\nflops_per_token = "<=1G"\n')
    ended = command("solve", "--space", str(tmp_path / "own.toml"), "--counting", "active", "--count")
    assert 'the space "own" has no parameter budget: set one with --budget' in one_line_error(ended)
