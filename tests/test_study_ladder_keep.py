"""A ladder that drops arms from size to size: settings, the decision, its record, the plan, and what `rank` shows."""

import argparse
import csv
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command_line import Command, json_of, one_line_error
from helpers.ladders import SPACE, observed
from helpers.studies import stop_trial, write_study

from march_search.commands.studies import NamedStudy, named_study
from march_search.commands.study_ladder import run_ladder
from march_search.ladders.ladder_record import find_ladder
from march_search.ladders.size_survivors import correlation, dropped_risk, planned_risks

LADDER = """question = "Does the order hold?"
space = "space.toml"
[search]
seeds = [0, 1]
[pruner]
kind = "none"
[confirm]
max_seeds = 1
[ladder]
budgets = ["30K", "60K", "120K"]
keep = [1, 0.6, 0.6]
tokens_per_parameter = 0.05
directions = { "d_model / num_layers" = 16, "d_ff / d_model" = 3, "num_heads * d_kv / d_model" = 1, d_kv = 16 }
[[ladder.arms]]
name = "plain"
[[ladder.arms]]
name = "gated"
fields = { feed_forward_proj = "gated-gelu" }
[[ladder.arms]]
name = "wide"
directions = { "d_model / num_layers" = 64 }
[[ladder.arms]]
name = "thick"
directions = { "d_ff / d_model" = 8 }
[[ladder.arms]]
name = "thin"
directions = { "d_ff / d_model" = 1, "num_heads * d_kv / d_model" = 2 }
[data]
corpus = "CORPUS"
vocab_size = 512
sequence_length = 16
validation_sequences = 32
noise_density = 0.5
[training]
global_batch_tokens = 128
learning_rate = 1e-3
warmup_tokens = 128
precision = "fp32"
evaluations = 2
checkpoints = 0
[devices]
kind = "cpu"
threads = 1
"""

FIRST = {"plain": 3.2, "gated": 3.0, "wide": 3.3, "thick": 3.1, "thin": 3.5}


@pytest.fixture
def file(tmp_path: Path, corpus: Path) -> Path:
    """A ladder of five arms at three sizes that keeps three, and the baseline."""
    (tmp_path / "space.toml").write_text(SPACE)
    path = tmp_path / "steps.toml"
    path.write_text(LADDER.replace("CORPUS", str(corpus)))
    return path


def change(file: Path, old: str, new: str) -> None:
    """Replace a text in the ladder's file."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def run(file: Path, losses: dict[str, dict[str, float]], up_to: str | None = None) -> dict[str, list[str]]:
    """Run a ladder whose trials get made-up losses at once, and return the arms that each size trained.

    Both seeds of an arm differ from its loss by 0.001 nats.
    """
    root, trained = file.parent / "runs", {}
    study = named_study(str(file), root)

    def train(one: NamedStudy, options: argparse.Namespace) -> int:
        config, _ = one.load()
        ladder = find_ladder(root / "steps")
        assert ladder is not None
        size = next(size for size in ladder.sizes if size.study == one.name)
        names = {shape.name: arm for arm, shape in zip(ladder.arms, size.architectures, strict=True)}
        arms = [names[name] for name in config.search.architectures]
        trained[size.size] = arms
        if not (root / one.name / "study.json").exists():
            own = losses[size.size]
            seeds = {name: [own[arm] - 0.001, own[arm] + 0.001] for name, arm in names.items() if arm in arms}
            write_study(root, seeds, name=one.name)
        return 0

    def priced(*_: Any) -> Any:
        raise AssertionError("a run is not priced here")

    options = argparse.Namespace(root=root, dry_run=False, create=False, extend=False, up_to=up_to)
    assert run_ladder(study, study.loaded(), options, train, priced) == 0
    return trained


def shifted(by: float) -> dict[str, float]:
    """Return the losses of the first size, lower by some nats."""
    return {arm: loss - by for arm, loss in FIRST.items()}


AGREES = {"30K": FIRST, "60K": shifted(0.5), "120K": shifted(0.9)}


def recorded(file: Path) -> dict[str, dict[str, Any]]:
    """Return the sizes in the ladder's record by name."""
    table = json.loads((file.parent / "runs" / "steps" / "ladder.json").read_text())
    return {size["size"]: size for size in table["sizes"]}


def test_without_an_accuracy_all_arms_train_at_the_second_size_and_the_best_at_the_third(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = run(file, AGREES)
    assert trained["30K"] == trained["60K"] == [*FIRST]
    # The best three are gated, thick and plain, which is the baseline.
    assert trained["120K"] == ["plain", "gated", "thick"]
    sizes, told = recorded(file), capsys.readouterr().err
    assert "trained" not in sizes["30K"]
    assert sizes["60K"]["trained"] == [*FIRST]
    assert "steps: 60K trains all of 5 arms: one finished size does not show how far sizes agree" in told
    assert sizes["120K"]["reason"] in told
    assert "120K trains 3 of 5 arms, without wide, thin: 30K orders 100% of 10 pairs as 60K does" in told
    assert 0 < sizes["120K"]["risk"] < 0.1


def test_the_baseline_trains_even_if_it_is_not_among_the_best(file: Path) -> None:
    losses = {size: own | {"plain": own["plain"] + 1} for size, own in AGREES.items()}
    assert run(file, losses)["120K"] == ["plain", "gated", "wide", "thick"]


def test_sizes_that_disagree_drop_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turned = dict(zip(FIRST, reversed([loss - 0.5 for loss in FIRST.values()]), strict=True))
    trained = run(file, {"30K": FIRST, "60K": turned, "120K": turned})
    assert trained["120K"] == [*FIRST]
    told = capsys.readouterr().err
    assert re.search(r"120K trains all of 5 arms: 30K orders \d+% of 10 pairs as 60K does .* without \w+, above", told)
    assert "above max_risk (10%)." in told
    assert recorded(file)["120K"]["risk"] > 0.1


def test_the_same_order_within_noise_drops_nothing(file: Path) -> None:
    close = {arm: 3 + (loss - 3) / 1000 for arm, loss in FIRST.items()}
    trained = run(file, {"30K": close, "60K": {arm: loss - 0.5 for arm, loss in close.items()}, "120K": close})
    assert trained["120K"] == [*FIRST]


def test_an_assumed_accuracy_drops_arms_at_the_second_size(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(file, "keep =", "assumed_accuracy = 0.9\nkeep =")
    trained = run(file, AGREES)
    assert trained["60K"] == ["plain", "gated", "thick"]
    assert "60K trains 3 of 5 arms, without wide, thin: sizes are assumed to order 90% of the pairs" in (
        capsys.readouterr().err
    )
    # Three arms are left, and a ladder has no fewer.
    assert trained["120K"] == ["plain", "gated", "thick"]
    assert recorded(file)["120K"]["reason"] == "120K trains all of 3 arms: keep drops none."


def test_a_low_assumed_accuracy_or_a_strict_limit_drops_nothing(file: Path) -> None:
    change(file, "keep =", "assumed_accuracy = 0.6\nkeep =")
    assert run(file, AGREES, "60K")["60K"] == [*FIRST]


def test_the_choice_is_made_once_and_survives_another_run(file: Path) -> None:
    first = run(file, AGREES)
    before = recorded(file)["120K"]
    root = file.parent / "runs"
    (root / "steps-60K" / "study.json").rename(root / "away")  # the evidence is gone, the choice is not
    assert run(file, AGREES, "30K")["30K"] == [*FIRST]
    (root / "away").rename(root / "steps-60K" / "study.json")
    assert run(file, AGREES)["120K"] == first["120K"]
    assert recorded(file)["120K"] == before


def test_the_choice_survives_the_loss_of_the_record(file: Path) -> None:
    first = run(file, AGREES)
    (file.parent / "runs" / "steps" / "ladder.json").unlink()
    assert run(file, AGREES) == first
    assert recorded(file)["120K"]["reason"] == "120K trains 3 of 5 arms, as it was started."
    assert "trained" not in recorded(file)["60K"]


def test_a_size_that_was_started_with_all_arms_keeps_them(file: Path) -> None:
    text = file.read_text()
    change(file, "keep = [1, 0.6, 0.6]\n", "")
    assert run(file, AGREES)["120K"] == [*FIRST]
    assert all("trained" not in size and "reason" not in size for size in recorded(file).values())
    file.write_text(text)
    assert run(file, AGREES)["120K"] == [*FIRST]


def test_a_failed_arm_is_dropped_with_the_worst(file: Path) -> None:
    run(file, AGREES, "60K")
    names = [path.name for path in sorted((file.parent / "runs" / "steps-60K" / "trials").iterdir())]
    for number in range(len(names))[2:4]:  # both seeds of gated, the best
        stop_trial(file.parent / "runs" / "steps-60K", number, 3, "failed")
    assert run(file, AGREES)["120K"] == ["plain", "wide", "thick"]


def test_the_baseline_trains_at_the_next_size_even_if_it_failed(file: Path, command: Command) -> None:
    run(file, AGREES, "60K")
    for number in (0, 1):  # both seeds of plain
        stop_trial(file.parent / "runs" / "steps-60K", number, 3, "failed")
    assert run(file, AGREES)["120K"] == ["plain", "gated", "wide", "thick"]
    found = json_of(command("rank", "steps", "--format", "json", "--root", str(file.parent / "runs")))
    assert (found["dropped"], found["left_out"]) == (["thin"], ["plain"])


def test_too_few_arms_after_a_failure_are_named(file: Path, command: Command) -> None:
    run(file, AGREES)
    for number in (2, 3):  # both seeds of gated at the largest size, where three arms train
        stop_trial(file.parent / "runs" / "steps-120K", number, 3, "failed")
    error = one_line_error(command("rank", "steps", "--root", str(file.parent / "runs")))
    assert (
        "steps has 2 arms that completed at every finished size; it needs three. Not complete: gated at 120K" in error
    )
    assert "see march-search study status steps-120K." in error
    assert "wide" not in error


def test_rank_shows_what_was_dropped_and_why(file: Path, command: Command) -> None:
    run(file, AGREES)
    root = ("--root", str(file.parent / "runs"))
    found = json_of(command("rank", "steps", "--format", "json", *root))
    assert (found["dropped"], found["left_out"]) == (["wide", "thin"], [])
    assert [one["size"] for one in found["survivors"]] == ["60K", "120K"]
    assert [(one["small"], one["large"], one["pairs"]) for one in found["agreement"]] == [
        ("30K", "60K", 10), ("30K", "120K", 3), ("60K", "120K", 3),
    ]  # fmt: skip
    assert [row["arm"] for row in found["forecast"]["arms"]] == ["plain", "gated", "thick"]
    rows = list(csv.DictReader(io.StringIO(command("rank", "steps", "--format", "csv", *root).stdout)))
    assert len(rows) == 3 * 3 + 2 * 2
    assert {(row["size"], row["arm"]): float(row["loss"]) for row in rows}["60K", "thin"] == pytest.approx(3.0)
    text = " ".join(command("rank", "steps", *root).stdout.split())
    assert "thin 3.5000 3.0000 –" in text
    assert "120K trains 3 of 5 arms, without wide, thin: 30K orders 100% of 10 pairs as 60K does" in text
    assert "Pairs: 30K → 60K 10, 30K → 120K 3, 60K → 120K 3." in text
    assert "Left out" not in text
    kept = command("forecast", "steps", "--at", "240K", *root)
    assert kept.returncode == 0, kept.stderr
    curves = json.loads(command("export", "steps", "--format", "curves", *root).stdout)
    assert {run["arm"] for run in curves["runs"] if run["size"] == "120K"} == {"plain", "gated", "thick"}
    replayed = command("replay", "steps", "--strategy", "sizes", "--replays", "3", *root)
    assert "Left out, because they lack a size: thin, wide." in " ".join(replayed.stdout.split())


def test_the_plan_shows_what_is_saved_and_risked(file: Path, command: Command) -> None:
    root = ("--root", str(file.parent / "runs"))
    plan = ("study", "run", str(file), "--dry-run", "--device", "A5000", *root)
    text = " ".join(command(*plan).stdout.split())
    assert "keep at 60K: the best 3 of 5 arms and the baseline would train, which saves" in text
    assert re.search(r"saves [\d.]+[A-Z] FLOPs and \S+ or more \(20% of the size\)", text)
    assert "order 80% of the pairs alike, which is known for data mixtures, not for these arms" in text
    assert (
        "All arms train here nevertheless, because nothing is measured yet: set assumed_accuracy to drop arms." in text
    )
    assert (
        "Arms are dropped if this probability, estimated from the two sizes before, is at most 10% (max_risk)." in text
    )
    assert text.count("10 trials") == 3
    run(file, AGREES, "60K")
    text = " ".join(command(*plan).stdout.split())
    assert "120K: 6 trials" in text
    assert "120K trains 3 of 5 arms, without wide, thin" in text
    change(file, "keep = [1, 0.6, 0.6]\n", "")
    text = command(*plan).stdout
    assert "keep at" not in text
    assert "120K: 10 trials" in text


def test_a_budget_that_is_added_to_a_started_ladder_is_planned_and_a_changed_arm_is_refused(
    file: Path, command: Command
) -> None:
    change(file, 'budgets = ["30K", "60K", "120K"]\nkeep = [1, 0.6, 0.6]', 'budgets = ["30K", "60K"]\nkeep = [1, 0.6]')
    run(file, AGREES)
    change(file, 'budgets = ["30K", "60K"]\nkeep = [1, 0.6]', 'budgets = ["30K", "60K", "120K"]\nkeep = [1, 0.6, 0.6]')
    plan = ("study", "run", str(file), "--dry-run", "--device", "A5000", "--root", str(file.parent / "runs"))
    ended = command(*plan)
    assert ended.returncode == 0, ended.stderr
    assert "120K trains 3 of 5 arms, without wide, thin" in " ".join(ended.stdout.split())
    change(file, 'name = "thin"', 'name = "slim"')
    assert "steps-30K was started with other arms: slim was not there" in one_line_error(command(*plan))


def test_a_file_of_another_kind_does_not_hide_the_results_of_a_ladder(file: Path, command: Command) -> None:
    run(file, AGREES)
    plan = ("study", "run", str(file), "--dry-run", "--device", "A5000", "--root", str(file.parent / "runs"))
    text = file.read_text()
    equal = text.replace("keep = [1, 0.6, 0.6]\ntokens_per_parameter = 0.05", 'training_flops = "3e9"')
    file.write_text(equal.replace('["30K", "60K", "120K"]', '["10K", "30K", "60K", "120K"]'))
    other = "steps was started as a ladder, and its file is now that of"
    assert f"{other} a ladder with training_flops. Restore the file" in one_line_error(command(*plan))
    file.write_text(text[: text.index("[ladder]")] + text[text.index("[data]") :])
    assert f"{other} a study. Restore the file" in one_line_error(command(*plan))
    write_study(file.parent / "runs", {"L2-D24-H2x16-F56-rope-V512": [3.0]}, name="other")
    file.rename(file.with_name("other.toml")).write_text(text)
    error = one_line_error(
        command(*(str(file.with_name("other.toml")) if part == str(file) else part for part in plan))
    )
    assert "other was started as a study, and its file is now that of a ladder." in error


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("keep = [1, 0.6, 0.6]", "keep = [1, 0.6]", "keep has 2 entries for 3 budgets: list one share for each"),
        ("keep = [1, 0.6, 0.6]", "keep = [0.9, 0.6, 0.6]", "keep must start with 1, never rise and end above 0"),
        ("keep = [1, 0.6, 0.6]", "keep = [1, 0.5, 0.6]", "keep must start with 1, never rise and end above 0"),
        ("keep = [1, 0.6, 0.6]", "keep = [1, 0.5, 0]", "keep must start with 1, never rise and end above 0"),
        ("keep = [1, 0.6, 0.6]", "keep = [1, nan, 0.6]", "[ladder]: keep must be a finite number, not nan."),
        ("keep =", "max_risk = 0\nkeep =", "max_risk must be a probability between 0 and 1, not 0."),
        ("keep =", "assumed_accuracy = 0.5\nkeep =", "assumed_accuracy must be above 0.5 and below 1, not 0.5."),
        ("keep = [1, 0.6, 0.6]", "assumed_accuracy = 0.8", "assumed_accuracy has no effect without keep"),
        ("keep = [1, 0.6, 0.6]", "max_risk = 0.2", "max_risk has no effect without keep"),
    ],
)
def test_wrong_settings_are_one_line(file: Path, command: Command, old: str, new: str, message: str) -> None:
    change(file, old, new)
    ended = command("study", "run", str(file), "--dry-run", "--root", str(file.parent / "runs"))
    assert message in one_line_error(ended)


@pytest.mark.parametrize("accuracy", [0.6, 0.75, 0.9])
def test_the_correlation_gives_the_accuracy(accuracy: float) -> None:
    rng, own = np.random.default_rng(0), correlation(accuracy)
    first, other = rng.standard_normal((2, 200_000, 2))
    second = own * first + math.sqrt(1 - own**2) * other
    assert np.mean((first[:, 0] < first[:, 1]) == (second[:, 0] < second[:, 1])) == pytest.approx(accuracy, abs=0.005)


def test_planned_risks_have_their_limits() -> None:
    # Without any agreement, the best is as likely among the dropped as any other; the baseline adds one that trains.
    (none,) = planned_risks(6, [3], 0.5 + 1e-9)
    assert none == pytest.approx(1 - (3 + 3 / 6) / 6, abs=0.01)
    assert planned_risks(6, [3, 3], 1 - 1e-12) == pytest.approx((0, 0), abs=2e-3)
    assert planned_risks(6, [6, 6], 0.7) == (0, 0)
    low, high = (planned_risks(6, [4, 3], accuracy) for accuracy in (0.7, 0.9))
    assert all(a > b for a, b in zip(low, high, strict=True))
    assert low[1] > low[0]


def test_the_stated_risk_is_how_often_the_best_arm_is_dropped() -> None:
    rng, stated, came = np.random.default_rng(1), [], []
    for number in range(50):
        own = rng.uniform(0, 1)
        steps = [rng.standard_normal(6)]
        for _ in range(2):
            steps.append(own * steps[-1] + math.sqrt(1 - own**2) * rng.standard_normal(6))
        truth = np.stack([3 - 0.5 * k + 0.02 * row for k, row in enumerate(steps)])
        small, large, _ = observed(truth, rng)
        kept = sorted({0, *np.argsort(large.means_A)[:3].tolist()})
        stated.append(dropped_risk([small, large], kept, None, seed=number))
        came.append(int(truth[2].argmin()) not in kept)
    assert np.mean(came) == pytest.approx(np.mean(stated), abs=0.1)
    sure = np.array(stated) <= 0.1
    assert sure.sum() >= 8
    assert np.mean(np.array(came)[sure]) <= 0.13


def test_one_size_uses_the_assumed_accuracy() -> None:
    [size] = observed(np.array([[3.0, 3.1, 3.2, 3.3, 3.4, 3.5]]), np.random.default_rng(2))
    low, high = (dropped_risk([size], [0, 1, 2], accuracy) for accuracy in (0.6, 0.9))
    assert high < 0.01 < 0.05 < low < 0.5
    noisy = replace(size, errors_A=np.full(6, 1.0))
    assert dropped_risk([noisy], [0, 1, 2], 0.9) > 0.3
