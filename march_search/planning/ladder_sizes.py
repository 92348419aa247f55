"""Derive the study of each size from a ladder: its arms, its tokens, and the settings that it changes."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from march_search.config import StudyConfig
from march_search.config.counts import parse_parameters
from march_search.config.ladder_config import LadderConfig
from march_search.errors import ConfigError, EmptySetError, UsageError
from march_search.files.atomic import make_folder
from march_search.files.json_tables import sealed, write_json
from march_search.ladders.isoflop_record import ISOFLOP_FILE
from march_search.ladders.ladder_record import LADDER_FILE, LadderRecord, SizeRecord, find_ladder
from march_search.ladders.size_survivors import Survivors
from march_search.planning.candidates import load_space
from march_search.space.directions import FollowedArm, follow
from march_search.storage.study_folder import find_record

SET_BY_LADDER = (
    "ladder", "budget", "search.strategy", "search.architectures", "training.tokens", "training.warmup_tokens",
)  # fmt: skip
"""Keys that a ladder sets in the study of a size."""


@dataclass(frozen=True, kw_only=True)
class LadderSize:
    """The study of one size."""

    size: str
    """Name of the size."""
    study: str
    """Name of its study."""
    parameters: int
    """Parameter budget."""
    batch_tokens: int
    """Tokens per optimizer step, the same at all sizes."""
    tokens: int
    """Training tokens of each trial."""
    warmup_tokens: int
    """Warm-up tokens of each trial."""
    arms: tuple[FollowedArm, ...]
    """Architecture of each arm."""

    def overrides(self, rate: float | None = None, trained: Collection[int] | None = None) -> tuple[str, ...]:
        """Return the settings that turn the ladder's file into the study of this size, as `KEY=VALUE`.

        Args:
            rate: Learning rate carried from the smallest size; None uses those of the file.
            trained: Indices of the arms that train at this size; None for all.
        """
        names = [arm.architecture.name for k, arm in enumerate(self.arms) if trained is None or k in trained]
        carried = () if rate is None else ("search.learning_rates=[]", f"training.learning_rate={rate!r}")
        return (
            "ladder={}",
            f"budget={self.parameters}",
            'search.strategy="list"',
            f"search.architectures={json.dumps(names)}",
            f"training.global_batch_tokens={self.batch_tokens}",
            f"training.tokens={self.tokens}",
            f"training.warmup_tokens={self.warmup_tokens}",
            *carried,
        )


def ladder_sizes(config: StudyConfig, base: Path, name: str, given: Sequence[str] = ()) -> tuple[LadderSize, ...]:
    """Return the sizes of a ladder, smallest first.

    Args:
        config: Settings of the ladder.
        base: Folder that relative paths in the settings start from.
        name: Name of the ladder.
        given: `KEY=VALUE` of the command line, already part of `config`.

    Raises:
        ConfigError: If the space is not valid or lacks a field's value, or two arms have one shape.
        EmptySetError: If no member of the space has an arm's fields at some size.
        UsageError: If the command line sets what the ladder sets.
    """
    refuse_overrides(given)
    ladder, batch = config.ladder, config.training.global_batch_tokens
    sizes: list[LadderSize] = []
    for index, (size, text) in enumerate(zip(ladder.sizes, ladder.budgets, strict=True)):
        parameters = parse_parameters(text)
        tokens = max(1, round(ladder.tokens_per_parameter * parameters / batch)) * batch
        tokens = ladder.tokens_by_size[index] if ladder.tokens_by_size else tokens
        space = load_space(replace(config, budget=text, ladder=LadderConfig()), base)
        arms = []
        for arm in ladder.arms:
            try:
                arms.append(follow(space, {**ladder.directions, **arm.directions}, {**ladder.fields, **arm.fields}))
            except (ConfigError, EmptySetError) as error:
                raise type(error)(f"[ladder]: {arm.name} at {size}: {error}") from None
        refuse_equal_arms([arm.name for arm in ladder.arms], arms, size)
        warmup = config.training.warmup_tokens * tokens // (sizes[0].tokens if sizes else tokens)
        sizes.append(
            LadderSize(
                size=size,
                study=f"{name}-{size}",
                parameters=parameters,
                batch_tokens=batch,
                tokens=tokens,
                warmup_tokens=min(warmup, tokens),
                arms=tuple(arms),
            )
        )
    return tuple(sizes)


def refuse_overrides(given: Sequence[str]) -> None:
    """Raise a UsageError if the command line sets what a ladder sets."""
    for override in given:
        if override.partition("=")[0] in SET_BY_LADDER:
            raise UsageError(
                f"{override} has no effect on a ladder, which sets it for each size: use ladder.* instead."
            )


def refuse_equal_arms(names: Sequence[str], arms: Sequence[FollowedArm], size: str) -> None:
    """Raise a ConfigError if two arms have one architecture."""
    owners: dict[str, str] = {}
    for name, arm in zip(names, arms, strict=True):
        shape = arm.architecture.name
        if shape in owners:
            raise ConfigError(
                f"[ladder]: {owners[shape]} and {name} are both {shape} at {size}: move their directions apart, widen "
                "the space or raise the tolerance."
            )
        owners[shape] = name


def arm_rows(config: StudyConfig, size: LadderSize) -> list[dict[str, Any]]:
    """Return one row per arm of a size: its name, shape, parameters, and what could not be kept."""
    return [
        {
            "arm": arm.name,
            "name": found.architecture.name,
            "params": found.architecture.num_params,
            "missed": "; ".join(found.missed) or None,
        }
        for arm, found in zip(config.ladder.arms, size.arms, strict=True)
    ]


def ladder_record(
    name: str, config: StudyConfig, sizes: Sequence[LadderSize], chosen: Mapping[str, Survivors]
) -> LadderRecord:
    """Return the ladder as `keep_ladder` would record it.

    Args:
        name: Name of the ladder.
        config: Settings of the ladder.
        sizes: Its sizes.
        chosen: The arms that train at a size, by its name; a size without an entry trains all.
    """
    everything = Survivors(arms=(), reason="")
    return LadderRecord(
        name=name,
        question=config.question,
        arms=tuple(arm.name for arm in config.ladder.arms),
        sizes=tuple(
            SizeRecord(
                size=size.size,
                study=size.study,
                parameters=size.parameters,
                tokens=size.tokens,
                architectures=tuple(arm.architecture for arm in size.arms),
                missed=tuple(arm.missed for arm in size.arms),
                trained=own.arms,
                reason=own.reason,
                risk=own.risk,
            )
            for size in sizes
            for own in [chosen.get(size.size, everything)]
        ),
    )


def keep_ladder(
    folder: Path,
    config: StudyConfig,
    sizes: Sequence[LadderSize],
    chosen: Mapping[str, Survivors] | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Write the ladder's record, which `rank` and `status` read, to `folder`.

    Args:
        folder: Folder of the ladder.
        config: Settings of the ladder.
        sizes: Its sizes.
        chosen: The arms that train at a size, by its name; a size without an entry trains all.
        overrides: `KEY=VALUE` of the command line, already part of `config`.

    Raises:
        ConfigError: If an arm has another shape than in the study of a size that was started.
        StorageError: If it cannot be written, or the earlier record is damaged.
    """
    refuse_changes(folder, config, sizes)
    names = [arm.name for arm in config.ladder.arms]
    record: Mapping[str, Any] = {
        "schema_version": 1,
        "question": config.question,
        "overrides": list(overrides),
        "arms": names,
        "sizes": [
            {
                "size": size.size,
                "study": size.study,
                "parameters": size.parameters,
                "tokens": size.tokens,
                "architectures": [arm.architecture.name for arm in size.arms],
                "missed": [list(arm.missed) for arm in size.arms],
                **_choice((chosen or {}).get(size.size)),
            }
            for size in sizes
        ],
    }
    make_folder(folder)
    write_json(folder / LADDER_FILE, sealed(record))
    (folder / ISOFLOP_FILE).unlink(missing_ok=True)  # of a ladder of the other kind that has no trials


def _choice(found: Survivors | None) -> dict[str, Any]:
    """Return the arms that train at a size as part of its record; nothing if all train at all sizes."""
    return {} if found is None else {"trained": list(found.arms), "reason": found.reason, "risk": found.risk}


def started_choices(folder: Path, config: StudyConfig, sizes: Sequence[LadderSize]) -> dict[str, Survivors]:
    """Return the arms of each size that was started with a choice of arms.

    The ladder's record has them. Without a record, they are those that the study of the size trains.

    Raises:
        StorageError: If a record is damaged.
    """
    ladder = find_ladder(folder)
    known = {size.size: size for size in (ladder.sizes if ladder else ())}
    found: dict[str, Survivors] = {}
    for size in sizes:
        record = find_record(folder.parent / size.study)
        if record is None:
            continue
        if size.size in known:
            own = known[size.size]
            if own.trained:
                found[size.size] = Survivors(arms=own.trained, reason=own.reason, risk=own.risk)
            continue
        names = record["settings"].get("search", {}).get("architectures", ())
        pairs = zip(config.ladder.arms, size.arms, strict=True)
        arms = tuple(arm.name for arm, shape in pairs if shape.architecture.name in names)
        if 0 < len(arms) < len(config.ladder.arms):
            words = f"{size.size} trains {len(arms)} of {len(config.ladder.arms)} arms, as it was started."
            found[size.size] = Survivors(arms=arms, reason=words)
    return found


def refuse_changes(folder: Path, config: StudyConfig, sizes: Sequence[LadderSize]) -> None:
    """Raise a ConfigError if the arms at a size that was started, or the smallest size, are not those of its study."""
    names = [arm.name for arm in config.ladder.arms]
    earlier = find_ladder(folder)
    known = {size.study: size for size in earlier.sizes} if earlier else {}
    first = earlier.sizes[0] if earlier else None
    is_tuned = len(config.search.learning_rates) > 1 or config.training.warmup_tokens > 0
    if first and first.study != sizes[0].study and is_tuned and (folder.parent / first.study / "study.json").is_file():
        raise ConfigError(
            f"{first.study} was started as the smallest size, at which learning rates are tried and warmup_tokens "
            f"holds, and {sizes[0].size} is now the smallest: add larger sizes only, or rename the ladder's file to "
            "start a new ladder."
        )
    for size in sizes:
        if earlier is None or size.study not in known or not (folder.parent / size.study / "study.json").is_file():
            continue
        was = dict(zip(earlier.arms, (a.name for a in known[size.study].architectures), strict=True))
        now = dict(zip(names, (arm.architecture.name for arm in size.arms), strict=True))
        changed = sorted(arm for arm in {*was, *now} if was.get(arm) != now.get(arm))
        if changed:
            arm = changed[0]
            raise ConfigError(
                f"{size.study} was started with other arms: {arm} was {was.get(arm, 'not there')} and is now "
                f"{now.get(arm, 'not there')}. Restore the ladder's file, or rename it to start a new ladder."
            )
