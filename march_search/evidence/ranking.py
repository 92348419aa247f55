"""Ranks the architectures of a study by loss, with what noise leaves of the order; other trials stand apart."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from march_search.errors import UsageError
from march_search.evidence.comparison import Comparison, compare, difference_variance, mean_interval
from march_search.evidence.documents import Documents, example_losses, read_documents
from march_search.evidence.gain import compute_equivalent_gain, end_slope
from march_search.evidence.letters import short
from march_search.evidence.noise import PUBLISHED, DataNoise, SeedNoise, data_noise, seed_noise
from march_search.evidence.pooling import Pooled, pool
from march_search.evidence.power import MOST, further_seeds
from march_search.evidence.trials import StudyRecord, TrialRecord
from march_search.report.architectures import architecture_row


@dataclass(frozen=True)
class Ranking:
    """The architectures of a study, compared."""

    pooled: tuple[Pooled, ...]
    """Best first; the order of everything below."""
    rows: tuple[dict[str, Any], ...]
    """One an architecture, for tables, JSON and CSV."""
    others: tuple[dict[str, Any], ...]
    """Trials that have no rank, each with its reason."""
    seeds: SeedNoise | None
    """Training noise, measured or assumed; None where it is left out."""
    data: DataNoise | None
    """Data noise; None where it could not be measured."""
    documents: Documents | None
    """What data noise was measured over."""
    comparison: Comparison | None
    """Pairs, letters, probabilities; None where no noise is known."""
    reference: Pooled | None
    """The architecture with a compute-equivalent gain of 1: that of the first complete trial."""
    slope: float | None
    """Nats by which its loss falls per e-fold of tokens at its end."""


def rank(study: StudyRecord, assumed: SeedNoise | None = PUBLISHED) -> Ranking:
    """Ranks a study; `assumed` is the seed noise where no architecture has two seeds, None to leave it out."""
    pooled = pool(study)
    seeds = seed_noise([p.losses for p in pooled], assumed)
    data, documents = _data_noise(pooled)
    means, counts = [p.loss for p in pooled], [len(p.trials) for p in pooled]
    comparison = compare(means, counts, seeds, data) if pooled else None
    reference = min(pooled, key=lambda p: min(t.number for t in p.trials)) if pooled else None
    slope = end_slope(reference.curve) if reference else None
    rows = [
        _pooled_row(p) | _standing(place, pooled, seeds, data, comparison) | {"compute_equivalent_gain": None}
        for place, p in enumerate(pooled)
    ]
    for place, row in enumerate(rows):
        tied = place > 0 and row["loss"] == rows[place - 1]["loss"]
        row["rank"] = rows[place - 1]["rank"] if tied else place + 1
        if reference:
            told = row["loss"], row["flops_per_token"], reference.loss, _flops(reference), slope
            row["compute_equivalent_gain"] = compute_equivalent_gain(*told)
    return Ranking(pooled, tuple(rows), tuple(other_rows(study)), seeds, data, documents, comparison, reference, slope)


def ranked_rows(study: StudyRecord) -> list[dict[str, Any]]:
    """One row an architecture with a complete trial, lowest mean loss first; equal losses share a rank."""
    return list(rank(study).rows)


def other_rows(study: StudyRecord) -> list[dict[str, Any]]:
    """Pruned, failed and unfinished trials, by number, each with its reason."""
    return [_trial_row(t) | {"rank": None} for t in study.trials if t.state != "complete"]


def find_trial(study: StudyRecord, text: str) -> TrialRecord:
    """The trial that `text` means: `best`, the name of its architecture, or its number.

    `best` is the trial with the lowest loss among those of the best architecture.

    Raises:
        UsageError: none of the study's trials is meant, or several are.
    """
    if text == "best":
        pooled = pool(study)
        if not pooled:
            raise UsageError(f"{study.name} has no complete trial, so none is the best yet: name one by its number.")
        return pooled[0].best_trial
    meant = [t for t in study.trials if text in (str(t.number), t.architecture.name)]
    if len(meant) == 1:
        return meant[0]
    numbers = ", ".join(str(t.number) for t in meant or study.trials)
    if meant:
        raise UsageError(f"{study.name} has several trials of {text}: name one by its number ({numbers}).")
    raise UsageError(
        f'{study.name} has no trial "{text}": write best, an architecture\'s name or a number ({numbers}).'
    )


def _data_noise(pooled: Sequence[Pooled]) -> tuple[DataNoise | None, Documents | None]:
    """Data noise over the documents of the validation examples, where every trial has left its losses."""
    losses = [example_losses(p.trials) for p in pooled]
    found = [own for own in losses if own is not None]
    if len(found) < max(2, len(pooled)) or len({len(own) for own in found}) > 1:
        return None, None
    documents = read_documents(pooled[0].trials[0], len(found[0]))
    return data_noise(np.array(found), documents.numbers_N), documents


def _standing(
    place: int,
    pooled: Sequence[Pooled],
    seeds: SeedNoise | None,
    data: DataNoise | None,
    comparison: Comparison | None,
) -> dict[str, Any]:
    """What noise leaves of one architecture's place: interval, letters, probability, and the pair with the next."""
    own, counts = pooled[place], [len(p.trials) for p in pooled]
    interval = mean_interval(own.loss, counts[place], seeds)
    row: dict[str, Any] = {
        "interval_low": interval.low if interval else None,
        "interval_high": interval.high if interval else None,
        "half_interval": (interval.high - interval.low) / 2 if interval else None,
        "letters": comparison.letters[place] if comparison else None,
        "letters_shown": short(comparison.letters[place]) if comparison else None,
        "probability_best": comparison.best[place] if comparison else None,
        "data_deviation_to_best": math.sqrt(data.variance(0, place)) if data and place else None,
    }
    row |= dict.fromkeys(("difference_to_next", "p_to_next", "adjusted_p_to_next", "further_seeds_to_next"))
    if comparison is None or place + 1 == len(pooled):
        return row
    gap = pooled[place + 1].loss - own.loss
    variance, _ = difference_variance(place, place + 1, counts, None, data)
    told = (counts[place], counts[place + 1])
    more = further_seeds(gap, seeds.deviation, told, seeds.degrees, variance) if seeds else None
    return row | {
        "difference_to_next": gap,
        "p_to_next": float(comparison.p_AA[place, place + 1]),
        "adjusted_p_to_next": float(comparison.adjusted_AA[place, place + 1]),
        "further_seeds_to_next": more,
        "further_seeds_shown": f">{MOST}" if seeds and more is None else more,
    }


def _flops(pooled: Pooled) -> float:
    """Operations per token of text, forward and backward."""
    data = pooled.trials[0].config.data
    return pooled.architecture.flops_per_token(data.sequence_length, data.noise_density, data.mean_span_length)


def _pooled_row(pooled: Pooled) -> dict[str, Any]:
    """One architecture as a row of a table: means over its seeds."""
    trials, one = pooled.trials, len(pooled.trials) == 1
    return architecture_row(pooled.architecture) | {
        "trial": pooled.best_trial.number,
        "trials": [t.number for t in trials],
        "seed": trials[0].seed if one else None,
        "seeds": [t.seed for t in trials],
        "num_seeds": len(trials),
        "loss": pooled.loss,
        "losses": list(pooled.losses),
        "perplexity": math.exp(min(pooled.loss, 700.0)),
        "context_gain": _mean([t.context_gain for t in trials]),
        "tokens": trials[0].tokens,
        "tokens_per_second": _mean([t.tokens_per_second for t in trials]),
        "flops_per_token": _flops(pooled),
        "flops": _flops(pooled) * trials[0].tokens,
        "learning_rate": pooled.learning_rate,
        "learning_rate_shown": None if len(pooled.rates) < 2 else f"{pooled.learning_rate:g}" + "!" * bool(pooled.edge),
        "learning_rate_losses": {f"{rate:g}": loss for rate, loss in pooled.rates.items()},
        "learning_rate_edge": pooled.edge or None,
        "state": "complete",
        "reason": "",
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are known; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _trial_row(trial: TrialRecord) -> dict[str, Any]:
    """One trial as a row of a table."""
    return architecture_row(trial.architecture) | {
        "trial": trial.number,
        "seed": trial.seed,
        "loss": trial.loss,
        "perplexity": None if trial.loss is None else math.exp(min(trial.loss, 700.0)),
        "context_gain": trial.context_gain,
        "tokens": trial.tokens,
        "tokens_per_second": trial.tokens_per_second,
        "learning_rate": trial.config.training.learning_rate,
        "state": trial.state,
        "reason": trial.reason,
    }
