"""`study run --extend`: a started study gets more trials, seeds, rates, shapes or a wider space, and loses nothing."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from march_search.architecture import Architecture
from march_search.config import StudyConfig
from march_search.errors import ConfigError
from march_search.files import read_json, write_json
from march_search.settings import build
from march_search.study.candidates import Candidates, rates
from march_search.study.folders import StudyFolder
from march_search.study.kept import budget_of, space_table, table

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
    "race",
)
"""Keys of `[search]` that an extension may change."""


def extended(folder: Path, config: StudyConfig, chosen: Candidates, extend: bool) -> Candidates:
    """The study's architectures, those it has already first; as chosen where it was neither started nor extended.

    Raises:
        ConfigError: the space is another than when the study started, or the extension takes something away.
    """
    kept = read_json(folder / "study.json")
    if not isinstance(kept, dict) or "store" not in kept:
        if extend:
            raise ConfigError(f"{folder.name} has not been started, so there is nothing to extend: leave out --extend.")
        return chosen
    _check_space(folder.name, kept.get("space"), space_table(chosen.found), extend)
    old, drawn = kept["settings"]["architectures"], [a.name for a in chosen.architectures]
    if not extend and kept.get("drawn") == drawn:
        return _with(chosen, old)
    if not extend and config.search.trials > (trials := _config(kept).search.trials):
        raise ConfigError(
            f"{folder.name} was started with [search] trials = {trials} and its file says {config.search.trials}: say "
            "--extend to add them, or give the file another name."
        )
    if not extend:
        return chosen
    _check_growth(folder.name, config, kept)
    names = list(dict.fromkeys([*old, *drawn]))
    most = max(config.search.trials, len({*old, *config.search.architectures}))
    return _with(chosen, names[:most] if config.search.strategy in ("design", "sample") else names)


def adopt(folder: StudyFolder, config: StudyConfig, chosen: Candidates, drawn: Candidates) -> None:
    """Writes an extension that `extended` allowed.

    Raises:
        ConfigError: a setting changed that no extension may change; nothing is written then.
    """
    kept = read_json(folder.path / "study.json")
    was, new = _config(kept), json.loads(json.dumps(asdict(config.search)))
    search = replace(config.search, **{key: getattr(was.search, key) for key in GROWING})
    others = replace(config, search=search, space=was.space, budget=was.budget, tolerance=was.tolerance)
    folder.keep_settings(others, [Architecture.parse(name) for name in kept["settings"]["architectures"]])
    settings = kept["settings"] | {"architectures": [a.name for a in chosen.architectures]}
    settings["search"] = settings["search"] | {key: new[key] for key in GROWING}
    settings |= {"space": config.space, "budget": config.budget, "tolerance": config.tolerance}
    more = {"settings": settings, "drawn": [a.name for a in drawn.architectures]}
    write_json(folder.path / "study.json", kept | table(chosen) | more)


def _with(chosen: Candidates, names: list[str]) -> Candidates:
    """The same with these architectures."""
    return replace(chosen, architectures=tuple(map(Architecture.parse, names)))


def _check_space(name: str, old: dict[str, Any] | None, new: dict[str, Any], extend: bool) -> None:
    """Refuses a space that lost something, or gained something without `--extend`."""
    lost, gained = _differences(old, new) if old else ([], [])
    if lost:
        raise ConfigError(
            f"the space of {name} is narrower than when it started: {'; '.join(lost)}. Bring that back, or give the "
            "study's file another name."
        )
    if gained and not extend:
        raise ConfigError(
            f"the space of {name} is wider than when it started: {'; '.join(gained)}. Say --extend to go on with it, "
            "or give the study's file another name."
        )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What a space lost, and what it gained, in words."""
    lost, gained = [], []
    for axis in old["axes"]:
        before, after = old["axes"][axis], new["axes"].get(axis, [])
        if less := [value for value in before if value not in after]:
            lost.append(f"{axis} lost {_list(less)}")
        if more := [value for value in after if value not in before]:
            gained.append(f"{axis} gained {_list(more)}")
    lost += [f'the rule "{rule}" is new' for rule in new["rules"] if rule not in old["rules"]]
    gained += [f'the rule "{rule}" is gone' for rule in old["rules"] if rule not in new["rules"]]
    was, now = budget_of(old["budget"]), budget_of(new["budget"])
    if was != now:
        inside = now.low <= was.low and was.high <= now.high and was.count == now.count
        (gained if inside else lost).append(f"the budget was {was} and is {now}")
    return lost, gained


def _check_growth(name: str, config: StudyConfig, kept: dict[str, Any]) -> None:
    """Refuses an extension that takes something away."""
    was, now = _config(kept), config
    if now.search.trials < was.search.trials:
        raise ConfigError(
            f"--extend only adds: [search] trials of {name} was {was.search.trials} and is {now.search.trials}."
        )
    for what, before, after in (
        ("seeds", was.search.seeds, now.search.seeds),
        ("learning_rates", rates(was), rates(now)),
        ("architectures", was.search.architectures, now.search.architectures),
    ):
        gone = [value for value in before if value not in after]
        if gone:
            raise ConfigError(f"--extend only adds: [search] {what} of {name} lost {_list(gone)}.")


def _config(kept: dict[str, Any]) -> StudyConfig:
    """The settings of a started study."""
    return build(StudyConfig, {k: v for k, v in kept["settings"].items() if k != "architectures"}, "study.json")


def _list(values: list[Any]) -> str:
    """A few values."""
    return ", ".join(map(str, values[:4])) + (f" and {len(values) - 4} more" if len(values) > 4 else "")
