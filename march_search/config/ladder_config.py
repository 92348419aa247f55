"""The `[ladder]` table: the same arms at several parameter budgets."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from march_search.config.counts import parse_operations, parse_parameters
from march_search.config.halving import SizeHalving
from march_search.config.loader import NumberText, not_finite, refuse
from march_search.errors import BudgetError, shown

_SIZE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,19}")

_ARM = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,23}")


FEWEST_ARMS = 3
"""Fewest arms that a ladder has at any size."""

LEAST_FLOPS = 1e6
"""Smallest compute budget of a trial."""

LEAST_SIZES = 4
"""Fewest sizes that show where the loss of one compute budget is lowest: its curve has three parameters."""

LEAST_STEPS = 50
"""Fewest optimizer steps of a trial of a compute budget, so that rounding to whole steps changes it by at most 1%."""


def parse_training_flops(text: str) -> float:
    """Parse a compute budget in floating-point operations, such as `1e14`.

    Raises:
        BudgetError: If the text is not a number of at least 1e6 and below 1e30.
    """
    flops = float(parse_operations(text, "training_flops"))
    if flops < LEAST_FLOPS:
        raise BudgetError(f"invalid training_flops {shown(text)}: use a number from {LEAST_FLOPS:,.0f}, such as 1e14.")
    return flops


def flops_name(flops: float) -> str:
    """Return the name of a compute budget: `1e14`, `3.2e18`."""
    digits, _, power = f"{flops:.3e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def size_name(budget: str) -> str:
    """Return the name of the size with a budget, as part of a file's name."""
    return budget.strip().replace(" ", "").replace(",", "_")


def arm_slug(arm: str) -> str:
    """Return the name of an arm as part of a study's name."""
    return arm.strip().replace(" ", "_")


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """The `[[ladder.arms]]` tables: one arm each, a direction that is followed at every size."""

    name: str
    """Name of the arm in tables: up to 24 letters, digits, spaces, and `.`, `_` or `-`."""
    directions: dict[str, float] = field(default_factory=dict)
    """Values of this arm, in addition to the `directions` of `[ladder]` or instead of them."""
    fields: dict[str, object] = field(default_factory=dict)
    """Fields of this arm, in addition to the `fields` of `[ladder]` or instead of them."""


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """The `[ladder]` table: the same arms at several parameter budgets, one study per size."""

    budgets: tuple[NumberText, ...] = ()
    """Parameter budgets, ascending, such as `["1M", "4M", "16M"]`; at least two. The space's `[budget]` says what is
    counted, all or only non-embedding parameters, and the tolerance. A study with budgets is a ladder; the study of a
    size is named `LADDER-SIZE`."""
    tokens_per_parameter: float = 20.0
    """Training tokens per parameter of the budget, rounded to whole steps; they replace `tokens` of `[training]`.
    `warmup_tokens` holds for the smallest size, and grows with the tokens."""
    tokens_by_size: tuple[int, ...] = ()
    """Training tokens of each size, in the order of `budgets`, instead of `tokens_per_parameter`; multiples of
    `global_batch_tokens`."""
    training_flops: tuple[NumberText, ...] = ()
    """Training FLOPs of every trial, such as `"1e14"`, or a list of several budgets, ascending; they replace
    `tokens_per_parameter`. The tokens of an arm at a size are these FLOPs divided by the FLOPs per token of its shape,
    rounded to whole steps. The ladder then needs at least four `budgets` of parameters and at least one arm, and
    shows the size with the lowest loss. The study of an arm is named `LADDER-FLOPS-SIZE-ARM`."""
    directions: dict[str, float] = field(default_factory=dict)
    """Values that the arms aim at: an expression of fields, as in the rules of a space, and a positive number. Example:
    `{ "d_model / num_layers" = 64, "d_ff / d_model" = 4, d_kv = 32 }`. At each size, an arm is the member of the
    feasible set with the smallest sum of squares of log2(value / aim), over the directions and the parameters."""
    fields: dict[str, object] = field(default_factory=dict)
    """Fields that every arm has exactly, such as `{ position = "rotary" }`. The space must have these values. A field
    that is not set has the first value of the space, except for layers, `d_model`, heads, key/value heads, `d_kv` and
    `d_ff`, which are free."""
    keep: tuple[float, ...] = ()
    """Share of the arms that train at each size, such as `[1, 0.5, 0.34]`: one for each budget, the first 1, rounded up
    to whole arms. They are the best arms of the size before, at least three, and the baseline in addition if it is not
    among them. All arms train where dropping some is too risky; see `max_risk`. Empty trains all arms at all sizes. Not
    with `training_flops`."""
    max_risk: float = 0.1
    """With `keep`, largest allowed probability that the best arm of the next size is among those dropped. If the
    probability is larger, no arm is dropped. It follows from how well the last two finished sizes agree on the order of
    the arms."""
    assumed_accuracy: float | None = None
    """With `keep`, share of the pairs of arms that two sizes order alike, assumed until two sizes are finished; above
    0.5. Without it, all arms train at the second size, because nothing is measured yet."""
    arms: tuple[ArmConfig, ...] = ()
    """Arms, as tables `[[ladder.arms]]`; at least three, or one with `training_flops`. The first is the baseline, from
    which effects are measured."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        refuse(not_finite(self, "ladder"))
        refuse(self._faults())

    @property
    def halving(self) -> SizeHalving | None:
        """The rule that drops arms from size to size; None if all arms train at all sizes."""
        return SizeHalving(tuple(map(float, self.keep)), FEWEST_ARMS) if self.keep else None

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the sizes."""
        return tuple(map(size_name, self.budgets))

    @property
    def compute_budgets(self) -> tuple[float, ...]:
        """Training FLOPs, smallest first; empty for a ladder whose tokens follow from the parameters."""
        return tuple(map(parse_training_flops, self.training_flops))

    def _faults(self) -> Iterator[str]:
        """Yield one sentence for each setting or pair of settings that is refused."""
        if not self.budgets:
            if self.training_flops:
                yield '[ladder]: training_flops needs sizes: set budgets, such as ["1M", "2M", "4M", "8M"].'
            return
        counts = []
        for text in self.budgets:
            try:
                counts.append(parse_parameters(text))
            except BudgetError as error:
                yield f"[ladder]: {error}"
        if len(counts) == len(self.budgets) and (len(counts) < 2 or sorted(set(counts)) != counts):
            yield f"[ladder]: budgets must be at least two, ascending, not {list(self.budgets)}."
        if not all(_SIZE.fullmatch(size) for size in self.sizes):
            yield f"[ladder]: budgets must be written shortly, such as 250K or 4M, not {list(self.budgets)}."
        if self.tokens_by_size and len(self.tokens_by_size) != len(self.budgets):
            entries = f"{len(self.tokens_by_size)} entries for {len(self.budgets)} budgets"
            yield f"[ladder]: tokens_by_size has {entries}: list one for each."
        if not 0 < self.tokens_per_parameter < 1e6:
            yield f"[ladder]: tokens_per_parameter must be above 0 and below 1e6, not {self.tokens_per_parameter}."
        yield from self._keep_faults()
        names = [arm.name for arm in self.arms]
        least, number = (1, "one") if self.training_flops else (FEWEST_ARMS, "three")
        if len(names) < least or len(set(names)) < len(names) or not all(map(_ARM.fullmatch, names)):
            yield f"[ladder]: arms must be at least {number}, with distinct short names, not {names}."
        if self.training_flops:
            yield from self._compute_faults()
        for key, aim in {**self.directions, **{k: v for arm in self.arms for k, v in arm.directions.items()}}.items():
            if isinstance(aim, bool) or not isinstance(aim, int | float) or not 0 < aim < 1e9:
                yield f'[ladder]: the direction "{key}" must be a positive number, not {aim!r}.'

    def _keep_faults(self) -> Iterator[str]:
        """Yield one sentence for each fault of the settings that drop arms."""
        if not self.keep:
            if self.assumed_accuracy is not None:
                yield "[ladder]: assumed_accuracy has no effect without keep."
            if self.max_risk != LadderConfig.max_risk:
                yield "[ladder]: max_risk has no effect without keep."
            return
        if self.training_flops:
            yield "[ladder]: keep drops arms of larger sizes, which training_flops needs: remove one of them."
        if len(self.keep) != len(self.budgets):
            entries = f"{len(self.keep)} entries for {len(self.budgets)} budgets"
            yield f"[ladder]: keep has {entries}: list one share for each."
        shares = [*self.keep]
        if shares[0] != 1 or sorted(shares, reverse=True) != shares or shares[-1] <= 0:
            yield f"[ladder]: keep must start with 1, never rise and end above 0, not {shares}."
        if not 0 < self.max_risk < 1:
            yield f"[ladder]: max_risk must be a probability between 0 and 1, not {self.max_risk:g}."
        if self.assumed_accuracy is not None and not 0.5 < self.assumed_accuracy < 1:
            yield f"[ladder]: assumed_accuracy must be above 0.5 and below 1, not {self.assumed_accuracy:g}."

    def _compute_faults(self) -> Iterator[str]:
        """Yield one sentence for each setting that compute budgets refuse."""
        try:
            flops = list(self.compute_budgets)
        except BudgetError as error:
            yield f"[ladder]: {error}"
        else:
            if sorted(set(flops)) != flops or len(set(map(flops_name, flops))) < len(flops):
                yield f"[ladder]: training_flops must be ascending, not {list(self.training_flops)}."
        if len(self.budgets) < LEAST_SIZES:
            yield (
                f"[ladder]: training_flops needs at least {LEAST_SIZES} sizes to show the lowest loss, not "
                f"{list(self.budgets)}: add budgets."
            )
        other = [key for key, is_set in (
            ("tokens_by_size", bool(self.tokens_by_size)),
            ("tokens_per_parameter", self.tokens_per_parameter != LadderConfig.tokens_per_parameter),
        ) if is_set]  # fmt: skip
        if other:
            yield f"[ladder]: training_flops sets the tokens: remove {' and '.join(other)}."
        names = {arm.name for arm in self.arms}
        if len(set(map(arm_slug, names))) < len(names):
            yield f"[ladder]: arms differ only by a space or _: {sorted(names)}: use other names."
