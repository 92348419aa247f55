"""The prior of the variance of an architecture over seeds, from recorded and published runs.

A scaled inverse χ² distribution has the deviation `s` and `d` degrees of freedom. Recorded are arms with two seeds
(`studies/results`), and published are the deviations of T5 with 223M parameters and of a decoder-only model with 124M.
`benchmarks/seed_prior.py` estimates the recorded ones.

Recorded variances follow a prior of 4 to 8 degrees of freedom within a kind of model at one scale (Smyth's method of
moments and maximum likelihood agree). Deviations of different scales and kinds differ by more than the 4 degrees of
freedom allow (0.0013 to 0.021), so a model far from all of them gets 2.
"""

import math
from dataclasses import dataclass

from march_search.architecture.architecture import Architecture

NEAR = 10.0
"""Largest factor in parameters up to which a model counts as recorded scale."""

FAR_DEGREES = 2.0
"""Degrees of freedom of the prior of a model farther away than `NEAR`."""


@dataclass(frozen=True, kw_only=True)
class SeedPrior:
    """Prior of the variance over seeds of one architecture: a scaled inverse χ² distribution."""

    deviation: float
    """Scale of the standard deviation of one trial, in nats."""
    degrees: float
    """Degrees of freedom: how many seeds the prior is worth."""
    source: str
    """Source of the prior, in words."""


@dataclass(frozen=True, kw_only=True)
class _Record:
    """Deviation over seeds of models of one scale and kind."""

    num_params: float
    deviation: float
    degrees: float
    source: str


_SMALL = "recorded pairs of seeds of models with 1.1M parameters"

_GATED_OR_ABSOLUTE = _Record(
    num_params=1.07e6,
    deviation=0.021,
    degrees=4.0,
    source=f"{_SMALL}, gated or with absolute positions (7 architectures)",
)

_OTHER_SMALL = _Record(num_params=1.07e6, deviation=0.0062, degrees=4.0, source=f"{_SMALL} (30 architectures)")

_T5 = _Record(
    num_params=223e6,
    deviation=0.006,
    degrees=4.0,
    source="published runs of T5 with 223M parameters (Narang et al. 2021, Table 1; Shazeer 2020, Table 1)",
)

_SMALL_DECODER = _Record(
    num_params=1.07e6, deviation=0.0043, degrees=3.0, source=f"{_SMALL}, decoder-only (4 architectures)"
)

_GPT = _Record(
    num_params=124e6,
    deviation=0.0013,
    degrees=3.0,
    source="published runs of a decoder-only model with 124M parameters",
)


def seed_prior(architecture: Architecture) -> SeedPrior:
    """Return the prior by structure, by the nearest recorded scale and, at the small scale, by kind."""
    is_kind = architecture.is_gated or architecture.position == "absolute"
    records = (_GATED_OR_ABSOLUTE if is_kind else _OTHER_SMALL, _T5)
    if architecture.structure == "decoder-only":
        records = (_SMALL_DECODER, _GPT)
    factors = [abs(math.log(architecture.num_params / record.num_params)) for record in records]
    nearest = min(records, key=lambda record: factors[records.index(record)])
    is_near = min(factors) <= math.log(NEAR)
    return SeedPrior(
        deviation=nearest.deviation,
        degrees=nearest.degrees if is_near else FAR_DEGREES,
        source=nearest.source + ("" if is_near else ", far from this scale"),
    )
