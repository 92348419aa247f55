"""Combine loss and compute in one number, the compute-equivalent gain (Davidson et al. 2023, arXiv 2312.07413).

The gain is the compute that the reference architecture would need to reach a trial's loss, divided by the trial's own:

    gain = (F_reference / F) · exp((L_reference - L) / slope)

F is FLOPs per token of text and L is the mean final loss; all trials use the same number of tokens. `slope` is the drop
in the reference's loss per e-fold of tokens at the end of its training, from a least-squares line of loss against
ln(tokens) over the last half of its tokens. A gain of 2 means that the reference would need twice the compute; the gain
of the reference itself is 1. The line is extrapolated by a factor of at most `FARTHEST` in tokens. It does not account
for a plateau that longer training would leave, and a decayed learning rate makes it too steep.
"""

import math
from collections.abc import Sequence

import numpy as np

FARTHEST = 10.0
"""Largest factor in tokens over which the line is extrapolated."""


def end_slope(curve: Sequence[tuple[int, float]]) -> float | None:
    """Return the drop in loss, in nats per e-fold of tokens, over the last half of a curve's tokens.

    Returns None with fewer than three evaluations in that half, or if the loss does not fall.

    Args:
        curve: (tokens, loss) pairs, ascending.
    """
    late = [(math.log(tokens), loss) for tokens, loss in curve if tokens >= curve[-1][0] / 2]
    if len(late) < 3:
        return None
    logs, losses = np.transpose(late)
    slope = -float(np.polyfit(logs, losses, 1)[0])
    return slope if slope > 0 else None


def compute_equivalent_gain(
    loss: float, flops: float, reference_loss: float, reference_flops: float, slope: float | None
) -> float | None:
    """Return the gain of a trial by the formula above; None without a slope or beyond a factor of `FARTHEST`.

    Args:
        loss: Final loss of the trial.
        flops: FLOPs per token of the trial.
        reference_loss: Final loss of the reference.
        reference_flops: FLOPs per token of the reference.
        slope: `end_slope` of the reference.
    """
    if reference_loss == loss:
        return reference_flops / flops
    if slope is None or abs(reference_loss - loss) / slope > math.log(FARTHEST):
        return None
    return reference_flops / flops * math.exp((reference_loss - loss) / slope)
