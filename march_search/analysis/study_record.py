"""Read the trials of a study from their folders, without Optuna or a running process."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from march_search.architecture.architecture import Architecture
from march_search.config import PrunerConfig, TrialConfig
from march_search.config.loader import build
from march_search.errors import ConfigError, StorageError
from march_search.files import read_json, read_lines
from march_search.trial.result import complete_result

State = Literal["complete", "pruned", "failed", "diverged", "infeasible_memory", "paused", "unfinished"]


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial, as recorded in its folder."""

    folder: Path
    """Trial folder."""
    store: Path
    """Folder of the token store."""
    number: int
    """Trial number in Optuna."""
    architecture: Architecture
    config: TrialConfig
    """Configuration of the trial."""
    seed: int
    state: State
    """`complete` requires a result whose tokens equal the data budget; a `paused` trial waits on a rung."""
    tokens: int
    """Tokens at the last evaluation."""
    loss: float | None
    """Validation loss at the last evaluation, in nats per target token; None before the first."""
    context_gain: float | None
    """Context gain: increase in loss with another document's input, in nats; None if it was not measured."""
    tokens_per_second: float | None
    """Training speed; None before the first training step is logged."""
    reason: str
    """Why the trial is not complete; empty if it is."""
    evaluations: tuple[dict[str, Any], ...]
    """All evaluation lines, in order."""
    result: dict[str, Any] | None
    """Full result of a complete trial."""


@dataclass(frozen=True)
class StudyRecord:
    """A study, as recorded in its folder."""

    name: str
    settings: dict[str, Any]
    """Settings as in the study's TOML file, with defaults filled in."""
    reference: dict[str, Any]
    """Losses of n-gram models; keys are `target_` or `text_` followed by `unigram_nats` or `bigram_nats`."""
    trials: tuple[TrialRecord, ...]
    """Trials, by number."""

    @property
    def decay(self) -> str:
        """Learning rate schedule if it decays, else empty; with decay, a curve does not show losses of shorter runs."""
        schedule = str(self.settings.get("training", {}).get("schedule", "constant"))
        return "" if schedule == "constant" else schedule


def read_study(folder: Path) -> StudyRecord:
    """Read a started study from its folder.

    Raises:
        StorageError: If the study has no trials.
    """
    settings = (read_json(folder / "study.json") or {}).get("settings", {})
    pruner = build(PrunerConfig, settings.get("pruner", {}), str(folder / "study.json"))
    trials = tuple(_read_trial(p, pruner) for p in sorted(folder.glob("trials/*/trial.json")))
    if not trials:
        raise StorageError(f"{folder}: the study has no trials yet; use march-search study run {folder.name}.")
    reference = read_json(folder / "reference.json") or {}
    return StudyRecord(folder.resolve().name, settings, reference, trials)


def _read_trial(path: Path, pruner: PrunerConfig) -> TrialRecord:
    """Read the folder of one trial; `pruner` is that of its study."""
    folder = path.parent
    config = build(TrialConfig, read_json(path) or {}, str(path))
    number = folder.name.split("-")[0]
    if not number.isdigit():
        raise ConfigError(f"{folder}: the name of a trial folder must start with the trial number, as in 0003-NAME.")
    lines = read_lines(folder / "metrics.jsonl")
    evaluations = tuple(line for line in lines if line.get("kind") == "evaluation")
    result, ended = complete_result(folder, config), read_json(folder / "outcome.json") or {}
    state: State = ended.get("state") or ("complete" if result else "unfinished")
    if state == "complete" and result is None:
        state, ended = "failed", {"text": "result.json is missing or does not reach the data budget."}
    last = evaluations[-1] if evaluations else {}
    if state == "unfinished" and _on_rung(int(last.get("tokens", 0)), config, pruner):
        state, ended = "paused", {"text": f"waiting on the rung at {last['tokens']:,} tokens, or just promoted"}
    source = result if state == "complete" and result else last
    loss = source.get("loss")
    speeds = [line["tokens_per_second"] for line in lines if line.get("kind") == "train"]
    return TrialRecord(
        folder=folder,
        store=folder / config.store,
        number=int(number),
        architecture=Architecture.parse(config.architecture),
        config=config,
        seed=config.seed,
        state=state,
        tokens=int(source.get("tokens", 0)),
        loss=float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else None,
        context_gain=source.get("context_gain"),
        tokens_per_second=source.get("tokens_per_second", sorted(speeds)[len(speeds) // 2] if speeds else None),
        reason="" if state == "complete" else _reason(state, ended),
        evaluations=evaluations,
        result=result if state == "complete" else None,
    )


def _on_rung(tokens: int, config: TrialConfig, pruner: PrunerConfig) -> bool:
    """Return whether a trial with so many tokens is at a rung before its end."""
    return pruner.kind == "rungs" and tokens in pruner.rung_tokens(config.training)[:-1]


def _reason(state: State, ended: dict[str, Any]) -> str:
    """Return why a trial is not complete."""
    return (
        ended.get("reason") or ended.get("text") or ("interrupted or still running" if state == "unfinished" else state)
    )
