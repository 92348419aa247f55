"""Kill workers of a study at random moments; no trial may be lost, run twice at the same time, or complete twice.

After the search, the study confirms its finalists; no architecture may get a seed twice.

    python scripts/torture_study.py [--storage journal|sqlite|postgresql] [--pruner none|rungs]
                                    [--strategy sample|tpe] [--workers 8] [--trials 50] [--rounds 20] [--seed 0]
                                    [--max-seeds 3]

All workers open a new study at the same moment. Some are killed with SIGKILL and replaced. Others are suspended for
longer than their lease and then continue. The processes of the trials survive their workers, so only leases keep them
apart. In every second round, workers do not know that they share a machine, so that only missing heartbeats show a
death. The exit code is 0 if every round passed.
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

from march_search.config import ConfirmConfig, DataConfig, PrunerConfig, SearchConfig, StudyConfig, TrainingConfig
from march_search.planning import candidates, study_state
from march_search.planning.confirmation import is_confirmation
from march_search.storage import heartbeat
from march_search.storage.study_folder import StudyFolder
from march_search.study.runner import StudyRun, open_study

TOY = r"""
import fcntl, hashlib, json, os, sys, time
folder, until = sys.argv[1], int(sys.argv[3]) if sys.argv[2:] else None
alone = open(folder + "/alone", "w")
log = os.open(folder + "/runs.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
try:
    fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    os.write(log, b"concurrent\n")
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
    result = {"architecture": trial["architecture"], "seed": seed, "tokens": tokens, "loss": loss}
    result["sha256"] = hashlib.sha256(json.dumps(result, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    os.write(log, b"result\n")
    with open(folder + "/result.new", "w") as file:
        json.dump(result, file)
    os.replace(folder + "/result.new", folder + "/result.json")
"""
"""Program of a trial that trains nothing and survives its worker."""

FORKS = multiprocessing.get_context("forkserver")
"""Starts processes from one that has loaded the libraries."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rounds and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", choices=("journal", "sqlite", "postgresql"), default="journal")
    parser.add_argument("--pruner", choices=("none", "rungs"), default="none")
    parser.add_argument(
        "--strategy",
        choices=("sample", "tpe"),
        default="sample",
        help="tpe chooses trials during the study (default: sample)",
    )
    for name, default, text in (
        ("workers", 8, "workers at the same time"),
        ("trials", 50, "trials of a study"),
        ("rounds", 20, "studies"),
        ("seed", 0, "seed of moments and victims"),
        ("max-seeds", 3, "seeds of a finalist; 1 for the search alone"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: {default})")
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    FORKS.set_forkserver_preload(["march_search.study.runner", "march_search.planning.candidates", "sqlalchemy"])
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (root / "toy.py").write_text(TOY.replace("SECONDS", "0.06"))
        url = stack.enter_context(local_postgres.server()) if options.storage == "postgresql" else None
        if options.storage == "sqlite":
            url = f"sqlite:///{root}/studies.db"
        num_passed = 0
        for number in range(options.rounds):
            num_passed += _run_round(root, f"round-{number}", url, options, rng, same_machine=number % 2 == 0)
    print(f"{options.storage}: {num_passed} of {options.rounds} rounds held")
    return 0 if num_passed == options.rounds else 1


def _config(options: argparse.Namespace, url: str | None) -> StudyConfig:
    """Return the settings of a study."""
    return StudyConfig(
        space="cpu-demo", storage=url, heartbeat_seconds=0.5,
        search=SearchConfig(trials=options.trials, strategy=options.strategy),
        pruner=PrunerConfig(kind=options.pruner, rungs=(0.4, 0.6)), confirm=ConfirmConfig(max_seeds=options.max_seeds),
        data=DataConfig(vocab_size=2048, sequence_length=64),
        training=TrainingConfig(tokens=8192, global_batch_tokens=64, evaluations=4, precision="fp32"),
    )  # fmt: skip


def _run_worker(root: Path, name: str, config: StudyConfig, same_machine: bool) -> None:
    """Run one worker, with its output in a file. Without `same_machine`, hide that workers share a machine."""
    log = os.open(root / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if not same_machine:
        heartbeat.boot = lambda: ""
    folder, chosen = StudyFolder.of(root, name), candidates.choose(config, root)
    command = (sys.executable, "-I", "-S", str(root / "toy.py"))
    StudyRun(config, folder, root / "store", candidates.initial_trials(chosen, config), command).run()


def _run_round(
    root: Path, name: str, url: str | None, options: argparse.Namespace, rng: random.Random, same_machine: bool
) -> bool:
    """Run one study while disturbing its workers; return whether it passed."""
    config, events, began = _config(options, url), Counter[str](), time.monotonic()
    folder = StudyFolder.of(root, name)
    chosen = candidates.choose(config, root)
    folder.keep_settings(config, chosen.architectures)
    study_state.keep_candidates(folder.path, chosen)
    folder.keep_store(root / "store")
    arguments = (root, name, config, same_machine)
    workers = [FORKS.Process(target=_run_worker, args=arguments) for _ in range(options.workers)]
    for worker in workers:
        worker.start()
    num_left = options.workers  # disturbances
    while any(worker.is_alive() for worker in workers) and time.monotonic() - began < 180:
        time.sleep(rng.uniform(0.1, 0.6))
        alive = [worker for worker in workers if worker.is_alive()]
        events["failed"] += sum(worker.exitcode not in (0, None, -signal.SIGKILL) for worker in workers)
        workers = alive
        if num_left and alive:
            num_left -= 1
            victim = rng.choice(alive)
            if rng.random() < 0.3:
                events["suspended"] += 1
                _suspend(victim.pid or 0, rng.uniform(0.5, 2.5))
                continue
            events["killed"] += 1
            victim.kill()
            workers.append(FORKS.Process(target=_run_worker, args=arguments))
            workers[-1].start()
    for worker in workers:
        events["did not end"] += worker.is_alive()
        worker.kill()
    trials = open_study(folder, config).trials
    faults = _print_faults(folder, trials, options) + events["did not end"] + events["failed"]
    states = Counter(t.state.name for t in trials)
    print(f"{name}: {dict(states)}, {dict(events)}, {faults} faults, {time.monotonic() - began:.0f} s", flush=True)
    if faults:
        print((root / f"{name}.log").read_text()[-3000:])
    return not faults


def _suspend(pid: int, seconds: float) -> None:
    """Suspend a worker and let it continue."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)


def _print_faults(folder: StudyFolder, trials: list[FrozenTrial], options: argparse.Namespace) -> int:
    """Print and count the violated guarantees of a study."""
    searched = [t for t in trials if not is_confirmation(t)]
    faults = [] if len(searched) == options.trials else [f"{len(searched)} trials instead of {options.trials}"]
    if (len(trials) > len(searched)) != (options.max_seeds > 1):
        faults.append(f"{len(trials) - len(searched)} further seeds")
    if sorted(t.number for t in trials) != list(range(len(trials))):
        faults.append("trial numbers are not unique")
    if len({t.user_attrs["architecture"] for t in searched}) != len(searched):
        faults.append("an architecture was chosen twice")
    if len({(t.user_attrs["architecture"], t.user_attrs["seed"]) for t in trials}) != len(trials):
        faults.append("an architecture has a seed twice")
    for trial in trials:
        path = folder.trial(trial.number, trial.user_attrs["architecture"], trial.user_attrs["seed"])
        runs = (path / "runs.log").read_text().splitlines() if (path / "runs.log").exists() else []
        outcome = json.loads((path / "outcome.json").read_text())
        complete, lease = trial.state == TrialState.COMPLETE, trial.user_attrs["lease"]
        died = lease["retries"] > 2 or lease["orphaned"] > 10
        if not trial.state.is_finished() or (trial.state == TrialState.FAIL and not died):
            faults.append(f"trial {trial.number} is {trial.state.name}")
        if "concurrent" in runs or runs.count("result") > 1 or (complete and "result" not in runs):
            faults.append(f"trial {trial.number} has the log {runs}")
        if outcome["state"] != {"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state.name, "failed"):
            faults.append(f"trial {trial.number} is {trial.state.name}, but its outcome is {outcome['state']}")
    if len(list(folder.trials.iterdir())) != len(trials):
        faults.append("the number of folders differs from the number of trials")
    print("".join(f"  {line}\n" for line in faults), end="")
    return len(faults)


if __name__ == "__main__":
    sys.exit(main())
