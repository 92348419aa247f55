"""`python -m gpu_acceptance.install BUNDLE SITE`: install the wheels that this Python lacks into the folder SITE.

A package that is already there is kept if its version meets march-search's requirement, so that other packages that
depend on it still work. Nothing is fetched from a network. Only the standard library and pip are used.
"""

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path


def main(bundle: Path, site: Path) -> int:
    """Install what is missing and return pip's exit code."""
    if site.is_dir():
        print(f"{site} is used as it is.", file=sys.stderr)
        return 0
    wheels = sorted((bundle / "wheels").glob("*.whl"))
    wanted = [wheel for wheel in wheels if not is_met(wheel, requirements(wheels))]
    print("installing", ", ".join(wheel.name.split("-")[0] for wheel in wanted) or "nothing", file=sys.stderr)
    if not wanted:
        return 0
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), *map(str, wanted)]
    return subprocess.run(command, check=False).returncode


def requirements(wheels: list[Path]) -> dict[str, str]:
    """Return the version requirements of march-search, by normalised package name."""
    from pip._vendor.packaging.requirements import Requirement

    march = next(wheel for wheel in wheels if wheel.name.startswith("march_search-"))
    with zipfile.ZipFile(march) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    parsed = (Requirement(line.removeprefix("Requires-Dist: ")) for line in lines if line.startswith("Requires-Dist: "))
    return {need.name.lower().replace("-", "_"): str(need.specifier) for need in parsed if need.marker is None}


def is_met(wheel: Path, needs: dict[str, str]) -> bool:
    """Return whether this Python has the package of a wheel, in a version that march-search accepts."""
    from pip._vendor.packaging.specifiers import SpecifierSet

    name = wheel.name.split("-")[0].lower()
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return SpecifierSet(needs.get(name, "")).contains(version, prereleases=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
