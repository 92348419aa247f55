"""Locate spaces, studies and tables: the files shipped with the package, or the user's own files."""

from pathlib import Path
from typing import Literal

from march_search.errors import ConfigError, nearest

Kind = Literal["spaces", "studies", "tables"]


def shipped_folder(kind: Kind) -> Path:
    """Return the folder of shipped files: inside the installed package, or at the top of the source tree."""
    package = Path(__file__).parent.parent
    installed = package / "shipped_files" / kind
    return installed if installed.is_dir() else package.parent / kind


def shipped_names(kind: Kind) -> list[str]:
    """Return the names of the shipped files, including subfolders: `cpu-demo`, `march-2023/...`."""
    folder = shipped_folder(kind)
    return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob(f"*{_SUFFIX[kind]}"))


def shipped_path(kind: Kind, name: str) -> Path:
    """Return the path of the existing file `name`, or of the shipped file with that name.

    `studies/cpu-demo.toml` refers to the shipped study even if the current folder has no `studies/`.

    Raises:
        ConfigError: If neither exists.
    """
    path = Path(name)
    if path.suffix in (".toml", ".json") and path.is_file():
        return path
    known = shipped_names(kind)
    word = name.removeprefix(f"{kind}/").removesuffix(_SUFFIX[kind])
    if word in known:
        return shipped_folder(kind) / f"{word}{_SUFFIX[kind]}"
    if path.suffix in (".toml", ".json"):
        raise ConfigError(
            f"{name}: file not found, and no {_SINGULAR[kind]} of that name is shipped. {nearest(word, known)}"
        )
    raise ConfigError(f'unknown {_SINGULAR[kind]} "{name}". {nearest(word, known)}')


_SINGULAR: dict[Kind, str] = {"spaces": "space", "studies": "study", "tables": "table of recorded curves"}

_SUFFIX: dict[Kind, str] = {"spaces": ".toml", "studies": ".toml", "tables": ".json"}
