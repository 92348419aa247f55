"""Ranks the complete trials of a study by loss; the others stand apart and have no rank."""

import math
from typing import Any

from march_search.errors import UsageError
from march_search.evidence.trials import StudyRecord, TrialRecord
from march_search.report.architectures import architecture_row


def ranked_rows(study: StudyRecord) -> list[dict[str, Any]]:
    """Complete trials, lowest loss first; equal losses share a rank."""
    done = sorted(
        (t for t in study.trials if t.state == "complete"),
        key=lambda t: (math.inf if t.loss is None else t.loss, t.number),
    )
    rows = [_row(t) for t in done]
    for place, row in enumerate(rows):
        tied = place > 0 and row["loss"] == rows[place - 1]["loss"]
        row["rank"] = rows[place - 1]["rank"] if tied else place + 1
    return rows


def other_rows(study: StudyRecord) -> list[dict[str, Any]]:
    """Pruned, failed and unfinished trials, by number, each with its reason."""
    return [_row(t) | {"rank": None} for t in study.trials if t.state != "complete"]


def find_trial(study: StudyRecord, text: str) -> TrialRecord:
    """The trial that `text` means: `best`, the name of its architecture, or its number.

    Raises:
        UsageError: none of the study's trials is meant, or several are.
    """
    if text == "best":
        ranked = ranked_rows(study)
        if not ranked:
            raise UsageError(f"{study.name} has no complete trial, so none is the best yet: name one by its number.")
        text = str(ranked[0]["trial"])
    meant = [t for t in study.trials if text in (str(t.number), t.architecture.name)]
    if len(meant) == 1:
        return meant[0]
    numbers = ", ".join(str(t.number) for t in meant or study.trials)
    if meant:
        raise UsageError(f"{study.name} has several trials of {text}: name one by its number ({numbers}).")
    raise UsageError(
        f'{study.name} has no trial "{text}": write best, an architecture\'s name or a number ({numbers}).'
    )


def _row(trial: TrialRecord) -> dict[str, Any]:
    """One trial as a row of a table."""
    return architecture_row(trial.architecture) | {
        "trial": trial.number,
        "seed": trial.seed,
        "loss": trial.loss,
        "perplexity": None if trial.loss is None else math.exp(min(trial.loss, 700.0)),
        "context_gain": trial.context_gain,
        "tokens": trial.tokens,
        "tokens_per_second": trial.tokens_per_second,
        "state": trial.state,
        "reason": trial.reason,
    }
