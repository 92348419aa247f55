"""Decay branches give the results of shorter trials and leave the stable run as it is, to the same bits."""

import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.trials import TINY_TRAINING, MakeTrial, lines, result, train, trial_config, wait_until
from helpers.trials import start_trial as start

from march_search.config import TrainingConfig
from march_search.errors import ConfigError
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
        (2, {"zero_stage": 1}),
        (1, {"zero_stage": 2, "optimizer": "muon", "decay_shape": "linear", "final_learning_rate": 0.0}),
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
    for tokens in BRANCHES:
        same_branch(folder, trained(make_trial(f"shorter-{tokens}", ranks, **(recipe | {"tokens": tokens}))))
    assert complete_result(folder, trial_config(folder)) is not None
    assert not (folder / "checkpoints").exists()
