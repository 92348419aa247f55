"""Kills workers of a study at random moments; no trial may be lost, run twice at once, or complete twice.

python scripts/torture_study.py --storage journal|sqlite|postgresql [--workers 8] [--trials 50] [--rounds 20] [--seed 0]

All workers open the fresh study at the same moment. Some are killed with SIGKILL and replaced, some are stopped for
longer than their lease and go on. The trials' own processes survive their workers: only fences and leases keep them
apart. In every second round workers do not know that they share a machine, so that only silence tells of a death.
Exit code 0 only if everything held.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

sys.path.insert(0, str(Path(__file__).parent))
import local_postgres

from march_search.config import DataConfig, PrunerConfig, SearchConfig, StudyConfig, TrainingConfig
from march_search.study import candidates, heartbeat, study_state
from march_search.study.runner import StudyRun, open_study
from march_search.study.study_folder import StudyFolder

TOY = r"""
import fcntl, hashlib, json, os, sys, time
folder, until = sys.argv[1], int(sys.argv[3]) if sys.argv[2:] else None
alone = open(folder + "/alone", "w")
log = os.open(folder + "/runs.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
try:
    fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    os.write(log, b"two at once\n")
trial = json.load(open(folder + "/trial.json"))
tokens, seed = trial["training"]["tokens"], trial["seed"]
loss = 4 + int(hashlib.sha256(trial["architecture"].encode()).hexdigest(), 16) % 1000 / 1000
os.write(log, b"start\n")
with open(folder + "/metrics.jsonl", "w", buffering=1) as metrics:
    for seen in sorted({tokens // 4 * part for part in range(1, 5)} | {until or tokens}):
        if seen <= (until or tokens):
            time.sleep(SECONDS)
            for kind in ("train", "evaluation"):
                metrics.write(json.dumps({"kind": kind, "step": seen, "tokens": seen, "loss": loss}) + "\n")
if until is None:
    told = {"architecture": trial["architecture"], "seed": seed, "tokens": tokens, "loss": loss}
    told["sha256"] = hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    os.write(log, b"result\n")
    with open(folder + "/result.new", "w") as file:
        json.dump(told, file)
    os.replace(folder + "/result.new", folder + "/result.json")
"""
"""A trial that trains nothing and does not die with its worker."""

FORKS = multiprocessing.get_context("forkserver")


def main(arguments: Sequence[str] | None = None) -> int:
    """Tortures; the exit code says whether everything held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", choices=("journal", "sqlite", "postgresql"), default="journal")
    parser.add_argument("--pruner", choices=("none", "rungs"), default="none")
    parser.add_argument("--strategy", choices=("sample", "tpe"), default="sample", help="tpe: chosen as they go")
    for name, default in (("workers", 8), ("trials", 50), ("rounds", 20), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    told = parser.parse_args(arguments)
    rng = random.Random(told.seed)
    FORKS.set_forkserver_preload(["march_search.study.runner", "march_search.study.candidates", "sqlalchemy"])
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (root / "toy.py").write_text(TOY.replace("SECONDS", "0.06"))
        url = stack.enter_context(local_postgres.server()) if told.storage == "postgresql" else None
        if told.storage == "sqlite":
            url = f"sqlite:///{root}/studies.db"
        wrong = 0
        for number in range(told.rounds):
            wrong += not _round(root, f"round-{number}", url, told, rng, knows=number % 2 == 0)
    print(f"{told.storage}: {told.rounds - wrong} of {told.rounds} rounds held")
    return 1 if wrong else 0


def _config(told: argparse.Namespace, url: str | None) -> StudyConfig:
    """A study of toys."""
    return StudyConfig(
        space="cpu-demo", storage=url, heartbeat_seconds=0.5,
        search=SearchConfig(trials=told.trials, strategy=told.strategy), pruner=PrunerConfig(kind=told.pruner),
        data=DataConfig(vocab_size=2048, sequence_length=64),
        training=TrainingConfig(tokens=8192, global_batch_tokens=1024, evaluations=4),
    )  # fmt: skip


def _work(root: Path, name: str, config: StudyConfig, knows: bool) -> None:
    """One worker, its output in a file."""
    log = os.open(root / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if not knows:
        heartbeat.boot = lambda: ""
    folder, chosen = StudyFolder.of(root, name), candidates.choose(config, root)
    command = (sys.executable, "-I", "-S", str(root / "toy.py"))
    StudyRun(config, folder, root / "store", candidates.initial_trials(chosen, config), command).run()


def _round(root: Path, name: str, url: str | None, told: argparse.Namespace, rng: random.Random, knows: bool) -> bool:
    """One study; whether it held."""
    config, what, began = _config(told, url), Counter[str](), time.monotonic()
    folder = StudyFolder.of(root, name)
    chosen = candidates.choose(config, root)
    folder.keep_settings(config, chosen.architectures)
    study_state.keep_candidates(folder.path, chosen)
    folder.keep_store(root / "store")
    arguments = (root, name, config, knows)
    crew = [FORKS.Process(target=_work, args=arguments) for _ in range(told.workers)]
    for one in crew:
        one.start()
    kills = told.workers
    while any(one.is_alive() for one in crew) and time.monotonic() - began < 180:
        time.sleep(rng.uniform(0.1, 0.6))
        alive = [one for one in crew if one.is_alive()]
        what["failed to work"] += sum(one.exitcode not in (0, None, -signal.SIGKILL) for one in crew)
        crew = alive
        if kills and alive:
            kills -= 1
            victim = rng.choice(alive)
            if rng.random() < 0.3:
                what["stopped"] += 1
                _freeze(victim.pid or 0, rng.uniform(0.5, 2.5))
                continue
            what["killed"] += 1
            victim.kill()
            crew.append(FORKS.Process(target=_work, args=arguments))
            crew[-1].start()
    for one in crew:
        what["did not end"] += one.is_alive()
        one.kill()
    faults = (
        _faults(folder, open_study(folder, config).trials, told.trials) + what["did not end"] + what["failed to work"]
    )
    states = Counter(t.state.name for t in open_study(folder, config).trials)
    print(f"{name}: {dict(states)}, {dict(what)}, {faults} faults, {time.monotonic() - began:.0f} s", flush=True)
    if faults:
        print((root / f"{name}.log").read_text()[-3000:])
    return not faults


def _freeze(pid: int, seconds: float) -> None:
    """Stops a worker for a while."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)


def _faults(folder: StudyFolder, trials: list[FrozenTrial], wanted: int) -> int:
    """How many of the study's promises were broken."""
    found = [] if len(trials) == wanted else [f"{len(trials)} trials instead of {wanted}"]
    if sorted(t.number for t in trials) != list(range(len(trials))):
        found.append("numbers are not unique")
    if len({t.user_attrs["architecture"] for t in trials}) != len(trials):
        found.append("an architecture was chosen twice")
    for trial in trials:
        path = folder.trial(trial.number, trial.user_attrs["architecture"], trial.user_attrs["seed"])
        runs = (path / "runs.log").read_text().splitlines() if (path / "runs.log").exists() else []
        end = json.loads((path / "outcome.json").read_text())
        complete, died = trial.state == TrialState.COMPLETE, trial.user_attrs["lease"]["retries"] > 2
        if not trial.state.is_finished() or (trial.state == TrialState.FAIL and not died):
            found.append(f"trial {trial.number} is {trial.state.name}")
        if "two at once" in runs or runs.count("result") > 1 or (complete and "result" not in runs):
            found.append(f"trial {trial.number} ran {runs}")
        if end["state"] != {"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state.name, "failed"):
            found.append(f"trial {trial.number} is {trial.state.name} and its outcome {end['state']}")
    if len(list(folder.trials.iterdir())) != len(trials):
        found.append("there are more folders than trials")
    print("".join(f"  {line}\n" for line in found), end="")
    return len(found)


if __name__ == "__main__":
    sys.exit(main())
