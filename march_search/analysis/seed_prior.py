"""The prior of the variance of an architecture over seeds, from recorded and published runs.

The prior is a scaled inverse χ² distribution: a standard deviation, and the degrees of freedom that it is worth.

- **Recorded**: arms of `studies/results` that were trained with two seeds; `benchmarks/seed_prior.py` fits both numbers
  by maximum likelihood, and by the moments of Smyth (2004). Gated or absolute arms vary three times as much as others.
- **Published**: 14 variants of T5 with 223M parameters, and a decoder-only model with 124M.

The fits give 4 (moments) or 8 degrees of freedom (likelihood) and more, but within one corpus, schedule and scale.
Between those, deviations differ by more than that allows, so a prior has only `DEGREES`, or `FEW_DEGREES` where less is
known: a few seeds outweigh it. A model between two recorded scales gets the nearer one.

At a fifth of the data budget, recorded pairs of seeds differ about twice as much as at its end, and from two fifths on
as much. The priors do not cover this.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

from march_search.architecture.architecture import Architecture

DEGREES = 3.0
"""Degrees of freedom of a prior from many recorded arms."""

FEW_DEGREES = 2.0
"""Degrees of freedom of a prior from a few arms, or from models of another scale."""

NEAR = 10.0
"""Largest factor in parameters between a model and recorded ones of the same scale."""


@dataclass(frozen=True, kw_only=True)
class SeedPrior:
    """Prior of the variance over seeds of one architecture: a scaled inverse χ² distribution."""

    deviation: float
    """Scale of the standard deviation of one trial, in nats."""
    degrees: float
    """Degrees of freedom: how many seeds the prior is worth."""
    source: str
    """Source of the prior, in words."""


SMALL, LARGE_T5, LARGE_DECODER = 1.07e6, 223e6, 124e6
"""Parameters of the recorded and of the published models."""

_PAIRS = "pairs of seeds of models with 1.1M parameters"

GATED_OR_ABSOLUTE = SeedPrior(
    deviation=0.0219, degrees=DEGREES, source=f"7 recorded {_PAIRS}, gated or with absolute positions"
)
OTHER_SMALL = SeedPrior(deviation=0.007, degrees=DEGREES, source=f"30 recorded {_PAIRS}")
SMALL_DECODER = SeedPrior(deviation=0.0043, degrees=FEW_DEGREES, source=f"4 recorded {_PAIRS}, decoder-only")
T5 = SeedPrior(
    deviation=0.006,
    degrees=DEGREES,
    source="published runs of T5 with 223M parameters (Narang et al. 2021, Table 1; Shazeer 2020, Table 1)",
)
DECODER = SeedPrior(
    deviation=0.0013, degrees=FEW_DEGREES, source="published runs of a decoder-only model with 124M parameters"
)


@cache
def seed_prior(architecture: Architecture) -> SeedPrior:
    """Return the prior by structure, by the nearest scale, and, for small models, by feed-forward and positions."""
    is_decoder = architecture.structure == "decoder-only"
    varies = architecture.is_gated or architecture.position == "absolute"
    small = SMALL_DECODER if is_decoder else GATED_OR_ABSOLUTE if varies else OTHER_SMALL
    large, large_params = (DECODER, LARGE_DECODER) if is_decoder else (T5, LARGE_T5)
    num_params = architecture.num_params
    to_small, to_large = abs(math.log(num_params / SMALL)), abs(math.log(num_params / large_params))
    prior = small if to_small <= to_large else large
    if min(to_small, to_large) <= math.log(NEAR):
        return prior
    return replace(prior, degrees=FEW_DEGREES, source=f"{prior.source}, of another scale")
