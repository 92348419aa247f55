"""What is installed from a wheel, and what the README says, work."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

from march_search import Architecture, SearchSpace, solve
from march_search.config import DataConfig, DevicesConfig, StudyConfig, TrainingConfig
from march_search.config.loader import build
from march_search.config.scaling import base_shape
from march_search.data import vocabulary

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a wheel, built from a copy of the files."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    copy = folder / "copy"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in files.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run([*pip, "-w", str(folder), str(copy)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_a_wheel_in_another_environment_solves_and_lists_studies(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "other", with_pip=False)
    site = next((tmp_path / "other").glob("lib/python*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")  # numpy and rich, but no editable install
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--target",
            str(site),
            str(wheel),
        ],
        check=True,
    )
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*arguments: str) -> str:
        command = [str(tmp_path / "other/bin/python"), "-m", "march_search", *arguments]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return subprocess.run(command, cwd=empty, capture_output=True, text=True, check=True, env=environment).stdout

    assert "parameters ± 1.5%" in run("solve", "--budget", "220M")
    assert "cpu-demo" in run("study", "list")
    assert "10 candidates" in run("study", "run", "studies/cpu-demo.toml", "--dry-run")
    assert "25 runs" in run("replay", "march-2023", "--strategy", "rungs", "--orders", "1")
    code = "import march_search; print(march_search.__file__)"
    other = [str(tmp_path / "other/bin/python"), "-c", code]
    where = subprocess.run(other, cwd=empty, capture_output=True, text=True, check=True)
    assert str(site) in where.stdout
    assert list(empty.iterdir()) == []


def test_the_readmes_python_says_what_it_does() -> None:
    [block] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    checked = 0
    for line in block.splitlines():
        code, _, said = line.partition("#")
        if not code.strip():
            continue
        if ("=" in code.replace("==", "") and "(" not in code.split("=")[0]) or code.startswith("from"):
            exec(code, names)
            continue
        value = eval(code, names)
        if re.fullmatch(r"\s*(\d+|'.*'|True|\(.*\))\s*", said):
            assert repr(value) == said.strip()
            checked += 1
    assert checked == 4


def test_the_readmes_space_has_architectures_and_its_other_tables_can_be_meant() -> None:
    blocks = map(tomllib.loads, re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL))
    devices, rungs, storage, data, training, space = blocks
    budget = {"tokens": 1000 * 2**20}
    assert build(StudyConfig, {"space": "t5", "training": budget, **rungs, **storage}, "README.md").search.race == 0.95
    assert len(solve(SearchSpace.from_table(space))) > 100
    assert build(DevicesConfig, devices["devices"], "README.md").nodes == 2
    assert base_shape(build(TrainingConfig, training["training"], "README.md")) == Architecture.parse(
        "L2-D128-H4x32-F512"
    )
    config = build(DataConfig, data["data"], "README.md")
    assert vocabulary.check(config, REPOSITORY).endswith("(network not used), one token per digit")


def test_the_readmes_commands_exist() -> None:
    for script in re.findall(r"^bash (\S+)$", README, flags=re.MULTILINE):
        assert (REPOSITORY / script).is_file()
    for study in re.findall(r"`(studies/\S+\.toml)`", README):
        assert (REPOSITORY / study).is_file()


def test_the_tree_in_the_readme_is_the_repositorys() -> None:
    tree = README.split("## Where things are")[1].split("```")[1]
    for name in re.findall(r"^(?:├── |└── )?([\w.]+(?:/|\.py))", tree, flags=re.MULTILINE):
        assert (REPOSITORY / name).exists() or (REPOSITORY / "march_search" / name).exists(), name
