"""Files of a study on disk: `ROOT/STUDY/trials/NNNN-NAME-sSEED/`, with token stores in `ROOT/data/`."""

import json
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.architecture.architecture import Architecture
from march_search.architecture.block import layer_counts, source_record
from march_search.architecture.block_file import load_block
from march_search.architecture.parameters import layer_widths, stacks
from march_search.config import BlockConfig, StudyConfig, TrialConfig
from march_search.config.changes import differences, filled, in_current_keys, in_words
from march_search.config.loader import build
from march_search.config.study_config import public_storage
from march_search.errors import ConfigError, DataError, StorageError
from march_search.files.atomic import lock, make_folder
from march_search.files.json_tables import read_table, sealed, write_json
from march_search.trial.own_trials import trial_name

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
        return self.trials / trial_name(number, architecture, seed, learning_rate)

    def of_trial(self, trial: "FrozenTrial") -> Path:
        """Return the folder of one of the study's Optuna trials."""
        attrs = trial.user_attrs
        return self.trial(trial_number(trial), attrs["architecture"], attrs["seed"], attrs.get("learning_rate"))

    def keep_settings(
        self, config: StudyConfig, architectures: Sequence[Architecture], overrides: Sequence[str] | None = None
    ) -> None:
        """Write the study's settings and architectures; once its token store exists, check that they are unchanged.

        A password in the storage URL is not written.

        Args:
            config: Settings of the study.
            architectures: Architectures that it trains.
            overrides: `KEY=VALUE` of the command line, already part of `config`; None keeps those that are recorded.

        Raises:
            ConfigError: If they changed; the message names the keys that differ.
            StorageError: If the folder cannot be written or study.json is damaged.
        """
        make_folder(self.trials)
        settings = _as_json(config) | {"architectures": [a.name for a in architectures]}
        settings["storage"] = public_storage(config.storage)
        with lock(self.path / "lock"):  # otherwise two concurrent starts would each create an id
            record = find_record(self.path)
            if record is not None and "store" in record:  # else the first start failed before any trial
                self._refuse_changes(record, settings)
            changed = (record or {"schema_version": 1, "id": uuid.uuid4().hex}) | {"settings": settings}
            if overrides is not None:
                changed = {k: v for k, v in changed.items() if k != "overrides"}
                changed |= {"overrides": list(overrides)} if overrides else {}
            if changed != record:
                write_record(self.path, changed)

    def check_settings(self, config: StudyConfig) -> None:
        """Check that a started study has the settings `config`; its architectures are not compared.

        Raises:
            ConfigError: If they differ; the message names the keys.
            StorageError: If study.json is missing or damaged.
        """
        record = read_record(self.path)
        if "store" in record:
            self._refuse_changes(record, _as_json(config) | {"architectures": record["settings"].get("architectures")})

    def _refuse_changes(self, record: Mapping[str, Any], settings: dict[str, Any]) -> None:
        """Raise a ConfigError if `settings` differ from those that the study in `record` was started with."""
        if changes := list(differences(filled(_settings(record), _DEFAULTS), settings, _FREE)):
            name = self.path.name
            raise ConfigError(
                f"{name} was started with different settings: {in_words(changes)}. Restore them in its file or as "
                f"KEY=VALUE, or continue it with march-search study resume {name}. For a new study, rename the file or "
                "use another --root."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """Settings with which the study was started, as JSON values with the keys of today."""
        return _settings(read_record(self.path))

    @property
    def overrides(self) -> tuple[str, ...]:
        """Settings that the command line gave when the study was started, as `KEY=VALUE`."""
        return tuple(read_record(self.path).get("overrides", ()))

    @property
    def id(self) -> str:
        """Unique ID that links this folder to its study in a shared storage."""
        return str(read_record(self.path)["id"])

    def config(self) -> StudyConfig:
        """Return the settings with which the study was started.

        Raises:
            StorageError: If the study has not been started or study.json is damaged.
        """
        record = find_record(self.path)
        if record is None:
            raise StorageError(f"{self.path}: no study found; start one with march-search study run.")
        table = {key: value for key, value in _settings(record).items() if key != "architectures"}
        if isinstance(table.get("storage"), str):  # earlier versions dropped two slashes of sqlite:////absolute.db
            table["storage"] = re.sub("^sqlite:(?=/(?!/)|//[^/])", "sqlite://", table["storage"])
        return build(StudyConfig, table, str(self.path / "study.json"))

    @property
    def store(self) -> Path:
        """Path of the token store.

        Raises:
            StorageError: If it has not been prepared yet.
        """
        record = find_record(self.path)
        if record is None or "store_path" not in record:
            raise StorageError(f"{self.path}: the study's token store is not prepared yet; run march-search study run.")
        return self.path / str(record["store_path"])

    def keep_store(self, store: Path) -> None:
        """Record the study's token store, or check that it is the one recorded when the study started.

        Raises:
            DataError: If the text has changed since the study started.
        """
        with lock(self.path / "lock"):
            record = read_record(self.path)
            where = os.path.relpath(store.resolve(), self.path.resolve())
            if "store" not in record:
                write_record(self.path, record | {"store": store.name, "store_path": where})
            elif record["store"] == store.name and record.get("store_path") != where:
                write_record(self.path, record | {"store_path": where})
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
        a = Architecture.parse(architecture)
        if a.block is not None:
            self.load_block()
        trial = TrialConfig(
            architecture=architecture,
            store=relative,
            seed=seed,
            data=config.data,
            training=training,
            devices=config.devices,
            block=block_config(a, folder),
            study=self.id,
            number=int(folder.name.partition("-")[0]),
        )
        write_json(folder / "trial.json", asdict(trial))
        return trial

    def load_block(self) -> None:
        """Load the block of a study that was started with one, which runs the code of its file.

        Raises:
            ConfigError: If the file does not exist or has changed since the study was started.
        """
        block = read_record(self.path).get("space", {}).get("block")
        if block is not None:
            load_block(block["module"], self.path.resolve(), block["sha256"])


def block_config(a: Architecture, folder: Path) -> BlockConfig | None:
    """Return what the process of a trial in `folder` needs to load the block of an architecture; None without one.

    Raises:
        ArchitectureError: If the block is not registered.
        ConfigError: If it was not loaded from a file.
    """
    if a.block is None:
        return None
    module, sha256 = source_record(a.block, folder)
    widths = {width for _, depth in stacks(a) for width in layer_widths(a, depth)}
    counts = tuple((width, a.d_ff, *map(int, layer_counts(a.block, width, a.d_ff))) for width in sorted(widths))
    return BlockConfig(module=module, sha256=sha256, counts=counts)


FIRST_ATTEMPT = "first_attempt"
"""User attribute of a retry: number of the trial whose folder it continues in."""


def trial_number(trial: "FrozenTrial") -> int:
    """Return the number by which users know a trial: Optuna's, and for a retry that of the first attempt."""
    return int(trial.user_attrs.get(FIRST_ATTEMPT, trial.number))


_DEFAULTS = asdict(StudyConfig(space="")) | {"storage": None}

_FREE = frozenset({
    "description", "question", "answer", "storage", "heartbeat_seconds", "max_tokens", "confirm", "reuse_trials",
    "keep_weights", "hang_seconds", "parallel_trials", "tracking",
})  # fmt: skip
"""Settings that may change after a study has started."""

_REMEDY = "Restore it from a copy, or delete the study's folder to start over."

_RECORD = {
    "id?": str,
    "settings": dict,
    "store?": str,
    "store_path?": str,
    "space?": dict,
    "priors?": list,
    "overrides?": list,
}


def read_record(study: Path) -> dict[str, Any]:
    """Return the content of study.json in the folder `study`, without its seal.

    Raises:
        StorageError: If it is missing or damaged.
    """
    record = read_table(study / "study.json", _RECORD, _REMEDY)
    return {key: value for key, value in record.items() if key != "sha256"}


def find_record(study: Path) -> dict[str, Any] | None:
    """Return the content of study.json as `read_record` does; None if there is no such file.

    Raises:
        StorageError: If it is damaged.
    """
    return read_record(study) if os.path.lexists(study / "study.json") else None


def write_record(study: Path, record: Mapping[str, Any]) -> None:
    """Write study.json in the folder `study` with its seal, atomically.

    Raises:
        StorageError: If it cannot be written.
    """
    write_json(study / "study.json", sealed(record))


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in study.json with the keys of today."""
    return in_current_keys(record["settings"], is_started=True)


def _as_json(config: StudyConfig) -> dict[str, Any]:
    """Return settings as JSON values."""
    table: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return table
