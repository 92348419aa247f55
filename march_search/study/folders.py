"""Where a study lives on disk: `ROOT/STUDY/trials/NNNN-NAME-sSEED/`, prepared text in `ROOT/data/`."""

import json
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.architecture import Architecture
from march_search.config import StudyConfig, TrialConfig
from march_search.errors import ConfigError, DataError, StorageError
from march_search.files import lock, make_folder, read_json, write_json
from march_search.settings import build
from march_search.study.urls import public

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

DEFAULT_ROOT = "runs"
"""Folder that studies are kept in, below the current one."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class StudyFolder:
    """One study's files."""

    path: Path
    """The study's folder."""

    @classmethod
    def of(cls, root: Path, name: str) -> "StudyFolder":
        """The folder of the study `name`.

        Raises:
            ConfigError: a name that is no plain file name.
        """
        if not _NAME.fullmatch(name) or name == "data":
            raise ConfigError(
                f"{name!r} cannot be a study's name: up to 80 letters, digits, '.', '_' and '-', beginning with a "
                "letter or digit, and not 'data'."
            )
        return cls(root / name)

    @property
    def trials(self) -> Path:
        """Folder of the trials."""
        return self.path / "trials"

    def trial(self, number: int, architecture: str, seed: int, learning_rate: float | None = None) -> Path:
        """Folder of one trial; its learning rate is said where it is not the study's own."""
        rate = "" if learning_rate is None else f"-lr{learning_rate:g}"
        return self.trials / f"{number:04d}-{architecture}-s{seed}{rate}"

    def of_trial(self, trial: "FrozenTrial") -> Path:
        """Folder of one of the study's trials, as Optuna has it."""
        told = trial.user_attrs
        return self.trial(trial.number, told["architecture"], told["seed"], told.get("learning_rate"))

    def keep_settings(self, config: StudyConfig, architectures: Sequence[Architecture]) -> None:
        """Writes the study's settings and architectures; once its text is prepared, checks that they are the same.

        A password in the storage's URL is left out.

        Raises:
            ConfigError: they changed; the message names the first key that differs.
            StorageError: the folder cannot be written.
        """
        make_folder(self.trials)
        settings = json.loads(json.dumps(asdict(config))) | {"architectures": [a.name for a in architectures]}
        settings["storage"] = public(config.storage)
        with lock(self.path / "lock"):  # two that start at once would each give it an id
            path = self.path / "study.json"
            kept = read_json(path)
            if kept is None and not path.exists():
                write_json(path, {"schema_version": 1, "id": uuid.uuid4().hex, "settings": settings})
            elif not isinstance(kept, dict):
                raise StorageError(f"{path}: is damaged; restore it, or delete {self.path} to start again.")
            elif "store" not in kept:  # the first start failed before any trial: the settings were mended
                write_json(path, kept | {"settings": settings})
            elif changed := _difference(_filled(kept.get("settings", {}), _DEFAULTS), settings):
                raise ConfigError(
                    f"{self.path.name} was started with other settings: {changed}. Give the file another name, or use "
                    "another --root."
                )
            elif kept["settings"] != settings:
                write_json(path, kept | {"settings": settings})

    @property
    def id(self) -> str:
        """What ties this folder to its study in a storage that others use too."""
        return str(read_json(self.path / "study.json")["id"])

    def config(self) -> StudyConfig:
        """The settings the study was started with.

        Raises:
            StorageError: it has not been started, or its file is damaged.
        """
        kept = read_json(self.path / "study.json")
        if not isinstance(kept, dict) or not isinstance(kept.get("settings"), dict):
            raise StorageError(f"{self.path}: there is no study; start it with march-search study run.")
        table = {key: value for key, value in kept["settings"].items() if key != "architectures"}
        return build(StudyConfig, table, str(self.path / "study.json"))

    @property
    def store(self) -> Path:
        """The prepared text.

        Raises:
            StorageError: none has been prepared yet.
        """
        kept = read_json(self.path / "study.json")
        if not isinstance(kept, dict) or "store_path" not in kept:
            raise StorageError(f"{self.path}: the study's text is not prepared yet: march-search study run.")
        return self.path / str(kept["store_path"])

    def keep_store(self, store: Path) -> None:
        """Remembers which prepared text the study reads; later checks that it is the same.

        Raises:
            DataError: the text changed since the study started.
        """
        with lock(self.path / "lock"):
            path = self.path / "study.json"
            kept = read_json(path)
            where = os.path.relpath(store.resolve(), self.path.resolve())
            if "store" not in kept:
                write_json(path, kept | {"store": store.name, "store_path": where})
            elif kept["store"] == store.name and kept.get("store_path") != where:
                write_json(path, kept | {"store_path": where})
            elif kept["store"] != store.name:
                raise DataError(
                    f"the text has changed since {self.path.name} started ({kept['store']} then, {store.name} now): "
                    "bring it back, or give the study's file another name."
                )

    def write_trial(
        self, folder: Path, config: StudyConfig, architecture: str, seed: int, store: Path, rate: float | None = None
    ) -> TrialConfig:
        """Makes a trial's folder with its trial.json; `rate` is its learning rate, if not the study's."""
        make_folder(folder)
        relative = os.path.relpath(store.resolve(), folder.resolve())
        training = config.training if rate is None else replace(config.training, learning_rate=rate)
        trial = TrialConfig(architecture, relative, seed, config.data, training, config.devices)
        write_json(folder / "trial.json", asdict(trial))
        return trial


_DEFAULTS = asdict(StudyConfig(space="")) | {"storage": None}

_FREE = (
    "description", "question", "answer", "storage", "heartbeat_seconds", "max_tokens", "race", "reuse_trials",
    "keep_weights", "hang_seconds", "parallel_trials",
)  # fmt: skip
"""Settings that may change while a study is under way."""


def _filled(old: Any, defaults: Any) -> Any:
    """`old` with the default of every setting that did not exist when it was written."""
    if not isinstance(old, dict) or not isinstance(defaults, dict):
        return old
    return json.loads(json.dumps(defaults)) | {key: _filled(value, defaults.get(key)) for key, value in old.items()}


def _difference(old: Any, new: Any, where: str = "") -> str:
    """The first key on which two tables of settings differ, in words; empty if none."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            ignored = key in _FREE
            found = "" if ignored else _difference(old.get(key), new.get(key), f"{where}{key}.")
            if found:
                return found
        return ""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        changed = (
            _difference(o, n, f"{where.rstrip('.')}[{i}].") for i, (o, n) in enumerate(zip(old, new, strict=True))
        )
        return next(filter(None, changed), "")
    if isinstance(old, list) and isinstance(new, list):
        return f"{where.rstrip('.')} had {len(old)} entries and has {len(new)}"
    return "" if old == new else f"{where.rstrip('.')} was {old!r} and is {new!r}"
