"""Tables of recorded learning curves: JSON files of runs that all were evaluated after the same tokens.

```
{"schema_version": 1, "description": "...", "source": "...", "unit": "nats per target token",
 "runs": [{"name": "L12-D768-H12x64-F3072", "seed": 42, "evaluations": [[20971520, 8.4955], ...]}, ...]}
```

`name` is an architecture's; an evaluation is [tokens, loss]. A run may also say its `label`, its `family`, its
`num_params` and its `minutes`. The last evaluation of a run is its result.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from march_search.architecture import Architecture
from march_search.errors import DataError
from march_search.evidence.trials import StudyRecord
from march_search.files import read_json
from march_search.shipped import shipped_path


@dataclass(frozen=True)
class Table:
    """Recorded runs of one data budget."""

    name: str
    description: str
    source: str
    """Where the curves come from."""
    architectures: tuple[Architecture, ...]
    """One a run."""
    seeds: tuple[int, ...]
    families: tuple[str, ...]
    """Which experiment a run belongs to, empty where it does not say."""
    tokens: tuple[int, ...]
    """After which tokens every run was evaluated, ascending; the last is the data budget."""
    losses_NT: npt.NDArray[np.float64]
    """Validation losses in nats, of N runs after T token counts."""

    def without(self, family: str) -> "Table":
        """The runs of all other families."""
        kept = [i for i, one in enumerate(self.families) if one != family]
        picked = {
            field: tuple(getattr(self, field)[i] for i in kept) for field in ("architectures", "seeds", "families")
        }
        return Table(
            self.name, self.description, self.source, tokens=self.tokens, losses_NT=self.losses_NT[kept], **picked
        )


def read_table(text: str) -> Table:
    """The table of a file, or of a shipped name.

    Raises:
        ConfigError: there is no such table, or a name in it is no architecture.
        DataError: it is no table of comparable curves; the message names the run.
    """
    path = shipped_path("tables", text)
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema_version") != 1 or not isinstance(content.get("runs"), list):
        raise DataError(f'{path}: a table is a JSON object with "schema_version": 1 and a list of "runs".')
    runs = content["runs"]
    if len(runs) < 2:
        raise DataError(f"{path}: a table needs at least two runs to choose from, and has {len(runs)}.")
    curves = [_curve(path, run) for run in runs]
    if odd := next((n for n, curve in enumerate(curves) if [t for t, _ in curve] != [t for t, _ in curves[0]]), None):
        raise DataError(
            f"{path}: {runs[odd]['name']} was evaluated after other tokens than {runs[0]['name']}; the runs of a table "
            "are evaluated after the same ones."
        )
    return Table(
        path.stem,
        str(content.get("description", "")),
        str(content.get("source", "")),
        tuple(Architecture.parse(run["name"]) for run in runs),
        tuple(int(run.get("seed", 0)) for run in runs),
        tuple(str(run.get("family", "")) for run in runs),
        tuple(tokens for tokens, _ in curves[0]),
        np.array([[loss for _, loss in curve] for curve in curves]),
    )


def _curve(path: Path, run: Any) -> list[tuple[int, float]]:
    """A run's evaluations, checked."""
    name = run.get("name") if isinstance(run, dict) else None
    if not isinstance(name, str):
        raise DataError(f"{path}: every run needs the name of its architecture.")
    try:
        curve = [(int(tokens), float(loss)) for tokens, loss in run["evaluations"]]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path}: {name} needs evaluations, a list of [tokens, loss].") from None
    rising = all(a < b for (a, _), (b, _) in pairwise(curve))
    if not curve or curve[0][0] < 1 or not rising or not all(math.isfinite(loss) for _, loss in curve):
        raise DataError(f"{path}: the evaluations of {name} need rising tokens and finite losses.")
    return curve


def study_table(study: StudyRecord) -> dict[str, Any]:
    """A finished study's complete trials as the content of a table.

    Raises:
        DataError: fewer than two trials are complete, or they were evaluated after different tokens.
    """
    done = [trial for trial in study.trials if trial.state == "complete"]
    if len(done) < 2:
        raise DataError(f"{study.name} has {len(done)} complete trials; a table needs two.")
    shared = set.intersection(*({line["tokens"] for line in trial.evaluations} for trial in done))
    if not shared or max(shared) < max(trial.tokens for trial in done):
        raise DataError(f"the trials of {study.name} were not evaluated after the same tokens.")
    runs = []
    for trial in done:
        losses = {line["tokens"]: line["loss"] for line in trial.evaluations if line["tokens"] in shared}
        told = {"name": trial.architecture.name, "seed": trial.seed, "num_params": trial.architecture.num_params}
        told |= {"learning_rate": trial.config.training.learning_rate}
        if trial.tokens_per_second:
            told |= {"minutes": round(trial.tokens / trial.tokens_per_second / 60, 2)}
        runs.append(told | {"evaluations": [[tokens, losses[tokens]] for tokens in sorted(losses)]})
    return {
        "schema_version": 1,
        "description": study.settings.get("description", ""),
        "source": f"march-search study {study.name}",
        "unit": "nats per target token",
        "runs": runs,
    }
