"""`march-search rank` on studies with known losses: rows, intervals, notes and formats."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from helpers.damage import change_file
from helpers.studies import SHAPES, write_study
from helpers.trials import TINY, trial_config
from scipy.special import stdtrit

from march_search.analysis.documents import example_losses, read_documents
from march_search.analysis.evidence import study_evidence
from march_search.analysis.findings import STATEMENTS
from march_search.analysis.pooling import pool
from march_search.analysis.ranking import find_trial, rank, ranked_rows
from march_search.analysis.seed_prior import seed_prior
from march_search.analysis.study_record import read_study
from march_search.architecture.architecture import Architecture
from march_search.cli import main
from march_search.files.json_tables import sealed, write_json

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
    rows = ranked_rows(study)
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
    row = ranked_rows(read_study(tmp_path / "synthetic"))[0]
    assert (row["learning_rate"], row["learning_rate_edge"], row["loss"]) == (1e-3, "lowest", 4.1)
    assert row["learning_rate_losses"] == {"0.001": 4.1, "0.002": pytest.approx(4.2)}
    text = words(rank_output(tmp_path, capsys))
    assert "0.001!" in text
    assert "at the edge of the list of learning rates" in text
    assert "4 trials complete" not in text


def test_one_seed_states_the_assumed_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, ONE_SEED, examples=128)
    text = words(rank_output(tmp_path, capsys))
    assert "One seed each; the variance of each is combined with a prior" in text
    priors = [seed_prior(Architecture.parse(name)) for name in SHAPES]
    halves = [row["half_interval"] for row in rank(read_study(tmp_path / "synthetic")).rows]
    assert halves == pytest.approx([stdtrit(prior.degrees, 0.975) * prior.deviation for prior in priors])
    assert "from 0.05 nats, set by --seed-noise" in words(rank_output(tmp_path, capsys, "--seed-noise", "0.05"))
    assert "Training noise: left out" in rank_output(tmp_path, capsys, "--seed-noise", "none")


def test_models_no_better_than_ngrams_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, ONE_SEED, bigram=4.0, gain=0.01)
    text = words(rank_output(tmp_path, capsys))
    assert "Regime: n-grams. The best loss, 4.100, is above that of a bigram model (4.000)" in text
    assert "The leader should leave this regime after about 1.4" in text
    assert "Regime: the input is hardly used. The leader's context gain is 0.010" in text
    leave = study_evidence(read_study(tmp_path / "synthetic")).regime
    assert leave is not None
    assert leave.tokens_to_leave is not None
    truth = (1 << 20) * (4.1 / 3.9) ** (1 / 0.15)
    assert leave.tokens_to_leave[0] * 0.98 <= truth <= leave.tokens_to_leave[2] * 1.02


def test_few_evaluations_give_no_estimate_of_when_the_regime_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(tmp_path, ONE_SEED, bigram=4.0, evaluations=3)
    assert "These curves do not show how much more training is needed." in words(rank_output(tmp_path, capsys))


def test_models_that_hardly_use_their_input_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, ONE_SEED, bigram=6.0, gain=0.02)
    text = words(rank_output(tmp_path, capsys))
    assert "Regime: n-grams" not in text
    assert "mean nothing yet. These curves do not show how much more training is needed." in text


def test_models_better_than_ngrams_get_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, ONE_SEED, bigram=6.0, gain=0.4)
    assert "Regime" not in rank_output(tmp_path, capsys)


def test_curves_that_cross_late_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path, dict(zip(SHAPES, ([4.1], [4.3], [4.5], [4.7]), strict=True)))
    metrics = next(folder.glob("trials/0000-*")) / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines[8]["loss"] += 0.3  # after 90% of the tokens, the final winner is second
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = words(rank_output(tmp_path, capsys))
    assert "Curves still cross: 1 of 6 pairs changed places in the last third of training" in text
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
    reasons = [row["reason"] for row in rank(study).others]
    assert reasons[0].startswith("waiting on the rung at 209,920 tokens")
    assert reasons[2] == "no memory"


def test_the_horizon_predicts_a_larger_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, THREE_SEEDS, settings={"training": {"schedule": "cosine"}})
    text = words(rank_output(tmp_path, capsys, "--horizon", "4M"))
    assert "predicted after 4,000,000 tokens" in text
    assert "The learning rate decays (cosine)" in text
    assert "leads now; the probability that another is the best then is " in text
    assert "This is 3.8 times the tokens trained; predictions were checked on real curves only up to 3.3 times." in text
    value = json.loads(rank_output(tmp_path, capsys, "--horizon", "4M", "--format", "json"))["horizon"]
    truth = 4.1013 * (4e6 / (1 << 20)) ** -0.15
    best = value["rows"][0]
    assert best["predicted_low"] - 0.01 <= truth <= best["predicted_high"] + 0.01
    assert 0 <= value["flip_probability"] < 0.6


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--horizon", "1M"], "--horizon 1,000,000: the trials already have 1,048,576 tokens; use a larger number."),
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


def test_three_evaluations_give_no_horizon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, ONE_SEED, evaluations=3)
    assert main(["rank", "synthetic", "--root", str(tmp_path), "--horizon", "4M"]) == 2
    assert "needs at least four evaluations per curve" in capsys.readouterr().err


def test_every_format_has_the_same_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, THREE_SEEDS, examples=128)
    value = json.loads(rank_output(tmp_path, capsys, "--format", "json", "--effects", "--horizon", "4M"))
    assert value["training_noise"]["is_measured"] == [True] * 4
    assert value["data_noise"]["over"] == "16 blocks of 8 examples (validation text is missing)"
    assert len(value["findings"]) == len(STATEMENTS)
    assert len(value["adjusted_p"]) == 4
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
    lines = rank_output(tmp_path, capsys, "--effects", "--horizon", "4M").splitlines()
    assert max(map(len, lines)) <= columns
    [best] = [line for line in lines if line.split()[:1] == ["1"] and " 100% " not in line and "0.008" in line]
    assert SHAPES[0].removesuffix("-rope-V2048") in best
    assert " a " in best


def test_a_study_without_a_complete_trial_still_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path, ONE_SEED)
    for name in ("outcome.json", "result.json"):
        for file in folder.glob(f"trials/*/{name}"):
            file.unlink()
    text = rank_output(tmp_path, capsys, "--effects")
    assert "0 of 4 trials complete" in text
    assert main(["rank", "synthetic", "--root", str(tmp_path), "--horizon", "4M"]) == 2
    assert "has no complete trial" in capsys.readouterr().err


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
    [only] = pool(read_study(tmp_path / "synthetic"))
    losses = example_losses(only.trials)
    assert losses is not None
    assert losses.mean() == pytest.approx(only.loss, abs=1e-5)
    documents = read_documents(only.trials[0], len(losses))
    assert documents.kind.endswith(" documents")
    assert 1 < len(set(documents.numbers_N.tolist())) <= len(losses)
    assert "2 of 2 trials complete" in rank_output(tmp_path, capsys)
