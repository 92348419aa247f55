"""Study folders with made-up losses, as a finished study leaves them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from march_search.config import DataConfig, SearchConfig, StudyConfig, TrainingConfig, TrialConfig
from march_search.files.atomic import file_sha256
from march_search.files.json_tables import sealed, write_json
from march_search.trial.result import VALIDATION_SEAL, validation_file

DATA = DataConfig(vocab_size=2048, sequence_length=64)
SHAPES = tuple(f"L{n}-D{d}-H{h}x32-F256-rope-V2048" for n, d, h in ((2, 160, 4), (3, 128, 6), (4, 96, 4), (6, 64, 8)))


TRAINING = TrainingConfig(tokens=1 << 20, global_batch_tokens=1 << 10, precision="bf16")


def write_study(
    root: Path,
    losses: Mapping[str, Sequence[float]],
    *,
    name: str = "synthetic",
    rates: Sequence[float] = (1e-3,),
    gain: float = 0.4,
    bigram: float = 6.0,
    examples: int = 0,
    evaluations: int = 10,
    settings: Mapping[str, object] | None = None,
) -> Path:
    """Write a study with one trial per architecture, learning rate and seed, and return its folder.

    Args:
        root: Root folder of the study.
        losses: Final loss of each seed, by architecture. It is 0.1 higher at every rate but the first.
        name: Name of the study.
        rates: Learning rates.
        gain: Context gain of every evaluation.
        bigram: Loss of the bigram model on targets; that of the unigram model is 1 higher.
        examples: Number of losses of single examples per trial, a multiple of 8; blocks of eight share some noise.
        evaluations: Number of evaluations on a curve, which falls by a power law to the final loss.
        settings: Values that differ in the tables of study.json.
    """
    folder, rng, number = root / name, np.random.default_rng(0), 0
    folder.mkdir(parents=True)
    hard_N = np.repeat(rng.normal(0, 0.3, examples // 8), 8)
    write_json(folder / "study.json", {"settings": _settings(tuple(losses), tuple(rates), settings or {})})
    write_json(folder / "reference.json", {"target_unigram_nats": bigram + 1, "target_bigram_nats": bigram})
    for architecture, own in losses.items():
        for index, rate in enumerate(rates):
            for seed, loss in enumerate(own):
                at = folder / "trials" / f"{number:04d}-{architecture}-s{seed}"
                training = replace(TRAINING, learning_rate=rate)
                _write_trial(at, architecture, seed, loss + 0.1 * bool(index), training, gain, evaluations)
                if examples:
                    own_N = loss + hard_N + np.repeat(rng.normal(0, 0.02, examples // 8), 8)
                    file = validation_file(at, training.tokens)
                    file.parent.mkdir()
                    np.save(file, own_N.astype(np.float32))
                    result = json.loads((at / "result.json").read_text())
                    write_json(at / "result.json", sealed(result | {VALIDATION_SEAL: file_sha256(file)}))
                number += 1
    return folder


def stop_trial(folder: Path, number: int, evaluations: int, state: str = "pruned", loss: float | None = None) -> None:
    """Make a trial of a study end after its first `evaluations` evaluations.

    Args:
        folder: The study's folder.
        number: Number of the trial.
        evaluations: Number of evaluations that are kept.
        state: State in outcome.json; `unfinished` writes none, as for a trial that waits or runs.
        loss: Loss of the last evaluation that is kept; None for that of the curve.
    """
    [at] = folder.glob(f"trials/{number:04d}-*")
    lines = [json.loads(line) for line in (at / "metrics.jsonl").read_text().splitlines()][:evaluations]
    if loss is not None:
        lines[-1]["loss"] = loss
    (at / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (at / "result.json").unlink()
    (at / "outcome.json").unlink()
    if state != "unfinished":
        write_json(at / "outcome.json", {"state": state, "reason": "stopped by the test"})


def _settings(
    architectures: tuple[str, ...], rates: tuple[float, ...], changed: Mapping[str, object]
) -> dict[str, object]:
    """Return complete settings of a study, with the values of `changed`."""
    search = SearchConfig(strategy="list", architectures=architectures, learning_rates=rates)
    settings = asdict(StudyConfig(space="cpu-demo", search=search, data=DATA, training=TRAINING))
    for key, value in changed.items():
        settings[key] = settings[key] | value if isinstance(value, Mapping) else value
    return settings | {"architectures": architectures}


def _write_trial(
    at: Path, architecture: str, seed: int, loss: float, training: TrainingConfig, gain: float, evaluations: int
) -> None:
    """Write the folder of one complete trial."""
    at.mkdir(parents=True)
    write_json(
        at / "trial.json",
        asdict(TrialConfig(architecture=architecture, store="store", seed=seed, data=DATA, training=training)),
    )
    tokens = [training.tokens * part // evaluations for part in range(1, evaluations + 1)]
    lines = [
        {"kind": "evaluation", "tokens": t, "loss": loss * (t / training.tokens) ** -0.15, "context_gain": gain}
        for t in tokens
    ]
    (at / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {"architecture": architecture, "seed": seed, "tokens": training.tokens, "loss": loss, "context_gain": gain}
    write_json(at / "result.json", sealed(result | {"tokens_per_second": 12_345.6}))
    write_json(at / "outcome.json", {"state": "complete"})
