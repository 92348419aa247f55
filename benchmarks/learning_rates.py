"""Find the best learning rate of a narrow and of a wide model, with fixed and with scaled learning rates.

    OMP_NUM_THREADS=1 python benchmarks/learning_rates.py [--tokens 131072] [--rates 0.001 0.002 ...]
    OMP_NUM_THREADS=1 python benchmarks/learning_rates.py --ladder

The benchmark trains real trials on the Wikipedia summaries, with equal tokens and one seed. The narrow model is the
base shape, so its trials are the same under `fixed` and `width`. Under `width`, both models should have the same best
rate. With `--ladder`, it trains the trials of `studies/cpu/learning-rates.toml` under `width`, with the first shape of
the study as the base shape; `studies/results/learning-rates.csv` has their losses under `fixed`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from march_search.config import DataConfig, DevicesConfig, StudyConfig, TrainingConfig, TrialConfig
from march_search.config.loader import build, read_file
from march_search.config.shipped import shipped_folder
from march_search.data.prepare import prepare

NARROW, WIDE = "L2-D64-H4x16-F256-rope-V2048", "L2-D256-H16x16-F1024-rope-V2048"
DATA = DataConfig(vocab_size=2048, sequence_length=32, validation_sequences=256)
TRAINING = TrainingConfig(
    global_batch_tokens=1024, micro_batch_sequences=32, schedule="linear", precision="fp32", base_shape=NARROW,
    evaluations=1, checkpoints=0, keep_weights=False,
)  # fmt: skip


def loss(
    folder: Path, store: Path, architecture: str, training: TrainingConfig, data: DataConfig = DATA, seed: int = 0
) -> float:
    """Train a trial and return its final loss, or infinity if it diverged."""
    folder.mkdir()
    devices = DevicesConfig(kind="cpu", threads=1)
    config = TrialConfig(
        architecture=architecture,
        store=os.path.relpath(store, folder),
        seed=seed,
        data=data,
        training=training,
        devices=devices,
    )
    (folder / "trial.json").write_text(json.dumps(asdict(config)))
    subprocess.run([sys.executable, "-m", "march_search.training", str(folder)], capture_output=True, check=False)
    result = folder / "result.json"
    return float(json.loads(result.read_text())["loss"]) if result.exists() else float("inf")


def ladder(root: Path) -> None:
    """Print the final loss of each shape of the study `cpu/learning-rates` at each of its rates, scaled by width."""
    file = shipped_folder("studies") / "cpu" / "learning-rates.toml"
    study = build(StudyConfig, read_file(file), str(file))
    store = prepare(study.data, root, root, tokens=study.training.tokens)
    shapes, rates = study.search.architectures, study.search.learning_rates
    scaled = replace(study.training, learning_rate_scaling="width", base_shape=shapes[0], checkpoints=0)
    for shape in shapes:
        for rate in rates:
            training = replace(scaled, learning_rate=rate)
            found = loss(root / f"{shape}-{rate}", store, shape, training, study.data, study.search.seeds[0])
            print(f"{shape:32} {rate:g} {found:.4f}", flush=True)


def main() -> None:
    """Print the final loss of each model and scaling at each learning rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 32e-3, 64e-3])
    parser.add_argument("--ladder", action="store_true")
    arguments = parser.parse_args()
    if arguments.ladder:
        with tempfile.TemporaryDirectory() as name:
            ladder(Path(name))
        return
    tokens, rates = arguments.tokens, arguments.rates
    recipe = replace(TRAINING, tokens=tokens, warmup_tokens=tokens // 16 // 1024 * 1024)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        store = prepare(DATA, root, root, tokens=tokens)
        print(f"{'':32}" + "".join(f"{rate:>8g}" for rate in rates), flush=True)
        for architecture, scaling in ((NARROW, "fixed"), (WIDE, "fixed"), (WIDE, "width")):
            losses = [
                loss(
                    root / f"{architecture}-{scaling}-{rate}",
                    store,
                    architecture,
                    replace(recipe, learning_rate=rate, learning_rate_scaling=scaling),
                )
                for rate in rates
            ]
            print(f"{architecture.split('-')[1]:5} {scaling:26}" + "".join(f"{x:8.4f}" for x in losses), flush=True)
            best = losses.index(min(losses))
            edge = ", at the edge of the grid" if best in (0, len(rates) - 1) else ""
            print(f"      best rate {rates[best]:g}{edge}", flush=True)


if __name__ == "__main__":
    main()
