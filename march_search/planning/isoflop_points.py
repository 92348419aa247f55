"""Derive the study of each trial shape of a ladder with compute budgets: its tokens follow from the training FLOPs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from march_search.config import StudyConfig
from march_search.config.counts import parse_parameters
from march_search.config.ladder_config import LEAST_STEPS, LadderConfig, arm_slug, flops_name
from march_search.cost.setup import study_setup
from march_search.cost.speed import flops_per_token
from march_search.errors import ConfigError, EmptySetError
from march_search.files.atomic import make_folder
from march_search.files.json_tables import sealed, write_json
from march_search.ladders.isoflop_record import ISOFLOP_FILE, find_isoflop
from march_search.ladders.ladder_record import LADDER_FILE
from march_search.planning.candidates import load_space
from march_search.planning.ladder_sizes import LadderSize, refuse_equal_arms, refuse_overrides
from march_search.space.directions import FollowedArm, follow


@dataclass(frozen=True, kw_only=True)
class IsoflopPoint:
    """One arm at one size and one compute budget: one study."""

    budget: str
    """Name of the compute budget."""
    flops: float
    """Training FLOPs of the budget."""
    arm: str
    parameters: int
    """Parameters of the arm's shape, as the budget of the space counts them."""
    flops_per_token: float
    """FLOPs of the forward and the backward pass per token of text."""
    study: LadderSize
    """The study, with this arm alone."""
    is_first: bool
    """Whether learning rates are tried here, and warm-ups are relative to that of the first arm here."""

    @property
    def trained_flops(self) -> float:
        """Training FLOPs of a trial, whose tokens are whole steps."""
        return self.study.tokens * self.flops_per_token


def isoflop_points(
    config: StudyConfig, base: Path, name: str, given: Sequence[str] = (), first: tuple[str, str] | None = None
) -> tuple[IsoflopPoint, ...]:
    """Return the points of a ladder with compute budgets: by budget, then by size, smallest first, then by arm.

    Args:
        config: Settings of the ladder.
        base: Folder that relative paths in the settings start from.
        name: Name of the ladder.
        given: `KEY=VALUE` of the command line, already part of `config`.
        first: Names of the budget and the size at which learning rates are tried and whose warm-up `config` has, as
            `started_first` returns them; None for the smallest.

    Raises:
        ConfigError: If the space is not valid, an arm has one shape at two sizes, a budget has too few steps, or the
            ladder lacks the point at `first`.
        EmptySetError: If no member of the space has an arm's fields at some size.
        UsageError: If the command line sets what the ladder sets.
    """
    refuse_overrides(given)
    ladder, batch, setup = config.ladder, config.training.global_batch_tokens, study_setup(config)
    first = _first(config, name, first)
    shapes, counts = _shapes(config, base)
    points: list[IsoflopPoint] = []
    for flops, (size, text), arm in product(
        ladder.compute_budgets, zip(ladder.sizes, ladder.budgets, strict=True), ladder.arms
    ):
        found = shapes[size, arm.name]
        per_token = float(flops_per_token(found.architecture, setup))
        budget = flops_name(flops)
        points.append(
            IsoflopPoint(
                budget=budget,
                flops=flops,
                arm=arm.name,
                parameters=counts[size, arm.name],
                flops_per_token=per_token,
                study=LadderSize(
                    size=size,
                    study=f"{name}-{budget}-{size}-{arm_slug(arm.name)}",
                    parameters=parse_parameters(text),
                    batch_tokens=batch,
                    tokens=round(flops / per_token / batch) * batch,
                    warmup_tokens=0,
                    arms=(found,),
                ),
                is_first=(budget, size) == first,
            )
        )
    _refuse_short(points)
    return _warmed_up(points, config.training.warmup_tokens)


def _first(config: StudyConfig, name: str, first: tuple[str, str] | None) -> tuple[str, str]:
    """Return the names of the budget and the size at which learning rates are tried.

    Raises:
        ConfigError: If the file no longer has those at which a started ladder tries them.
    """
    budgets, sizes = [flops_name(flops) for flops in config.ladder.compute_budgets], config.ladder.sizes
    if first is None or (first[0] in budgets and first[1] in sizes):
        return first or (budgets[0], sizes[0])
    if len(config.search.learning_rates) < 2 and not config.training.warmup_tokens:
        return budgets[0], sizes[0]
    raise ConfigError(
        f"[ladder]: {name} was started with its learning rates and its warm-up at {first[0]} training FLOPs and "
        f"{first[1]}, which the file no longer has: add them back, or rename the file to start a new ladder."
    )


def _warmed_up(points: Sequence[IsoflopPoint], warmup: int) -> tuple[IsoflopPoint, ...]:
    """Return the points with the share of the tokens for their warm-up that `warmup` is at the first point."""
    tokens = next(point.study.tokens for point in points if point.is_first)
    return tuple(
        replace(point, study=replace(own, warmup_tokens=min(warmup * own.tokens // tokens, own.tokens)))
        for point in points
        for own in [point.study]
    )


def started_first(folder: Path) -> tuple[str, str] | None:
    """Return the budget and the size where the learning rates of a ladder are tried; None if no study was started.

    Raises:
        StorageError: If the ladder's record is damaged.
    """
    record = find_isoflop(folder)
    started = record and any((folder.parent / point.study / "study.json").is_file() for point in record.points)
    return record.first if record and started else None


def _shapes(config: StudyConfig, base: Path) -> tuple[dict[tuple[str, str], FollowedArm], dict[tuple[str, str], int]]:
    """Return the shape of each arm at each size, and its parameters as the space counts them, by size and arm."""
    ladder = config.ladder
    shapes: dict[tuple[str, str], FollowedArm] = {}
    counts: dict[tuple[str, str], int] = {}
    for size, text in zip(ladder.sizes, ladder.budgets, strict=True):
        space = load_space(replace(config, budget=text, ladder=LadderConfig()), base)
        for arm in ladder.arms:
            try:
                found = follow(space, {**ladder.directions, **arm.directions}, {**ladder.fields, **arm.fields})
            except (ConfigError, EmptySetError) as error:
                raise type(error)(f"[ladder]: {arm.name} at {size}: {error}") from None
            shapes[size, arm.name] = found
            assert space.budget is not None, space.name
            counts[size, arm.name] = space.budget.counted(found.architecture)
        refuse_equal_arms([arm.name for arm in ladder.arms], [shapes[size, arm.name] for arm in ladder.arms], size)
    for arm in ladder.arms:
        own = [counts[size, arm.name] for size in ladder.sizes]
        if sorted(set(own)) != own:
            raise ConfigError(
                f"[ladder]: the parameters of {arm.name} do not grow from size to size, {own}: move the budgets apart, "
                "widen the space or lower the tolerance."
            )
    return shapes, counts


def _refuse_short(points: Sequence[IsoflopPoint]) -> None:
    """Raise a ConfigError that names the points with fewer than `LEAST_STEPS` steps."""
    short = [point for point in points if point.study.tokens < LEAST_STEPS * point.study.batch_tokens]
    if short:
        worst = min(short, key=lambda point: point.study.tokens)
        steps = worst.study.tokens // worst.study.batch_tokens
        raise ConfigError(
            f"[ladder]: {worst.budget} training FLOPs are {steps} steps of {worst.arm} at {worst.study.size}, and "
            f"rounding needs at least {LEAST_STEPS}: raise training_flops, lower global_batch_tokens of [training], or "
            "leave out the largest sizes."
        )


def refuse_changed_points(folder: Path, points: Sequence[IsoflopPoint]) -> None:
    """Raise a ConfigError if a study that was started has another shape or other tokens now."""
    earlier = find_isoflop(folder)
    known = {point.study: point for point in earlier.points} if earlier else {}
    for point in points:
        before = known.get(point.study.study)
        shape = point.study.arms[0].architecture
        is_same = before is None or (before.architecture, before.tokens) == (shape, point.study.tokens)
        if before is not None and not is_same and (folder.parent / before.study / "study.json").is_file():
            raise ConfigError(
                f"{before.study} was started with {before.architecture.name} and {before.tokens:,} tokens, which are "
                f"now {shape.name} and {point.study.tokens:,}. Restore the ladder's file, or rename it to start a new "
                "ladder."
            )


def keep_isoflop(
    folder: Path, config: StudyConfig, points: Sequence[IsoflopPoint], overrides: Sequence[str] = ()
) -> None:
    """Write the record of a ladder with compute budgets, which `rank` and `status` read, to `folder`.

    Args:
        folder: Folder of the ladder.
        config: Settings of the ladder.
        points: Its points.
        overrides: `KEY=VALUE` of the command line, already part of `config`.

    Raises:
        ConfigError: If a study that was started has another shape or other tokens now.
        StorageError: If it cannot be written, or the earlier record is damaged.
    """
    refuse_changed_points(folder, points)
    make_folder(folder)
    record = {
        "schema_version": 1,
        "question": config.question,
        "overrides": list(overrides),
        "arms": [arm.name for arm in config.ladder.arms],
        "sizes": list(config.ladder.sizes),
        "first": next([point.budget, point.study.size] for point in points if point.is_first),
        "points": [_row(point) for point in points],
    }
    write_json(folder / ISOFLOP_FILE, sealed(record))
    (folder / LADDER_FILE).unlink(missing_ok=True)  # of a ladder of the other kind that has no trials


def _row(point: IsoflopPoint) -> dict[str, Any]:
    """Return a point as it is recorded."""
    found = point.study.arms[0]
    return {
        "study": point.study.study,
        "budget": point.budget,
        "budget_flops": point.flops,
        "size": point.study.size,
        "arm": point.arm,
        "architecture": found.architecture.name,
        "parameters": point.parameters,
        "tokens": point.study.tokens,
        "flops_per_token": point.flops_per_token,
        "training_flops": point.trained_flops,
        "missed": list(found.missed),
    }
