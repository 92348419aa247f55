"""Store a study's candidates in study.json, for workers that have neither the study's file nor its space."""

from fractions import Fraction
from pathlib import Path
from typing import Any

from march_search.architecture.architecture import DEFAULTS, Architecture
from march_search.errors import StorageError
from march_search.files import lock, read_json, write_json
from march_search.space.budget import Budget
from march_search.space.feasible_set import FeasibleSet, solve
from march_search.space.rules import Rule
from march_search.space.space import SearchSpace
from march_search.study.candidates import Candidates
from march_search.study.warm_start import Prior


def keep_candidates(folder: Path, chosen: Candidates) -> None:
    """Write the space and warm-start results of a study to study.json, unless the study has already started."""
    with lock(folder / "lock"):
        record = read_json(folder / "study.json")
        if "space" not in record or "store" not in record:
            write_json(folder / "study.json", record | candidates_table(chosen))


def restored_candidates(folder: Path) -> Candidates:
    """Return the candidates with which the study in `folder` was started or last extended.

    Raises:
        StorageError: If study.json has no space.
    """
    record = read_json(folder / "study.json")
    if not isinstance(record, dict) or "space" not in record:
        raise StorageError(f"{folder}: study.json has no space; start the study once with march-search study run.")
    space = record["space"]
    axes = {axis: tuple(values) for axis, values in space["axes"].items()}
    rules = tuple(Rule.parse(text, DEFAULTS) for text in space["rules"])
    found = solve(SearchSpace(name=folder.name, budget=budget_of(space["budget"]), axes=axes, rules=rules))
    priors = tuple(Prior(Architecture.parse(name), loss, source) for name, loss, source in record["priors"])
    return Candidates(found, tuple(map(Architecture.parse, record["settings"]["architectures"])), priors)


def candidates_table(chosen: Candidates) -> dict[str, Any]:
    """Return the keys of study.json that hold the candidates."""
    priors = [[prior.architecture.name, prior.loss, prior.source] for prior in chosen.priors]
    return {"space": space_table(chosen.found), "priors": priors}


def space_table(found: FeasibleSet) -> dict[str, Any]:
    """Return the axis values, rules and budget of a feasible set's space."""
    space = found.space
    axes = {axis: list(values) for axis, values in space.axes.items()}
    return {"axes": axes, "rules": [rule.text for rule in space.rules], "budget": _budget_table(found.budget)}


def budget_of(budget: dict[str, Any]) -> Budget:
    """Return the budget of a space table."""
    return Budget(budget["parameters"], Fraction(budget["tolerance"]), budget["count"])


def _budget_table(budget: Budget) -> dict[str, Any]:
    """Return a budget as JSON values, without rounding."""
    return {"parameters": budget.parameters, "tolerance": str(budget.tolerance), "count": budget.count}
