"""Read earlier results for a study's sampler: from past studies, CSV files or learning curves."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from march_search.analysis.pooling import best_rates
from march_search.architecture.architecture import Architecture
from march_search.config import SearchConfig
from march_search.config.counts import parse_count
from march_search.config.loader import read_file
from march_search.config.shipped import shipped_folder
from march_search.errors import ArchitectureError, ConfigError, nearest, shown
from march_search.files.atomic import one_line
from march_search.space.feasible_set import FeasibleSet
from march_search.trial.own_trials import find_trials
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
    for trial in find_trials(folder).trials:
        result = complete_result(trial.folder, trial.config)
        if result is not None:
            losses.setdefault((result["architecture"], trial.config.training.learning_rate), []).append(result["loss"])
    return {name: fmean(losses[name, rate]) for name, rate in best_rates(losses).items()}


def _of_curves(path: Path) -> dict[str, float]:
    """Return the final loss of every architecture in a file of learning curves; the lowest of several runs.

    Raises:
        ConfigError: If the file does not contain learning curves, or a run has no name or no finite last loss.
    """
    runs = read_file(path).get("runs")
    if not isinstance(runs, list):
        raise ConfigError(f"{path}: expected a file of learning curves (march-search replay --help).")
    losses, faults = [], list[str]()
    for number, run in enumerate(runs):
        try:
            name, loss = Architecture.parse(run["architecture"]).name, run["evaluations"][-1][1]
            if isinstance(loss, bool) or not isinstance(loss, int | float) or not abs(loss) < 1e300:
                raise ArchitectureError(f"the last loss must be a finite number, not {shown(loss)}.")
            losses.append((name, float(loss)))
        except ArchitectureError as error:
            faults.append(f"runs[{number}]: {error}")
        except (KeyError, TypeError, AttributeError, IndexError):
            faults.append(f"runs[{number}] needs an architecture and evaluations, a list of [tokens, loss].")
    if faults:
        raise ConfigError.of_file(str(path), faults)
    return dict(sorted(losses, key=lambda run: -run[1]))


COLUMNS = ("name", "loss", "tokens")
"""Columns of a CSV file that are read; the last may be missing."""


def _of_table(path: Path) -> dict[str, float]:
    """Return the loss of every architecture in a CSV file at its largest token count; skip lines that start with #.

    The three columns hold ASCII only, so the encoding of any others does not matter.

    Raises:
        ConfigError: If a column is missing or a cell is invalid. The message names the row and the column.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    lines = ["" if line.startswith("#") else line for line in text.splitlines()]
    table = csv.reader(lines, skipinitialspace=True)
    header, faults, most = list[str](), list[str](), dict[str, tuple[float, float]]()
    try:
        for cells in table:
            row = [cell.strip() for cell in cells]
            if not any(row):
                continue
            if not header:
                header = _header(path, row)
                continue
            before = len(faults)
            name, loss, tokens = _cells(row, header, f"row {table.line_num}", faults)
            if len(faults) == before:
                most[name] = max(most.get(name, (-1.0, 0.0)), (tokens, loss))
    except csv.Error as error:
        faults.append(f"row {table.line_num}: {one_line(error)}.")
    if faults:
        raise ConfigError.of_file(str(path), faults)
    _header(path, header)
    return {name: loss for name, (_, loss) in most.items()}


def _header(path: Path, header: list[str]) -> list[str]:
    """Return the names of the columns; raise a ConfigError if one that is needed is missing, or is there twice."""
    if any(header.count(column) != 1 for column in COLUMNS[:2]) or header.count(COLUMNS[2]) > 1:
        has = f"its first row is {shown(','.join(header))}" if header else "it is empty"
        raise ConfigError(
            f"{path}: must have the columns name and loss, and optionally tokens, separated by commas; {has}."
        )
    return header


def _cells(row: list[str], header: list[str], where: str, faults: list[str]) -> tuple[str, float, float]:
    """Return the name, loss and tokens of a row; append to `faults` what is wrong with it."""
    if len(row) != len(header):
        faults.append(f"{where} has {len(row)} cells, but the first row has {len(header)}.")
        return "", 0.0, 0.0
    cells, name, numbers = dict(zip(header, row, strict=True)), "", {"loss": 0.0, "tokens": 0.0}
    try:
        name = Architecture.parse(cells["name"]).name
    except ArchitectureError as error:
        faults.append(f"{where}, column name: {error}")
    for column in [column for column in numbers if column in cells]:
        try:
            numbers[column] = _number(cells[column], column)
        except (ValueError, OverflowError):
            rule = "a finite number" if column == "loss" else "a count of at least 0, such as 1e9 or 1B"
            cell = shown(cells[column]) if cells[column] else "empty"
            faults.append(f"{where}, column {column}: must be {rule}, not {cell}.")
    return name, numbers["loss"], numbers["tokens"]


def _number(text: str, column: str) -> float:
    """Return the number in a cell; raise a ValueError if it is none, or not finite, or a negative token count."""
    if column == "tokens" and text[-1:].isalpha() and text.isascii() and text[:1].isdigit():
        return float(parse_count(text, column))
    value = float(text)
    if not math.isfinite(value) or (column == "tokens" and value < 0):
        raise ValueError
    return value
