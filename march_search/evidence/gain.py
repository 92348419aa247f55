"""Loss and compute in one number: the compute-equivalent gain (Davidson et al. 2023, arXiv 2312.07413).

How many times the compute of a trial the reference architecture would need to reach the trial's loss:

    gain = (F_reference / F) · exp((L_reference - L) / slope)

F FLOPs per token of text, L mean final loss; the tokens are the same for all. `slope` is by how much the reference's
loss falls while its tokens grow e-fold, at the end of its training: the slope of a least-squares line of its loss
against ln(tokens), over the last half of its tokens. 2: the reference would need twice the compute. The reference
itself has 1. The line is trusted over a factor of `FARTHEST` in tokens and no farther: it says nothing about a plateau
that longer training leaves, and a decayed learning rate makes it too steep.
"""

import math
from collections.abc import Sequence

import numpy as np

FARTHEST = 10.0
"""Largest factor of tokens that the line is followed for."""


def end_slope(curve: Sequence[tuple[int, float]]) -> float | None:
    """Nats by which a loss falls per e-fold of tokens at its end; None with fewer than three evaluations, or no fall.

    Args:
        curve: (tokens, loss), ascending.
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
    """The gain of a trial by the formula above; None without a slope, or where the line would be followed too far.

    Args:
        loss: the trial's final loss.
        flops: its operations per token.
        reference_loss: the reference's final loss.
        reference_flops: the reference's operations per token.
        slope: the reference's `end_slope`.
    """
    if reference_loss == loss:
        return reference_flops / flops
    if slope is None or abs(reference_loss - loss) / slope > math.log(FARTHEST):
        return None
    return reference_flops / flops * math.exp((reference_loss - loss) / slope)
