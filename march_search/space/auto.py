"""Lay a search space around any parameter budget: ranges of every axis, from a typical shape of that size."""

from typing import Any, Literal

from march_search.config.counts import DEFAULT_TOLERANCE
from march_search.errors import BudgetError
from march_search.space.budget import Budget
from march_search.space.space import SearchSpace

Structure = Literal["encoder-decoder", "decoder-only"]

ASPECT = 64
"""Width divided by depth of the typical shape: T5-base, T5-large and GPT-2 have 64, 43 and 64."""

LAYER_FACTOR: dict[str, int] = {"encoder-decoder": 28, "decoder-only": 12}
"""Parameters of one layer (of a pair, for an encoder-decoder) divided by `d_model`^2, with heads that add up to
`d_model` and `d_ff = 4 * d_model`."""

VOCAB_SIZES = (384, 512, 1024, 2048, 4096, 8192, 16384, 32128)
"""Vocabulary sizes to choose from: the smallest of a trained tokenizer, powers of two, and T5's."""

NARROWEST = 32
"""Smallest width of a typical shape."""

EMBEDDING_SHARE = 8
"""The token embedding of the typical shape takes at most one part in this many of the budget. T5-base's takes 1/9."""


def automatic_space(
    budget: str,
    structure: Structure = "encoder-decoder",
    vocab_size: int | None = None,
    tolerance: str = DEFAULT_TOLERANCE,
) -> SearchSpace:
    """Return a space whose ranges lie around a typical shape with the budget; see `automatic_table`.

    Raises:
        BudgetError: If the budget or the tolerance is not valid, or if the budget is too small for the vocabulary.
    """
    return SearchSpace.from_table(automatic_table(budget, structure, vocab_size, tolerance), "auto")


def automatic_table(
    budget: str,
    structure: Structure = "encoder-decoder",
    vocab_size: int | None = None,
    tolerance: str = DEFAULT_TOLERANCE,
) -> dict[str, Any]:
    """Return the space around a budget as the table of a space file.

    The typical shape has `d_model = 64 * num_layers`, heads that add up to `d_model`, and `d_ff = 4 * d_model`. Widths
    range from a third to two and a half times its width, depths up to four times its depth. Steps of the widths grow
    with it, so that a few dozen values cover each range, and so that most widths and depths have a `d_ff` that meets
    the budget.

    Args:
        budget: Parameter budget, such as `3M` or `t5-base`.
        structure: Structure of all shapes.
        vocab_size: Vocabulary size; None chooses one with `typical_vocab_size`.
        tolerance: Allowed difference from the budget.

    Raises:
        BudgetError: If the budget or the tolerance is not valid, or if the budget is too small for the vocabulary.
    """
    target = Budget.parse(budget, tolerance).parameters
    vocab_size = vocab_size or typical_vocab_size(target, structure)
    width = _width(target, structure, vocab_size)
    if width < NARROWEST:
        least = _parameters(NARROWEST, structure, vocab_size)
        raise BudgetError(
            f"a budget of {target:,} parameters is too small for shapes with a vocabulary of {vocab_size:,}: use at "
            f"least {least:,.0f}" + (", or a smaller vocabulary." if vocab_size > VOCAB_SIZES[0] else ".")
        )
    step = _power_of_two(width / 12, least=32 if width >= 96 else 16)
    heads = (16, 32, 64) if width < 256 else (32, 64, 128) if width < 2048 else (64, 128, 256)
    widest = -(-int(2.5 * width) // step) * step
    ff_step = _power_of_two(width / 10, least=8)
    return {
        "description": f"{structure.capitalize()} models with {budget} parameters, around a width of {width:.0f}",
        "rules": [
            f"num_heads * d_kv % {min(64, step)} == 0",
            "0.5 <= num_heads * d_kv / d_model <= 2",
            "1 <= d_ff / d_model <= 8",
        ],
        "budget": {"parameters": budget, "tolerance": tolerance},
        "axes": {
            "structure": structure,
            "num_layers": {"min": 1, "max": min(256, max(4, round(4 * width / ASPECT)))},
            "d_model": {"min": max(step, int(width / 3) // step * step), "max": widest, "multiple_of": step},
            "num_heads": {"min": 1, "max": 2 * widest // heads[0]},
            "d_kv": list(heads),
            "d_ff": {"min": ff_step, "max": min(2**20, 8 * widest), "multiple_of": ff_step},
            "feed_forward_proj": ["relu", "gated-gelu"],
            "position": "rotary",
            "vocab_size": vocab_size,
        },
    }


def typical_vocab_size(parameters: int, structure: Structure = "encoder-decoder") -> int:
    """Return the largest of `VOCAB_SIZES` whose embedding takes at most an eighth of a typical model's parameters."""
    most = parameters / EMBEDDING_SHARE / _width(parameters, structure, 0)
    return max((size for size in VOCAB_SIZES if size <= most), default=VOCAB_SIZES[0])


def _width(parameters: int, structure: Structure, vocab_size: int) -> float:
    """Return the width of the typical shape with this many parameters, token embedding included."""
    low, high = 0.0, 2.0**20
    for _ in range(60):
        width = (low + high) / 2
        low, high = (width, high) if _parameters(width, structure, vocab_size) < parameters else (low, width)
    return low


def _parameters(width: float, structure: Structure, vocab_size: int) -> float:
    """Return the parameters of the typical shape of this width; its depth need not be a whole number."""
    return vocab_size * width + LAYER_FACTOR[structure] * width**3 / ASPECT


def _power_of_two(most: float, least: int) -> int:
    """Return the largest power of two up to `most`, or `least` (a power of two) if that is larger."""
    step = least
    while 2 * step <= most:
        step *= 2
    return step
