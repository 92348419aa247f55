"""The files of a trial: seals of metric lines, settings that a trial began with, and whose folder it is."""

import json
import random
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers.damage import HOSTILE, change_file, flip_bit
from helpers.trials import DATA, TINY, TINY_TRAINING, MakeTrial, result, run_trial, stop_at_step, trial_config

from march_search.config import TrialConfig
from march_search.errors import ConfigError, DataError, StorageError, TrialError
from march_search.files.json_tables import read_table, sealed, write_json
from march_search.training import launch, micro_batch, weights
from march_search.training.metrics_file import MetricsFile
from march_search.training.timing import _known_peaks
from march_search.trial.metrics import MetricsTail, read_metrics, sealed_line
from march_search.trial.own_trials import foreign, trial_name
from march_search.trial.settings import check_unchanged, keep_started

CONFIG = TrialConfig(architecture=TINY, store="../store-1", seed=3, data=DATA, training=TINY_TRAINING)


def write_metrics(folder: Path, steps: int) -> Path:
    """Write sealed lines, as a trial does, and return the file."""
    lines = [{"kind": "train", "step": n, "tokens": 256 * n, "loss": 6 - n / 100} for n in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(map(sealed_line, lines)))
    return folder / "metrics.jsonl"


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_no_program_wrote_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(StorageError) as error:
        read_table(path, {"loss": float}, "Train it again.")
    text = str(error.value)
    assert text.startswith(f"{path}: is damaged: it ")
    assert text.endswith(". Train it again.")
    assert "\n" not in text
    assert len(text) < len(str(path)) + 200


def test_a_seal_detects_every_flipped_bit_that_changes_a_value(tmp_path: Path) -> None:
    path, rng = tmp_path / "outcome.json", random.Random(0)
    table = {"state": "complete", "loss": 4.25, "tokens": 4096}
    for _ in range(300):
        write_json(path, sealed(table))
        flip_bit(path, rng)
        try:
            found = read_table(path, {"state": str})
        except StorageError:
            continue
        assert {key: found.get(key) for key in table} == table  # white space, or the name of the seal


def test_a_flipped_bit_in_a_metrics_line_costs_that_line_alone(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(200):
        path = write_metrics(tmp_path, 20)
        whole = read_metrics(tmp_path).lines
        assert len(whole) == 20
        line = path.read_bytes()[: flip_bit(path, rng)].count(b"\n") + 1
        found = read_metrics(tmp_path)
        assert set(found.damaged) <= {line, line + 1}
        assert all(kept in whole for kept in found.lines)
        assert len(found.lines) >= 18  # a flipped line end damages two lines
        assert tuple(MetricsTail(tmp_path).new_lines()) == found.lines


def test_lines_of_earlier_versions_need_no_seal_but_sealed_files_do(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    old = json.dumps({"kind": "train", "tokens": 256, "loss": 5.0})
    path.write_text(f"{old}\n")
    assert read_metrics(tmp_path).damaged == ()
    path.write_text(sealed_line({"kind": "train", "tokens": 128, "loss": 6.0}) + f"{old}\n")
    assert read_metrics(tmp_path).damaged == (2,)
    assert read_metrics(tmp_path).fault == f"{path}: line 2 is damaged and was left out."


def test_a_resumed_trial_keeps_damaged_lines_and_seals_old_ones(tmp_path: Path) -> None:
    path = write_metrics(tmp_path, 6)
    lines = path.read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace("5.98", "5.93")
    path.write_text("".join(lines))
    MetricsFile(path, 4).close()
    assert path.read_text() == "".join(lines[:4])
    assert read_metrics(tmp_path).damaged == (2,)
    path.write_text("".join(json.dumps(line) + "\n" for line in read_metrics(tmp_path).lines))
    MetricsFile(path, 4).close()
    assert '"crc"' in path.read_text()
    assert [line["step"] for line in read_metrics(tmp_path).lines] == [1, 3, 4]


def test_settings_that_changed_since_the_start_are_named(tmp_path: Path) -> None:
    keep_started(tmp_path, CONFIG)
    check_unchanged(tmp_path, CONFIG)
    moved = replace(CONFIG, store="/elsewhere/store-1", training=replace(CONFIG.training, keep_weights=False))
    check_unchanged(tmp_path, replace(moved, study="x", number=1))
    changed = replace(CONFIG, seed=4, training=replace(CONFIG.training, learning_rate=0.5))
    words = (
        r"trial\.json: differs .*: seed was 3 and is now 4; training\.learning_rate was 0\.01 and is now 0\.5\. Restore"
    )
    with pytest.raises(ConfigError, match=words):
        check_unchanged(tmp_path, changed)
    change_file(tmp_path / "started.json", settings=asdict(changed))
    with pytest.raises(ConfigError, match=r"started\.json: is damaged: it does not match its sha256"):
        check_unchanged(tmp_path, changed)


@pytest.mark.parametrize("change", [{"learning_rate": 0.02}, {"weight_decay": 0.5}])
def test_a_stopped_trial_is_not_resumed_with_other_settings(make_trial: MakeTrial, change: dict[str, float]) -> None:
    folder = make_trial("changed")
    write_json(folder / "started.json", sealed({"settings": asdict(trial_config(folder))}))
    table = json.loads((folder / "trial.json").read_text())
    change_file(folder / "trial.json", training=table["training"] | change)
    ended = run_trial(folder)
    [(key, value)] = change.items()
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert f"training.{key} was {table['training'][key]} and is now {value}" in ended.stderr
    assert not (folder / "metrics.jsonl").exists()


@pytest.mark.torture
def test_a_killed_trial_is_resumed_with_its_own_settings_alone(make_trial: MakeTrial, undisturbed: Path) -> None:
    folder = make_trial("killed")
    stop_at_step(folder, 20)
    good = (folder / "trial.json").read_text()
    change_file(folder / "trial.json", seed=1)
    assert run_trial(folder).returncode == 2
    (folder / "trial.json").write_text(good)
    assert run_trial(folder).returncode == 0
    assert result(folder)["loss"] == result(undisturbed)["loss"]


def test_a_complete_trial_seals_its_evidence(undisturbed: Path) -> None:
    record = result(undisturbed)
    assert {"validation_sha256", "weights_sha256", "sha256"} <= record.keys()
    assert read_metrics(undisturbed).damaged == ()
    assert '"crc"' in (undisturbed / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads((undisturbed / "started.json").read_text())["settings"]["architecture"] == TINY


def test_changed_weights_are_not_exported(undisturbed: Path, tmp_path: Path) -> None:
    for name in ("result.json", weights.NAME):
        shutil.copy(undisturbed / name, tmp_path / name)
    assert weights.load(tmp_path)
    data = bytearray((tmp_path / weights.NAME).read_bytes())
    data[-100] ^= 1
    (tmp_path / weights.NAME).write_bytes(data)
    with pytest.raises(DataError, match=r"weights\.safetensors: does not match its sha256 in result\.json"):
        weights.load(tmp_path)


@pytest.mark.parametrize("content", [*HOSTILE.values(), '{"micro_batch": 0, "halvings": 0}', '{"micro_batch": "2"}'])
def test_a_damaged_micro_batch_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "micro_batch.json").write_text(content)
    with pytest.raises(
        ConfigError, match=r"micro_batch\.json: is damaged: .* Delete it to choose the micro batch again\."
    ):
        micro_batch.halvings(tmp_path)


@pytest.mark.parametrize("content", [*HOSTILE.values(), '{"cpu": -1}', '{"cpu": "fast"}'])
def test_a_damaged_peak_is_measured_again(tmp_path: Path, content: str) -> None:
    path = tmp_path / "device_peak.json"
    path.write_text(content)
    assert "cpu" not in _known_peaks(path)
    write_json(path, sealed({"cpu": 1e9}))
    assert _known_peaks(path) == {"cpu": 1e9}


@pytest.mark.parametrize("content", [*HOSTILE.values(), '{"stop": 99}', '{"stop": "15"}'])
def test_a_damaged_order_neither_stops_nor_kills_a_launched_rank(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "LOOK_SECONDS", 0)
    launch.announce(tmp_path, {"id": "a"})
    with (tmp_path / "lock").open("w"):
        orders = launch.StopOrders(tmp_path)
        if content in ("{}", HOSTILE["400 digits"]):
            return
        (tmp_path / "launch.json").write_text(content)
        assert orders.signum() == 0
        with pytest.raises(TrialError, match=r"launch\.json: is damaged"):
            launch.StopOrders(tmp_path)


def test_a_folder_is_a_trials_own_by_name_number_and_study(tmp_path: Path) -> None:
    own = replace(CONFIG, study="s", number=7)
    folder = tmp_path / trial_name(7, TINY, 3)
    assert foreign(folder, own, "s") == ""
    assert foreign(tmp_path / trial_name(7, TINY, 3, 1e-2), own, "s") == ""
    assert foreign(folder, CONFIG, "s") == ""  # of an earlier version
    assert foreign(tmp_path / trial_name(8, TINY, 3), own, "s") == "a copy of trial 7"
    assert foreign(folder, own, "other") == "a trial of another study"
    for name in (trial_name(7, TINY, 4), trial_name(7, TINY, 3, 2e-2), "00007-x"):
        assert foreign(tmp_path / name, own, "s") == "its trial.json describes another trial"
