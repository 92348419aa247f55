"""`python -m gpu_acceptance.bundle FOLDER`: write what a GPU machine without network needs for the acceptance run.

FOLDER gets `wheels/` for Python 3.12 on Linux (x86-64), without torch, and for those who lack it with numpy;
`corpus/`, the Wikipedia summaries of the `demo` extra as text; and `root/`, with their token store. Wheels are
compressed again with LZMA and without the tests of the libraries and the pages of TensorBoard, to stay within 60 MB.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from itertools import islice
from pathlib import Path

from gpu_acceptance.acceptance_run import prepared
from gpu_acceptance.scale import FULL
from march_search.config import DataConfig
from march_search.data.corpora import documents

REPOSITORY = Path(__file__).parents[2]

PACKAGES = (
    *("numpy", "scipy", "safetensors", "tokenizers", "tensorboard", "protobuf", "absl-py"),
    *("optuna", "SQLAlchemy", "greenlet", "alembic", "Mako", "MarkupSafe", "Jinja2", "colorlog", "PyYAML"),
    *("rich", "markdown-it-py", "mdurl", "Pygments", "packaging", "tqdm", "typing_extensions"),
    *("hjson", "einops", "msgpack", "ninja", "psutil", "py-cpuinfo"),
    *("pydantic", "pydantic_core", "annotated-types", "typing-inspection"),
)
"""Packages that are downloaded as wheels, in the versions of constraints.txt. Prepared text needs no `datasets`."""

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

LEFT_OUT = ("/tests/", "tensorboard/webfiles.zip")
"""Parts of the paths of files that a run does not need."""

PARTS = ("wheels", "corpus", "root")
"""Folders of a bundle."""

DOCUMENTS, PER_FILE = 6000, 20
"""Number of summaries in the corpus, and in each of its files."""


def main(folder: Path) -> None:
    """Write the bundle and print its size."""
    folder.mkdir(parents=True, exist_ok=True)
    write_corpus(folder / "corpus")
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "corpus").symlink_to((folder / "corpus").resolve())
        prepared(Path(temporary), None, FULL.data, folder / "root")
    shutil.rmtree(folder / "root" / "data" / ".cache", ignore_errors=True)
    write_wheels(folder / "wheels")
    sizes = {part: sum(f.stat().st_size for f in (folder / part).rglob("*") if f.is_file()) for part in PARTS}
    print(
        ", ".join(f"{part} {size / 1e6:.1f} MB" for part, size in sizes.items()),
        f"= {sum(sizes.values()) / 1e6:.1f} MB",
    )


def write_corpus(folder: Path) -> None:
    """Write the summaries as text files, several to a file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    texts = list(islice(documents(DataConfig(corpus="wikipedia-summaries"), REPOSITORY), DOCUMENTS))
    for number in range(0, len(texts), PER_FILE):
        some = texts[number : number + PER_FILE]
        (folder / f"{number:05d}.txt").write_text("\n\n".join(some), encoding="utf-8")


def write_wheels(folder: Path) -> None:
    """Download or build the wheels and make them smaller."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    pins = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line]
    names = {name.lower() for name in PACKAGES}
    wanted = [pin for pin in pins if pin.split("==")[0].lower() in names]
    missing = names - {pin.split("==")[0].lower() for pin in wanted}
    if missing:
        sys.exit(f"not in constraints.txt: {', '.join(sorted(missing))}")
    target = ["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312", "--abi", "abi3", "--abi", "none"]
    for platform in (*PLATFORMS, "any"):
        target += ["--platform", platform]
    with tempfile.TemporaryDirectory() as downloaded:
        only = ["--no-deps", "--only-binary=:all:"]
        subprocess.run([*pip, "download", *only, *target, "-d", downloaded, *wanted], check=True)
        own = [pin for pin in pins if pin.startswith("deepspeed==")] + [str(REPOSITORY)]
        subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", downloaded, *own], check=True)
        for wheel in sorted(Path(downloaded).glob("*.whl")):
            shrink(wheel, folder / wheel.name)


def shrink(wheel: Path, target: Path) -> None:
    """Write a wheel without the files of `LEFT_OUT`, compressed with LZMA."""
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w") as out:
        for entry in source.infolist():
            if is_left_out(entry.filename):
                continue
            content = source.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                content = "".join(line for line in lines if not is_left_out(line.split(",")[0])).encode()
            out.writestr(entry, content, compress_type=zipfile.ZIP_LZMA)


def is_left_out(name: str) -> bool:
    """Return whether a file of a wheel is left out."""
    return any(part in name for part in LEFT_OUT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
