"""Load a user's block from a file, an entry point or a module. This runs the code of that file."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from march_search.architecture.block import Block, Source, register_block
from march_search.errors import ConfigError

GROUP = "march_search.blocks"
"""Group of entry points that name blocks."""

_LOADED: dict[tuple[str, str], Block] = {}
"""Blocks by file and SHA-256, so that a file is run once."""


def load_block(module: str, folder: Path, sha256: str | None = None) -> Block:
    """Return the object `BLOCK` of a file, an entry point or a module, and register it.

    Args:
        module: Path of a file that ends in `.py`, relative to `folder`; else the name of an entry point in `GROUP`, or
            a module that can be imported.
        folder: Folder of the space, study or trial that names it.
        sha256: SHA-256 that the file must have; None accepts any. It is compared before the file is run.

    Raises:
        ConfigError: If the file does not exist, has changed, fails, or has no block.
    """
    path, content = read_block(module, folder, sha256)
    digest = hashlib.sha256(content).hexdigest()
    is_file = module.endswith(".py")
    source = Source(str(path) if is_file else module, digest, is_file)
    key = source.module, digest
    if key not in _LOADED:
        try:
            found = _run(path, content, digest) if is_file else _import(module)
        except Exception as error:  # whatever the user's file raises
            reason = " ".join(str(error).split())
            raise ConfigError(f"[model]: {path}: cannot be loaded: {type(error).__name__}: {reason}") from None
        if not isinstance(found, Block):
            raise ConfigError(f"[model]: {path}: has no block: define BLOCK = march_search.Block(...).")
        _LOADED[key] = replace(found, source=source)
    register_block(_LOADED[key])
    return _LOADED[key]


def read_block(module: str, folder: Path, sha256: str | None = None) -> tuple[Path, bytes]:
    """Return the path and the content of a block's file, without running it; arguments and errors as in `load_block`.

    Raises:
        ConfigError: If the file does not exist or has changed.
    """
    path = (folder / module).resolve() if module.endswith(".py") else _path_of(module)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"[model]: {path}: cannot be read: {error.strerror}.") from None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ConfigError(
            f"[model]: {path} has changed since it was first used here: restore it, or start a new study."
        )
    return path, content


def _run(path: Path, content: bytes, digest: str) -> Any:
    """Run exactly this content of a file as a module of its own, and return its `BLOCK`."""
    module = ModuleType(f"march_search_block_{digest[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # pickles and dataclasses look a module up by its name
    exec(compile(content, str(path), "exec"), module.__dict__)
    return getattr(module, "BLOCK", None)


def _path_of(module: str) -> Path:
    """Return the file of an entry point or a module, without running it.

    Raises:
        ConfigError: If there is none.
    """
    name = next((point.module for point in _points(module)), module)
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin:
        raise ConfigError(
            f'[model]: module "{module}" is neither a file that ends in .py, nor an entry point of {GROUP}, nor a '
            "module that can be imported."
        )
    return Path(spec.origin)


def _points(module: str) -> Iterable[Any]:
    """Return the entry points with this name."""
    from importlib.metadata import entry_points  # here, because it takes as long to load as a tenth of numpy

    return entry_points(group=GROUP, name=module)


def _import(module: str) -> Any:
    """Return the block of an entry point or a module."""
    for point in _points(module):
        found = point.load()
        return getattr(found, "BLOCK", found)
    return getattr(importlib.import_module(module), "BLOCK", None)
