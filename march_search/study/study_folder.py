"""Files of a study on disk: `ROOT/STUDY/trials/NNNN-NAME-sSEED/`, with token stores in `ROOT/data/`."""

import json
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.architecture.architecture import Architecture
from march_search.config import StudyConfig, TrialConfig
from march_search.config.loader import build
from march_search.config.study_config import public_storage
from march_search.errors import ConfigError, DataError, StorageError
from march_search.files import lock, make_folder, read_json, write_json

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class StudyFolder:
    """The study folder of one study."""

    path: Path
    """Path of the study folder."""

    @classmethod
    def of(cls, root: Path, name: str) -> "StudyFolder":
        """Return the folder of the study `name`.

        Raises:
            ConfigError: If `name` is not a valid study name.
        """
        if not _NAME.fullmatch(name) or name == "data":
            raise ConfigError(
                f"{name!r} is not a valid study name; use up to 80 letters, digits, '.', '_' and '-', starting with a "
                "letter or digit, and not 'data'."
            )
        return cls(root / name)

    @property
    def trials(self) -> Path:
        """Folder that contains the trial folders."""
        return self.path / "trials"

    def trial(self, number: int, architecture: str, seed: int, learning_rate: float | None = None) -> Path:
        """Return the folder of one trial; `learning_rate` is None for the study's own."""
        rate = "" if learning_rate is None else f"-lr{learning_rate:g}"
        return self.trials / f"{number:04d}-{architecture}-s{seed}{rate}"

    def of_trial(self, trial: "FrozenTrial") -> Path:
        """Return the folder of one of the study's Optuna trials."""
        attrs = trial.user_attrs
        return self.trial(trial.number, attrs["architecture"], attrs["seed"], attrs.get("learning_rate"))

    def keep_settings(self, config: StudyConfig, architectures: Sequence[Architecture]) -> None:
        """Write the study's settings and architectures; once its token store exists, check that they are unchanged.

        A password in the storage URL is not written.

        Raises:
            ConfigError: If they changed; the message names the first key that differs.
            StorageError: If the folder cannot be written or study.json is damaged.
        """
        make_folder(self.trials)
        settings = json.loads(json.dumps(asdict(config))) | {"architectures": [a.name for a in architectures]}
        settings["storage"] = public_storage(config.storage)
        with lock(self.path / "lock"):  # otherwise two concurrent starts would each create an id
            path = self.path / "study.json"
            record = read_json(path)
            if record is None and not path.exists():
                write_json(path, {"schema_version": 1, "id": uuid.uuid4().hex, "settings": settings})
            elif not isinstance(record, dict):
                raise StorageError(f"{path} is damaged; restore it, or delete {self.path} to start over.")
            elif "store" not in record:  # the first start failed before any trial: settings fixed
                write_json(path, record | {"settings": settings})
            elif changed := _difference(_filled(record.get("settings", {}), _DEFAULTS), settings):
                raise ConfigError(
                    f"{self.path.name} was started with different settings: {changed}. Rename the study's file to "
                    "start a new study, or use another --root."
                )
            elif record["settings"] != settings:
                write_json(path, record | {"settings": settings})

    @property
    def id(self) -> str:
        """Unique ID that links this folder to its study in a shared storage."""
        return str(read_json(self.path / "study.json")["id"])

    def config(self) -> StudyConfig:
        """Return the settings with which the study was started.

        Raises:
            StorageError: If the study has not been started or study.json is damaged.
        """
        record = read_json(self.path / "study.json")
        if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
            raise StorageError(f"{self.path}: no study found; start one with march-search study run.")
        table = {key: value for key, value in record["settings"].items() if key != "architectures"}
        return build(StudyConfig, table, str(self.path / "study.json"))

    @property
    def store(self) -> Path:
        """Path of the token store.

        Raises:
            StorageError: If it has not been prepared yet.
        """
        record = read_json(self.path / "study.json")
        if not isinstance(record, dict) or "store_path" not in record:
            raise StorageError(f"{self.path}: the study's token store is not prepared yet; run march-search study run.")
        return self.path / str(record["store_path"])

    def keep_store(self, store: Path) -> None:
        """Record the study's token store, or check that it is the one recorded when the study started.

        Raises:
            DataError: If the text has changed since the study started.
        """
        with lock(self.path / "lock"):
            path = self.path / "study.json"
            record = read_json(path)
            where = os.path.relpath(store.resolve(), self.path.resolve())
            if "store" not in record:
                write_json(path, record | {"store": store.name, "store_path": where})
            elif record["store"] == store.name and record.get("store_path") != where:
                write_json(path, record | {"store_path": where})
            elif record["store"] != store.name:
                raise DataError(
                    f"the text has changed since {self.path.name} started ({record['store']} then, {store.name} now); "
                    "restore it, or rename the study's file to start a new study."
                )

    def write_trial(
        self, folder: Path, config: StudyConfig, architecture: str, seed: int, store: Path, rate: float | None = None
    ) -> TrialConfig:
        """Create a trial folder with its trial.json; `rate` is its learning rate, None for the study's own."""
        make_folder(folder)
        relative = os.path.relpath(store.resolve(), folder.resolve())
        training = config.training if rate is None else replace(config.training, learning_rate=rate)
        trial = TrialConfig(
            architecture=architecture,
            store=relative,
            seed=seed,
            data=config.data,
            training=training,
            devices=config.devices,
        )
        write_json(folder / "trial.json", asdict(trial))
        return trial


_DEFAULTS = asdict(StudyConfig(space="")) | {"storage": None}

_FREE = (
    "description", "question", "answer", "storage", "heartbeat_seconds", "max_tokens", "race", "reuse_trials",
    "keep_weights", "hang_seconds", "parallel_trials",
)  # fmt: skip
"""Settings that may change after a study has started."""


def _filled(old: Any, defaults: Any) -> Any:
    """Return `old` with defaults for all settings that did not exist when it was written."""
    if not isinstance(old, dict) or not isinstance(defaults, dict):
        return old
    return json.loads(json.dumps(defaults)) | {key: _filled(value, defaults.get(key)) for key, value in old.items()}


def _difference(old: Any, new: Any, where: str = "") -> str:
    """Describe the first key whose value differs between two settings; return an empty string if none does."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            ignored = key in _FREE
            difference = "" if ignored else _difference(old.get(key), new.get(key), f"{where}{key}.")
            if difference:
                return difference
        return ""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        changed = (
            _difference(o, n, f"{where.rstrip('.')}[{i}].") for i, (o, n) in enumerate(zip(old, new, strict=True))
        )
        return next(filter(None, changed), "")
    if isinstance(old, list) and isinstance(new, list):
        return f"{where.rstrip('.')} had {len(old)} entries and now has {len(new)}"
    return "" if old == new else f"{where.rstrip('.')} was {old!r} and is now {new!r}"
