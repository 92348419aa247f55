"""Estimate how much a difference between architectures depends on the learning rate at which it was measured.

Architectures that share one learning rate are not equally well tuned: wider models prefer lower rates. A grid of
architectures and rates shows how much this matters. After removing the mean of each architecture and of each rate, the
rest is the interaction. At each rate, a line over log2 of the width is fitted to it:

- The slopes differ between rates. Their variance says how much a contrast between widths moves with the rate.
- What the lines leave is the variance of each single architecture.

The residual contains the seed noise of the grid, so it is slightly too large.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from march_search.analysis.noise import Array
from march_search.architecture.architecture import Architecture


@dataclass(frozen=True, kw_only=True)
class RateNoise:
    """Variation of the differences between architectures with a learning rate that they share."""

    per_doubling: float
    """Standard deviation over rates of the slope of the loss, in nats per doubling of `d_model`."""
    per_doubling_degrees: float
    """Degrees of freedom of `per_doubling`."""
    deviation: float
    """Standard deviation over rates of the loss of one architecture, apart from its width, in nats."""
    degrees: float
    """Degrees of freedom of `deviation`."""
    source: str
    """Source of the estimate, in words."""

    def parts(self, weights_A: Array, shapes: Sequence[Architecture]) -> list[tuple[float, float]]:
        """Return the variance that the rate adds to a contrast, in parts with their degrees of freedom."""
        doublings = float(weights_A @ _log_widths(shapes))
        return [
            ((self.per_doubling * doublings) ** 2, self.per_doubling_degrees),
            (self.deviation**2 * float(weights_A @ weights_A), self.degrees),
        ]


RECORDED = RateNoise(
    per_doubling=0.0629,
    per_doubling_degrees=2,
    deviation=0.0137,
    degrees=4,
    source="four encoder-decoders of 1.07M parameters at 1.4e-3, 2e-3 and 2.8e-3 (studies/cpu/learning-rates.toml)",
)
"""Assumed for a contrast measured at one learning rate. Other sizes and kinds of models may move more, or less."""


def rate_noise(shapes: Sequence[Architecture], losses_AR: Array, source: str) -> RateNoise:
    """Estimate the noise of the learning rate from a complete grid.

    Args:
        shapes: Architectures, of at least two widths, at least three in number.
        losses_AR: Loss of each architecture at each of at least two rates.
        source: Source of the grid, in words.
    """
    many, rates = losses_AR.shape
    interaction_AR = losses_AR - losses_AR.mean(axis=1, keepdims=True) - losses_AR.mean(axis=0) + losses_AR.mean()
    widths_A = _log_widths(shapes) - _log_widths(shapes).mean()
    slopes_R = widths_A @ interaction_AR / (widths_A @ widths_A)
    rest_AR = interaction_AR - np.outer(widths_A, slopes_R)
    degrees = (many - 2) * (rates - 1)
    return RateNoise(
        per_doubling=float(slopes_R.std(ddof=1)),
        per_doubling_degrees=rates - 1,
        deviation=float(np.sqrt(np.square(rest_AR).sum() / degrees)),
        degrees=degrees,
        source=source,
    )


def _log_widths(shapes: Sequence[Architecture]) -> Array:
    """Return log2 of each architecture's `d_model`."""
    return np.log2([float(a.d_model) for a in shapes])
