"""Curve fits and effects of dimensions: on made-up laws, and on the 25 runs of the 2023 study."""

import math

import numpy as np
import pytest
from helpers.reference import march_architecture, march_curves, march_runs
from scipy.stats import kendalltau

from march_search.analysis.curve_fit import fit_curve, half_miss
from march_search.analysis.effects import effects
from march_search.analysis.horizon import learn_mix, predicted_losses
from march_search.analysis.regime import tokens_to_reach
from march_search.architecture.architecture import Architecture

MARCH_SHAPES = [march_architecture(run) for run in march_runs()]
MARCH_LOSSES = [curve[-1][1] for curve in march_curves()]


def law(floor: float, scale: float, exponent: float, points: int = 30) -> list[tuple[int, float]]:
    """Return a power law without noise, at 1 to `points` million tokens."""
    return [(10**6 * n, floor + scale * n**-exponent) for n in range(1, points + 1)]


def test_a_power_law_is_extrapolated_exactly() -> None:
    fit = fit_curve(law(2.0, 3.0, 0.3))
    assert fit is not None
    assert fit.at(300e6) == pytest.approx(2 + 3 * 300**-0.3, abs=0.01)
    assert fit.exponent_B[0] == pytest.approx(0.3, rel=0.05)
    reached = tokens_to_reach(fit, 2 + 3 * 100**-0.3)
    assert reached is not None
    assert reached[1] == pytest.approx(100e6, rel=0.05)
    assert tokens_to_reach(fit, 1.0) is None


def test_one_outlier_does_not_bend_a_curve() -> None:
    curve = law(2.0, 3.0, 0.3)
    curve[20] = (curve[20][0], curve[20][1] + 0.5)
    fit = fit_curve(curve)
    assert fit is not None
    assert fit.at(100e6) == pytest.approx(2 + 3 * 100**-0.3, abs=0.03)


def test_intervals_cover_the_ends_of_noisy_curves() -> None:
    rng, covered = np.random.default_rng(0), []
    for _ in range(200):
        exponent = rng.uniform(0.1, 0.5)
        noisy = [(t, loss + rng.normal(0, 0.01)) for t, loss in law(2.0, 3.0, exponent)]
        fit = fit_curve(noisy)
        assert fit is not None
        interval = fit.interval(100e6)
        covered.append(interval.low <= 2 + 3 * 100**-exponent <= interval.high)
    assert np.mean(covered) >= 0.93


def test_too_few_evaluations_give_no_fit() -> None:
    assert fit_curve([]) is None
    assert fit_curve(law(2.0, 3.0, 0.3, 3)) is None
    assert fit_curve(law(2.0, 3.0, 0.3), warmup_tokens=28e6) is None
    assert half_miss(law(2.0, 3.0, 0.3, 6)) is None


def test_the_same_seed_gives_the_same_draws() -> None:
    first, again = (fit_curve(march_curves()[0], seed=3) for _ in range(2))
    assert first is not None
    assert again is not None
    assert (first.draws(1e12) == again.draws(1e12)).all()


def test_the_first_30_percent_of_the_2023_curves_predict_their_ends() -> None:
    curves = march_curves()
    starts = [curve[:15] for curve in curves]
    fits = [fit for curve in starts if (fit := fit_curve(curve, miss=0.0)) is not None]
    mix = learn_mix(starts)
    assert len(fits) == 25
    assert mix is not None
    drawn = predicted_losses(starts, fits, mix, curves[0][-1][0])
    low, high = np.quantile(drawn[:, 1:], [0.025, 0.975], axis=1)
    ends = np.array(MARCH_LOSSES)
    assert np.mean((low <= ends) & (ends <= high)) >= 0.9
    assert np.median(np.abs(drawn[:, 0] - ends)) < 0.2
    by_fits = [fit.at(curves[0][-1][0]) for fit in fits]
    assert kendalltau(drawn[:, 0], ends)[0] > 0.8 > kendalltau(by_fits, ends)[0]
    best = int(ends.argmin())
    assert np.mean(drawn[:, 1:].argmin(axis=0) == best) > 0.5


def shape(layers: int, width: int, heads: int, feed_forward: int, gated: bool = False) -> Architecture:
    """Return a small architecture."""
    kind = "gated-gelu" if gated else "relu"
    return Architecture(
        num_layers=layers,
        d_model=width,
        num_heads=heads,
        d_kv=32,
        d_ff=feed_forward,
        feed_forward_proj=kind,
        vocab_size=2048,
    )


def test_effects_are_estimated_where_the_design_separates_them() -> None:
    rng = np.random.default_rng(2)
    shapes = [
        shape(n, d, h, d * r, g)
        for n in (2, 4)
        for d in (64, 128)
        for h in (2, 8)
        for r in (2, 4)
        for g in (False, True)
    ]
    losses = [
        4 - 0.05 * math.log2(a.num_layers) - 0.1 * math.log2(a.d_model) - 0.03 * a.is_gated + rng.normal(0, 0.004)
        for a in shapes
    ]
    found = {one.axis: one for one in effects(shapes, losses, with_importance=True).effects}
    for axis, truth in (("layers", -0.05), ("d_model", -0.1), ("heads", 0.0), ("gated feed-forward", -0.03)):
        one = found[axis]
        assert one.is_told_apart
        assert one.is_separable == (truth != 0)
        assert one.interval is not None
        assert one.interval.low - 0.002 <= truth <= one.interval.high + 0.002
        assert one.nats == pytest.approx(truth, abs=0.006)
    assert max(found, key=lambda axis: found[axis].importance or 0) == "d_model"


def test_effects_are_corrected_for_the_number_of_dimensions() -> None:
    rng = np.random.default_rng(0)
    shapes = [shape(n, d, h, d * r) for n in (2, 4) for d in (64, 128) for h in (2, 8) for r in (2, 4)]
    alone, corrected = [], []
    for _ in range(400):
        found = effects(shapes, (4 + rng.normal(0, 0.01, len(shapes))).tolist()).effects
        assert all(one.interval for one in found)
        alone.append(any(one.interval.low > 0 or one.interval.high < 0 for one in found if one.interval))
        corrected.append(any(one.is_separable for one in found))
    assert np.mean(alone) > 0.12
    assert np.mean(corrected) <= 0.07


def test_dimensions_that_vary_together_are_not_separable() -> None:
    family = [n for n, run in enumerate(march_runs()) if run["name"].startswith(("Baseline", "MoreHeads"))]
    found = effects([MARCH_SHAPES[n] for n in family], [MARCH_LOSSES[n] for n in family])
    assert [one.axis for one in found.effects] == ["layers", "heads"]
    assert not any(one.is_separable for one in found.effects)
    assert found.effects[0].entangled_with == ("heads",)
    same = [shape(2, 64, 2, 128), shape(4, 128, 4, 256), shape(8, 256, 8, 512)]
    exact = effects(same, [4.0, 3.9, 3.8])
    assert [one.nats for one in exact.effects] == [None, None, None]
    assert exact.condition == math.inf
    assert effects(same[:1], [4.0]).effects == ()
    [layers] = effects([shape(2, 64, 2, 128), shape(4, 64, 2, 128)], [4.0, 3.9]).effects
    assert (layers.nats, layers.interval, layers.is_separable) == (pytest.approx(-0.1), None, False)
