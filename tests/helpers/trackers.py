"""What trackers stored without a server, read back: the files of Weights & Biases, MLflow's and trackio's databases."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Steps = list[tuple[int, dict[str, float]]]


@dataclass
class StoredRun:
    """A run of a tracker."""

    group: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    steps: Steps = field(default_factory=list)
    """Every step in the order of storage, as often as it was stored."""
    state: str | None = None


def offline(folder: Path) -> dict[str, str]:
    """Return environment variables with which all trackers store below `folder`, without a server."""
    return {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "TRACKIO_DIR": str(folder / "trackio"),
    }


def stored_runs(tracker: str, folder: Path, project: str) -> list[StoredRun]:
    """Return the runs that a tracker stored below `folder`, in the order of their trials."""
    return {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}[tracker](folder, project)


def _wandb(folder: Path, project: str) -> list[StoredRun]:
    """Merge the offline files of each run by its ID, as `wandb sync` does."""
    runs: dict[str, StoredRun] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime_ns):
        run = StoredRun()
        for record in _records(path.read_bytes()):
            if record.HasField("run"):
                assert record.run.project == project
                run = runs.setdefault(record.run.run_id, run)
                run.group = record.run.run_group
                run.settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif record.HasField("history"):
                values = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
                step = values["_step"]
                run.steps.append((step, {name: value for name, value in values.items() if name[0] != "_"}))
            elif record.HasField("summary"):
                for item in record.summary.update:
                    run.state = json.loads(item.value_json) if item.key == "state" else run.state
    return [runs[key] for key in sorted(runs, key=lambda key: int(key.split("-")[1]))]


def _records(data: bytes) -> Iterator[Any]:
    """Yield the records of a file of Weights & Biases: protocol buffers in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    block, header, at, parts = 32768, 7, 7, b""
    while at + header <= len(data):
        if block - at % block < header:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + header])
        parts += data[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


MLFLOW = """
import json, sys
from mlflow.tracking import MlflowClient
client, runs = MlflowClient(), []
experiment = client.get_experiment_by_name(sys.argv[1]).experiment_id
for run in client.search_runs([experiment], order_by=["attributes.run_name"]):
    metrics = [(m.step, name, m.value) for name in run.data.metrics
               for m in client.get_metric_history(run.info.run_id, name)]
    runs.append([run.data.tags, run.info.status, run.data.params, metrics])
print(json.dumps(runs))
"""


def _mlflow(folder: Path, project: str) -> list[StoredRun]:
    """Ask MLflow's client, in a process of its own because its libraries warn."""
    asked = subprocess.run(
        [sys.executable, "-c", MLFLOW, project], env=os.environ | offline(folder), capture_output=True, check=True
    )
    runs = []
    for tags, status, settings, metrics in json.loads(asked.stdout.splitlines()[-1]):
        state = tags["march_search.state"]
        assert status == {"complete": "FINISHED", "pruned": "FINISHED", "interrupted": "KILLED"}.get(state, "FAILED")
        steps: Steps = []
        for step, name, value in sorted(metrics):
            if not steps or steps[-1][0] != step or name in steps[-1][1]:
                steps.append((step, {}))
            steps[-1][1][name] = value
        runs.append(StoredRun(tags["march_search.study"], settings, steps, state))
    return runs


def _trackio(folder: Path, project: str) -> list[StoredRun]:
    """Read the project's database, because trackio's own functions do not return single steps."""
    with sqlite3.connect(folder / "trackio" / f"{project}.db") as database:
        runs = []
        for key, text in database.execute("SELECT run_id, config FROM configs ORDER BY run_name").fetchall():
            rows = database.execute("SELECT step, metrics FROM metrics WHERE run_id = ? ORDER BY id", (key,))
            settings = json.loads(text)
            runs.append(StoredRun(settings["_Group"], settings, [(step, json.loads(row)) for step, row in rows]))
    database.close()
    return runs
