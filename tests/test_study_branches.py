"""Decay branches in studies: their tokens are counted everywhere, once, and their results are ranked."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command_line import Command, json_of, one_line_error
from helpers.studies import SHAPES, write_study
from helpers.toy_studies import RUNG_TRAINING, TOY_CONFIG, optuna_study, run_toy_study

from march_search.analysis.evidence import study_evidence
from march_search.analysis.ranking import rank
from march_search.analysis.shorter_budgets import at_budget, budget_orders
from march_search.analysis.study_record import read_study
from march_search.config import PrunerConfig, SearchConfig, StudyConfig
from march_search.display.sections import sections
from march_search.errors import UsageError
from march_search.files.json_tables import sealed, write_json
from march_search.planning import candidates, price
from march_search.planning.plan import plan_rows
from march_search.storage import usage
from march_search.storage.leases import Lease
from march_search.storage.trial_process import branch_costs, unseen_cost
from march_search.study.outlook import outlook
from march_search.study.progress import StudyProgress
from march_search.study.progress_lines import trial_lines
from march_search.study.survey import committed
from march_search.tracking.tracking_process import _values
from march_search.units import duration

BRANCHED = replace(RUNG_TRAINING, schedule="wsd", branch_tokens=(8192, 4096))
RUNGS: StudyConfig = replace(
    TOY_CONFIG, training=BRANCHED, pruner=PrunerConfig(rungs=(0.25,), keep=0.4, finalists=2),
    search=SearchConfig(trials=6, seeds=(0, 1)),
)  # fmt: skip
"""Six shapes with two seeds on a rung at 4,096 of 16,384 tokens. The first branch starts before the rung, after 3,264
tokens, and trains 832; the second starts behind it, after 6,528, and trains 1,664."""


def test_branches_are_trained_tokens_but_no_progress() -> None:
    assert [(b.start_tokens, b.tokens, b.start) for b in BRANCHED.branches] == [(3264, 4096, 51), (6528, 8192, 102)]
    assert BRANCHED.trained_tokens(0, 16_384) == 16_384 + 832 + 1664
    assert BRANCHED.trained_tokens(0, 4096) == 4096 + 832
    assert BRANCHED.trained_tokens(0, 3264) == 3264  # a branch is taken when the trial leaves its start
    assert BRANCHED.trained_tokens(3264, 3328) == 64 + 832


def test_a_study_with_rungs_and_seeds_uses_the_tokens_of_its_plan_and_pruned_trials_keep_their_branches(
    tmp_path: Path, command: Command
) -> None:
    chosen = candidates.choose(RUNGS, tmp_path)
    plan = price.priced_plan(RUNGS, chosen)
    assert dict(plan_rows(RUNGS, chosen, "", tmp_path))["branches"] == (
        "the trial also decays to 4.1k, 8.19k tokens, for 2.5k tokens more (15%)"
    )
    ended = run_toy_study(tmp_path, RUNGS)
    assert (ended.pruned, ended.complete) == (12 - ended.complete, ended.complete)
    assert 0 < ended.complete < 12
    used = 12 * (4096 + 832) + ended.complete * (12_288 + 1664)
    trials = optuna_study(tmp_path).get_trials()
    repeated = ended.complete * (4096 + 832)  # toys write no checkpoints, so promoted ones count as if they began again
    assert sum(Lease.of(trial).spent for trial in trials) == committed(trials) == used + repeated
    took = usage.actual(tmp_path / "toy", RUNGS)
    assert took["tokens"] == used
    assert took["device_hours"] == pytest.approx(used / 1000 / 3600)  # at 1,000 tokens per second
    assert plan["stages"][0]["trained_tokens"] == 12 * (4096 + 832)
    assert plan["tokens"] - used == (plan["stages"][1]["trials"] - ended.complete) * (12_288 + 1664)
    now = outlook(trials, RUNGS, 0, {})
    assert now.tokens_done == now.tokens_expected == used
    status = json_of(command("study", "status", "toy", "--root", str(tmp_path), "--format", "json"))
    assert (status["tokens_done"], status["tokens_spent"]) == (used, used + repeated)
    record = read_study(tmp_path / "toy")
    assert {len(trial.branches) for trial in record.trials if trial.state == "pruned"} == {1}
    assert {len(trial.branches) for trial in record.trials if trial.state == "complete"} == {2}
    first = rank(at_budget(record, 4096))
    assert (len(first.levels), len(first.pooled), {len(p.trials) for p in first.pooled}) == (1, 6, {2})
    second = rank(at_budget(record, 8192))
    assert [(level.tokens, level.is_final) for level in second.levels] == [(8192, True), (4096, False)]


def test_max_tokens_counts_branches(tmp_path: Path) -> None:
    whole = 16_384 + 832 + 1664
    config = replace(RUNGS, pruner=PrunerConfig(kind="none"))
    config = replace(config, search=SearchConfig(trials=6, max_tokens=3 * whole - 1))
    assert run_toy_study(tmp_path, config).complete == 2
    (tmp_path / "more").mkdir()
    more = replace(config, search=replace(config.search, max_tokens=3 * whole))
    assert run_toy_study(tmp_path / "more", more).complete == 3


def branch_line(kind: str, start: int, end: int, at: int, loss: float = 4.0) -> dict:
    """Return a metrics line of a branch."""
    return {"kind": f"branch_{kind}", "step": start // 64, "tokens": start, "branch": end, "branch_step": at // 64,
            "branch_tokens": at, "loss": loss}  # fmt: skip


def test_a_lease_that_ends_with_its_worker_costs_what_it_trained_and_nothing_twice(tmp_path: Path) -> None:
    train = {"kind": "train", "step": 51, "tokens": 3264, "loss": 4.0}
    ended = [train, branch_line("train", 3264, 4096, 4096), branch_line("evaluation", 3264, 4096, 4096)]

    def write(lines: list[dict]) -> None:
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    write(ended[:2])  # killed in the branch: its tokens were spent, and will be again
    first = Lease(start=0, until=4096, branches=832)
    assert unseen_cost(tmp_path, first, 64) == 3264 + 64 + 832
    assert branch_costs(BRANCHED, tmp_path, 3264, 16_384) == (0, 832 + 1664)
    write(ended)  # killed after it
    assert branch_costs(BRANCHED, tmp_path, 3264, 16_384) == (832, 1664)
    assert branch_costs(BRANCHED, tmp_path, 3200, 16_384) == (0, 832 + 1664)  # it resumes before, and repeats it
    second = Lease(start=3264, until=16_384, branched=832, branches=1664)
    assert unseen_cost(tmp_path, second, 64) == 64
    write([*ended, train | {"tokens": 6528}, branch_line("train", 6528, 8192, 6592)])
    assert unseen_cost(tmp_path, second, 64) == 6528 - 3264 + 64 + 64
    assert branch_costs(RUNG_TRAINING, tmp_path, 0, 16_384) == (0, 0)


def branched_study(root: Path, losses: dict[int, list[float]], final: list[float]) -> Path:
    """Write a finished study with one decay branch per data budget of `losses`, one loss per architecture."""
    training = {"schedule": "wsd", "branch_tokens": sorted(losses)}
    folder = write_study(
        root, {a: [loss] for a, loss in zip(SHAPES, final, strict=False)}, settings={"training": training}
    )
    for index, at in enumerate(sorted(folder.glob("trials/*"))):
        lines = [branch_line("evaluation", end - 1024, end, end, own[index]) for end, own in losses.items()]
        with (at / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return folder


SHORT, MIDDLE, END = 1 << 18, 1 << 19, 1 << 20


def test_orders_at_budgets_are_compared_with_the_next_and_the_longest(tmp_path: Path) -> None:
    losses = {SHORT: [4.0, 4.1, 4.2], MIDDLE: [3.9, 3.8, 3.7]}
    study = read_study(branched_study(tmp_path, losses, [3.5, 3.4, 3.6]))
    short, middle, end = budget_orders(study)
    assert (short.tokens, short.leader, short.architectures) == (SHORT, SHAPES[0], 3)
    assert (short.kept_next, short.pairs_next, short.kept, short.pairs) == (0, 3, 2, 3)
    assert short.kendall == pytest.approx(1 / 3)
    assert short.regret == pytest.approx(0.1)
    assert (middle.leader, middle.kept_next, middle.kept, middle.regret) == (SHAPES[2], 1, 1, pytest.approx(0.2))
    assert (end.tokens, end.leader, end.kept_next, end.kendall, end.regret) == (END, SHAPES[1], None, None, None)


def test_one_budget_or_one_architecture_has_no_order_to_compare(tmp_path: Path) -> None:
    folder = branched_study(tmp_path / "lost", {SHORT: [4.0, 4.1, 4.2]}, [3.5, 3.4, 3.6])
    for path in folder.glob("trials/*/result.json"):
        path.unlink()
        (path.parent / "outcome.json").write_text(json.dumps({"state": "diverged", "reason": "loss nan"}))
    assert budget_orders(read_study(folder)) == ()
    alone = study_evidence(read_study(branched_study(tmp_path / "alone", {SHORT: [4.0]}, [3.5])))
    [table] = [section for section in sections(alone) if section.title == "order by data budget"]
    assert [(row["next"], row["last"]) for row in table.rows] == [(None, None)] * 2


def test_rank_at_a_budget_takes_the_decayed_losses_and_without_it_nothing_changes(
    tmp_path: Path, command: Command
) -> None:
    folder = branched_study(tmp_path, {SHORT: [4.0, 4.1, 4.2], MIDDLE: [3.9, 3.8, 3.7]}, [3.5, 3.4, 3.6])
    options = (folder.name, "--root", str(tmp_path))
    final = json_of(command("rank", *options, "--format", "json"))
    assert [row["name"] for row in final["ranked"]] == [SHAPES[1], SHAPES[0], SHAPES[2]]
    assert (final["at"], final["branch_budgets"]) == (None, [SHORT, MIDDLE])
    assert final["ranked"][0]["branch_losses"] == {str(SHORT): 4.1, str(MIDDLE): 3.8}
    assert any(f"add --at {SHORT:_}" in note for note in final["notes"])
    middle = json_of(command("rank", *options, "--format", "json", "--at", str(MIDDLE)))
    assert [(row["name"], row["loss"]) for row in middle["ranked"]] == [
        (SHAPES[2], 3.7), (SHAPES[1], 3.8), (SHAPES[0], 3.9),
    ]  # fmt: skip
    assert middle["at"] == middle["ranked"][0]["tokens"] == MIDDLE
    assert middle["phase"] == final["phase"]
    assert middle["ranked"][0]["letters"] == "a"
    shown = command("rank", *options, "--at", "262_144").stdout
    assert "ranked by validation loss after 262k tokens (decay branches)" in shown
    assert "order by data budget" in shown
    assert json_of(command("rank", *options, "--format", "json", "--at", str(END)))["ranked"] == final["ranked"]


def test_a_budget_without_results_is_one_clear_line(tmp_path: Path, command: Command) -> None:
    folder = branched_study(tmp_path, {SHORT: [4.0, 4.1, 4.2]}, [3.5, 3.4, 3.6])
    error = one_line_error(command("rank", folder.name, "--root", str(tmp_path), "--at", "300K"))
    assert "--at 300,000: synthetic has no results there; use one of 262,144, 1,048,576." in error
    with pytest.raises(UsageError, match="plain has no decay branches and is not a ladder"):
        at_budget(read_study(write_study(tmp_path, {SHAPES[0]: [3.0]}, name="plain")), SHORT)


def test_a_trial_that_failed_after_its_branch_is_ranked_there_and_one_without_its_line_is_not(tmp_path: Path) -> None:
    folder = branched_study(tmp_path, {SHORT: [4.0, 4.1, 4.2]}, [3.5, 3.4, 3.6])
    failed, lost, _ = sorted(folder.glob("trials/*"))
    (failed / "result.json").unlink()
    (failed / "outcome.json").write_text(json.dumps({"state": "diverged", "reason": "loss nan"}))
    kept = [line for line in (lost / "metrics.jsonl").read_text().splitlines() if "branch" not in line]
    (lost / "metrics.jsonl").write_text("".join(f"{line}\n" for line in kept))
    (lost / "outcome.json").unlink()
    found = rank(at_budget(read_study(folder), SHORT))
    assert [pooled.architecture.name for pooled in found.pooled] == [SHAPES[0], SHAPES[2]]
    assert [row["reason"] for row in found.others] == ["the result of the decay branch to 262,144 tokens is missing"]


def test_a_branch_that_contradicts_the_sealed_result_gives_way_to_it(tmp_path: Path) -> None:
    folder = branched_study(tmp_path, {SHORT: [4.0, 4.1, 4.2]}, [3.5, 3.4, 3.6])
    first = min(folder.glob("trials/*"))
    record = json.loads((first / "result.json").read_text()) | {"branches": [{"tokens": SHORT, "loss": 3.9}]}
    write_json(first / "result.json", sealed(record))
    study = read_study(folder)
    assert rank(at_budget(study, SHORT)).pooled[0].loss == 3.9
    assert any("the branches to [262144] tokens contradict result.json" in note for note in study.notes)


def test_progress_shows_a_branch_and_counts_its_tokens() -> None:
    progress = StudyProgress(["a"], 16_384, BRANCHED)
    progress.started(0, "a", resumed=False)
    progress.line(0, {"kind": "train", "step": 51, "tokens": 3264, "loss": 4.0, "tokens_per_second": 64.0})
    assert progress._running_tokens() == {0: 3264}
    progress.line(0, branch_line("train", 3264, 4096, 3328))
    assert progress._running_tokens() == {0: 3264 + 64}
    left = 16_384 - 3264 + 832 + 1664 - 64
    [shown] = trial_lines([progress._line_of(0, progress._trials[0])], 100)
    assert "3.33k of 4.1k tokens  decaying" in shown
    assert shown.endswith(f"{duration(left / 64)} to its end")
    progress.line(0, branch_line("evaluation", 3264, 4096, 4096))
    assert progress._line_of(0, progress._trials[0]).left == 16_384 - 3264 + 1664
    progress.line(0, {"kind": "train", "step": 52, "tokens": 3328, "loss": 4.0})
    assert progress._running_tokens() == {0: 3328 + 832}
    [shown] = trial_lines([progress._line_of(0, progress._trials[0])], 100)
    assert "3.33k of 16.4k tokens" in shown
    assert "decaying" not in shown


def test_trackers_get_the_evaluation_of_a_branch_beside_the_step_where_it_starts() -> None:
    assert _values(branch_line("train", 3264, 4096, 3328)) == {}
    sent = _values(branch_line("evaluation", 3264, 4096, 4096, loss=3.5))
    assert (sent["branch_4096/loss"], sent["tokens"]) == (3.5, 3264)
