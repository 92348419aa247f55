"""Effects of dimensions: on made-up laws, and on the 25 runs of the 2023 study."""

import math

import numpy as np
import pytest
from helpers.reference import march_architecture, march_curves, march_runs

from march_search.analysis.effects import effects
from march_search.architecture.architecture import Architecture

MARCH_SHAPES = [march_architecture(run) for run in march_runs()]
MARCH_LOSSES = [curve[-1][1] for curve in march_curves()]


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
