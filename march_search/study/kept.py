"""What study.json keeps of a study's candidates, for workers that have neither its file nor its space."""

from fractions import Fraction
from pathlib import Path
from typing import Any

from march_search.architecture import DEFAULTS, Architecture
from march_search.budget import Budget
from march_search.errors import StorageError
from march_search.files import lock, read_json, write_json
from march_search.rules import Rule
from march_search.solver import FeasibleSet, solve
from march_search.space import SearchSpace
from march_search.study.candidates import Candidates
from march_search.study.warm import Prior


def keep(folder: Path, chosen: Candidates) -> None:
    """Remembers the space and the earlier results of a study that starts; once it has started they stay."""
    with lock(folder / "lock"):
        kept = read_json(folder / "study.json")
        if "space" not in kept or "store" not in kept:
            write_json(folder / "study.json", kept | table(chosen))


def restored(folder: Path) -> Candidates:
    """The candidates with which the study in `folder` was started or last extended.

    Raises:
        StorageError: it keeps none.
    """
    kept = read_json(folder / "study.json")
    if not isinstance(kept, dict) or "space" not in kept:
        raise StorageError(f"{folder}: study.json keeps no space: start the study once with march-search study run.")
    space = kept["space"]
    axes = {axis: tuple(values) for axis, values in space["axes"].items()}
    rules = tuple(Rule.parse(text, DEFAULTS) for text in space["rules"])
    found = solve(SearchSpace(folder.name, budget_of(space["budget"]), axes, rules))
    priors = tuple(Prior(Architecture.parse(name), loss, source) for name, loss, source in kept["priors"])
    return Candidates(found, tuple(map(Architecture.parse, kept["settings"]["architectures"])), priors)


def table(chosen: Candidates) -> dict[str, Any]:
    """The keys of study.json that hold it."""
    priors = [[prior.architecture.name, prior.loss, prior.source] for prior in chosen.priors]
    return {"space": space_table(chosen.found), "priors": priors}


def space_table(found: FeasibleSet) -> dict[str, Any]:
    """Values of all axes, rules and budget of a set's space."""
    space = found.space
    axes = {axis: list(values) for axis, values in space.axes.items()}
    return {"axes": axes, "rules": [rule.text for rule in space.rules], "budget": _budget_table(found.budget)}


def budget_of(budget: dict[str, Any]) -> Budget:
    """The budget of a space table."""
    return Budget(budget["parameters"], Fraction(budget["tolerance"]), budget["count"])


def _budget_table(budget: Budget) -> dict[str, Any]:
    """A budget as JSON can hold it, exactly."""
    return {"parameters": budget.parameters, "tolerance": str(budget.tolerance), "count": budget.count}
