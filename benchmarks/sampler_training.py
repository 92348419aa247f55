"""Compare TPE with uniform draws by real training, with the space and recipe of the studies in `studies/cpu/`.

    python benchmarks/sampler_training.py [--trials 14] [--tokens 204800] [--seeds 1,2] [--samplers tpe,random]
                                          [--root runs-samplers]

Each study trains `--trials` shapes to the end of the data budget, two at a time on one thread each, without pruning.
All samplers choose from the same feasible set. A study reuses the trials of earlier studies in `--root`. The benchmark
prints the best loss after every two trials, and the mean over the sampler seeds. Run it again to resume.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

import optuna

from march_search.storage.journal import JOURNAL

STUDY = """space = "cpu-1m"

[search]
strategy = "{sampler}"
trials = {trials}
seed = {seed}
reuse_trials = true

[pruner]
kind = "none"

[confirm]
max_seeds = 1

[data]
corpus = "wikipedia-summaries"
vocab_size = 512
sequence_length = 32
noise_density = 0.5

[training]
tokens = {tokens}
global_batch_tokens = 512
learning_rate = 2e-3
schedule = "linear"
warmup_tokens = 16_384
precision = "fp32"
evaluations = 1
checkpoints = 2
keep_weights = false

[devices]
kind = "cpu"
threads = 1
parallel_trials = 2
"""


def study(root: Path, sampler: str, seed: int, trials: int, tokens: int) -> list[float]:
    """Run a study and return the losses of its trials in the order in which they were chosen."""
    text = STUDY.format(sampler=sampler, seed=seed, trials=trials, tokens=tokens)
    root.mkdir(parents=True, exist_ok=True)
    name = f"{sampler}-{seed}"
    (root / f"{name}.toml").write_text(text)
    command = [sys.executable, "-m", "march_search", "study", "run", str(root / f"{name}.toml"), "--root", str(root)]
    ended = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if ended.returncode:
        raise SystemExit(ended.stderr.strip() or f"study {name} failed with exit code {ended.returncode}.")
    backend = optuna.storages.journal.JournalFileBackend(os.path.realpath(root / name / JOURNAL))
    storage = optuna.storages.JournalStorage(backend)
    return [t.value for t in optuna.load_study(study_name=name, storage=storage).trials if t.value is not None]


def main() -> None:
    """Run the studies and print their losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=14)
    parser.add_argument("--tokens", type=int, default=204_800)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--samplers", default="tpe,random")
    parser.add_argument("--root", type=Path, default=Path("runs-samplers"))
    options = parser.parse_args()
    marks = range(2, options.trials + 1, 2)
    print("best loss after".ljust(16), *(f"{n:>7d}" for n in marks), "  mean of all trials")
    for sampler in options.samplers.split(","):
        curves, means = [], []
        for seed in map(int, options.seeds.split(",")):
            losses = study(options.root, sampler, seed, options.trials, options.tokens)
            curves.append([min(losses[:n]) for n in marks])
            means.append(statistics.fmean(losses))
            print(f"{sampler} {seed}".ljust(16), *(f"{x:7.4f}" for x in curves[-1]), f"  {means[-1]:.4f}", flush=True)
        mean = [statistics.fmean(column) for column in zip(*curves, strict=True)]
        print(f"{sampler} mean".ljust(16), *(f"{x:7.4f}" for x in mean), f"  {statistics.fmean(means):.4f}", flush=True)


if __name__ == "__main__":
    main()
