"""Decay branches give the results of shorter trials and leave the stable run as it is, to the same bits."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from helpers.trials import TINY_TRAINING, MakeTrial, lines, result, train, trial_config

from march_search.errors import ConfigError, DivergedError
from march_search.training import loop, timing
from march_search.training.engine import RankInfo
from march_search.training.metrics_file import MetricsFile
from march_search.trial.metrics import read_metrics
from march_search.trial.result import complete_result, validation_file

BATCH = 256
RECIPE: dict[str, Any] = {
    "tokens": 24 * BATCH, "schedule": "wsd", "decay_fraction": 0.25, "final_learning_rate": 0.1,
    "warmup_tokens": 2 * BATCH, "checkpoints": 3,
}  # fmt: skip
"""24 steps, of which the last six decay; checkpoints after steps 6, 12 and 18."""

BRANCHES = (8 * BATCH, 16 * BATCH)
"""Branches from step 6, which has a checkpoint, to step 8, and from step 12 to step 16."""


def trained(folder: Path, *arguments: str) -> Path:
    """Train a trial and return its folder."""
    ended = train(folder, *arguments)
    assert ended.returncode == 0, ended.stderr
    return folder


def same_stable_run(folder: Path, plain: Path) -> None:
    """Assert that a trial's stable run is that of a trial without branches."""
    for kind in ("train", "evaluation"):
        assert lines(folder, kind) == lines(plain, kind)
    for key in ("loss", "weights_sha256", "validation_sha256"):
        assert result(folder)[key] == result(plain)[key]


def same_branch(folder: Path, shorter: Path) -> None:
    """Assert that the branch of a trial that ends where `shorter` does has its steps and its evaluation."""
    tokens, keys = trial_config(shorter).training.tokens, ("loss", "gradient_norm", "learning_rate")
    own = [line for line in lines(folder, "branch_train") if line["branch"] == tokens]
    expected = [line for line in lines(shorter, "train") if line["step"] > own[0]["step"]]
    assert [line["branch_step"] for line in own] == [line["step"] for line in expected]
    assert [[line[key] for key in keys] for line in own] == [[line[key] for key in keys] for line in expected]
    [evaluated] = [line for line in lines(folder, "branch_evaluation") if line["branch"] == tokens]
    [recorded] = [row for row in result(folder)["branches"] if row["tokens"] == tokens]
    for found in (evaluated, recorded):
        assert found["loss"] == result(shorter)["loss"]
        assert found["context_gain"] == result(shorter)["context_gain"]
        assert found["validation_sha256"] == result(shorter)["validation_sha256"]
    losses = validation_file(folder, tokens, is_branch=True)
    assert losses.read_bytes() == validation_file(shorter, tokens).read_bytes()


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (1, {}),
        pytest.param(2, {"zero_stage": 1}, marks=pytest.mark.torture),
        pytest.param(1, {"zero_stage": 2, "optimizer": "muon", "decay_shape": "linear"}, marks=pytest.mark.torture),
        (2, {"zero_stage": 1, "optimizer": "muon", "precision": "bf16"}),
    ],
    ids=["plain", "two ranks", "muon", "muon in bf16 on two ranks"],
)
def test_a_branch_is_a_shorter_trial_to_the_bit_and_the_stable_run_does_not_notice(
    make_trial: MakeTrial, ranks: int, settings: dict[str, Any]
) -> None:
    recipe = RECIPE | settings
    folder = trained(make_trial("branched", ranks, **recipe, branch_tokens=BRANCHES))
    same_stable_run(folder, trained(make_trial("plain", ranks, **recipe)))
    for tokens in BRANCHES if not settings else BRANCHES[1:]:
        same_branch(folder, trained(make_trial(f"shorter-{tokens}", ranks, **(recipe | {"tokens": tokens}))))
    assert complete_result(folder, trial_config(folder)) is not None
    assert not (folder / "checkpoints").exists()


def test_a_trial_that_pauses_where_a_branch_starts_takes_it_when_it_resumes_and_never_twice(
    make_trial: MakeTrial,
) -> None:
    whole = trained(make_trial("whole", **RECIPE, branch_tokens=BRANCHES))
    folder = make_trial("paused", **RECIPE, branch_tokens=BRANCHES)
    trained(folder, "--until", str(12 * BATCH))
    assert [line["branch"] for line in lines(folder, "branch_evaluation")] == [8 * BATCH]
    metrics = folder / "metrics.jsonl"
    steps = [line for line in whole_lines(whole) if '"branch_train"' in line and f'"branch": {16 * BATCH}' in line]
    with metrics.open("a") as file:  # as a trial that is killed in the branch leaves them
        file.writelines(f"{line}\n" for line in steps[:2])
    trained(folder)
    for kind in ("train", "branch_train", "branch_evaluation"):
        assert lines(folder, kind) == lines(whole, kind)
    assert [line for line in lines(folder, "evaluation") if line["step"] != 12] == lines(whole, "evaluation")
    assert result(folder)["branches"] == result(whole)["branches"]
    assert read_metrics(folder).trained_tokens == (24 + 2 + 4) * BATCH


def whole_lines(folder: Path) -> list[str]:
    """Return the lines of a trial's metrics as they stand in the file."""
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_a_branch_that_was_evaluated_is_not_repeated_by_a_trial_that_resumes_at_its_start(tmp_path: Path) -> None:
    def line(kind: str, step: int, branch: int = 0, at: int = 0) -> dict[str, Any]:
        made = {"kind": kind, "step": step, "tokens": step * BATCH, "loss": 3.0}
        return made | ({"branch": branch, "branch_step": at, "branch_tokens": at * BATCH} if branch else {})

    ended = [line("train", 6), line("branch_train", 6, 8 * BATCH, 8), line("branch_evaluation", 6, 8 * BATCH, 8)]
    partial = [line("branch_train", 6, 9 * BATCH, 7), line("branch_train", 6, 9 * BATCH, 8)]
    for step, after, kept in ((6, [], 3), (6, [line("train", 7)], 3), (5, [], 0), (7, [line("train", 7)], 6)):
        file = MetricsFile(tmp_path / "metrics.jsonl", 0)
        for each in [*ended, *partial, *after]:
            file.append(**each)
        file.close()
        MetricsFile(tmp_path / "metrics.jsonl", step).close()
        assert len(read_metrics(tmp_path).lines) == kept


def test_a_loss_in_a_branch_that_is_not_finite_fails_the_trial_and_names_the_branch(make_trial: MakeTrial) -> None:
    config = trial_config(make_trial("diverging", **RECIPE, branch_tokens=BRANCHES))
    engine = mock.MagicMock(return_value=torch.tensor(math.nan))
    engine.get_global_grad_norm.return_value = 1.0
    cpu = torch.device("cpu")
    trial = loop._Trial(
        folder=Path(), config=config, architecture=mock.Mock(), rank_info=RankInfo(0, 1, cpu), batches=mock.Mock(),
        validation=mock.Mock(), token_bytes_V=torch.zeros(400), engine=engine, stop=mock.Mock(look=lambda: 0),
        phases=timing.Phases(cpu), utilisation=mock.Mock(), branch=config.training.branches[0], step=6,
    )  # fmt: skip
    batches = iter([(None, torch.zeros(2, 4, dtype=torch.int64), None)] * config.batch.accumulation)
    with pytest.raises(DivergedError, match="diverged at step 7 of the decay branch to 2,048 tokens: loss nan"):
        loop._one_step(trial, batches)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"schedule": "cosine"}, 'branch_tokens needs schedule "wsd", not "cosine", which has no stable run'),
        ({"branch_tokens": (24 * BATCH,)}, r"contains 6,144; each value must be a multiple .* \(256\) below tokens"),
        ({"branch_tokens": (1000,)}, "contains 1,000; each value must be a multiple of global_batch_tokens"),
        ({"branch_tokens": (2048, 2048)}, r"branch_tokens must be distinct, not \[2048, 2048\]"),
        ({"branch_tokens": (2 * BATCH,)}, r"would begin after 256 tokens; .* end of the warm-up \(512 tokens\)"),
        ({"zero_stage": 3}, "branch_tokens needs zero_stage 2 or less, not 3"),
    ],
)
def test_branches_that_cannot_be_are_refused(changed: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        replace(TINY_TRAINING, **(RECIPE | {"branch_tokens": BRANCHES} | changed))
