"""Reads the trials of a study from their folders; nothing else is asked, neither Optuna nor a running process."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from march_search.architecture import Architecture
from march_search.config import TrialConfig
from march_search.errors import ConfigError, StorageError
from march_search.files import read_json, read_lines
from march_search.outcome import complete
from march_search.settings import build, nearest

State = Literal["complete", "pruned", "failed", "diverged", "infeasible_memory", "paused", "unfinished"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial as its folder tells it."""

    folder: Path
    """Where all of it is."""
    store: Path
    """Folder of its prepared tokens."""
    number: int
    """Optuna's number."""
    architecture: Architecture
    config: TrialConfig
    """What it was told to do."""
    seed: int
    state: State
    """`complete` only with a result whose tokens equal the data budget; `paused` waits on a rung."""
    tokens: int
    """Tokens of its last evaluation."""
    loss: float | None
    """Validation loss there, in nats per target token; None before the first evaluation."""
    context_gain: float | None
    """What the input is worth, in nats; None where it was not measured."""
    tokens_per_second: float | None
    """Training speed."""
    reason: str
    """Why it is not complete; empty if it is."""
    evaluations: tuple[dict[str, Any], ...]
    """All evaluation lines, in order."""
    result: dict[str, Any] | None
    """The whole result of a complete trial."""


@dataclass(frozen=True)
class StudyRecord:
    """A study as its folder tells it."""

    name: str
    settings: dict[str, Any]
    """As in the study's TOML file, defaults filled in."""
    reference: dict[str, Any]
    """Losses of models that know less: `target_` and `text_`, `unigram_nats` and `bigram_nats`."""
    trials: tuple[TrialRecord, ...]
    """By number."""

    @property
    def decay(self) -> str:
        """The learning rate's schedule if it decays, else empty: its curves are then no ends of shorter runs."""
        schedule = str(self.settings.get("training", {}).get("schedule", "constant"))
        return "" if schedule == "constant" else schedule


def read_study(name: str, root: Path) -> StudyRecord:
    """The study of that name below `root`, or in the folder that `name` is.

    Raises:
        StorageError: there is no such study, or it has no trial.
    """
    folder = next((p for p in (Path(name), root / name) if (p / "study.json").is_file()), None)
    if folder is None:
        known = [p.parent.name for p in root.glob("*/study.json")]
        tail = nearest(Path(name).stem, known) if known else "None has been run there: march-search study run NAME."
        raise StorageError(f"{root} holds no study {name!r}. {tail}")
    settings = (read_json(folder / "study.json") or {}).get("settings", {})
    pruner = settings.get("pruner", {})
    rungs = tuple(pruner.get("rungs", ())) if pruner.get("kind") == "rungs" else ()
    trials = tuple(_trial(p, rungs) for p in sorted(folder.glob("trials/*/trial.json")))
    if not trials:
        raise StorageError(f"{folder}: the study has no trial yet: march-search study run {folder.name}.")
    reference = read_json(folder / "reference.json") or {}
    return StudyRecord(folder.resolve().name, settings, reference, trials)


def _trial(path: Path, rungs: Sequence[float]) -> TrialRecord:
    """One trial's folder, read; `rungs` are those of its study."""
    folder = path.parent
    config = build(TrialConfig, read_json(path) or {}, str(path))
    number = folder.name.split("-")[0]
    if not number.isdigit():
        raise ConfigError(f"{folder}: a trial's folder must begin with its number.")
    lines = read_lines(folder / "metrics.jsonl")
    evaluations = tuple(line for line in lines if line.get("kind") == "evaluation")
    result, ended = complete(folder, config), read_json(folder / "outcome.json") or {}
    state: State = ended.get("state") or ("complete" if result else "unfinished")
    if state == "complete" and result is None:
        state, ended = "failed", {"text": "result.json is missing or does not reach the data budget."}
    last = evaluations[-1] if evaluations else {}
    if state == "unfinished" and _on_rung(int(last.get("tokens", 0)), config, rungs):
        state, ended = "paused", {"text": f"waits on the rung of {last['tokens']:,} tokens, or has just gone on"}
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


def _on_rung(tokens: int, config: TrialConfig, rungs: Sequence[float]) -> bool:
    """Whether so many tokens are one of the rungs: token counts, or up to 1 shares of the budget, in whole steps."""
    batch, budget = config.training.global_batch_tokens, config.training.tokens
    asked = [rung * budget if rung <= 1 else rung for rung in rungs]
    return 0 < tokens < budget and tokens in {math.ceil(one / batch - 1e-9) * batch for one in asked}


def _reason(state: State, ended: dict[str, Any]) -> str:
    """Why a trial is not complete."""
    return (
        ended.get("reason") or ended.get("text") or ("interrupted or still running" if state == "unfinished" else state)
    )
