"""Runs of experiment trackers, through their own libraries: one function per library opens a run of the same interface.

Servers and logins are those of the libraries' own settings, mostly environment variables.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from march_search.architecture.architecture import Architecture
from march_search.files.atomic import lock
from march_search.trial.outcome import FAILURES
from march_search.trial.settings import FREE, read_settings

Rows = list[tuple[int, dict[str, float]]]
"""Metrics to send: the step, and the values by name, in ascending order of steps."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a tracker is told about a trial."""

    project: str
    study: str
    """Name of the study, by which runs are grouped."""
    identity: str
    """ID of the study and number of the trial: the same for every process that continues the trial."""
    name: str
    """Name of the trial's folder."""
    settings: Mapping[str, Any]
    """Architecture and recipe by name, as JSON values, without those that are None."""
    folder: Path
    """Folder of the study."""

    @classmethod
    def of(cls, folder: Path, project: str) -> "RunInfo":
        """Describe the trial in `folder`; raise a MarchSearchError if its trial.json is damaged."""
        trial, study = read_settings(folder), folder.absolute().parent.parent
        shape, number = Architecture.parse(trial.architecture), int(folder.name.partition("-")[0])
        recipe = {name: value for name, value in asdict(trial.training).items() if name not in FREE}
        data = {"corpus": trial.data.corpus, "sequence_length": trial.data.sequence_length}
        own = {"architecture": trial.architecture, "num_params": shape.num_params, "seed": trial.seed}
        settings = {name: value for name, value in (own | asdict(shape) | data | recipe).items() if value is not None}
        return cls(
            project=project,
            study=study.name,
            identity=f"{trial.study or study.name}-{number}",
            name=folder.name,
            settings=json.loads(json.dumps(settings)),
            folder=study,
        )


@dataclass(frozen=True, kw_only=True)
class TrackerRun:
    """An open run of a tracker."""

    log: Callable[[Rows], None]
    """Sends metrics."""
    end: Callable[[str], None]
    """Sends what is left and closes the run in a state: that of the trial's outcome, or `interrupted`."""
    step: int | None = None
    """Last step that the server has, -1 for none; None if it cannot be asked."""
    is_safe: bool = True
    """Whether what `log` took survives the death of this process; if not, only `end` makes it safe."""


def _open_wandb(info: RunInfo) -> TrackerRun:
    """Open or resume a run of Weights & Biases. Its local files are in the study's folder unless WANDB_DIR is set."""
    import wandb

    run = wandb.init(
        project=info.project, group=info.study, id=info.identity, name=info.name, config=dict(info.settings),
        dir=os.environ.get("WANDB_DIR", str(info.folder)), resume="allow",
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    )  # fmt: skip

    def log(rows: Rows) -> None:
        for step, values in rows:
            run.log(values, step=step, commit=True)

    def end(state: str) -> None:
        run.summary["state"] = state
        run.finish(exit_code=int(state in FAILURES))

    return TrackerRun(log=log, end=end, step=None if run.offline else run.step - 1, is_safe=not run.offline)


MLFLOW_STEPS = 30
"""Steps per request to MLflow, which takes at most 1000 values at once."""

LONGEST = 6000
"""Largest number of characters of a parameter in MLflow."""


def _open_mlflow(info: RunInfo) -> TrackerRun:
    """Open or resume a run of MLflow, found by its tag `march_search.id`."""
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    with lock(info.folder / ".tracking-mlflow"):  # two processes cannot create a database or an experiment at once
        client = MlflowClient()
        found = client.get_experiment_by_name(info.project)
        experiment = found.experiment_id if found else client.create_experiment(info.project)
    runs = client.search_runs([experiment], f"tags.`march_search.id` = '{info.identity}'")
    if runs:
        key, step = runs[0].info.run_id, -1
        client.update_run(key, status="RUNNING")
        step = max((metric.step for metric in client.get_metric_history(key, "tokens")), default=-1)
    else:
        tags = {"march_search.id": info.identity, "march_search.study": info.study}
        key, step = client.create_run(experiment, tags=tags, run_name=info.name).info.run_id, -1
        client.log_batch(key, params=[Param(name, str(value)[:LONGEST]) for name, value in info.settings.items()])

    def log(rows: Rows) -> None:
        now = int(time.time() * 1000)
        for start in range(0, len(rows), MLFLOW_STEPS):
            batch = rows[start : start + MLFLOW_STEPS]
            metrics = [Metric(name, value, now, step) for step, values in batch for name, value in values.items()]
            client.log_batch(key, metrics=metrics)

    def end(state: str) -> None:
        client.set_tag(key, "march_search.state", state)
        status = "FAILED" if state in FAILURES else "KILLED" if state == "interrupted" else "FINISHED"
        client.set_terminated(key, status)

    return TrackerRun(log=log, end=end, step=step)


TRACKIO_SECONDS = 1.0
"""Seconds to wait until trackio's own thread, which writes twice per second, has stored what was logged."""


def _open_trackio(info: RunInfo) -> TrackerRun:
    """Open or resume a run of trackio, which knows runs by their names."""
    import trackio

    run = trackio.init(
        project=info.project, name=f"{info.study}-{info.name}-{info.identity[:6]}", group=info.study, resume="allow",
        config=dict(info.settings), embed=False, auto_log_gpu=False, auto_log_cpu=False,
    )  # fmt: skip

    def log(rows: Rows) -> None:
        for step, values in rows:
            run.log(values, step=step)
        time.sleep(TRACKIO_SECONDS)

    return TrackerRun(log=log, end=lambda _: run.finish())


OPENERS: dict[str, Callable[[RunInfo], TrackerRun]] = {
    "wandb": _open_wandb,
    "mlflow": _open_mlflow,
    "trackio": _open_trackio,
}
"""Function of each tracker that opens or resumes a run."""
