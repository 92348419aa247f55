"""Size a new study so that its plan fits a number of minutes, from the speed of its device and the size of its text."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from march_search.config import (
    ConfirmConfig,
    DataConfig,
    DevicesConfig,
    PrunerConfig,
    SearchConfig,
    StudyConfig,
    TrainingConfig,
)
from march_search.config.counts import parse_parameters
from march_search.config.search_config import LEAST_STEPS
from march_search.data import corpora
from march_search.data.sources import Embedded, Local
from march_search.errors import ConfigError, DataError, UsageError
from march_search.planning import candidates
from march_search.planning.price import priced_plan
from march_search.space.auto import VOCAB_SIZES, typical_vocab_size
from march_search.space.named import AUTO
from march_search.units import duration

BYTES_PER_TOKEN = 2.0
"""Bytes of text per token that are assumed at least; a small vocabulary of bytes and short words has about 2."""

MOST_REPEATS = 16
"""Most times that a trial may read the text."""

STEPS = 1000
"""Optimizer steps per trial to aim at."""

SHAPES = (24, 16, 12, 8, 6)
"""Numbers of shapes to compare, most wanted first."""

FIRST_RUNG = 0.2
"""Fraction of the tokens after which all shapes but the finalists stop."""

FEWEST_STEPS = round(LEAST_STEPS / FIRST_RUNG)
"""Fewest optimizer steps per trial, so that the first rung has `LEAST_STEPS`."""

WARMUP_STEPS = 32
"""Steps over which the learning rate rises."""

EXAMPLES = (512, 1024)
"""Examples per evaluation: at least, and where text and tokens are enough."""

EVALUATION_SHARE = 1 / 16
"""Most of a trial's operations that evaluations of the larger number may take; one costs a third of training on it."""

HELD_OUT = (0.05, 0.02)
"""`validation_fraction`: for little text, and for text of which 2% is enough for two evaluations of `EXAMPLES[1]`
examples."""

SPARED = 0.9
"""Fraction of the minutes that training may take; the rest prepares the text."""

Seconds = Callable[[StudyConfig, dict[str, Any]], float]
"""The most seconds that a study with this plan takes."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a new study is asked for."""

    budget: str
    """Parameter budget of every shape."""
    corpus: str
    """Corpus, as in `[data]`."""
    seconds: float
    """Time that the study may take."""
    parallel: int
    """Trials at a time."""
    is_cpu: bool
    """Whether it runs on a CPU."""
    precision: str
    """Precision of training."""


def text_bytes(corpus: str, base: Path) -> int | None:
    """Return the bytes of a local corpus; None for text on the Hub.

    Raises:
        DataError: If the corpus does not exist.
    """
    source = corpora.source(DataConfig(corpus=corpus), base)
    return source.num_bytes() if isinstance(source, Local | Embedded) else None


def draft(wish: Wish, num_bytes: int | None) -> StudyConfig:
    """Return the study with all settings but its number of shapes and tokens, which are provisional.

    Raises:
        BudgetError: If the budget is not valid.
    """
    parameters = parse_parameters(wish.budget)
    vocab_size = typical_vocab_size(parameters)
    if num_bytes is not None:  # a token that occurs a few times only cannot be learned
        vocab_size = max((v for v in VOCAB_SIZES if v <= min(vocab_size, num_bytes / 2000)), default=VOCAB_SIZES[0])
    if wish.is_cpu:  # few tokens teach a small model to use its input if they are nearly bytes (studies/LOG.md)
        vocab_size = min(vocab_size, 384 if parameters < 1_000_000 else 512 if parameters < 3_000_000 else 2048)
    length, noise = (16, 0.5) if wish.is_cpu else (512, 0.15)
    is_large = num_bytes is None or num_bytes / BYTES_PER_TOKEN * HELD_OUT[1] >= 2 * EXAMPLES[1] * length
    batch = 32 * length if wish.is_cpu else 256 * length
    rate = min(3e-3, 3e-3 * (2e6 / parameters) ** (1 / 3))
    return StudyConfig(
        space=AUTO,
        budget=wish.budget,
        tolerance="2%",
        search=SearchConfig(strategy="design", trials=SHAPES[-1]),
        pruner=PrunerConfig(rungs=(FIRST_RUNG,), finalists=3),
        confirm=ConfirmConfig(max_seeds=3),
        data=DataConfig(
            corpus=wish.corpus,
            vocab_size=vocab_size,
            sequence_length=length,
            noise_density=noise,
            validation_fraction=HELD_OUT[is_large],
            validation_sequences=EXAMPLES[0],
        ),
        training=TrainingConfig(
            tokens=FEWEST_STEPS * batch,
            global_batch_tokens=batch,
            learning_rate=float(f"{rate:.1g}"),
            schedule="linear",
            warmup_tokens=batch * WARMUP_STEPS,
            precision=wish.precision,  # type: ignore[arg-type]
            evaluations=5,
            checkpoints=2,
        ),
        devices=DevicesConfig(kind="cpu" if wish.is_cpu else "cuda", parallel_trials=wish.parallel),
    )


def fitted(config: StudyConfig, wish: Wish, num_bytes: int | None, device: Any, seconds: Seconds) -> StudyConfig:
    """Return the study with the most shapes and tokens whose plan fits the time.

    More shapes are chosen only if each still gets `STEPS` optimizer steps; otherwise, few shapes get what there is.

    Raises:
        DataError: If the text is too small.
        UsageError: If the time is too short.
        ConfigError: If no number of shapes is possible; the reason is that of the smallest.
    """
    batch = config.training.global_batch_tokens
    limit = 10**12 if num_bytes is None else int(num_bytes / BYTES_PER_TOKEN * MOST_REPEATS)
    least = FEWEST_STEPS * batch
    held_out = config.data.validation_sequences * config.data.sequence_length / config.data.validation_fraction
    if num_bytes is not None and (limit < least or num_bytes / BYTES_PER_TOKEN < held_out):
        needed = max(least / MOST_REPEATS, held_out) * BYTES_PER_TOKEN
        raise DataError(
            f"{wish.corpus} has {num_bytes:,} bytes of text, but a study of {wish.budget} needs about {needed:,.0f}: "
            "add text, or use another --corpus."
        )
    fits: StudyConfig | None = None
    fault: ConfigError | None = None
    shortest = float("inf")
    for shapes in SHAPES:
        sized = replace(config, search=replace(config.search, trials=shapes))
        try:
            chosen = candidates.choose(sized, Path())
        except ConfigError as error:  # such as too few feasible shapes
            fault = error
            continue
        tried = _with_tokens(sized, least)
        time = seconds(tried, priced_plan(tried, chosen, device))
        shortest = min(shortest, time)
        if time > SPARED * wish.seconds:
            continue
        low, high = least, max(least, limit)
        while high - low > low // 200:
            middle = (low + high) // 2
            tried = _with_tokens(sized, middle)
            within = seconds(tried, priced_plan(tried, chosen, device)) <= SPARED * wish.seconds
            low, high = (middle, high) if within else (low, middle)
        fits = _with_tokens(sized, low)
        if fits.training.steps >= 0.9 * STEPS:
            return fits
    if fits is not None:
        return fits
    if fault is not None and math.isinf(shortest):  # no number of shapes is possible
        raise fault
    raise UsageError(
        f"a study of {wish.budget} does not fit into {duration(wish.seconds)}: allow at least "
        f"{duration(60 * math.ceil(shortest / SPARED / 60))}, or use a smaller --budget."
    )


def _with_tokens(config: StudyConfig, tokens: int) -> StudyConfig:
    """Return the study with about this data budget, in whole steps of a batch and evaluations that suit it."""
    batch, data = _batch(config, tokens), config.data
    training = replace(
        config.training,
        tokens=tokens // batch * batch,
        global_batch_tokens=batch,
        warmup_tokens=WARMUP_STEPS * batch,
    )
    evaluated = config.training.evaluations * EXAMPLES[1] * data.sequence_length / 3
    is_large = data.validation_fraction == HELD_OUT[1] and evaluated <= EVALUATION_SHARE * tokens
    return replace(config, training=training, data=replace(data, validation_sequences=EXAMPLES[is_large]))


def _batch(config: StudyConfig, tokens: int) -> int:
    """Return the batch for a data budget: a power of two times that of `config` that gives about `STEPS` steps."""
    batch, most = config.training.global_batch_tokens, 2**13 if config.devices.kind == "cpu" else 2**20
    while 2 * batch <= most and tokens // (2 * batch) >= STEPS:
        batch *= 2
    return batch
