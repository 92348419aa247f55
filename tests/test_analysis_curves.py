"""Curve fits, effects of dimensions and findings: on made-up laws, and on the 25 runs of the 2023 study."""

import math
import tomllib

import numpy as np
import pytest
from helpers.reference import march_architecture, march_curves, march_runs
from scipy.stats import kendalltau

from march_search.analysis.curve_fit import fit_curve, half_miss
from march_search.analysis.effects import effects
from march_search.analysis.findings import findings
from march_search.analysis.horizon import learn_mix, predicted_losses
from march_search.analysis.noise import SeedNoise, seed_noise
from march_search.analysis.regime import tokens_to_reach
from march_search.architecture.architecture import Architecture
from march_search.config.shipped import shipped_folder

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


def prior_noise(architectures: list[Architecture]) -> SeedNoise:
    """Return the seed noise of architectures with one seed each, about 0.006 nats."""
    return seed_noise(architectures, [[4.0]] * len(architectures))


def test_the_findings_of_the_2023_study_and_their_confounds() -> None:
    answers = {a.statement: a for a in findings(MARCH_SHAPES, MARCH_LOSSES, [1] * 25, prior_noise(MARCH_SHAPES), None)}
    wider = answers["a wider model with fewer layers is better"]
    assert (wider.verdict, wider.pairs, wider.agreeing) == ("yes", 101, 99)
    assert "d_ff / d_model" in wider.confounds  # d_ff is 3072 in every run, whatever d_model is
    assert answers["more heads and fewer layers are better"].verdict == "yes"
    gated = answers["gated feed-forward is better"]
    assert (gated.verdict, gated.pairs, gated.agreeing) == ("yes", 3, 3)
    assert gated.difference == pytest.approx((5.4175 + 5.416 + 5.4185) / 3 - 5.48025)
    assert answers["dropping cross-attention key/value weights costs nothing"].verdict == "not tested"


@pytest.mark.parametrize(
    ("study", "statement"),
    [
        ("heads-layers", "more heads and fewer layers are better"),
        ("dims-layers", "a wider model with fewer layers is better"),
        ("heads-d-kv", "more heads with a smaller d_kv are better"),
        ("glu", "gated feed-forward is better"),
        ("heads-layers-no-kv", "dropping cross-attention key/value weights costs nothing"),
        ("d-ff", "more layers with a smaller d_ff are better"),
        ("d-ff", "a wider model with a smaller d_ff is better"),
        ("heads-layers-no-kv", "more heads in place of cross-attention key/value weights are better"),
        ("dims-heads-layers", "a wider model with fewer layers and relatively wider attention is better"),
        ("head-schedule", "more heads in the first layers of a stack than in the last are better"),
        ("head-schedule", "different numbers of heads per layer are better than equal ones"),
        ("baseline", "rotary positions are better than relative ones"),
        ("baseline", "cross-attention to the encoder output is better than to the encoder layer of the same depth"),
        ("baseline-v2", "rotary positions are better than absolute ones"),
        ("albert", "sharing weights between all layers costs nothing at equal parameters"),
        ("albert", "using the same weights in more layers is better"),
        ("length-reduction", "fewer positions from the middle of the encoder cost nothing"),
        ("length-reduction", "a no-op attention key is better"),
        ("bottlenecks", "a narrower residual stream with a larger d_ff is better"),
        ("decoder-only", "a wider model with fewer layers is better"),
        ("decoder-only", "gated feed-forward is better"),
    ],
)
@pytest.mark.parametrize("scale", ["march-2023", "cpu"])
def test_the_2023_studies_can_test_their_statements(study: str, statement: str, scale: str) -> None:
    if (scale, study, statement[:9]) in (
        ("march-2023", "baseline", "rotary po"),
        ("cpu", "heads-layers-no-kv", "dropping "),
    ):
        pytest.skip("only the study of the other scale has the architectures for it")
    file = shipped_folder("studies") / scale / f"{study}.toml"
    shapes = [Architecture.parse(name) for name in tomllib.loads(file.read_text())["search"]["architectures"]]
    losses = [4.0 + 0.01 * n for n in range(len(shapes))]
    answers = findings(shapes, losses, [3] * len(shapes), prior_noise(shapes), None)
    [answer] = [a for a in answers if a.statement == statement]
    assert answer.pairs > 0
    assert answer.interval is not None
    assert answer.verdict != "not tested"


@pytest.mark.parametrize(("loss", "verdict"), [(4.002, "yes"), (4.05, "no"), (4.012, "not separable")])
def test_costing_nothing_is_tested_with_a_margin(loss: float, verdict: str) -> None:
    pair = [Architecture(cross_attention="layer"), Architecture(cross_attention="layer-shared")]
    noise = prior_noise(pair)
    found = findings(pair, [4.0, loss], [16, 16], noise, None)
    assert {a.statement: a.verdict for a in found}[
        "dropping cross-attention key/value weights costs nothing"
    ] == verdict
    without_noise = findings(pair, [4.0, loss], [16, 16], None, None)
    assert {a.statement: a.verdict for a in without_noise}[
        "dropping cross-attention key/value weights costs nothing"
    ] == ("not separable")
