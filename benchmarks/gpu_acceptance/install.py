"""`python -m gpu_acceptance.install BUNDLE SITE`: install the wheels that this Python lacks into the folder SITE.

A package that is already there is kept if its version meets the requirements of all wheels, so that other packages that
depend on it still work. Nothing is fetched from a network. Only the standard library and pip are used.
"""

import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.specifiers import SpecifierSet


def main(bundle: Path, site: Path) -> int:
    """Install what is missing and return pip's exit code."""
    if site.is_dir():
        print(f"{site} is used as it is.", file=sys.stderr)
        return 0
    wheels = sorted((bundle / "wheels").glob("*.whl"))
    needs = requirements(wheels)
    wanted = [wheel for wheel in wheels if not is_met(wheel, needs)]
    print("installing", ", ".join(wheel.name.split("-")[0] for wheel in wanted) or "nothing", file=sys.stderr)
    if not wanted:
        return 0
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--disable-pip-version-check"]
    partial = site.with_name(f"{site.name}.partial")  # so that an interrupted installation is not used
    shutil.rmtree(partial, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(partial), *map(str, wanted)]
    code = subprocess.run(command, check=False).returncode
    if code == 0:
        partial.rename(site)
    return code


def requirements(wheels: list[Path]) -> dict[str, SpecifierSet]:
    """Return the versions that the wheels require of packages, by normalised name; extras are ignored."""
    found: dict[str, SpecifierSet] = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            lines = archive.read(name).decode().splitlines()
        for line in lines:
            if line.startswith("Requires-Dist: "):
                need = Requirement(line.removeprefix("Requires-Dist: "))
                if need.marker is None or need.marker.evaluate({"extra": ""}):
                    key = normalised(need.name)
                    found[key] = found.get(key, SpecifierSet()) & need.specifier
    return found


def is_met(wheel: Path, needs: dict[str, SpecifierSet]) -> bool:
    """Return whether this Python has the package of a wheel, in a version that all wheels accept."""
    name = normalised(wheel.name.split("-")[0])
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return needs.get(name, SpecifierSet()).contains(version, prereleases=True)


def normalised(name: str) -> str:
    """Return the name of a package as file names of wheels spell it."""
    return name.lower().replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
