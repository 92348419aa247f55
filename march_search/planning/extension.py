"""Extend a started study with trials, seeds, learning rates, architectures or a wider space (`study run --extend`)."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from march_search.architecture.architecture import Architecture
from march_search.config import StudyConfig
from march_search.config.changes import in_current_keys
from march_search.config.loader import build
from march_search.errors import ConfigError
from march_search.planning.candidates import Candidates, rates
from march_search.planning.study_state import budget_of, candidates_table, intelligible, limits_of, space_table
from march_search.storage.study_folder import StudyFolder, find_record, read_record, write_record

GROWING = (
    "trials",
    "seeds",
    "learning_rates",
    "architectures",
    "strategy",
    "spread",
    "warm_start",
    "warm_start_trials",
    "max_tokens",
)
"""Keys of `[search]` that an extension may change; `[confirm]` may always change."""


def extended_candidates(folder: Path, config: StudyConfig, chosen: Candidates, extend: bool) -> Candidates:
    """Return the study's architectures, existing ones first; `chosen` if the study is neither started nor extended.

    Raises:
        ConfigError: If the space changed without `extend`, the extension removes something, or there is no started
            study to extend.
    """
    record = find_record(folder)
    if record is None or "store" not in record:
        if extend:
            raise ConfigError(
                f"{folder.name} has not been started, so there is nothing to extend; run it without --extend."
            )
        return chosen
    drawn = [a.name for a in chosen.architectures]
    with intelligible(folder):
        old = [Architecture.parse(name).name for name in record["settings"]["architectures"]]
        changes = _differences(record["space"], space_table(chosen.found, folder)) if "space" in record else ([], [])
    _check_space(folder.name, *changes, extend)
    if not extend and record.get("drawn") == drawn:
        return _with(chosen, old)
    if not extend and config.search.trials > (trials := _config(record).search.trials):
        raise ConfigError(
            f"{folder.name} was started with [search] trials = {trials}, but its file now has {config.search.trials}; "
            "use --extend to add trials, or rename the file to start a new study."
        )
    if not extend:
        return chosen
    _check_growth(folder.name, config, record)
    names = list(dict.fromkeys([*old, *drawn]))
    most = max(config.search.trials, len({*old, *config.search.architectures}))
    return _with(chosen, names[:most] if config.search.strategy in ("design", "sample") else names)


def adopt(folder: StudyFolder, config: StudyConfig, chosen: Candidates, drawn: Candidates) -> None:
    """Write an extension that `extended_candidates` accepted to study.json.

    Raises:
        ConfigError: If a setting changed that an extension may not change; nothing is written.
    """
    record = read_record(folder.path)
    was, new = _config(record), json.loads(json.dumps(asdict(config.search)))
    search = replace(config.search, **{key: getattr(was.search, key) for key in GROWING})
    unchanged = replace(config, search=search, space=was.space, budget=was.budget, tolerance=was.tolerance)
    folder.keep_settings(unchanged, [Architecture.parse(name) for name in record["settings"]["architectures"]])
    settings = record["settings"] | {"architectures": [a.name for a in chosen.architectures]}
    settings["search"] = settings["search"] | {key: new[key] for key in GROWING}
    settings["confirm"] = asdict(config.confirm)
    settings |= {"space": config.space, "budget": config.budget, "tolerance": config.tolerance}
    more = {"settings": settings, "drawn": [a.name for a in drawn.architectures]}
    write_record(folder.path, record | candidates_table(chosen, folder.path) | more)


def _with(chosen: Candidates, names: list[str]) -> Candidates:
    """Return `chosen` with these architectures."""
    return replace(chosen, architectures=tuple(map(Architecture.parse, names)))


def _check_space(name: str, lost: list[str], gained: list[str], extend: bool) -> None:
    """Check that a space lost nothing, and gained nothing without `extend`; raise ConfigError otherwise."""
    if lost:
        raise ConfigError(
            f"the space of {name} is narrower than when the study started: {'; '.join(lost)}. Restore it, or rename "
            "the study's file to start a new study."
        )
    if gained and not extend:
        raise ConfigError(
            f"the space of {name} is wider than when the study started: {'; '.join(gained)}. Use --extend to accept "
            "this, or rename the study's file to start a new study."
        )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Describe what a space lost and what it gained."""
    lost, gained = [], []
    for axis in old["axes"]:
        before, after = old["axes"][axis], new["axes"].get(axis, [])
        if less := [value for value in before if value not in after]:
            lost.append(f"{axis} no longer has {_list(less)}")
        if more := [value for value in after if value not in before]:
            gained.append(f"{axis} now also has {_list(more)}")
    before, after = ((space.get("block") or {}).get("sha256") for space in (old, new))
    if before != after:
        lost.append("the file of its block has changed" if before and after else "its block was added or removed")
    lost += [f'the rule "{rule}" was added' for rule in new["rules"] if rule not in old["rules"]]
    gained += [f'the rule "{rule}" was removed' for rule in old["rules"] if rule not in new["rules"]]
    was, now = budget_of(old["budget"]), budget_of(new["budget"])
    if was != now and was and now:
        inside = now.low <= was.low and was.high <= now.high and was.count == now.count
        (gained if inside else lost).append(f"the budget was {was} and is now {now}")
    elif was != now:
        (gained if was else lost).append(f"the budget of {was or now} was {'removed' if was else 'added'}")
    olds, news = ({limit.kind: limit for limit in limits_of(table)} for table in (old, new))
    for kind in dict.fromkeys([*olds, *news]):
        one, other = olds.get(kind), news.get(kind)
        if one is None or other is None:
            (lost if one is None else gained).append(
                f"the budget of {one or other} was {'removed' if one else 'added'}"
            )
        elif (str(one), one.low, one.high) != (str(other), other.low, other.high):
            inside = (
                other.low <= one.low and one.high <= other.high and str(one.setup.device) == str(other.setup.device)
            )
            (gained if inside else lost).append(f"the budget was {one} and is now {other}")
    return lost, gained


def _check_growth(name: str, config: StudyConfig, record: dict[str, Any]) -> None:
    """Check that an extension removes nothing; raise ConfigError otherwise."""
    was, now = _config(record), config
    if now.search.trials < was.search.trials:
        raise ConfigError(
            f"--extend cannot lower [search] trials of {name} from {was.search.trials} to {now.search.trials}; use "
            f"{was.search.trials} or more."
        )
    for key, before, after in (
        ("seeds", was.search.seeds, now.search.seeds),
        ("learning_rates", rates(was), rates(now)),
        ("architectures", was.search.architectures, now.search.architectures),
    ):
        removed = [value for value in before if value not in after]
        if removed:
            raise ConfigError(
                f"--extend cannot remove values from [search] {key} of {name}; add back: {_list(removed)}."
            )


def _config(record: dict[str, Any]) -> StudyConfig:
    """Return the settings of a started study."""
    settings = in_current_keys(record["settings"], is_started=True)
    return build(StudyConfig, {k: v for k, v in settings.items() if k != "architectures"}, "study.json")


def _list(values: list[Any]) -> str:
    """Format the first four values and the number of others."""
    return ", ".join(map(str, values[:4])) + (f" and {len(values) - 4} more" if len(values) > 4 else "")
