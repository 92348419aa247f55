"""Write the rows of a ranking, one per architecture, and those of the trials without a rank."""

import math
from collections.abc import Collection, Sequence
from statistics import fmean
from typing import Any

from march_search.analysis.comparison import difference_variance, mean_interval, shifted_letters
from march_search.analysis.further_seeds import further_seeds
from march_search.analysis.gain import Gain, compute_equivalent_gain, local_law
from march_search.analysis.level import Level
from march_search.analysis.measured_speed import measured_speed
from march_search.analysis.pooling import Pooled
from march_search.analysis.study_record import StudyRecord, TrialRecord
from march_search.architecture.architecture import Architecture
from march_search.errors import ArchitectureError
from march_search.trial.own_trials import DamagedTrial


def level_rows(level: Level, reference: Pooled | None, above: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per architecture of a level, best first; equal losses share a rank.

    Args:
        level: The level.
        reference: Architecture whose compute-equivalent gain is 1.
        above: Rows of the levels above; ranks and letters continue after theirs.
    """
    gains = _gains(level, reference)
    rows = [
        _pooled_row(p) | _standing(index, level) | _gain_values(gains[index]) for index, p in enumerate(level.pooled)
    ]
    named = shifted_letters([row["letters"] or "" for row in rows], [row["letters"] or "" for row in above])
    for index, row in enumerate(rows):
        tied = index > 0 and row["loss"] == rows[index - 1]["loss"]
        row["rank"] = rows[index - 1]["rank"] if tied else len(above) + index + 1
        row["letters"] = named[index] or None
    return rows


def other_rows(study: StudyRecord, ranked: Collection[int] = ()) -> list[dict[str, Any]]:
    """Return the trials that are neither complete nor in `ranked`, by number, each with its reason."""
    unranked = [t for t in study.trials if t.state != "complete" and t.number not in ranked]
    rows = [_trial_row(t) for t in unranked] + [_damaged_row(t) for t in study.damaged]
    return [row | {"rank": None} for row in sorted(rows, key=lambda row: int(row["trial"]))]


def _gains(level: Level, reference: Pooled | None) -> list[Gain | None]:
    """Return the compute-equivalent gain of each architecture of a level; None where the reference has no loss.

    On lower levels the reference counts with its loss there, and with the seed noise of its rival, because it is not
    on the level itself.
    """
    if reference is None:
        return [None] * len(level.pooled)
    curve = [(tokens, loss) for tokens, loss in reference.curve if tokens <= level.tokens]
    own = next((index for index, p in enumerate(level.pooled) if p is reference), None)
    loss = reference.loss if own is not None else dict(curve).get(level.tokens)
    if loss is None:
        return [None] * len(level.pooled)
    law = local_law(curve, reference.trials[0].config.training.warmup_tokens)
    counts = [len(p.trials) for p in level.pooled]
    gains: list[Gain | None] = []
    for index, pooled in enumerate(level.pooled):
        ratio = _flops(reference) / _flops(pooled)
        if index == own:
            gains.append(Gain(ratio, None, None))
            continue
        variance, degrees = 0.0, math.inf
        if level.seeds or level.data:
            rival = index if own is None else own
            variance, degrees = difference_variance(index, rival, counts, level.seeds, level.data)
        gains.append(compute_equivalent_gain(loss - pooled.loss, ratio, law, variance, degrees))
    return gains


def _gain_values(gain: Gain | None) -> dict[str, Any]:
    """Return a compute-equivalent gain and its interval as values of a row."""
    return {
        "compute_equivalent_gain": gain and gain.point,
        "gain_low": gain and gain.low,
        "gain_high": gain and gain.high,
    }


def _standing(index: int, level: Level) -> dict[str, Any]:
    """Return the interval, tie group and probability of one architecture, and its comparison with the next one."""
    pooled, seeds, data, comparison = level.pooled, level.seeds, level.data, level.comparison
    current, counts = pooled[index], [len(p.trials) for p in pooled]
    interval = mean_interval(index, current.loss, counts[index], seeds)
    row: dict[str, Any] = {
        "interval_low": interval.low if interval else None,
        "interval_high": interval.high if interval else None,
        "half_interval": (interval.high - interval.low) / 2 if interval else None,
        "interval_kind": None if seeds is None else "measured" if seeds.is_measured[index] else "assumed",
        "letters": comparison.letters[index] if comparison else None,
        "probability_best": comparison.best[index] if comparison and comparison.best else None,
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


def branch_losses(trials: Sequence[TrialRecord]) -> dict[str, float]:
    """Return the mean loss of the trials that have it, at each data budget at which a decay branch ended."""
    found: dict[int, list[float]] = {}
    for trial in trials:
        for line in trial.branches:
            found.setdefault(int(line["branch"]), []).append(float(line["loss"]))
    return {str(tokens): fmean(own) for tokens, own in sorted(found.items())}


def _pooled_row(pooled: Pooled) -> dict[str, Any]:
    """Return the row of one architecture, with means over its seeds."""
    trials, one, speed = pooled.trials, len(pooled.trials) == 1, measured_speed(pooled.trials)
    return (
        pooled.architecture.row()
        | {
            "trial": pooled.best_trial.number,
            "trials": [t.number for t in trials],
            "seed": trials[0].seed if one else None,
            "seeds": [t.seed for t in trials],
            "num_seeds": len(trials),
            "loss": pooled.loss,
            "losses": list(pooled.losses),
            "bits_per_byte": pooled.bits_per_byte,
            "perplexity": math.exp(min(pooled.loss, 700.0)),
            "context_gain": pooled.context_gain,
            "tokens": pooled.tokens,
            "level_tokens": pooled.tokens,
            "is_final": pooled.is_final,
            "tokens_per_second": speed.tokens_per_second,
            "tokens_per_second_low": speed.low,
            "tokens_per_second_high": speed.high,
            "speed_is_rough": speed.is_rough,
            "flops_per_token": _flops(pooled),
            "flops": _flops(pooled) * pooled.tokens,
            "learning_rate": pooled.learning_rate,
            "learning_rate_losses": {f"{rate:g}": loss for rate, loss in pooled.rates.items()},
            "learning_rate_edge": pooled.edge or None,
            "num_learning_rates": pooled.num_rates,
            "rate_correction": pooled.rate_correction,
            "state": trials[0].state,
            "reason": trials[0].reason,
        }
        | ({"branch_losses": losses} if (losses := branch_losses(trials)) else {})
    )


def _trial_row(trial: TrialRecord) -> dict[str, Any]:
    """Return the row of one trial."""
    return trial.architecture.row() | {
        "trial": trial.number,
        "seed": trial.seed,
        "loss": trial.loss,
        "bits_per_byte": trial.bits_per_byte,
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
    unknown = ("loss", "bits_per_byte", "perplexity", "context_gain", "tokens", "tokens_per_second", "learning_rate")
    known = {"trial": trial.number, "seed": trial.seed, "state": "damaged", "reason": trial.reason}
    return shape | dict.fromkeys(unknown) | known
