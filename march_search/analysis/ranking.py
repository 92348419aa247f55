"""Rank the architectures of a study by loss, with ties and uncertainty; list all other trials separately."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from march_search.analysis.comparison import Comparison, compare, mean_interval
from march_search.analysis.documents import Documents, example_losses, read_documents
from march_search.analysis.further_seeds import further_seeds
from march_search.analysis.gain import compute_equivalent_gain, end_slope
from march_search.analysis.noise import DataNoise, SeedNoise, data_noise, seed_noise
from march_search.analysis.pooling import Pooled, pool
from march_search.analysis.study_record import StudyRecord, TrialRecord
from march_search.architecture.architecture import Architecture
from march_search.errors import ArchitectureError, UsageError
from march_search.trial.own_trials import DamagedTrial


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Architectures of a study, ranked and compared."""

    pooled: tuple[Pooled, ...]
    """Architectures, best first; the fields below use the same order."""
    rows: tuple[dict[str, Any], ...]
    """One row per architecture, for tables, JSON and CSV."""
    others: tuple[dict[str, Any], ...]
    """Trials without a rank, each with its reason."""
    seeds: SeedNoise | None
    """Training noise of each architecture; None if it is left out."""
    data: DataNoise | None
    """Data noise; None if it could not be measured."""
    documents: Documents | None
    """Documents over which data noise was measured."""
    comparison: Comparison | None
    """p-values, tie groups and probabilities; None if no noise is known."""
    reference: Pooled | None
    """Architecture of the first complete trial, whose compute-equivalent gain is 1."""
    slope: float | None
    """Drop in the reference's loss at its end, in nats per e-fold of tokens."""


def rank(study: StudyRecord, assumed: float | None = None, with_seed_noise: bool = True) -> Ranking:
    """Rank a study.

    Args:
        study: The study.
        assumed: Deviation over seeds of every architecture's prior, in nats; None for the recorded priors.
        with_seed_noise: Whether ties and probabilities cover the choice of seeds.
    """
    pooled = pool(study)
    seeds = (
        seed_noise([p.architecture for p in pooled], [p.losses for p in pooled], assumed) if with_seed_noise else None
    )
    data, documents = _data_noise(pooled)
    means, counts = [p.loss for p in pooled], [len(p.trials) for p in pooled]
    comparison = compare(means, counts, seeds, data) if pooled else None
    reference = min(pooled, key=lambda p: min(t.number for t in p.trials)) if pooled else None
    slope = end_slope(reference.curve) if reference else None
    rows = [
        _pooled_row(p) | _standing(index, pooled, seeds, data, comparison) | {"compute_equivalent_gain": None}
        for index, p in enumerate(pooled)
    ]
    for index, row in enumerate(rows):
        tied = index > 0 and row["loss"] == rows[index - 1]["loss"]
        row["rank"] = rows[index - 1]["rank"] if tied else index + 1
        if reference:
            arguments = row["loss"], row["flops_per_token"], reference.loss, _flops(reference), slope
            row["compute_equivalent_gain"] = compute_equivalent_gain(*arguments)
    return Ranking(
        pooled=pooled,
        rows=tuple(rows),
        others=tuple(other_rows(study)),
        seeds=seeds,
        data=data,
        documents=documents,
        comparison=comparison,
        reference=reference,
        slope=slope,
    )


def ranked_rows(study: StudyRecord) -> list[dict[str, Any]]:
    """Return one row per architecture with a complete trial, lowest mean loss first; equal losses share a rank."""
    return list(rank(study).rows)


def other_rows(study: StudyRecord) -> list[dict[str, Any]]:
    """Return pruned, failed, unfinished and damaged trials, by number, each with its reason."""
    rows = [_trial_row(t) for t in study.trials if t.state != "complete"] + [_damaged_row(t) for t in study.damaged]
    return [row | {"rank": None} for row in sorted(rows, key=lambda row: int(row["trial"]))]


def find_trial(study: StudyRecord, text: str) -> TrialRecord:
    """Return the trial given by `text`: `best`, the name of its architecture, or its number.

    `best` is the trial of the best architecture with the lowest loss.

    Raises:
        UsageError: If no trial of the study matches, or more than one.
    """
    if text == "best":
        pooled = pool(study)
        if not pooled:
            raise UsageError(f"{study.name} has no complete trial, so there is no best trial yet; use a trial number.")
        return pooled[0].best_trial
    matches = [t for t in study.trials if text in (str(t.number), t.architecture.name)]
    if len(matches) == 1:
        return matches[0]
    numbers = ", ".join(str(t.number) for t in matches or study.trials)
    if matches:
        raise UsageError(f"{study.name} has several trials of {text}; use a trial number ({numbers}).")
    raise UsageError(
        f'{study.name} has no trial "{text}"; use best, an architecture name or a trial number ({numbers}).'
    )


def _data_noise(pooled: Sequence[Pooled]) -> tuple[DataNoise | None, Documents | None]:
    """Estimate data noise over the validation documents, if every trial recorded its per-example losses."""
    losses = [example_losses(p.trials) for p in pooled]
    known = [values for values in losses if values is not None]
    if len(known) < max(2, len(pooled)) or len({len(values) for values in known}) > 1:
        return None, None
    documents = read_documents(pooled[0].trials[0], len(known[0]))
    return data_noise(np.array(known), documents.numbers_N), documents


def _standing(
    index: int,
    pooled: Sequence[Pooled],
    seeds: SeedNoise | None,
    data: DataNoise | None,
    comparison: Comparison | None,
) -> dict[str, Any]:
    """Return the interval, tie group and probability of one architecture, and its comparison with the next one."""
    current, counts = pooled[index], [len(p.trials) for p in pooled]
    interval = mean_interval(index, current.loss, counts[index], seeds)
    row: dict[str, Any] = {
        "interval_low": interval.low if interval else None,
        "interval_high": interval.high if interval else None,
        "half_interval": (interval.high - interval.low) / 2 if interval else None,
        "letters": comparison.letters[index] if comparison else None,
        "probability_best": comparison.best[index] if comparison else None,
        "data_deviation_to_best": math.sqrt(data.variance(0, index)) if data and index else None,
    }
    row |= dict.fromkeys(("difference_to_next", "p_to_next", "adjusted_p_to_next"))
    row |= dict.fromkeys(("further_seeds_to_next", "further_seeds_low", "further_seeds_high"))
    if comparison is None or index + 1 == len(pooled):
        return row
    gap = pooled[index + 1].loss - current.loss
    more = further_seeds(index, index + 1, gap, counts, seeds, data) if seeds else None
    return row | {
        "difference_to_next": gap,
        "p_to_next": float(comparison.p_AA[index, index + 1]),
        "adjusted_p_to_next": float(comparison.adjusted_AA[index, index + 1]),
        "further_seeds_to_next": more and more.point,
        "further_seeds_low": more and more.low,
        "further_seeds_high": more and more.high,
    }


def _flops(pooled: Pooled) -> float:
    """Return FLOPs per token of text, forward and backward."""
    data = pooled.trials[0].config.data
    return pooled.architecture.flops_per_token(data.sequence_length, data.noise_density, data.mean_span_length)


def _pooled_row(pooled: Pooled) -> dict[str, Any]:
    """Return the row of one architecture, with means over its seeds."""
    trials, one = pooled.trials, len(pooled.trials) == 1
    return pooled.architecture.row() | {
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
        "learning_rate_losses": {f"{rate:g}": loss for rate, loss in pooled.rates.items()},
        "learning_rate_edge": pooled.edge or None,
        "state": "complete",
        "reason": "",
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _trial_row(trial: TrialRecord) -> dict[str, Any]:
    """Return the row of one trial."""
    return trial.architecture.row() | {
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


def _damaged_row(trial: DamagedTrial) -> dict[str, Any]:
    """Return the row of a trial whose settings cannot be read."""
    try:
        shape = Architecture.parse(trial.architecture).row()
    except ArchitectureError:
        shape = {"name": trial.architecture}
    unknown = ("loss", "perplexity", "context_gain", "tokens", "tokens_per_second", "learning_rate")
    known = {"trial": trial.number, "seed": trial.seed, "state": "damaged", "reason": trial.reason}
    return shape | dict.fromkeys(unknown) | known
