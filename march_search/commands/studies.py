"""The study that a STUDY argument names, for every command: its TOML file, its folder and its settings."""

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from march_search.config.loader import build, read_file
from march_search.config.shipped import shipped_folder, shipped_names, shipped_path
from march_search.config.study_config import StudyConfig
from march_search.errors import ConfigError, UsageError, nearest
from march_search.files.json_tables import read_json
from march_search.planning import defaults
from march_search.planning.defaults import DeviceType
from march_search.storage.study_folder import StudyFolder

if TYPE_CHECKING:
    from march_search.analysis.study_record import StudyRecord
    from march_search.ladders.isoflop_record import IsoflopRecord
    from march_search.ladders.ladder_record import LadderRecord


RECORDS = ("study.json", "ladder.json", "isoflop.json")
"""Files that make a folder that of a started study or ladder."""


class LoadedStudy(NamedTuple):
    """The settings of a study."""

    config: StudyConfig
    base: Path
    """Folder that relative paths in the settings start from."""
    notes: tuple[str, ...] = ()
    """Settings that the program chose, one sentence each, without its full stop."""


@dataclass(frozen=True)
class NamedStudy:
    """A study: shipped, in a TOML file, or started."""

    folder: StudyFolder
    """Study folder; it exists once the study has been started."""
    file: Path | None
    """TOML file of the study; None if only the folder of a started study is known."""
    from_file: bool
    """Whether the argument named the TOML file, whose settings are then compared with those that the folder keeps."""
    overrides: tuple[str, ...] = ()
    """Settings that replace those of the TOML file, as `KEY=VALUE`."""

    @property
    def name(self) -> str:
        """Name of the study and of its folder."""
        return self.folder.path.name

    @property
    def argument(self) -> str:
        """STUDY argument for a suggested command: the name of a shipped study, else the path of the TOML file."""
        if self.file is None:
            return self.name
        return _shipped_name(self.file) or str(self.file)

    @property
    def is_started(self) -> bool:
        """Whether the study has been started below its root."""
        return (self.folder.path / "study.json").is_file()

    def load(self) -> tuple[StudyConfig, Path]:
        """Return the settings, and the folder that relative paths in them start from; see `loaded`."""
        loaded = self.loaded()
        return loaded.config, loaded.base

    def loaded(self, device_type: DeviceType | None = None, is_created: bool = False) -> "LoadedStudy":
        """Return the settings, the folder that relative paths in them start from, and what the program chose.

        The settings come from the TOML file, or from the study folder if only that is known. What the file leaves to
        the program is chosen for this machine, or for `device_type`, until the study is started; then it is as
        recorded.

        Args:
            device_type: Type of the devices of a study that is planned or created for another machine.
            is_created: Whether the study is only created here, for workers on other machines.

        Raises:
            ConfigError: If the file is invalid, or if a study that is created here leaves its type of device open.
            UsageError: If an override is not `KEY=VALUE`.
        """
        if self.file is None:
            return LoadedStudy(self.folder.config(), Path())
        table = defaults.study_table(self.file, self.overrides)
        source = " ".join([str(self.file), *(["with", *self.overrides] if self.overrides else [])])
        if self.is_started:
            started = defaults.as_started(table, self.folder.settings)
            return LoadedStudy(build(StudyConfig, started, source), self.file.parent)
        if is_created and device_type is None and defaults.depends_on_machine(table):
            raise ConfigError.of_file(
                source,
                [
                    '[devices] kind is "auto" and this machine has no GPU, so the study would get the precision and '
                    "batch of its CPU: add devices.kind=cuda, or devices.kind=cpu, to the command."
                ],
            )
        table, notes = defaults.filled(table, self.file.parent, device_type)
        return LoadedStudy(build(StudyConfig, table, source), self.file.parent, notes)

    def to_continue(self, first: str = "run") -> tuple[StudyFolder, StudyConfig]:
        """Return the folder and the settings of a started study whose trials are about to be continued.

        Args:
            first: Action of `march-search study` that an error suggests if the study has not been started.

        Raises:
            UsageError: If the study has not been started.
            ConfigError: If the settings in a TOML file that was named differ from those that it was started with.
        """
        self._check_started(first)
        config = self.load()[0] if self.from_file else self.folder.config()
        self.folder.check_settings(config)
        return self.folder, config

    def started(self) -> tuple[StudyFolder, StudyConfig]:
        """Return the folder and the settings of a started study, as it was started.

        A TOML file that was named only provides the storage, whose password the folder does not keep.

        Raises:
            UsageError: If the study has not been started.
        """
        self._check_started()
        config = self.folder.config()
        return self.folder, replace(config, storage=self.load()[0].storage) if self.from_file else config

    def record(self) -> "StudyRecord":
        """Return the trials of a started study, read from their folders.

        Raises:
            UsageError: If the study has not been started.
            StorageError: If it has no trials yet.
        """
        from march_search.analysis.study_record import read_study

        self._check_started()
        return read_study(self.folder.path)

    def ladder(self) -> "LadderRecord | None":
        """Return the ladder with this name that was started; None if there is none.

        Raises:
            StorageError: If its record is damaged.
        """
        from march_search.ladders.ladder_record import find_ladder

        return None if self.is_started else find_ladder(self.folder.path)

    def isoflop(self) -> "IsoflopRecord | None":
        """Return the ladder with compute budgets with this name that was started; None if there is none.

        Raises:
            StorageError: If its record is damaged.
        """
        from march_search.ladders.isoflop_record import find_isoflop

        return None if self.is_started else find_isoflop(self.folder.path)

    def ladder_studies(self) -> tuple[str, ...]:
        """Return the names of the studies of a ladder that was started; none if this is not a ladder."""
        ladder, isoflop = self.ladder(), self.isoflop()
        return tuple(one.study for one in (ladder.sizes if ladder else isoflop.points if isoflop else ()))

    def refuse_isoflop(self, what: str) -> None:
        """Raise a UsageError if this is a ladder with compute budgets, which `what` does not take."""
        if self.isoflop():
            raise UsageError(
                f"{self.name} is a ladder with training_flops, and {what} needs one with tokens per parameter."
            )

    def refuse_other_kind(self, config: StudyConfig) -> None:
        """Refuse to run a file under the name of a study or ladder of another kind, whose results it would hide.

        Raises:
            ConfigError: If there is one with trials of its own.
            StorageError: If the record of a ladder is damaged.
        """
        from march_search.ladders.isoflop_record import find_isoflop
        from march_search.ladders.ladder_record import find_ladder

        ladder, isoflop = find_ladder(self.folder.path), find_isoflop(self.folder.path)
        root = self.folder.path.parent
        started = {
            "a study": self.is_started,
            "a ladder": any((root / s.study / "study.json").is_file() for s in (ladder.sizes if ladder else ())),
            "a ladder with training_flops": any(
                (root / p.study / "study.json").is_file() for p in (isoflop.points if isoflop else ())
            ),
        }
        now = "a study"
        if config.ladder.budgets:
            now = "a ladder with training_flops" if config.ladder.training_flops else "a ladder"
        for kind in (kind for kind, is_started in started.items() if is_started and kind != now):
            raise ConfigError(
                f"{self.name} was started as {kind}, and its file is now that of {now}. Restore the file, or rename it "
                "to start anew."
            )

    def _check_started(self, first: str = "run") -> None:
        """Raise a UsageError if the study has not been started below its root, or is a ladder."""
        if studies := self.ladder_studies():
            from march_search.display.wording import listed

            raise UsageError(f"{self.name} is a ladder: name one of its studies, {listed(studies)}.")
        if not self.is_started:
            raise UsageError(
                f"{self.name} has not been started in {self.folder.path.parent}: run march-search study {first} "
                f"{self.argument} first."
            )


def named_study(text: str, root: Path) -> NamedStudy:
    """Return the study that a STUDY argument names.

    Args:
        text: Path of a TOML file, name of a shipped study, or name or path of the folder of a started study.
        root: Root folder of all studies.

    Raises:
        ConfigError: If a TOML file does not exist, or its name is not a valid study name.
        UsageError: If no study has that name.
    """
    shipped, path = shipped_names("studies"), Path(text)
    if path.suffix == ".toml" or text in shipped:
        file = shipped_path("studies", text)
        return NamedStudy(_folder(file, root), file, from_file=path.suffix == ".toml")
    if any((path / name).is_file() for name in RECORDS):
        return NamedStudy(StudyFolder(path.resolve()), _shipped_file(path.resolve().name), from_file=False)
    if any((root / text / name).is_file() for name in RECORDS) or _shipped_file(text):
        return NamedStudy(StudyFolder.of(root, text), _shipped_file(text), from_file=False)
    known = [*shipped, *(found.parent.name for record in RECORDS for found in root.glob(f"*/{record}"))]
    hint = f"{nearest(text, known)} " if difflib.get_close_matches(text, known, n=1) else ""
    raise UsageError(
        f'unknown study "{text}": it is neither shipped nor started in {root}. {hint}'
        "To see all studies, run march-search study list."
    )


def _folder(file: Path, root: Path) -> StudyFolder:
    """Return the folder of the study in a TOML file: named by the file, for shipped studies with their subfolder.

    Earlier versions left the subfolder out. A study that was started under that name keeps it.
    """
    shipped = _shipped_name(file)
    folder = StudyFolder.of(root, shipped.replace("/", "-") if shipped else file.stem)
    if shipped and "/" in shipped and not folder.path.exists():
        record = read_json(root / file.stem / "study.json")
        settings = record.get("settings") if isinstance(record, dict) else None
        if isinstance(settings, dict) and settings.get("space") == read_file(file).get("space"):
            return StudyFolder.of(root, file.stem)
    return folder


def _shipped_name(file: Path) -> str | None:
    """Return the name of a shipped study, such as `cpu/glu`; None for any other file."""
    studies = shipped_folder("studies").resolve()
    path = file.resolve()
    return str(path.relative_to(studies).with_suffix("")) if path.is_relative_to(studies) else None


def _shipped_file(folder_name: str) -> Path | None:
    """Return the TOML file of the shipped study with this folder name, such as `cpu-glu`; None if there is none."""
    names = {name.replace("/", "-"): name for name in shipped_names("studies")}
    name = names.get(folder_name)
    return None if name is None else shipped_folder("studies") / f"{name}.toml"
