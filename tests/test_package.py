"""The wheel: its files, and commands after it is installed in another environment."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


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


def test_the_wheel_has_the_package_and_its_data_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert {name.split("/")[0].split("-")[0] for name in files} == {"march_search"}
    assert "march_search/py.typed" in files
    for folder, ending in (("spaces", ".toml"), ("studies", ".toml"), ("tables", ".json")):
        shipped = {
            path.relative_to(REPOSITORY): path.read_bytes() for path in (REPOSITORY / folder).rglob(f"*{ending}")
        }
        assert shipped
        for path, content in shipped.items():
            assert files[f"march_search/shipped_files/{path}"] == content


def test_a_wheel_in_another_environment_solves_and_lists_studies(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "other", with_pip=False)
    site = next((tmp_path / "other").glob("lib/python*/site-packages"))
    (site / "libraries.pth").write_text(
        sysconfig.get_path("purelib") + "\n"
    )  # the libraries, but not the editable install
    install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, *install], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*arguments: str) -> str:
        command = [str(tmp_path / "other/bin/python"), "-m", "march_search", *arguments]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return subprocess.run(command, cwd=empty, capture_output=True, text=True, check=True, env=environment).stdout

    assert "parameters ± 1.5%" in run("solve", "--budget", "220M")
    assert "cpu-demo" in run("study", "list")
    assert "8 candidates" in run("study", "run", "studies/cpu-demo.toml", "--dry-run")
    assert "25 runs" in run("replay", "march-2023", "--strategy", "rungs", "--replays", "1")
    code = "import march_search; print(march_search.__file__)"
    other = [str(tmp_path / "other/bin/python"), "-c", code]
    where = subprocess.run(other, cwd=empty, capture_output=True, text=True, check=True)
    assert str(site) in where.stdout
    assert list(empty.iterdir()) == []
