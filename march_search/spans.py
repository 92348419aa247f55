"""Lengths of T5's span corruption: how many tokens of text become how many input and target tokens."""

from typing import NamedTuple


class SpanLengths(NamedTuple):
    """Fixed lengths of one span-corrupted example, in tokens, `</s>` included on both sides."""

    noise: int
    """Tokens of text that are taken out of the input."""
    spans: int
    """Spans they form; each leaves one sentinel in the input and one in the target."""
    input: int
    """Length of the encoder's input."""
    target: int
    """Length of the decoder's target."""


def span_lengths(sequence_length: int, noise_density: float = 0.15, mean_span_length: float = 3.0) -> SpanLengths:
    """Lengths after corrupting `sequence_length` tokens of text (Raffel et al. 2020, section 3.1.4).

    At least one token is noise and at least one is left, and there are never more spans than either. The input is
    the kept tokens, one sentinel a span and `</s>`; the target is, for each span, its sentinel and its tokens, then
    `</s>`. Input and target together always hold `sequence_length + 2 * spans + 2` tokens.

    Raises:
        ValueError: `sequence_length` below 2, a density outside (0, 1) or a mean span below 1.
    """
    if sequence_length < 2 or not 0 < noise_density < 1 or mean_span_length < 1:
        raise ValueError(
            "span corruption needs sequence_length >= 2, 0 < noise_density < 1 and mean_span_length >= 1, "
            f"not {sequence_length}, {noise_density} and {mean_span_length}"
        )
    noise = min(max(round(sequence_length * noise_density), 1), sequence_length - 1)
    spans = min(max(round(noise / mean_span_length), 1), noise, sequence_length - noise)
    return SpanLengths(noise, spans, sequence_length - noise + spans + 1, noise + spans + 1)
