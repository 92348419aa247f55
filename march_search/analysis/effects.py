"""Estimate the effect of each dimension by a regression of loss on the dimensions, and the importance of each.

On a parameter budget, dimensions move together (more layers, less width), and a regression cannot separate dimensions
that never move independently. Each effect therefore comes with its variance inflation factor: how much the design,
rather than the noise, widens its interval. An effect is not separable if the factor is at least `ENTANGLED`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from march_search.analysis.comparison import CONFIDENCE, Interval, holm, two_sided
from march_search.analysis.noise import Array
from march_search.architecture.architecture import Architecture

ENTANGLED = 10.0
"""Smallest variance inflation factor at which an effect is not separable (Marquardt 1970)."""

FEWEST_FOR_IMPORTANCE = 8
"""Minimum number of architectures for importances."""

AXES: dict[str, Callable[[Architecture], float]] = {
    "layers": lambda a: a.num_layers if a.structure == "decoder-only" else a.num_layers + a.decoder_layers,
    "d_model": lambda a: a.d_model,
    "heads": lambda a: a.num_heads,
    "d_kv": lambda a: a.d_kv,
    "d_ff / d_model": lambda a: a.d_ff / a.d_model,
}
"""Dimensions that enter as logarithms: an effect is the change per doubling."""

GATED = "gated feed-forward"

LEAST_RANGE = np.log2(1.25)
"""Minimum range of a dimension, in doublings; over less, the effect of a doubling would be a guess."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Effect of one dimension on the loss, with the others held constant."""

    axis: str
    nats: float | None
    """Change in loss per doubling, or by gating; None if the design does not determine it."""
    interval: Interval | None
    inflation: float
    """Variance inflation factor; infinite if other dimensions determine this one."""
    entangled_with: tuple[str, ...]
    """Dimensions that move with this one; empty if `inflation` is below `ENTANGLED`."""
    adjusted_p: float | None
    """p-value after Holm's correction over all dimensions; None without an interval."""
    importance: float | None
    """Share of the importance for being in the better half (PED-ANOVA, Watanabe et al. 2023); None if not computed."""

    @property
    def is_separable(self) -> bool:
        """Whether the effect can be separated from those of the other dimensions and from noise."""
        return self.is_told_apart and self.adjusted_p is not None and self.adjusted_p <= 1 - CONFIDENCE

    @property
    def is_told_apart(self) -> bool:
        """Whether the effect can be separated from those of the other dimensions."""
        return self.interval is not None and self.inflation < ENTANGLED


@dataclass(frozen=True, kw_only=True)
class Effects:
    """Regression over the architectures of a study."""

    effects: tuple[Effect, ...]
    fixed: tuple[str, ...]
    """Dimensions that vary by less than a factor of 1.25 between all architectures."""
    condition: float
    """Condition number of the standardised design; infinite if singular."""
    degrees: int
    """Residual degrees of freedom; 0 or less if there are too few architectures for the dimensions."""
    residual: float | None
    """Standard deviation of the residuals, in nats; None if it cannot be estimated."""


def effects(architectures: Sequence[Architecture], losses: Sequence[float], with_importance: bool = False) -> Effects:
    """Regress mean losses on all dimensions that vary, by ordinary least squares with Student's t intervals.

    Effects are assumed linear in the logarithms, without interactions. The residual contains seed noise and any lack
    of fit. Holm's method corrects the p-values over the dimensions.
    """
    from scipy.special import stdtrit

    names, design = _design(architectures)
    fixed = tuple(name for name in (*AXES, GATED) if name not in names)
    degrees = len(losses) - len(names) - 1
    if not names:
        return Effects(effects=(), fixed=fixed, condition=1.0, degrees=degrees, residual=None)
    centred = design - design.mean(axis=0)
    standard = centred / centred.std(axis=0)
    values = np.linalg.svd(standard, compute_uv=False)
    full = len(losses) > len(names) and values[-1] > 1e-8 * values[0]
    inflations = np.diag(np.linalg.inv(standard.T @ standard)) * len(losses) if full else np.full(len(names), np.inf)
    nats, errors, residual = _least_squares(centred, np.asarray(losses, float), degrees) if full else (None, None, None)
    shares = importances(architectures, losses) if with_importance else {}
    adjusted, results = _adjusted(nats, errors, degrees), []
    for n, name in enumerate(names):
        effect = None if nats is None else float(nats[n])
        interval = None
        if effect is not None and errors is not None:
            half = float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * float(errors[n])
            interval = Interval(effect - half, effect + half)
        others = _companions(standard, n, names) if inflations[n] >= ENTANGLED else ()
        results.append(
            Effect(
                axis=name,
                nats=effect,
                interval=interval,
                inflation=float(inflations[n]),
                entangled_with=others,
                adjusted_p=None if adjusted is None else float(adjusted[n]),
                importance=shares.get(name),
            )
        )
    condition = float(values[0] / values[-1]) if full else float("inf")
    return Effects(effects=tuple(results), fixed=fixed, condition=condition, degrees=degrees, residual=residual)


def importances(architectures: Sequence[Architecture], losses: Sequence[float]) -> dict[str, float]:
    """Return Optuna's PED-ANOVA of the varying dimensions; empty below `FEWEST_FOR_IMPORTANCE` architectures."""
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
    """Return the varying dimensions and their values (architectures, dimensions): base-2 logarithms, or 0 and 1."""
    columns = {name: np.log2([take(a) for a in architectures]) for name, take in AXES.items()}
    columns[GATED] = np.array([float(a.is_gated) for a in architectures])
    names = [name for name, column in columns.items() if len(column) and np.ptp(column) >= LEAST_RANGE]
    return names, np.stack([columns[name] for name in names], axis=1) if names else np.empty((len(architectures), 0))


def _least_squares(centred: Array, losses: Array, degrees: int) -> tuple[Array, Array | None, float | None]:
    """Return coefficients, their standard errors and the residual deviation; None without degrees of freedom."""
    gram = np.linalg.inv(centred.T @ centred)
    nats = gram @ centred.T @ (losses - losses.mean())
    if degrees < 1:
        return nats, None, None
    left = losses - losses.mean() - centred @ nats
    deviation = float(np.sqrt(left @ left / degrees))
    return nats, deviation * np.sqrt(np.diag(gram)), deviation


def _adjusted(nats: Array | None, errors: Array | None, degrees: int) -> Array | None:
    """Return the p-value of each coefficient after Holm's correction; None without standard errors."""
    if nats is None or errors is None:
        return None
    return holm(np.array([two_sided(float(b), float(e) ** 2, degrees) for b, e in zip(nats, errors, strict=True)]))


def _companions(standard: Array, n: int, names: Sequence[str]) -> tuple[str, ...]:
    """Return the main predictors of dimension `n`: coefficients of at least a third of the largest."""
    others = [k for k in range(len(names)) if k != n]
    parts = np.abs(np.linalg.lstsq(standard[:, others], standard[:, n], rcond=None)[0])
    return tuple(names[k] for k, part in zip(others, parts, strict=True) if part >= parts.max() / 3)
