"""Folders, time and devices of one part of the acceptance run; its child processes, table and JSON file."""

import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from gpu_acceptance.scale import SCALES, Scale
from march_search.config import DataConfig, DevicesConfig, TrainingConfig, TrialConfig
from march_search.cost.devices import Device, parse_device, this_cpu
from march_search.display.tables import Column, console, print_table
from march_search.doctor.bench import Bench, in_words
from march_search.errors import UsageError
from march_search.files.json_tables import write_json

RESERVE_SECONDS = 5.0
"""Time kept free at the end of a part for its table."""

UNFINISHED = "unfinished.json"
"""File with the rows of a part that has not ended."""

CORPUS = "corpus"
"""Folder of text in the bundle and in the output; a study's file beside it names it like this."""

Row = dict[str, Any]


@dataclass(kw_only=True)
class AcceptanceRun:
    """What all experiments of a part need."""

    out: Path
    """Folder of the results."""
    scale_name: str
    kind: str
    """`cuda` or `cpu`."""
    store: Path
    """Token store of all trials."""
    deadline: float
    """Time of `time.monotonic` at which the part must end."""
    known: Device | None = None
    """The device, once a child process has looked at it."""
    constants: dict[str, float] = field(default_factory=dict)
    """Measured constants of the cost model, in part 2."""
    rows: list[Row] = field(default_factory=list)
    """Rows of the table so far."""
    notes: list[str] = field(default_factory=list)
    """Lines below the table."""

    @property
    def scale(self) -> Scale:
        """What is measured."""
        return SCALES[self.scale_name]

    @property
    def left(self) -> float:
        """Seconds until the part must end."""
        return self.deadline - RESERVE_SECONDS - time.monotonic()

    def bench(self, seconds: float = 600) -> Bench:
        """Return the doctor's bench, for child processes of at most `seconds`, and not beyond the end of the part."""
        folder = self.out / "work"
        folder.mkdir(exist_ok=True)
        return Bench(folder, max(1.0, min(seconds, self.left)))

    def child(self, work: str, name: str, seconds: float = 600, **arguments: Any) -> dict[str, Any]:
        """Run a function of `gpu_acceptance.work.WORKS` in its own process and return its result.

        Raises:
            TrialError: If the process failed or exceeded the time limit.
        """
        bench = self.bench(seconds)
        folder = bench.folder / name
        shutil.rmtree(folder, ignore_errors=True)  # left by an earlier run
        folder.mkdir()
        common = {"scale": self.scale_name, "kind": self.kind, "store": str(self.store), "out": str(self.out)}
        write_json(folder / "arguments.json", common | arguments)
        return bench.run((sys.executable, "-m", "gpu_acceptance.work", work), folder, "found.json")

    def attempt(self, name: str, seconds: float, experiment: Callable[[], Row | Sequence[Row]]) -> bool:
        """Add the rows of an experiment that takes about `seconds`; if it fails or time is short, a row that says so.

        Returns:
            Whether it ran and did not raise.
        """
        if self.left < seconds:
            self.add(
                {"name": name, "result": "skipped", "finding": f"needs about {seconds:.0f} s, {self.left:.0f} left"}
            )
            return False
        began = time.monotonic()
        try:
            found = experiment()
        except Exception as error:
            self.add({"name": name, "result": "failed", "finding": in_words(error)})
            return False
        for row in [found] if isinstance(found, dict) else found:
            self.add({"name": name, "result": "ok"} | row | {"seconds": round(time.monotonic() - began, 1)})
        return True

    def add(self, row: Row) -> None:
        """Add a row, print it to stderr and keep it in unfinished.json, so that a run that is cut off leaves rows."""
        self.rows.append(row)
        write_json(self.out / UNFINISHED, {"rows": self.rows})
        print(f"{self.deadline - time.monotonic():5.0f} s left: {json.dumps(row, default=str)[:300]}", file=sys.stderr)

    def finish(self, part: str, columns: Sequence[Column], head: dict[str, Any] | None = None) -> int:
        """Print the table, write `part`.json, and return 1 if a row failed, else 0."""
        failed = sum(row["result"] == "failed" for row in self.rows)
        skipped = sum(row["result"] == "skipped" for row in self.rows)
        title = f"{part}: {len(self.rows)} rows, {failed} failed, {skipped} skipped, on {self.device().name}"
        print_table(console(), self.rows, columns, title, self.notes)
        table = {"part": part, "scale": self.scale_name, "device": asdict(self.device()), "rows": self.rows}
        write_json(self.out / f"{part}.json", table | {"notes": self.notes} | (head or {}))
        (self.out / UNFINISHED).unlink(missing_ok=True)
        return 1 if failed else 0

    def device(self) -> Device:
        """Return the device as the cost model knows it. A child process looks at it, so that this one uses no GPU."""
        if self.known is None:
            self.known = Device(**self.child("device", "device", 120))
        return self.known

    def trial(
        self, architecture: str, sequences: int, micro_batch: int | None, steps: int, **training: Any
    ) -> TrialConfig:
        """Return the settings of a trial of `steps` steps."""
        return trial_settings(
            self.scale, self.kind, self.store, architecture, sequences, micro_batch, steps, **training
        )


def trial_settings(
    scale: Scale,
    kind: str,
    store: Path,
    architecture: str,
    sequences: int,
    micro_batch: int | None,
    steps: int,
    **training: Any,
) -> TrialConfig:
    """Return the settings of a trial of `steps` steps of `sequences` sequences."""
    tokens = sequences * scale.data.sequence_length
    settings = {
        "tokens": steps * tokens,
        "global_batch_tokens": tokens,
        "micro_batch_sequences": micro_batch,
        "learning_rate": 1e-3,
        "precision": scale.precision,
        "evaluations": 1,
        "checkpoints": 0,
        "keep_weights": False,
    }
    return TrialConfig(
        architecture=architecture,
        store=str(store),
        data=scale.data,
        training=TrainingConfig(**(settings | training)),
        devices=DevicesConfig(kind=kind, threads=1 if kind == "cpu" else None),  # type: ignore[arg-type]
    )


@cache
def known_device(kind: str) -> Device:
    """Return the device as the cost model knows it; an unknown GPU counts as an A100."""
    if kind == "cpu":
        return this_cpu()
    import torch

    properties = torch.cuda.get_device_properties(0)
    try:
        device = parse_device(properties.name)
    except UsageError:
        device = replace(parse_device("A100"), name=f"{properties.name} (priced as A100)")
    return replace(device, memory_bytes=properties.total_memory)


def prepared(out: Path, bundle: Path | None, data: DataConfig, root: Path) -> Path:
    """Return the token store: that of the bundle, or one of made-up words for a small vocabulary.

    Raises:
        UsageError: If a large vocabulary needs the text of a bundle, and there is none.
    """
    from march_search.data.prepare import prepare

    corpus = out / CORPUS
    if not corpus.exists():
        if bundle is not None:
            shutil.copytree(bundle / "root", root, dirs_exist_ok=True)
            shutil.copytree(bundle / CORPUS, corpus)
        elif data.vocab_size > 1000:
            raise UsageError("--scale full needs --bundle FOLDER, which bash scripts/gpu_bundle.sh FOLDER writes.")
        else:
            corpus.mkdir(parents=True)
            rng = random.Random(0)
            words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(300)]
            for number in range(400):
                (corpus / f"{number:05d}.txt").write_text(" ".join(rng.choices(words, k=120)))
    return prepare(replace(data, corpus=CORPUS), root, out, tokens=1).resolve()
