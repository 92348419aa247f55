"""The keys of a study file with their types, defaults and meaning, read from the docstrings of the settings classes."""

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

from march_search.config.data_config import DataConfig
from march_search.config.devices_config import DevicesConfig
from march_search.config.ladder_config import ArmConfig, LadderConfig
from march_search.config.search_config import ConfirmConfig, PrunerConfig, SearchConfig
from march_search.config.study_config import StudyConfig
from march_search.config.tracking_config import TrackingConfig
from march_search.config.training_config import TrainingConfig

TABLES: dict[str, type] = {
    "": StudyConfig,
    "search": SearchConfig,
    "pruner": PrunerConfig,
    "confirm": ConfirmConfig,
    "ladder": LadderConfig,
    "ladder.arms": ArmConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "devices": DevicesConfig,
    "tracking": TrackingConfig,
}
"""Settings classes by the name of their table in a study's TOML file; the first has the keys above all tables."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """A key of a study file."""

    table: str
    """Name of its table; empty for the keys above all tables."""
    name: str
    """Name of the key in its table."""
    kind: str
    """Type in words."""
    default: str | None
    """Default as a TOML file writes it, `unset` for Python's None; None if the key is required."""
    text: str
    """Docstring: the meaning and the limits."""

    @property
    def path(self) -> str:
        """Dotted path, such as `training.tokens`."""
        return f"{self.table}.{self.name}".lstrip(".")


def keys_of(table: str) -> Iterator[Key]:
    """Yield the keys of a table in `TABLES`, in the order of the file."""
    cls = TABLES[table]
    [tree] = [n for n in ast.parse(inspect.getsource(cls)).body if isinstance(n, ast.ClassDef)]
    defaults = {field.name: field for field in dataclasses.fields(cls)}
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name = node.target.id
        if f"{table}.{name}".lstrip(".") in TABLES:
            continue
        has_doc = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        text = inspect.cleandoc(str(following.value.value)) if has_doc else ""  # type: ignore[union-attr]
        kind = _kind(ast.unparse(node.annotation))
        yield Key(table=table, name=name, kind=kind, default=_default(defaults[name]), text=text)


def table_summary(table: str) -> str:
    """Return what a table sets."""
    return inspect.cleandoc(TABLES[table].__doc__ or "")


def _kind(annotation: str) -> str:
    """Return a type annotation in words."""
    optional = annotation.endswith(" | None")
    text = annotation.removesuffix(" | None")
    words = {
        "str": "Text",
        "NumberText": "Text or number",
        "int": "Whole number",
        "float": "Number",
        "bool": "`true` or `false`",
        "dict[str, Any]": "Table, or the path of a JSON or Hjson file",
        "dict[str, float]": "Table of numbers",
        "dict[str, object]": "Table of values",
        "tuple[ArmConfig, ...]": "List of tables",
        "tuple[NumberText, ...]": "List of texts or numbers",
        "tuple[str, ...]": "List of texts",
        "tuple[int, ...]": "List of whole numbers",
        "tuple[float, ...]": "List of numbers",
    }
    if text.startswith("Literal["):
        text = "One of " + ", ".join(f"`{_toml(choice)}`" for choice in ast.literal_eval(f"[{text[8:-1]}]"))
    return words.get(text, text) + (", optional" if optional else "")


def _toml(value: object) -> str:
    """Return a value as a TOML file writes it."""
    return f'"{value}"' if isinstance(value, str) else str(value)


def _default(field: "dataclasses.Field[Any]") -> str | None:
    """Return a default as a TOML file writes it; None if the key is required, `unset` for Python's None."""
    if field.default_factory is not dataclasses.MISSING:
        return "{}"
    value = field.default
    if value is dataclasses.MISSING:
        return None
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return f"{value:_}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else _toml(value)
