"""The price of a study is predicted before it starts, and compared with what it took."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.toy_studies import RUNG_TRAINING, TOY_CONFIG, run_toy_study

from march_search import Architecture
from march_search.cli import main
from march_search.commands.studies import named_study
from march_search.config import ConfirmConfig, DevicesConfig, PrunerConfig, SearchConfig, StudyConfig
from march_search.config.shipped import shipped_folder
from march_search.cost.devices import parse_device
from march_search.cost.memory import memory
from march_search.cost.setup import Setup
from march_search.cost.speed import hours
from march_search.data.store import Store
from march_search.data.text_tokens import TextTokens, text_tokens
from march_search.errors import ConfigError, UsageError
from march_search.planning import candidates, price
from march_search.planning.measured_cpu import START_SECONDS, UNCERTAINTY, MeasuredCpu, measured_cpu
from march_search.planning.plan import plan_rows, product, warnings
from march_search.planning.plan_cost import cost_rows, faults
from march_search.storage import usage

A5000 = parse_device("A5000")

EXAMPLES = Path(__file__).parent.parent / "examples"


def planned(config: StudyConfig, **options: object) -> dict:
    """Return the price of a study."""
    return price.priced_plan(config, candidates.choose(config, Path()), **options)


def rows_of(plan: dict) -> dict[str, str]:
    """Return the words of a plan's cost by label."""
    return dict(cost_rows(plan, "8 architectures × 1 seed"))


def test_tokens_flops_hours_and_money_are_sums_over_the_candidates() -> None:
    config = replace(TOY_CONFIG, search=SearchConfig(trials=5, seeds=(0, 1, 2)))
    plan = planned(config, device=A5000, rate=1.1)
    shapes = candidates.choose(config, Path()).architectures
    setup = Setup(device=A5000, tokens=4096, sequence_length=64, micro_batch=16)
    assert (plan["architectures"], plan["trials"], plan["tokens"]) == (5, 15, 15 * 4096)
    assert plan["flops"] == pytest.approx(3 * 4096 * sum(a.flops_per_token(64) for a in shapes))
    evaluated = 2 / 3 * config.data.validation_sequences * 64 * len(config.training.evaluation_steps) / 4096
    assert plan["device_hours"] == pytest.approx(3 * sum(hours(a, setup) for a in shapes) * (1 + evaluated))
    assert plan["money"] == pytest.approx(1.1 * plan["device_hours"])


def test_learning_rates_multiply_the_price_and_ranks_do_not() -> None:
    search = SearchConfig(trials=5)
    ideal = replace(A5000, launch_seconds=0.0, bandwidth=0.0)  # launches and gradients cost more in small micro batches
    once = planned(replace(TOY_CONFIG, search=search), device=ideal)
    rates = planned(replace(TOY_CONFIG, search=replace(search, learning_rates=(1e-3, 2e-3, 4e-3))), device=ideal)
    assert rates["tokens"] == 3 * once["tokens"]
    assert rates["device_hours"] == pytest.approx(3 * once["device_hours"])
    four = planned(replace(TOY_CONFIG, search=search, devices=DevicesConfig(ranks=4)), device=replace(ideal, count=4))
    assert four["device_hours"] == pytest.approx(once["device_hours"], rel=1e-9)


def test_the_price_counts_only_trials_promoted_from_each_rung() -> None:
    pruner = PrunerConfig(rungs=(0.25, 0.5), keep=1 / 3)
    config = replace(TOY_CONFIG, search=SearchConfig(trials=24, seeds=(0, 1)), training=RUNG_TRAINING, pruner=pruner)
    plan = planned(config, device=A5000)
    assert [(stage["tokens"], stage["trials"]) for stage in plan["stages"]] == [(4096, 48), (8192, 18), (16_384, 8)]
    assert plan["tokens"] == 4096 * 48 + 4096 * 18 + 8192 * 8
    assert [stage["text"] for stage in plan["stages"]] == [
        "24 architectures train to 4.1k tokens with 2 seeds each",
        "the best 8 and the baseline continue to 8.19k tokens",
        "the best 3 and the baseline continue to the end, 16.4k tokens",
    ]
    evaluation = config.data.validation_sequences * 64
    assert price._evaluated(config, 0, 4096) == evaluation
    assert price._evaluated(config, 8192, 16_384) == 2 * evaluation
    assert plan["device_hours"] == pytest.approx(sum(stage["device_hours"] for stage in plan["stages"]))


def test_the_confirmation_is_priced_from_nothing_to_its_limits() -> None:
    search, further = SearchConfig(trials=24), ConfirmConfig(max_seeds=3)
    config = replace(TOY_CONFIG, search=search, confirm=further, devices=DevicesConfig(kind="cuda", parallel_trials=3))
    plan = planned(config, device=A5000)
    once = plan["stages"][0]
    assert plan["confirm"]["trials"] == 4 * 2
    assert plan["confirm"]["tokens"] == 4 * 2 * 4096
    assert plan["confirm"]["device_hours"] == pytest.approx(once["device_hours"] * 8 / 24)
    assert plan["confirm"]["seconds"] == pytest.approx(once["seconds"] / 8 * 4)  # two of two rounds instead of 8 turns
    assert once["seconds"] == pytest.approx(once["device_hours"] * 3600 / 3)
    rows = rows_of(plan)
    assert rows["trials"] == "24 = 8 architectures × 1 seed; at most 8 more to confirm"
    assert rows["search"].startswith("24 architectures train to the end, 4.1k tokens: 98.3k tokens in ")
    assert rows["confirm"].startswith(
        "at most 4 finalists get up to 2 further seeds each, until the leader is separated: 0 to 32.8k tokens in "
    )
    assert rows["tokens"] == "98.3k to 131k over all trials"
    capped = replace(config, search=replace(search, max_tokens=24 * 4096 + 5 * 4096))
    assert planned(capped)["confirm"]["tokens"] == 4 * 4096
    unlimited = planned(replace(config, confirm=ConfirmConfig(max_seeds=0)), device=A5000)
    assert rows_of(unlimited)["tokens"] == "98.3k and more over all trials"
    assert rows_of(unlimited)["time"].endswith(" and more with 3 trials at a time, each on A5000")
    assert planned(replace(config, confirm=ConfirmConfig(max_seeds=1)))["confirm"] is None


@pytest.mark.parametrize(
    ("name", "most", "device"), [("t5-220m", 24, "8xA5000"), ("t5-740m", 12, "8xA5000"), ("gpt-124m", 24, "8xA100")]
)
def test_the_plans_of_the_large_studies_end_with_several_complete_arms(
    name: str, most: int, device: str, tmp_path: Path
) -> None:
    config, folder = named_study(name, tmp_path).load()
    chosen = candidates.choose(config, folder)
    plan = price.priced_plan(config, chosen, parse_device(device))
    assert len(chosen.architectures) == most
    assert chosen.off_budget == ()
    assert chosen.architectures[0].name == config.search.architectures[0]
    assert plan["stages"][0]["tokens"] >= 50 * config.training.global_batch_tokens
    assert plan["stages"][-1] == plan["stages"][-1] | {"tokens": config.training.tokens, "trials": 4}
    assert "baseline" in " ".join(stage["text"] for stage in plan["stages"])
    assert plan["confirm"]["trials"] == 8
    labels = [label for label, _ in cost_rows(plan, "")]
    rungs = ["search, rung 1", "search, rung 2", "search, rung 3"][: len(plan["stages"]) - 1]
    order = ["tokens", "FLOPs", "time", "device-hours", "disk", "memory", "prices"]
    assert labels == ["trials", *rungs, "search, end", "confirm", *order]


def test_the_candidate_that_needs_most_memory_is_named() -> None:
    big = Architecture(num_layers=24, d_model=2048, num_heads=32, d_ff=8192, vocab_size=2048)
    small = Architecture(num_layers=2, d_model=64, num_heads=1, d_ff=64, vocab_size=2048)
    search = SearchConfig(strategy="list", architectures=(small.name, big.name))
    for micro, fits in ((None, False), (1, False)):
        training = replace(TOY_CONFIG.training, micro_batch_sequences=micro)
        plan = planned(replace(TOY_CONFIG, search=search, training=training), device=A5000)
        assert plan["memory"]["architecture"] == big.name
        text = rows_of(plan)["memory"]
        assert text.endswith("a device has 24GB: fits") is fits
        assert ("DOES NOT FIT" in text) is not fits
        assert bool(faults(plan)) is not fits
    plan = planned(replace(TOY_CONFIG, search=replace(search, architectures=(small.name,))), device=A5000)
    setup = Setup(device=A5000, tokens=4096, sequence_length=64, micro_batch=plan["memory"]["micro_batch"])
    assert plan["memory"]["bytes"] == memory(small, setup).total
    assert rows_of(plan)["memory"].endswith("fits")


def test_every_candidate_is_built_and_its_parameters_counted() -> None:
    shapes = candidates.choose(replace(TOY_CONFIG, search=SearchConfig(trials=5)), Path()).architectures
    assert price.built(shapes) == 5

    class Wrong(Architecture):
        num_params = 1  # type: ignore[assignment]

    with pytest.raises(ConfigError, match=r"was built with [\d,]+ parameters, expected 1\."):
        price.built([Wrong(num_layers=1, d_model=64, d_ff=64, vocab_size=256)])


def test_a_study_with_a_sampler_is_priced_by_a_sample_of_its_set() -> None:
    config = replace(TOY_CONFIG, search=SearchConfig(strategy="tpe", trials=9, warm_start=("march-2023",)))
    chosen = candidates.choose(config, Path())
    plan = price.priced_plan(config, chosen)
    assert (plan["architectures"], plan["trials"], plan["device_hours"]) == (9, 9, None)
    assert len(price.stand_ins(config, chosen)) == 64
    rows = dict(plan_rows(config, chosen, "text", Path("runs/x")))
    assert rows["candidates"].endswith("(tpe picks candidates as results arrive)")
    assert rows["warm start"] == "25 results from march-2023, 0 in the feasible set"
    assert rows_of(plan)["time"] == "not known: add --device 8xA5000, and --rate PRICE_PER_HOUR for the money"
    assert product(config, chosen) == "9 architectures × 1 seed"


def test_the_actual_cost_is_compared_with_the_plan(tmp_path: Path) -> None:
    pruner = PrunerConfig(kind="median", startup_trials=3, warmup_tokens=2048)
    config = replace(TOY_CONFIG, devices=DevicesConfig(kind="cpu"), pruner=pruner)
    run_toy_study(tmp_path, config)
    plan = planned(config)
    took = usage.actual(tmp_path / "toy", config)
    trials = [json.loads(p.read_text().splitlines()[-1]) for p in tmp_path.glob("toy/trials/*/metrics.jsonl")]
    assert took["trials"] == plan["trials"] == 6
    assert took["tokens"] == sum(line["tokens"] for line in trials)
    assert took["device_hours"] == pytest.approx(took["tokens"] / 1000 / 3600)
    assert took["disk_bytes"] > 0
    rows = dict(usage.comparison_rows(plan | {"device_hours": took["device_hours"] * 2}, took))
    assert rows["trials"] == "6, 100% of the 6 planned"
    assert rows["device time"].startswith("2")
    assert rows["device time"].endswith("planned")
    assert dict(usage.comparison_rows(plan, took))["device time"].endswith("not planned")


def test_a_file_that_a_worker_deletes_meanwhile_is_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_toy_study(tmp_path, replace(TOY_CONFIG, search=SearchConfig(trials=1)))
    bytes_before, stat = usage.actual(tmp_path / "toy", TOY_CONFIG)["disk_bytes"], Path.stat
    for name in ("listed", "seen"):
        (tmp_path / "toy" / name).touch()

    def deleted_meanwhile(path: Path, **options: bool) -> os.stat_result:
        if path.name == "listed":
            path.unlink(missing_ok=True)
        found = stat(path, **options)
        if path.name == "seen":
            path.unlink()
        return found

    monkeypatch.setattr(Path, "stat", deleted_meanwhile)
    assert usage.actual(tmp_path / "toy", TOY_CONFIG)["disk_bytes"] == bytes_before


@pytest.mark.parametrize(
    ("kind", "memory", "devices"),
    [
        ("cuda", {}, 2),
        ("cpu", {"peak_memory_bytes": 5, "peak_host_memory_bytes": 5}, 1 / 3),
        ("auto", {"peak_memory_bytes": 5, "peak_host_memory_bytes": 5}, 1 / 3),
        ("auto", {"peak_memory_bytes": 5}, 1 / 3),
        ("auto", {"peak_memory_bytes": 7, "peak_host_memory_bytes": 5, "peak_reserved_memory_bytes": 9}, 2),
        ("auto", {"peak_memory_bytes": 7, "peak_host_memory_bytes": 5}, 2),
    ],
)
def test_the_device_hours_of_a_trial_on_gpus_count_all_its_ranks(
    tmp_path: Path, kind: str, memory: dict[str, int], devices: float
) -> None:
    run_toy_study(tmp_path, replace(TOY_CONFIG, search=SearchConfig(trials=1)))
    config = replace(TOY_CONFIG, devices=DevicesConfig(kind=kind, ranks=2, parallel_trials=3))
    for path in tmp_path.glob("toy/trials/*/metrics.jsonl"):
        texts = [json.dumps(json.loads(line) | memory) for line in path.read_text().splitlines()]
        path.write_text("\n".join(texts) + "\n")
    took = usage.actual(tmp_path / "toy", config)
    assert took["device_hours"] == pytest.approx(devices * took["tokens"] / 1000 / 3600)


def test_the_device_count_must_match_the_ranks() -> None:
    config = replace(TOY_CONFIG, devices=DevicesConfig(kind="cuda", ranks=8))
    assert str(price.device_of(config, "A5000")) == "8xA5000"
    with pytest.raises(UsageError, match=r"does not match \[devices\] ranks = 8: use --device A5000\."):
        price.device_of(config, "4xA5000")


def test_a_dry_run_prints_the_price(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = (shipped_folder("studies") / "t5-220m.toml").read_text()
    (tmp_path / "fixed.toml").write_text(study.replace("[training]", "[training]\nmicro_batch_sequences = 32"))
    priced = ["--dry-run", "--device", "8xA5000", "--rate", "0.5"]
    assert main(["study", "run", str(tmp_path / "fixed.toml"), *priced]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "a device has 24GB: DOES NOT FIT" in printed
    assert "WARNING: L48-D256-H8x64-F1856-geglu needs " in printed
    assert main(["study", "run", "t5-220m", *priced]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert " on 8xA5000 device-hours " in text
    assert " at 0.5 per device-hour " in text
    assert "at micro batch 16; a device has 24GB: fits" in text


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "x"])
def test_the_rate_must_be_a_positive_number(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["study", "run", "cpu-demo", "--dry-run", "--rate", rate])
    assert f'"{rate}" must be a number above 0' in capsys.readouterr().err


UNKNOWN = TextTokens(None)


def test_a_plan_warns_of_few_steps_and_of_bf16_that_is_slow_here() -> None:
    training = replace(TOY_CONFIG.training, precision="bf16", tokens=10 * TOY_CONFIG.training.global_batch_tokens)
    config, cpu = replace(TOY_CONFIG, training=training), replace(A5000, name="cpu", bf16_flops=1e9, fp32_flops=60e9)
    plan = planned(config, device=cpu)
    assert warnings(config, plan, cpu, UNKNOWN) == [
        "a trial has 10 optimizer steps, fewer than 50: lower global_batch_tokens or raise tokens in [training]",
        'bf16 is 60 times slower than fp32 on this CPU: set precision = "fp32" in [training]',
    ]
    assert warnings(config, plan, A5000, UNKNOWN)[1:] == warnings(config, plan, None, UNKNOWN)[1:] == []
    enough = replace(training, tokens=50 * training.global_batch_tokens, precision="fp32")
    assert warnings(replace(config, training=enough), plan, cpu, UNKNOWN) == []


def test_a_plan_warns_of_a_batch_that_is_larger_than_the_text(tmp_path: Path, store: Path) -> None:
    (tmp_path / "text.txt").write_text("word " * 400)
    (tmp_path / "text.parquet").write_bytes(b"x" * 100)
    plan = planned(TOY_CONFIG)

    def alerts(corpus: str, batch: int) -> list[str]:
        training = replace(TOY_CONFIG.training, tokens=50 * batch, global_batch_tokens=batch)
        data = replace(TOY_CONFIG.data, corpus=corpus, validation_fraction=0.2)
        config = replace(TOY_CONFIG, training=training, data=data)
        return warnings(config, plan, None, text_tokens(data, tmp_path))

    [alert] = alerts("text.txt", 1024)
    assert alert.startswith(
        "one batch of 1.02k tokens is larger than the whole training text, at most about 800 tokens"
    )
    assert alerts("text.txt", 768) == []
    assert alerts("text.parquet", 1024) == []  # its bytes are compressed
    assert alerts("c4", 1024) == []
    assert text_tokens(TOY_CONFIG.data, tmp_path, store) == (Store.open(store).num_tokens("train"), True)


def test_the_time_on_this_cpu_counts_the_starts_of_trials_and_is_a_range() -> None:
    pair = replace(TOY_CONFIG, search=SearchConfig(trials=5), devices=DevicesConfig(kind="cpu", parallel_trials=2))
    chosen, device = candidates.choose(pair, Path()), replace(A5000, name="cpu")
    plan = MeasuredCpu(device, 1.0).plan(pair, chosen)
    trained = price.priced_plan(pair, chosen, device)["seconds"]
    assert plan["seconds"] == pytest.approx(trained * 6 / 5 + 3 * START_SECONDS)  # three turns, the last for one trial
    assert plan["seconds_range"] == pytest.approx([plan["seconds"] / UNCERTAINTY, plan["seconds"] * UNCERTAINTY])
    assert rows_of(plan)["time"].endswith(" on this CPU, 2 trials at a time")


def test_the_time_on_this_cpu_has_no_end_if_the_confirmation_has_no_limit() -> None:
    config = replace(TOY_CONFIG, devices=DevicesConfig(kind="cpu"), confirm=ConfirmConfig(max_seeds=0))
    plan = MeasuredCpu(replace(A5000, name="cpu"), 1.0).plan(config, candidates.choose(config, Path()))
    assert rows_of(plan)["confirm"].endswith("no limit")
    assert rows_of(plan)["time"].endswith(" and more on this CPU")


def test_this_cpu_is_timed_with_steps_of_three_shapes_and_all_trials_at_once() -> None:
    config = replace(TOY_CONFIG, devices=DevicesConfig(kind="cpu", parallel_trials=2, ranks=2))
    chosen = candidates.choose(config, Path())
    cpu = measured_cpu(config, chosen.architectures, seconds=0.01)
    assert cpu is not None
    assert cpu.device.basis == "steps of 3 shapes timed now, 2 at a time"
    assert cpu.uncertainty == UNCERTAINTY
    plan = cpu.plan(config, chosen)
    assert 0 < plan["seconds_range"][0] < plan["seconds"] < plan["seconds_range"][1]


def test_shapes_with_ones_own_block_are_timed_in_processes_that_load_it() -> None:
    config, folder = named_study(str(EXAMPLES / "moe-study.toml"), Path("runs")).load()
    tiny = replace(config, training=replace(config.training, global_batch_tokens=64))
    cpu = measured_cpu(tiny, candidates.choose(config, folder).architectures, seconds=0.01)
    assert cpu is not None
    assert cpu.device.basis == "steps of 3 shapes timed now"


def test_shapes_that_are_too_large_to_time_are_priced_by_matrix_products() -> None:
    config, folder = named_study("t5-220m", Path("runs")).load()
    cpu = measured_cpu(config, candidates.choose(config, folder).architectures)
    assert cpu is not None
    assert cpu.device.basis.startswith("matrix products timed now")
    assert cpu.uncertainty > UNCERTAINTY
