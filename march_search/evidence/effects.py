"""Which dimension matters: a regression of loss on the dimensions, and how much of the order each explains.

On a parameter budget dimensions move together (more layers, less width), and a regression cannot tell apart what never
moved apart. So each effect comes with its variance inflation factor: by how much the design, not the noise, widens its
interval. From `ENTANGLED` on the effect is not separable.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from march_search.architecture import Architecture
from march_search.evidence.comparison import CONFIDENCE, Interval
from march_search.evidence.noise import Array

ENTANGLED = 10.0
"""Variance inflation factor from which on an effect is not separable (Marquardt 1970)."""
FEWEST_FOR_IMPORTANCE = 8
"""Architectures that importances need."""

AXES: dict[str, Callable[[Architecture], float]] = {
    "layers": lambda a: a.num_layers if a.structure == "decoder-only" else a.num_layers + a.decoder_layers,
    "d_model": lambda a: a.d_model,
    "heads": lambda a: a.num_heads,
    "d_kv": lambda a: a.d_kv,
    "d_ff / d_model": lambda a: a.d_ff / a.d_model,
}
"""Dimensions that count by their logarithm: an effect is that of doubling."""
GATED = "gated feed-forward"
LEAST_RANGE = np.log2(1.25)
"""Doublings over which a dimension must vary: from less, the effect of a doubling would be a guess."""


@dataclass(frozen=True)
class Effect:
    """What one dimension does to the loss, the others held."""

    axis: str
    nats: float | None
    """Change of the loss per doubling, or by gating; None where the design cannot tell."""
    interval: Interval | None
    inflation: float
    """Variance inflation factor; infinite where others determine it."""
    entangled_with: tuple[str, ...]
    """Dimensions that it moves with; empty if separable."""
    importance: float | None
    """Share of what decides who is in the better half (PED-ANOVA, Watanabe et al. 2023); None if not computed."""

    @property
    def is_separable(self) -> bool:
        """Whether the design tells it apart from the others and from noise."""
        return self.is_told_apart and self.interval is not None and not self.interval.low <= 0 <= self.interval.high

    @property
    def is_told_apart(self) -> bool:
        """Whether the design tells it apart from the other dimensions."""
        return self.interval is not None and self.inflation < ENTANGLED


@dataclass(frozen=True)
class Effects:
    """A regression over the architectures of a study."""

    effects: tuple[Effect, ...]
    fixed: tuple[str, ...]
    """Dimensions that are the same, or within a quarter, in all architectures."""
    condition: float
    """Condition number of the standardised design; infinite if singular."""
    degrees: int
    """Residual degrees of freedom; 0 or less: more dimensions than architectures can tell."""
    residual: float | None
    """Standard deviation of what the regression leaves, in nats."""


def effects(architectures: Sequence[Architecture], losses: Sequence[float], with_importance: bool = False) -> Effects:
    """Ordinary least squares of mean losses on all dimensions that vary; intervals are Student's.

    Effects are taken as linear in logarithms, without interactions. The residual holds seed noise and whatever is not.
    """
    names, design = _design(architectures)
    fixed = tuple(name for name in (*AXES, GATED) if name not in names)
    degrees = len(losses) - len(names) - 1
    if not names:
        return Effects((), fixed, 1.0, degrees, None)
    centred = design - design.mean(axis=0)
    standard = centred / centred.std(axis=0)
    values = np.linalg.svd(standard, compute_uv=False)
    full = len(losses) > len(names) and values[-1] > 1e-8 * values[0]
    inflations = np.diag(np.linalg.inv(standard.T @ standard)) * len(losses) if full else np.full(len(names), np.inf)
    nats, half, residual = _least_squares(centred, np.asarray(losses, float), degrees) if full else (None, None, None)
    shares = importances(architectures, losses) if with_importance else {}
    found = []
    for n, name in enumerate(names):
        known = nats is not None and half is not None
        own = float(nats[n]) if known else None  # type: ignore[index]
        wide = float(half[n]) if known else 0.0  # type: ignore[index]
        interval = Interval(own - wide, own + wide) if own is not None and np.isfinite(wide) else None
        others = _companions(standard, n, names) if inflations[n] >= ENTANGLED else ()
        found.append(Effect(name, own, interval, float(inflations[n]), others, shares.get(name)))
    condition = float(values[0] / values[-1]) if full else float("inf")
    return Effects(tuple(found), fixed, condition, degrees, residual)


def importances(architectures: Sequence[Architecture], losses: Sequence[float]) -> dict[str, float]:
    """Optuna's PED-ANOVA over the dimensions that vary; nothing for fewer than `FEWEST_FOR_IMPORTANCE` shapes."""
    if len(losses) < FEWEST_FOR_IMPORTANCE:
        return {}
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    names, design = _design(architectures)
    ranges: dict[str, BaseDistribution] = {
        name: FloatDistribution(float(column.min()), float(column.max()))
        for name, column in zip(names, design.T, strict=True)
    }
    if GATED in ranges:
        ranges[GATED] = CategoricalDistribution((0.0, 1.0))
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    optuna.logging.set_verbosity(verbosity)
    for row, loss in zip(design, losses, strict=True):
        params = dict(zip(names, row.tolist(), strict=True))
        study.add_trial(optuna.trial.create_trial(params=params, distributions=ranges, value=float(loss)))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.5, evaluate_on_local=False)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _design(architectures: Sequence[Architecture]) -> tuple[list[str], Array]:
    """Dimensions that vary, and their values (architectures, dimensions): logarithms to base 2, or 0 and 1."""
    columns = {name: np.log2([take(a) for a in architectures]) for name, take in AXES.items()}
    columns[GATED] = np.array([float(a.is_gated) for a in architectures])
    names = [name for name, column in columns.items() if len(column) and np.ptp(column) >= LEAST_RANGE]
    return names, np.stack([columns[name] for name in names], axis=1) if names else np.empty((len(architectures), 0))


def _least_squares(centred: Array, losses: Array, degrees: int) -> tuple[Array, Array, float | None]:
    """Coefficients, half widths of their intervals, residual deviation; infinite widths without degrees of freedom."""
    from scipy.special import stdtrit

    gram = np.linalg.inv(centred.T @ centred)
    nats = gram @ centred.T @ (losses - losses.mean())
    if degrees < 1:
        return nats, np.full(len(nats), np.inf), None
    left = losses - losses.mean() - centred @ nats
    deviation = float(np.sqrt(left @ left / degrees))
    return nats, float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * deviation * np.sqrt(np.diag(gram)), deviation


def _companions(standard: Array, n: int, names: Sequence[str]) -> tuple[str, ...]:
    """The dimensions that most determine dimension `n`: those whose part in predicting it is at least a third."""
    others = [k for k in range(len(names)) if k != n]
    parts = np.abs(np.linalg.lstsq(standard[:, others], standard[:, n], rcond=None)[0])
    return tuple(names[k] for k, part in zip(others, parts, strict=True) if part >= parts.max() / 3)
