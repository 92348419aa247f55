"""Which arms of a ladder train at the next size, and the probability that its best arm is dropped.

The losses of the arms at two sizes are draws of a normal distribution with a correlation `ρ` (`size_draws.py`), so two
sizes order a share `1/2 + arcsin(ρ) / π` of the pairs of arms alike (Sheppard 1899). The next size is taken to agree
with the last finished one as that does with the one before. Given an arm's standardised expected loss `z` at the last
size, its loss at the next is `ρ z + √(1 - ρ²) ε`, in units of the spread there. The risk is the share of draws of the
losses, of `ρ` and of `ε` in which the lowest loss is that of a dropped arm. Draws with a negative `ρ` do not count
unless hardly any other is left: neighbouring sizes of one ladder are not taken to order its arms in opposite ways.

Shape suffixes: A arms, B draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from march_search.analysis.noise import Array
from march_search.config.ladder_config import LadderConfig
from march_search.ladders.ladder_record import LadderRecord, SizeRecord, arm_losses, size_losses, size_study
from march_search.ladders.size_draws import DRAWS, SizeLosses, size_draws
from march_search.ladders.size_order import agreement
from march_search.units import whole_percent

PUBLISHED_ACCURACY = 0.8
"""Share of pairs that a plan assumes if nothing else is known: that of data mixtures, from one small size to a larger
one (DataDecide, Magnusson et al. 2025). For architectures it is an assumption."""


FEWEST_DRAWS = 100
"""Fewest draws with a positive correlation on which a risk may rest; with fewer, all draws count."""


@dataclass(frozen=True, kw_only=True)
class Survivors:
    """The arms that train at a size."""

    arms: tuple[str, ...]
    """Names of the arms that train, in the order of the ladder."""
    reason: str
    """Why, as one sentence."""
    risk: float | None = None
    """Probability that the best arm of the size is among those that `keep` would drop; None if it is not known."""


def correlation(accuracy: float) -> float:
    """Return the correlation between two sizes that order this share of the pairs of arms alike."""
    return math.sin(math.pi * (accuracy - 0.5))


def survivors(ladder: LadderRecord, index: int, root: Path, rate: float, config: LadderConfig) -> Survivors:
    """Return the arms that train at a size, from the finished sizes before it.

    An arm that has not completed at one of the last two sizes is dropped with the others, if arms are dropped at all.
    The baseline is never dropped.

    Args:
        ladder: The ladder, as recorded.
        index: Index of the size, from 1.
        root: Folder of its studies.
        rate: Learning rate of the trials that count.
        config: The `[ladder]` table.
    """
    size, before = ladder.sizes[index], ladder.sizes[max(0, index - 2) : index]
    losses = {record.size: _losses(ladder, record, root, rate) for record in before}
    last = losses[before[-1].size]
    alive = ladder.sizes[index - 1].trained or ladder.arms
    count = config.halving.count(len(ladder.arms), index) if config.halving else len(alive)
    ranked = [k for k, arm in enumerate(ladder.arms) if arm in alive and all(k in own for own in losses.values())]
    best = sorted(ranked, key=lambda k: float(np.mean(last[k])))[:count]
    kept = sorted({0, *best})  # the baseline trains, even if it did not complete
    everything = tuple(arm for arm in ladder.arms if arm in alive)
    words = f"{size.size} trains {{}} of {len(alive)} arms"
    if len(kept) >= len(alive):
        return Survivors(arms=everything, reason=f"{words.format('all')}: keep drops none.", risk=0.0)
    if len(before) < 2 and config.assumed_accuracy is None:
        return Survivors(
            arms=everything,
            reason=f"{words.format('all')}: one finished size does not show how far sizes agree; set assumed_accuracy "
            "in [ladder] to drop arms now.",
        )
    known = [k for k in kept if k in ranked]
    if len(known) < 3:
        names = " and ".join(record.size for record in before)
        return Survivors(arms=everything, reason=f"{words.format('all')}: only {len(known)} completed at {names}.")
    sides = [_size_losses(record, losses[record.size], ranked) for record in before]
    position = {k: n for n, k in enumerate(ranked)}
    risk = dropped_risk(sides, [position[k] for k in known], config.assumed_accuracy)
    dropped = [ladder.arms[k] for k in range(len(ladder.arms)) if ladder.arms[k] in alive and k not in kept]
    because = f"{_basis(sides, config.assumed_accuracy)}; the best arm at {size.size} is dropped with a probability"
    if risk > config.max_risk:
        return Survivors(
            arms=everything,
            reason=f"{words.format('all')}: {because} of {_chance(risk)} without {', '.join(dropped)}, above "
            f"max_risk ({whole_percent(config.max_risk)}).",
            risk=risk,
        )
    return Survivors(
        arms=tuple(ladder.arms[k] for k in kept),
        reason=f"{words.format(len(kept))}, without {', '.join(dropped)}: {because} of {_chance(risk)} (max_risk: "
        f"{whole_percent(config.max_risk)}).",
        risk=risk,
    )


def _losses(ladder: LadderRecord, record: SizeRecord, root: Path, rate: float) -> dict[int, tuple[float, ...]]:
    """Return the losses of the seeds of each arm that completed at a size, by the arm's index."""
    study = size_study(ladder, record, root)
    own = arm_losses(study, record, rate) if study else {}
    return {k: own[shape.name] for k, shape in enumerate(record.architectures) if shape.name in own}


def _size_losses(record: SizeRecord, losses: dict[int, tuple[float, ...]], arms: Sequence[int]) -> SizeLosses:
    """Return the losses of some arms at a size with their noise."""
    return size_losses(record, {record.architectures[k].name: losses[k] for k in arms}, arms, None)


def dropped_risk(sides: Sequence[SizeLosses], kept: Sequence[int], assumed: float | None, seed: int = 0) -> float:
    """Return the probability that the best arm of the next size is not among those kept.

    Args:
        sides: Losses of the same arms at the last finished size, and before it at the one before if there are two.
        kept: Indices of the arms that train at the next size.
        assumed: Share of pairs that the sizes order alike, used if there is one size only.
        seed: Seed of the draws.
    """
    rng = np.random.default_rng(seed)
    if len(sides) > 1:
        found = size_draws(sides[-2], sides[-1], seed)
        agree_B = found.correlations_B > 0
        if agree_B.sum() < FEWEST_DRAWS:
            agree_B = np.ones_like(agree_B)
        z_BA, correlations_B = found.scores_BA[agree_B], found.correlations_B[agree_B]
    else:
        losses_BA = _shrunken(sides[-1], rng)
        z_BA = losses_BA - losses_BA.mean(axis=1, keepdims=True)
        z_BA /= np.maximum(z_BA.std(axis=1, ddof=1, keepdims=True), 1e-12)
        correlations_B = np.full(len(z_BA), correlation(PUBLISHED_ACCURACY if assumed is None else assumed))
    first_A = np.isin(np.arange(z_BA.shape[1]), kept)
    return dropped_best(z_BA, correlations_B, [len(kept)], rng, first_A)[0]


def planned_risks(arms: int, counts: Sequence[int], accuracy: float, seed: int = 0) -> tuple[float, ...]:
    """Return, for each size after the smallest, the probability that its best arm was dropped there or before.

    Args:
        arms: Number of arms.
        counts: How many of the best arms train at each size after the smallest; the baseline trains even if it is not
            among them.
        accuracy: Share of the pairs that neighbouring sizes order alike, apart from seed noise.
        seed: Seed of the draws.
    """
    rng = np.random.default_rng(seed)
    z_BA = rng.standard_normal((10 * DRAWS, arms))
    return dropped_best(z_BA, np.full(len(z_BA), correlation(accuracy)), counts, rng)


def dropped_best(
    z_BA: Array,
    correlations_B: Array,
    counts: Sequence[int],
    rng: np.random.Generator,
    first_A: NDArray[np.bool_] | None = None,
) -> tuple[float, ...]:
    """Return for each of the next sizes the share of draws whose best arm does not train there.

    Args:
        z_BA: Draws of the arms' standardised losses at the last size. The first arm, the baseline, always trains.
        correlations_B: Correlation of neighbouring sizes in each draw.
        counts: How many of the best arms train at each of the next sizes; the baseline trains even if it is not among
            them.
        rng: Random generator.
        first_A: Arms that train at the first of these sizes; None takes the best of each draw.
    """
    kept_BA, shares = np.ones(z_BA.shape, bool), []
    own_B1, other_B1 = correlations_B[:, None], np.sqrt(1 - np.square(correlations_B))[:, None]
    for step, count in enumerate(counts):
        if step == 0 and first_A is not None:
            kept_BA &= first_A
        else:
            rank_BA = np.where(kept_BA, z_BA, np.inf).argsort(axis=1).argsort(axis=1)
            kept_BA &= rank_BA < count
            kept_BA[:, 0] = True
        z_BA = own_B1 * z_BA + other_B1 * rng.standard_normal(z_BA.shape)
        shares.append(float((~kept_BA[np.arange(len(z_BA)), z_BA.argmin(axis=1)]).mean()))
    return tuple(shares)


def _shrunken(side: SizeLosses, rng: np.random.Generator) -> Array:
    """Return draws of the arms' expected losses at one size, drawn towards their mean by the share of noise in them."""
    noise_A = np.square(side.errors_A)
    spread = max(float(side.means_A.var(ddof=1) - noise_A.mean()), 1e-12)
    weight_A = spread / (spread + noise_A)
    center_A = side.means_A.mean() + weight_A * (side.means_A - side.means_A.mean())
    return np.asarray(center_A + np.sqrt(weight_A * noise_A) * rng.standard_normal((DRAWS, len(noise_A))), float)


def _basis(sides: Sequence[SizeLosses], assumed: float | None) -> str:
    """Return in words how far the sizes agree."""
    if len(sides) < 2:
        return f"sizes are assumed to order {whole_percent(assumed or PUBLISHED_ACCURACY)} of the pairs alike"
    found = agreement(sides[-2], sides[-1])
    held = found.accuracy_interval
    return (
        f"{found.small} orders {whole_percent(found.accuracy)} of {found.pairs} pairs as {found.large} does (95% "
        f"interval {whole_percent(held.low)} to {whole_percent(held.high)})"
    )


def _chance(risk: float) -> str:
    """Return a risk in percent; no estimate is certain."""
    return "less than 1%" if risk < 0.01 else "more than 99%" if risk > 0.99 else whole_percent(risk)
