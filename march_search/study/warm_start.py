"""Read earlier results for a study's sampler: from past studies, CSV files or learning curves."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from march_search.analysis.pooling import best_rates
from march_search.architecture.architecture import Architecture
from march_search.config import SearchConfig, TrialConfig
from march_search.config.loader import build
from march_search.config.shipped import shipped_folder
from march_search.errors import ConfigError, nearest
from march_search.files import read_json
from march_search.space.feasible_set import FeasibleSet
from march_search.trial.result import complete_result


@dataclass(frozen=True)
class Prior:
    """A result of an earlier training run."""

    architecture: Architecture
    loss: float
    source: str
    """Entry of `warm_start` that it comes from."""


def read_priors(search: SearchConfig, folder: Path) -> tuple[Prior, ...]:
    """Return the results of all `warm_start` sources, lowest loss first; one per architecture and source.

    Args:
        search: The study's search settings.
        folder: Folder in which relative paths are looked up before the current folder.

    Raises:
        ConfigError: If a source does not exist or has no complete trial, or a table cannot be read.
    """
    priors = [prior for source in search.warm_start for prior in _read(source, folder)]
    return tuple(sorted(priors, key=lambda prior: prior.loss))


def best_members(priors: Sequence[Prior], found: FeasibleSet, most: int) -> list[Architecture]:
    """Return at most `most` distinct members of `found` from these results, in their order."""
    members = dict.fromkeys(prior.architecture for prior in priors if prior.architecture in found)
    return list(members)[:most]


def _read(source: str, folder: Path) -> list[Prior]:
    """Return the results of one source."""
    shipped = {path.stem: path for path in shipped_folder("tables").glob("*.json")}
    beside = (folder / source, Path(source))
    path = next((p for p in beside if p.is_file() or (p / "trials").is_dir()), shipped.get(source))
    if path is None:
        raise ConfigError(
            f'[search]: warm_start has "{source}", which is not a study folder, a CSV file or a file of '
            f"learning curves. {nearest(source, shipped)}"
        )
    losses = _of_study(path) if path.is_dir() else _of_curves(path) if path.suffix == ".json" else _of_table(path)
    if not losses:
        raise ConfigError(f"[search]: warm_start has {path}, which holds no complete trial.")
    return [Prior(Architecture.parse(name), loss, source) for name, loss in losses.items()]


def _of_study(folder: Path) -> dict[str, float]:
    """Return the mean loss of every architecture with a complete trial, at its best learning rate."""
    losses: dict[tuple[str, float], list[float]] = {}
    for path in sorted(folder.glob("trials/*/trial.json")):
        config = build(TrialConfig, read_json(path) or {}, str(path))
        result = complete_result(path.parent, config)
        if result is not None:
            losses.setdefault((result["architecture"], config.training.learning_rate), []).append(result["loss"])
    return {name: fmean(losses[name, rate]) for name, rate in best_rates(losses).items()}


def _of_curves(path: Path) -> dict[str, float]:
    """Return the final loss of every architecture in a file of learning curves; the lowest of several runs.

    Raises:
        ConfigError: If the file does not contain learning curves.
    """
    try:
        runs = [
            (Architecture.parse(run["architecture"]).name, float(run["evaluations"][-1][1]))
            for run in read_json(path)["runs"]
        ]
    except (KeyError, TypeError, ValueError, IndexError):
        raise ConfigError(f"{path}: expected a file of learning curves (march-search replay --help).") from None
    return dict(sorted(runs, key=lambda run: -run[1]))


def _of_table(path: Path) -> dict[str, float]:
    """Return the loss of every architecture in a CSV file at its largest token count; skip lines that start with #.

    Raises:
        ConfigError: If a column is missing or a line is invalid.
    """
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and line[0] != "#"]
    table = csv.DictReader(lines)
    if not {"name", "loss"} <= set(table.fieldnames or ()):
        raise ConfigError(f"{path}: must have the columns name and loss, and optionally tokens.")
    most: dict[str, tuple[float, float]] = {}
    for row in table:
        try:
            name, tokens, loss = Architecture.parse(row["name"]).name, float(row.get("tokens") or 0), float(row["loss"])
        except ValueError as error:
            raise ConfigError(f"{path}: {row['name']}: {error}") from None
        if not math.isfinite(loss):
            raise ConfigError(f"{path}: {row['name']}: a loss must be a finite number, not {loss}.")
        most[name] = max(most.get(name, (-1.0, 0.0)), (tokens, loss))
    return {name: loss for name, (_, loss) in most.items()}
