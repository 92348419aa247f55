"""A study as two small files worth keeping under version control: what came out, and every trial with its curve."""

import csv
import io
from collections import Counter
from collections.abc import Sequence

from march_search.evidence.reading import Evidence
from march_search.pages.page import summary, versions
from march_search.report.tables import duration, markdown_text, plural


def record_text(found: Evidence, command: str, cost: Sequence[tuple[str, str]] = ()) -> str:
    """What was asked, what came out, and how to repeat it, as Markdown.

    Args:
        found: what is known.
        command: what a person types to run the study again.
        cost: (what, planned and taken) pairs.
    """
    settings, name = found.study.settings, found.study.name
    parts = [f"# {name}", settings.get("question") or settings.get("description") or ""]
    if settings.get("answer"):
        parts.append(f"What would count as an answer: {settings['answer']}")
    parts.append(" ".join(summary(found)))
    for section in found.sections:
        parts.append(f"## {section.title or 'ranking'}")
        parts.append(markdown_text(section.rows, section.columns) if section.rows else "Too few architectures to say.")
        said = [*(f"**{warning}**" for warning in section.warnings), *section.notes]
        parts.append("\n".join(f"- {line}" for line in said))
    parts.append("## How to repeat it")
    parts.append(f"```\n{command}\n```")
    parts.append(f"Every trial with its curve is in `{name}.csv`. {_ran(found)}")
    parts.append("\n".join(f"- {what}: {told}" for what, told in cost))
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def record_csv(found: Evidence) -> str:
    """One row a trial: shape, seed, rate, end, and loss and context gain at every evaluation that any trial had."""
    trials = found.study.trials
    marks = sorted({line["tokens"] for trial in trials for line in trial.evaluations})
    head = ["name", "seed", "learning_rate", "state", "tokens", "loss", "context_gain", "tokens_per_second"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, *(f"{what}@{tokens}" for tokens in marks for what in ("loss", "context_gain"))])
    for trial in trials:
        at = {line["tokens"]: line for line in trial.evaluations}
        curve = [at.get(tokens, {}).get(what) for tokens in marks for what in ("loss", "context_gain")]
        told = [trial.loss, trial.context_gain]
        speed = None if trial.tokens_per_second is None else f"{trial.tokens_per_second:.0f}"
        writer.writerow(
            [trial.architecture.name, trial.seed, f"{trial.config.training.learning_rate:g}", trial.state, trial.tokens]
            + [_number(value) for value in told] + [speed] + [_number(value) for value in curve]
        )  # fmt: skip
    return text.getvalue()


def _number(value: float | None) -> str:
    """Six digits after the point: more than any interval."""
    return "" if value is None else f"{value:.6f}"


def _ran(found: Evidence) -> str:
    """On what, with what, for how long."""
    results = [trial.result for trial in found.study.trials if trial.result]
    if not results:
        return "No trial is complete yet."
    devices = Counter(str(result.get("device")) for result in results)
    seconds = sum(float(result.get("train_seconds") or 0) for result in results)
    ran = ", ".join(f"{name} {version}" for name, version in versions(found))
    where = " and ".join(devices)
    return f"{plural(len(results), 'trial')} trained for {duration(seconds)} together, on {where}; {ran}."
