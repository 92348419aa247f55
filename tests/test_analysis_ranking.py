"""`march-search rank` on studies with known losses: rows, intervals, notes and formats."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.damage import change_file
from helpers.studies import SHAPES, TRAINING, stop_trial, write_study
from helpers.trials import TINY, trial_config
from scipy.special import stdtrit

from march_search.analysis.documents import example_losses, read_documents
from march_search.analysis.evidence import study_evidence
from march_search.analysis.findings import STATEMENTS
from march_search.analysis.level import complete_architectures
from march_search.analysis.pooling import chosen_rate
from march_search.analysis.ranking import find_trial, rank
from march_search.analysis.seed_prior import seed_prior
from march_search.analysis.study_record import StudyRecord, read_study
from march_search.architecture.architecture import Architecture
from march_search.cli import main
from march_search.display.regime_sentences import regime_sentences
from march_search.errors import UsageError
from march_search.files.json_tables import sealed, write_json
from march_search.trial.result import validation_file

THREE_SEEDS = dict(
    zip(SHAPES, ([4.100, 4.106, 4.098], [4.104, 4.11, 4.107], [4.15, 4.14, 4.147], [4.152, 4.148, 4.155]), strict=True)
)
ONE_SEED = {name: own[:1] for name, own in THREE_SEEDS.items()}


def rank_output(tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Return what the command prints for the study `synthetic`."""
    assert main(["rank", "synthetic", "--root", str(tmp_path), *options]) == 0
    return capsys.readouterr().out


def words(text: str) -> str:
    """Return `text` as one line."""
    return " ".join(text.split())


def test_the_seeds_of_an_architecture_share_a_row(tmp_path: Path) -> None:
    write_study(tmp_path, THREE_SEEDS, examples=128)
    study = read_study(tmp_path / "synthetic")
    rows = rank(study).rows
    assert [row["name"] for row in rows] == list(SHAPES)
    assert [row["letters"] for row in rows] == ["a", "a", "b", "b"]
    best = rows[0]
    assert best["loss"] == pytest.approx(4.1013, abs=1e-4)
    assert (best["num_seeds"], best["seeds"], best["seed"], best["trials"]) == (3, [0, 1, 2], None, [0, 1, 2])
    assert best["interval_low"] < best["loss"] < best["interval_high"]
    prior = seed_prior(Architecture.parse(SHAPES[0]))
    squares = prior.degrees * prior.deviation**2 + sum((loss - best["loss"]) ** 2 for loss in best["losses"])
    degrees = prior.degrees + 2
    assert best["half_interval"] == pytest.approx(stdtrit(degrees, 0.975) * (squares / degrees / 3) ** 0.5)
    assert sum(row["probability_best"] for row in rows) == pytest.approx(1)
    assert best["compute_equivalent_gain"] == 1
    assert find_trial(study, "best").number == 2


def test_an_architecture_is_ranked_at_its_best_rate_and_an_edge_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(tmp_path, ONE_SEED, rates=(1e-3, 2e-3))
    row = rank(read_study(tmp_path / "synthetic")).rows[0]
    assert (row["learning_rate"], row["learning_rate_edge"]) == (1e-3, "lowest")
    assert row["loss"] == pytest.approx(4.1, abs=5e-4)  # 0.1 nats from the other rate: hardly a choice by chance
    assert row["loss"] == 4.1 + row["rate_correction"]
    assert row["learning_rate_losses"] == {"0.001": 4.1, "0.002": pytest.approx(4.2)}
    text = words(rank_output(tmp_path, capsys))
    assert "0.001!" in text
    assert "rate!: at the edge of the list for 4 of 4" in text
    assert "4 trials complete" not in text


def test_one_rate_for_all_is_stated_as_an_assumption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, ONE_SEED)
    assert "One learning rate for all (0.001): the order assumes" in words(rank_output(tmp_path, capsys))


def test_unequal_effort_is_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path, ONE_SEED, rates=(1e-3, 2e-3))
    for number in (3, 5, 7):  # three architectures keep one rate
        shutil.rmtree(next(folder.glob(f"trials/{number:04d}-*")))
    ranking = rank(read_study(folder))
    assert ranking.num_rates == (1, 2)
    assert [row["num_learning_rates"] for row in ranking.rows] == [2, 1, 1, 1]
    assert [row["rate_correction"] > 0 for row in ranking.rows] == [True, False, False, False]
    text = words(rank_output(tmp_path, capsys, "--explain"))
    assert "Unequal effort: 1 to 2 learning rates each" in text
    largest = max(row["rate_correction"] for row in ranking.rows)
    assert f"Losses are raised by what noise is expected to lower them, at most {largest:.4f} nats." in text


def test_seeds_at_the_chosen_rate_alone_need_no_correction(tmp_path: Path) -> None:
    folder = write_study(tmp_path, {SHAPES[0]: [4.10, 4.11, 4.12, 4.11], SHAPES[1]: [4.3]}, rates=(1e-3, 2e-3))
    few = rank(read_study(folder)).pooled[0]
    for number in (5, 6, 7):  # the second rate keeps seed 0
        shutil.rmtree(next(folder.glob(f"trials/{number:04d}-*")))
    pooled = rank(read_study(folder)).pooled[0]
    assert (few.num_shared, pooled.num_shared, len(pooled.trials)) == (4, 1, 4)
    assert 0 < pooled.rate_correction < 0.001


def test_further_seeds_do_not_move_the_choice_to_a_rate_that_was_lucky() -> None:
    losses = {1e-3: {0: 4.10, 1: 4.11, 2: 4.12}, 2e-3: {0: 4.108}}
    assert chosen_rate(losses, 0.006) == 1e-3
    assert chosen_rate({1e-3: losses[1e-3], 2e-3: {0: 4.05}}, 0.006) == 2e-3
    assert chosen_rate({1e-3: {0: 4.1}, 2e-3: {0: 4.09}}, 0.006) == 2e-3


def test_one_seed_states_the_assumed_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, ONE_SEED, examples=128)
    text = words(rank_output(tmp_path, capsys, "--explain"))
    assert "One seed each: figures with ? rest on assumed seed noise" in text
    assert "One seed each; the variance of each is combined with a prior" in text
    priors = [seed_prior(Architecture.parse(name)) for name in SHAPES]
    halves = [row["half_interval"] for row in rank(read_study(tmp_path / "synthetic")).rows]
    assert halves == pytest.approx([stdtrit(prior.degrees, 0.975) * prior.deviation for prior in priors])
    assert "from 0.05 nats, set by --seed-noise" in words(
        rank_output(tmp_path, capsys, "--explain", "--seed-noise", "0.05")
    )
    assert "Seed noise is left out" in rank_output(tmp_path, capsys, "--seed-noise", "none")


def test_models_no_better_than_ngrams_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, ONE_SEED, bigram=4.23, gain=0.01)
    text = words(rank_output(tmp_path, capsys, "--explain"))
    assert "Regime: n-grams. 2 of 4 architectures are near or above a bigram model's loss." in text
    assert (
        "less than 0.1 nats below 4.230; the lowest loss is 4.100. The order so far is that of learning n-grams."
        in text
    )
    assert "All 4 architectures do not use it yet. The context gain is 0.010;" in text
    assert "On recorded runs, most pairs kept their order from such a point on, but differences halved" in text
    assert "mean nothing" not in text


def test_every_architecture_of_the_first_level_counts_for_the_regime(tmp_path: Path) -> None:
    folder = write_study(tmp_path, ONE_SEED)
    for number in (1, 2):
        change_gain(folder, number, 0.02)
    stop_trial(folder, 3, 5)
    evidence = study_evidence(read_study(folder))
    assert evidence.regime is not None
    assert (evidence.regime.num_unused, evidence.regime.num_measured) == (2, 3)
    assert evidence.regime.gains == (0.02, 0.4)
    sentences = regime_sentences(evidence)
    assert (
        "Regime: 2 of 3 architectures hardly use their input yet. The context gain is 0.020 to 0.400;" in sentences[0]
    )


def change_gain(folder: Path, number: int, gain: float) -> None:
    """Set the context gain of a complete trial, at every evaluation and in its result."""
    [at] = folder.glob(f"trials/{number:04d}-*")
    lines = [json.loads(line) | {"context_gain": gain} for line in (at / "metrics.jsonl").read_text().splitlines()]
    (at / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = json.loads((at / "result.json").read_text())
    write_json(at / "result.json", sealed(result | {"context_gain": gain}))


def test_the_ranking_has_bits_per_byte_where_the_trials_recorded_them(tmp_path: Path, capsys) -> None:
    folder = write_study(tmp_path, dict(zip(SHAPES, ([4.1, 4.2], [4.3], [4.5], [4.7]), strict=True)))
    assert all(row["bits_per_byte"] is None for row in study_evidence(read_study(folder)).ranking.rows)
    assert "bits/byte" not in rank_output(tmp_path, capsys, "--explain")
    for at in folder.glob("trials/*"):
        result = json.loads((at / "result.json").read_text())
        write_json(at / "result.json", sealed(result | {"bits_per_byte": result["loss"] * 0.75}))
    rows = study_evidence(read_study(folder)).ranking.rows
    assert [row["bits_per_byte"] / row["loss"] for row in rows] == pytest.approx([0.75] * 4)
    assert rows[0]["bits_per_byte"] == pytest.approx(4.15 * 0.75)
    text = words(rank_output(tmp_path, capsys, "--explain"))
    assert "bits/byte: the same loss per byte of the text that the targets spell" in text
    assert "bits_per_byte" in rank_output(tmp_path, capsys, "--format", "csv").splitlines()[0]


def test_models_better_than_ngrams_get_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, ONE_SEED, bigram=6.0, gain=0.4)
    assert "Regime" not in rank_output(tmp_path, capsys)


def test_curves_that_cross_late_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path, dict(zip(SHAPES, ([4.1], [4.3], [4.5], [4.7]), strict=True)))
    metrics = next(folder.glob("trials/0000-*")) / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines[8]["loss"] += 0.3  # after 90% of the tokens, the final winner is second
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = words(rank_output(tmp_path, capsys, "--explain"))
    assert "Curves still cross: 1 of 6 pairs changed places in the last third. That is, of training" in text
    assert "Early order: after 10% of the tokens" in text
    found = study_evidence(read_study(tmp_path / "synthetic"))
    assert found.early_orders[8].regret == pytest.approx(0.2)
    assert found.early_orders[0].kendall == 1


def test_a_trial_at_a_rung_is_paused_and_others_have_reasons(tmp_path: Path) -> None:
    settings = {"pruner": {"kind": "rungs", "rungs": [0.02, 0.2]}}
    folder = write_study(tmp_path, ONE_SEED, settings=settings)
    waiting, running, failed = (next(folder.glob(f"trials/000{n}-*")) for n in (1, 2, 3))
    for trial in (waiting, running, failed):
        (trial / "outcome.json").unlink()
        (trial / "result.json").unlink()
    lines = (waiting / "metrics.jsonl").read_text().splitlines()
    (waiting / "metrics.jsonl").write_text(lines[0] + "\n" + lines[1].replace("209715", "209920") + "\n")
    (failed / "outcome.json").write_text(json.dumps({"state": "failed", "reason": "no memory"}))
    study = read_study(tmp_path / "synthetic")
    assert [t.state for t in study.trials] == ["complete", "paused", "unfinished", "failed"]
    ranking = rank(study)
    assert [(row["rank"], row["state"], row["tokens"]) for row in ranking.rows] == [
        (1, "complete", 1 << 20),
        (2, "paused", 209_920),
    ]
    assert ranking.rows[1]["reason"].startswith("waiting on the rung at 209,920 tokens")
    assert [(row["trial"], row["reason"]) for row in ranking.others] == [
        (2, "interrupted or still running"),
        (3, "no memory"),
    ]


def many_shapes(count: int) -> list[str]:
    """Return the names of `count` architectures."""
    return [f"L2-D128-H4x32-F{64 + 8 * n}-rope-V2048" for n in range(count)]


def three_levels(root: Path, **options: Any) -> StudyRecord:
    """Return a study of 24 architectures: 3 complete, 9 stopped at half the tokens, 12 at a fifth; the last failed."""
    names = many_shapes(25)
    folder = write_study(root, {name: [4.0 + 0.01 * n] for n, name in enumerate(names)}, **options)
    half, fifth = (options.get("evaluations", 10) // parts for parts in (2, 5))
    for number in range(3, 12):
        stop_trial(folder, number, half, loss=4.5 if number < 6 else 4.8)
    for number in range(12, 24):
        stop_trial(folder, number, fifth)
    stop_trial(folder, 24, half, "diverged")
    return read_study(folder)


def test_every_architecture_is_ranked_as_far_as_it_went(tmp_path: Path) -> None:
    ranking = rank(three_levels(tmp_path))
    budget = TRAINING.tokens
    assert [(level.tokens, level.is_final, len(level.pooled)) for level in ranking.levels] == [
        (budget, True, 3),
        (budget // 2, False, 9),
        (budget // 5, False, 12),
    ]
    rows = ranking.rows
    assert [row["trial"] for row in rows] == list(range(24))
    assert [row["rank"] for row in rows] == [1, 2, 3, *[4] * 3, *[7] * 6, *range(13, 25)]
    assert [row["trial"] for row in ranking.others] == [24]
    assert ranking.pooled == ranking.levels[0].pooled
    assert ranking.first_rows == rows[:3]
    letters = [{*(row["letters"] or "")} for row in rows]
    above, below = set.union(*letters[:3]), set.union(*letters[3:12])
    assert above == set("abc"[: len(above)])
    assert not above & below
    assert not (above | below) & set.union(*letters[12:])
    assert letters[3] == letters[5] != letters[6]  # equal losses, and 0.3 nats apart
    assert sum(row["probability_best"] for row in rows[:3]) == pytest.approx(1)
    assert {row["probability_best"] for row in rows[3:]} == {None}
    assert rows[3]["difference_to_next"] == 0
    assert (rows[2]["difference_to_next"], rows[11]["difference_to_next"]) == (None, None)
    assert rows[3]["flops"] == rows[3]["flops_per_token"] * (budget // 2)


def test_the_gain_of_every_level_has_an_interval_that_holds_the_true_gain(tmp_path: Path) -> None:
    rows = rank(three_levels(tmp_path, evaluations=20)).rows
    first = rows[0]
    assert (first["compute_equivalent_gain"], first["gain_low"], first["gain_high"]) == (1, None, None)
    for row in (rows[1], rows[2], *rows[3:12:3]):  # all curves are 4 · share^-0.15 with a floor of 0
        share = row["tokens"] / TRAINING.tokens
        truth = (first["loss"] * share**-0.15 / row["loss"]) ** (1 / 0.15)
        truth *= first["flops_per_token"] / row["flops_per_token"]
        assert row["gain_low"] < truth < row["gain_high"]
        assert row["compute_equivalent_gain"] == pytest.approx(truth, rel=0.1)


def test_one_complete_architecture_is_not_the_best_of_one(tmp_path: Path) -> None:
    folder = write_study(tmp_path, ONE_SEED)
    for number in range(1, 4):
        stop_trial(folder, number, 2)
    rows = rank(read_study(folder)).rows
    assert [(row["rank"], row["probability_best"]) for row in rows] == [(n, None) for n in range(1, 5)]
    assert len({row["letters"] for row in rows[:2]}) == 2


def test_a_running_architecture_is_compared_where_others_were_stopped(tmp_path: Path) -> None:
    folder = write_study(tmp_path, ONE_SEED)
    stop_trial(folder, 0, 7, "unfinished")  # was promoted, and runs
    stop_trial(folder, 1, 5)
    stop_trial(folder, 2, 5)
    stop_trial(folder, 3, 3, "unfinished")  # has not reached a point of comparison
    ranking = rank(read_study(folder))
    assert [(row["trial"], row["state"], row["tokens"]) for row in ranking.rows] == [
        (0, "unfinished", TRAINING.tokens // 2),
        (1, "pruned", TRAINING.tokens // 2),
        (2, "pruned", TRAINING.tokens // 2),
    ]
    assert ranking.rows[0]["loss"] == pytest.approx(4.1 * 0.5**-0.15)
    assert len(ranking.pooled[0].curve) == 5
    assert [row["trial"] for row in ranking.others] == [3]
    assert complete_architectures(read_study(folder)) == ()


def test_the_seeds_of_a_stopped_architecture_are_averaged(tmp_path: Path) -> None:
    folder = write_study(tmp_path, {name: losses[:2] for name, losses in THREE_SEEDS.items()})
    for number, loss in zip(range(2, 8), (4.6, 4.8, 4.5, 4.5, 4.9, 4.9), strict=True):
        stop_trial(folder, number, 5, loss=loss)
    rows = rank(read_study(folder)).rows
    assert [(row["trials"], row["num_seeds"]) for row in rows] == [([0, 1], 2), ([4, 5], 2), ([2, 3], 2), ([6, 7], 2)]
    assert [row["loss"] for row in rows[1:]] == pytest.approx([4.5, 4.7, 4.9])


def test_data_noise_at_a_rung_needs_losses_that_belong_to_the_evaluation(tmp_path: Path) -> None:
    folder = write_study(tmp_path, ONE_SEED)
    for number in range(4):
        stop_trial(folder, number, 5, loss=4.5)
        file = validation_file(next(folder.glob(f"trials/{number:04d}-*")), TRAINING.tokens // 2)
        file.parent.mkdir()
        noise = np.random.default_rng(number).normal(0, 0.1, 64)
        np.save(file, (4.5 + noise - noise.mean()).astype(np.float32))
    [level] = rank(read_study(folder)).levels
    assert level.data is not None
    assert level.data.degrees == 7  # blocks of eight
    np.save(file, np.full(64, 4.4, np.float32))
    [level] = rank(read_study(folder)).levels
    assert level.data is None


def test_at_the_horizon_the_order_of_today_stays_with_recorded_uncertainty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(tmp_path, THREE_SEEDS, settings={"training": {"schedule": "cosine"}})
    text = words(rank_output(tmp_path, capsys, "--horizon", "2M"))
    assert "predicted after 2,000,000 tokens" in text
    assert "The learning rate decays (cosine)" in text
    assert "leads now; the probability that another is the best then is " in text
    assert "The order of today is the prediction. After 1.9 times the tokens" in text
    value = json.loads(rank_output(tmp_path, capsys, "--horizon", "2M", "--format", "json"))["horizon"]
    first, *others = value["rows"]
    assert [row["name"] for row in value["rows"]] == list(SHAPES)
    assert (first["difference"], first["difference_low"]) == (0, None)
    assert all(row["difference_low"] < 0.75 * row["difference"] < row["difference_high"] for row in others)
    assert sum(row["probability_best"] for row in value["rows"]) == pytest.approx(1)
    assert value["flip_probability"] == pytest.approx(1 - first["probability_best"])
    assert others[0]["probability_best"] > others[2]["probability_best"]


def test_on_a_plateau_nothing_is_claimed_about_a_longer_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_study(tmp_path, THREE_SEEDS)
    change_gain(folder, 3, 0.0)
    for number in (4, 5):
        change_gain(folder, number, 0.01)
    text = words(rank_output(tmp_path, capsys, "--horizon", "2M"))
    assert "No interval and no probability: 1 of 4 architectures do not use their input yet" in text
    value = json.loads(rank_output(tmp_path, capsys, "--horizon", "2M", "--format", "json"))["horizon"]
    assert value["flip_probability"] is None
    assert {row["difference_low"] for row in value["rows"]} == {None}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--horizon", "1M"], "--horizon 1,000,000: the trials already have 1,048,576 tokens; use a larger number."),
        (
            ["--horizon", "4M"],
            "--horizon 4,000,000: is 3.8 times the 1,048,576 tokens trained, but changes of order are on record only "
            "up to 3.3 times; use at most 3,495,253.",
        ),
        (["--seed-noise", "-1"], "--seed-noise -1: must be nats above 0 (e.g. 0.006), prior, or none."),
        (["--seed-noise", "lots"], "--seed-noise lots: must be nats above 0 (e.g. 0.006), prior, or none."),
    ],
)
def test_an_invalid_option_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    write_study(tmp_path, ONE_SEED)
    assert main(["rank", "synthetic", "--root", str(tmp_path), *options]) == 2
    assert sentence in capsys.readouterr().err


def test_every_format_has_the_same_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, THREE_SEEDS, examples=128)
    value = json.loads(rank_output(tmp_path, capsys, "--format", "json", "--effects", "--horizon", "3M"))
    [level] = value["levels"]
    assert level["training_noise"]["is_measured"] == [True] * 4
    assert level["data_noise"]["over"] == "16 blocks of 8 examples (validation text is missing)"
    assert len(value["findings"]) == len(STATEMENTS)
    assert len(level["adjusted_p"]) == 4
    assert {"regime", "rungs", "effects", "compute_equivalent_gain", "notes"} <= set(value)
    rows = list(csv.DictReader(io.StringIO(rank_output(tmp_path, capsys, "--format", "csv"))))
    assert [row["letters"] for row in rows] == [row["letters"] for row in value["ranked"]]
    assert float(rows[0]["interval_low"]) == pytest.approx(value["ranked"][0]["interval_low"])
    text = rank_output(tmp_path, capsys, "--format", "markdown", "--effects")
    assert "which dimension matters" in text
    tested = [one["statement"] for one in value["findings"] if one["verdict"] != "not tested"]
    assert len(tested) == 2
    assert all(f"| {statement} |" in text for statement in tested)
    assert "- Training noise: ±" in text


@pytest.mark.parametrize("columns", [80, 160])
def test_tables_fit_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    write_study(tmp_path, THREE_SEEDS, examples=128)
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = rank_output(tmp_path, capsys, "--effects", "--horizon", "3M").splitlines()
    assert max(map(len, lines)) <= columns
    half = rank(read_study(tmp_path / "synthetic")).rows[0]["half_interval"]
    [best] = [line for line in lines if line.split()[:1] == ["1"] and " 100% " not in line and f"{half:.3f}" in line]
    assert SHAPES[0].removesuffix("-rope-V2048") in best
    assert " a " in best


def test_a_study_without_a_complete_trial_still_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path, ONE_SEED)
    for name in ("outcome.json", "result.json"):
        for file in folder.glob(f"trials/*/{name}"):
            file.unlink()
    text = rank_output(tmp_path, capsys, "--effects")
    assert "0 of 4 trials complete" in text
    assert main(["rank", "synthetic", "--root", str(tmp_path), "--horizon", "3M"]) == 2
    assert "has no complete trial" in capsys.readouterr().err


def test_a_damaged_trial_is_said_to_be_damaged(tmp_path: Path) -> None:
    folder = write_study(tmp_path, ONE_SEED)
    first, *others = sorted(folder.glob("trials/*/trial.json"))
    first.write_text("{")
    for text in ("0", SHAPES[0]):
        with pytest.raises(UsageError, match=r"synthetic: trial 0 is damaged: .*trial\.json"):
            find_trial(read_study(folder), text)
    for path in others:
        path.write_text("{")
    with pytest.raises(UsageError, match='synthetic has no trial "9": none of its trials can be read'):
        find_trial(read_study(folder), "9")


def test_losses_of_examples_and_their_documents_are_read_from_a_real_trial(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "synthetic"
    for seed in (0, 1):  # the same trial, as if another seed had given the same losses
        folder = study / "trials" / f"{seed:04d}-{TINY}-s{seed}"
        shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns("started.json"))
        change_file(
            folder / "trial.json", seed=seed, store=str((undisturbed / trial_config(undisturbed).store).resolve())
        )
        result = json.loads((undisturbed / "result.json").read_text())
        write_json(folder / "result.json", sealed(result | {"seed": seed}))
    write_json(study / "study.json", {"settings": {"space": "cpu-demo"}})
    [only] = complete_architectures(read_study(tmp_path / "synthetic"))
    losses = example_losses(only.trials, only.tokens)
    assert losses is not None
    assert losses.mean() == pytest.approx(only.loss, abs=1e-5)
    documents = read_documents(only.trials[0], len(losses))
    assert documents.kind.endswith(" documents")
    assert 1 < len(set(documents.numbers_N.tolist())) <= len(losses)
    assert "2 of 2 trials complete" in rank_output(tmp_path, capsys)
