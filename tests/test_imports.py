"""Who may import whom: a room imports from lower floors only, and importing does nothing else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "march_search"

FLOORS = [
    {"errors", "spans", "strategy"},
    {"files", "settings", "parameters"},
    {"flops", "naming", "devices", "seal"},
    {"architecture", "budget", "rules", "shipped", "config", "cost"},
    {"space", "outcome", "memory"},
    {"grid", "selection", "ds_config", "scaling"},
    {"members", "design", "pareto", "objectives"},
    {"solver"},
    {"closest", "data", "model", "report"},
    {"evidence"},
    {"pages", "replay", "study", "training"},
    {"doctor"},
    {"commands"},
    {"cli"},
    {"__init__", "__main__"},
]


def rooms() -> dict[str, list[Path]]:
    """Files of each room."""
    found: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        found.setdefault(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(path)
    return found


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports, those only looked at by type checkers left out."""
    tree, names = ast.parse(path.read_text()), set()
    checking = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    skipped = {inner for node in checking for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node not in skipped:
            if node.module == "march_search":
                names |= {alias.name for alias in node.names}
            elif node.module.startswith("march_search."):
                names.add(node.module.split(".")[1])
    return {name for name in names if name in rooms()}


@pytest.mark.parametrize("room", sorted(rooms()))
def test_a_room_imports_from_lower_floors_only(room: str) -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for path in rooms()[room]:
        for other in imported_rooms(path) - {room}:
            assert floor[other] < floor[room], f"{path.relative_to(PACKAGE)} imports {other}"


def test_the_math_core_needs_numpy_alone() -> None:
    code = "import sys, march_search; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    others = {name for name in loaded if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert others - {"numpy", "march_search", "sitecustomize", "usercustomize"} == set()


def test_training_and_study_share_files_not_imports() -> None:
    assert all("study" not in imported_rooms(path) for path in rooms()["training"])
    assert all("training" not in imported_rooms(path) for path in rooms()["study"])
