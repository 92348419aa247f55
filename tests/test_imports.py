"""The layout: rooms import from lower floors only, there are no circles, and imports do nothing else."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "march_search"

FLOORS = [
    {"errors", "processes", "units"},
    {"architecture", "files"},
    {"config"},
    {"cost", "data", "model", "trial"},
    {"space", "tracking", "training"},
    {"analysis", "sampler"},
    {"ladders", "storage"},
    {"display", "planning", "replay"},
    {"doctor", "report", "study"},
    {"commands"},
    {"cli"},
    {"__init__", "__main__"},
]
"""Rooms from the ground up. A room is a file or a folder directly below the package."""

SAME_JOB = {"__init__", "__main__", "pareto"}
"""File names that several rooms use for the same job; commands are named after the room that they call."""


def modules(package: Path) -> dict[str, Path]:
    """Return the files of a package by dotted name without the package's own: `study.worker`, `cli`, `__init__`."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


def imports(package: Path) -> dict[str, set[str]]:
    """Return which modules each module imports, inside functions and under TYPE_CHECKING too.

    `from package.room import name` counts as the module that defines `name` if the room's face hands it on.
    """
    files = modules(package)
    faces = {name: _handed_on(path, package.name) for name, path in files.items() if path.name == "__init__.py"}
    found: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: relative import"
                wanted = [(node.module or "", alias.name) for alias in node.names]
            else:
                continue
            for module, attribute in wanted:
                if module.split(".")[0] != package.name:
                    continue
                base = module.removeprefix(package.name).removeprefix(".")
                full = f"{base}.{attribute}".strip(".")
                target = full if full in files else faces.get(base or "__init__", {}).get(attribute, base)
                if target in files and target != name:
                    found[name].add(target)
    return found


def _handed_on(path: Path, package: str) -> dict[str, str]:
    """Return the module behind each name that an `__init__.py` imports from its package."""
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.module]
    return {
        alias.asname or alias.name: n.module.removeprefix(f"{package}.")  # type: ignore[union-attr]
        for n in nodes
        for alias in n.names
    }


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the modules of one circle of imports, empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def room(module: str) -> str:
    """Return the room that a module stands in."""
    return module.partition(".")[0]


def upward(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the imports that do not lead to a lower floor."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    return [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in others
        if room(other) != room(module) and floor[room(other)] >= floor[room(module)]
    ]


def test_rooms_import_from_lower_floors_only() -> None:
    graph = imports(PACKAGE)
    assert {room(module) for module in graph} == set().union(*FLOORS)
    assert upward(graph) == []


def test_there_are_at_most_twelve_floors() -> None:
    assert len(FLOORS) <= 12


def test_there_is_no_circle_of_imports() -> None:
    assert circle(imports(PACKAGE)) == []


@pytest.mark.parametrize(
    "planted",
    [
        {"a/x.py": "from p.b import y", "b/y.py": "from p.a import x"},
        {"a/x.py": "import p.a.y", "a/y.py": "def f():\n    from p.a.x import g"},
        {
            "a/x.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import y",
            "a/y.py": "import p.a.x",
        },
        {"a/__init__.py": "from p.a.x import f", "a/x.py": "from p.b.y import g", "b/y.py": "from p.a import f"},
    ],
    ids=["between rooms", "in a function", "under TYPE_CHECKING", "through a face"],
)
def test_a_planted_circle_is_found(planted: dict[str, str], tmp_path: Path) -> None:
    for name, text in planted.items():
        path = tmp_path / "p" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert circle(imports(tmp_path / "p"))


def test_an_import_that_leads_up_is_found() -> None:
    assert upward({"files": {"study.worker"}, "study.worker": set()}) == ["files imports study.worker"]


def test_no_two_modules_share_a_file_name() -> None:
    names = Counter(path.stem for name, path in modules(PACKAGE).items() if room(name) != "commands")
    assert {name for name, number in names.items() if number > 1} <= SAME_JOB


def test_the_math_core_needs_numpy_alone() -> None:
    code = "import sys; from march_search import SearchSpace, solve; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    others = {name for name in loaded if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert others - {"numpy", "march_search", "sitecustomize", "usercustomize"} == set()


def test_training_and_study_share_files_not_imports() -> None:
    graph = imports(PACKAGE)
    assert not any(room(other) == "study" for module in graph if room(module) == "training" for other in graph[module])
    assert not any(room(other) == "training" for module in graph if room(module) == "study" for other in graph[module])
