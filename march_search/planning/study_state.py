"""Store a study's candidates in study.json, for workers that have neither the study's file nor its space."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

from march_search.architecture.architecture import DEFAULTS, Architecture
from march_search.architecture.block import find_block, parse_block, source_record
from march_search.cost.devices import Device
from march_search.cost.setup import Setup
from march_search.errors import MarchSearchError, StorageError
from march_search.files.atomic import lock, one_line
from march_search.planning.candidates import Candidates
from march_search.planning.warm_start import Prior
from march_search.space.axes import AXES, rule_names
from march_search.space.budget import Budget
from march_search.space.feasible_set import FeasibleSet
from march_search.space.limits import Limit
from march_search.space.rules import Rule
from march_search.space.solver import solve
from march_search.space.space import SearchSpace
from march_search.storage.study_folder import find_record, read_record, write_record


def keep_candidates(folder: Path, chosen: Candidates) -> None:
    """Write the space and warm-start results of a study to study.json, unless the study has already started."""
    with lock(folder / "lock"):
        record = read_record(folder)
        if "space" not in record or "store" not in record:
            write_record(folder, record | candidates_table(chosen, folder))


def restored_candidates(folder: Path) -> Candidates:
    """Return the candidates with which the study in `folder` was started or last extended.

    Raises:
        StorageError: If study.json is damaged or has no space.
    """
    record = find_record(folder)
    if record is None or "space" not in record:
        raise StorageError(f"{folder}: study.json has no space; start the study once with march-search study run.")
    with intelligible(folder):
        space = record["space"]
        recorded = {axis: tuple(values) for axis, values in space["axes"].items()}
        axes = {axis: (DEFAULTS[axis],) for axis in AXES} | recorded  # earlier versions have fewer axes
        own = None if axes["block"] == (None,) else parse_block(axes["block"][0])[0]
    block = None if own is None else find_block(own)
    with intelligible(folder):
        rules = tuple(Rule.parse(text, rule_names(block)) for text in space["rules"])
        budget, limits = budget_of(space["budget"]), limits_of(space)
        restored = SearchSpace(name=folder.name, budget=budget, axes=axes, rules=rules, block=block, limits=limits)
        found = solve(restored)
        priors = tuple(Prior(Architecture.parse(name), float(loss), source) for name, loss, source in record["priors"])
        return Candidates(found, tuple(map(Architecture.parse, record["settings"]["architectures"])), priors)


@contextmanager
def intelligible(folder: Path) -> Iterator[None]:
    """Turn errors about values in study.json, which an old file without a seal may have, into one line.

    Raises:
        StorageError: If the block finds a missing key or a value of another type.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        fault = one_line(error) if isinstance(error, MarchSearchError) else f"{type(error).__name__}: {one_line(error)}"
        remedy = "Restore it from a copy, or delete the study's folder to start over."
        raise StorageError(f"{folder / 'study.json'}: is damaged: {fault}. {remedy}") from None


def candidates_table(chosen: Candidates, folder: Path) -> dict[str, Any]:
    """Return the keys of study.json in `folder` that hold the candidates."""
    priors = [[prior.architecture.name, prior.loss, prior.source] for prior in chosen.priors]
    return {"space": space_table(chosen.found, folder), "priors": priors}


def space_table(found: FeasibleSet, folder: Path) -> dict[str, Any]:
    """Return the axis values, rules, budgets and block of a feasible set's space, for study.json in `folder`."""
    space = found.space
    axes = {axis: list(values) for axis, values in space.axes.items()}
    table: dict[str, Any] = {
        "axes": axes,
        "rules": [rule.text for rule in space.rules],
        "budget": _budget_table(found.budget),
    }
    if space.limits:
        table["limits"] = [asdict(limit) for limit in space.limits]
    if (text := space.axes["block"][0]) is not None:
        module, sha256 = source_record(text, folder)
        table["block"] = {"module": module, "sha256": sha256}
    return table


def budget_of(budget: dict[str, Any] | None) -> Budget | None:
    """Return the parameter budget of a space table."""
    return None if budget is None else Budget(budget["parameters"], Fraction(budget["tolerance"]), budget["count"])


def limits_of(space: dict[str, Any]) -> tuple[Limit, ...]:
    """Return the budgets of other kinds of a space table."""
    return tuple(
        Limit(**limit | {"setup": Setup(**limit["setup"] | {"device": Device(**limit["setup"]["device"])})})
        for limit in space.get("limits", ())
    )


def _budget_table(budget: Budget | None) -> dict[str, Any] | None:
    """Return a parameter budget as JSON values, without rounding."""
    if budget is None:
        return None
    return {"parameters": budget.parameters, "tolerance": str(budget.tolerance), "count": budget.count}
