"""Calculate the input and target lengths of T5's span corruption."""

from typing import NamedTuple


class SpanLengths(NamedTuple):
    """Fixed lengths of one span-corrupted example in tokens, including `</s>` in the input and in the target."""

    noise: int
    """Number of text tokens removed from the input."""
    spans: int
    """Number of removed spans; each adds one sentinel to the input and one to the target."""
    input: int
    """Length of the encoder input."""
    target: int
    """Length of the decoder target."""


def span_lengths(sequence_length: int, noise_density: float = 0.15, mean_span_length: float = 3.0) -> SpanLengths:
    """Return the lengths after corrupting `sequence_length` tokens of text (Raffel et al. 2020, section 3.1.4).

    At least one token is removed and at least one is kept; the number of spans exceeds neither. The input consists of
    the kept tokens, one sentinel per span, and `</s>`. The target consists of the sentinel and tokens of each span, and
    `</s>`. Input and target together always have `sequence_length + 2 * spans + 2` tokens.

    Raises:
        ValueError: If `sequence_length` is below 2, `noise_density` is outside (0, 1) or `mean_span_length` is below 1.
    """
    if sequence_length < 2 or not 0 < noise_density < 1 or mean_span_length < 1:
        raise ValueError(
            "span corruption needs sequence_length >= 2, 0 < noise_density < 1 and mean_span_length >= 1, "
            f"not {sequence_length}, {noise_density} and {mean_span_length}"
        )
    noise = min(max(round(sequence_length * noise_density), 1), sequence_length - 1)
    spans = min(max(round(noise / mean_span_length), 1), noise, sequence_length - noise)
    return SpanLengths(noise, spans, sequence_length - noise + spans + 1, noise + spans + 1)
