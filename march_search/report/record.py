"""Writes two small files for version control: a Markdown report, and a CSV file of all trials with their curves."""

import csv
import io
from collections import Counter
from collections.abc import Sequence

from march_search.analysis.evidence import Evidence
from march_search.display.answer import study_answer
from march_search.display.sections import markdown_sections
from march_search.report.page import counts, versions
from march_search.units import duration, plural


def record_text(evidence: Evidence, command: str, cost: Sequence[tuple[str, str]] = ()) -> str:
    """Return the report as Markdown: question, results, and how to reproduce them.

    Args:
        evidence: evidence of the study.
        command: command that runs the study again.
        cost: (quantity, planned and actual value) pairs.
    """
    settings, name = evidence.study.settings, evidence.study.name
    parts = [f"# {name}", settings.get("question") or settings.get("description") or ""]
    if settings.get("answer"):
        parts.append(f"What would count as an answer: {settings['answer']}")
    parts += [study_answer(evidence).text, f"{counts(evidence)}."]
    parts.append(markdown_sections(evidence, "## ", with_answer=False))
    parts.append("## How to reproduce")
    parts.append(f"```\n{command}\n```")
    parts.append(f"`{name}.csv` lists all trials with their learning curves. {_ran(evidence)}")
    parts.append("\n".join(f"- {quantity}: {values}" for quantity, values in cost))
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def record_csv(evidence: Evidence) -> str:
    """Return CSV text with one row per trial: settings, state, and loss and context gain at each evaluation."""
    trials = evidence.study.trials
    marks = sorted({line["tokens"] for trial in trials for line in trial.evaluations})
    head = ["name", "seed", "learning_rate", "state", "tokens", "loss", "bits_per_byte", "context_gain"]
    head.append("tokens_per_second")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, *(f"{what}@{tokens}" for tokens in marks for what in ("loss", "context_gain"))])
    for trial in trials:
        at = {line["tokens"]: line for line in trial.evaluations}
        curve = [at.get(tokens, {}).get(what) for tokens in marks for what in ("loss", "context_gain")]
        final = [trial.loss, trial.bits_per_byte, trial.context_gain]
        speed = None if trial.tokens_per_second is None else f"{trial.tokens_per_second:.0f}"
        writer.writerow(
            [trial.architecture.name, trial.seed, f"{trial.config.training.learning_rate:g}", trial.state, trial.tokens]
            + [_number(value) for value in final] + [speed] + [_number(value) for value in curve]
        )  # fmt: skip
    return text.getvalue()


def _number(value: float | None) -> str:
    """Format a number with six decimals, more than any interval needs; empty for None."""
    return "" if value is None else f"{value:.6f}"


def _ran(evidence: Evidence) -> str:
    """Return a sentence with the training time, devices and library versions."""
    results = [trial.result for trial in evidence.study.trials if trial.result]
    if not results:
        return "No trial is complete yet."
    devices = Counter(str(result.get("device")) for result in results)
    seconds = sum(float(result.get("train_seconds") or 0) for result in results)
    libraries = ", ".join(f"{name} {version}" for name, version in versions(evidence))
    where = " and ".join(devices)
    return f"{plural(len(results), 'trial')} trained for {duration(seconds)} in total on {where}, with {libraries}."
