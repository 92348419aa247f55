"""`python -m march_search.doctor.probe WORK DIR`: runs the part of a check that loads torch, in a separate process.

WORK is `devices`, `store`, `tokens-VOCABULARY-LENGTH-DENSITY-SPAN` or `parity-PRECISION-STAGE`. The result is written
to found.json in DIR, or the reason of a failure to failure.json.
"""

import math
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from march_search.config import DataConfig
from march_search.doctor.bench import in_words
from march_search.errors import TrialError
from march_search.files.json_tables import write_json
from march_search.processes import die_with_parent

DATA = DataConfig(vocab_size=400, sequence_length=32, validation_fraction=0.2, validation_sequences=8)
"""Data settings of the tiny trial."""


def main(arguments: list[str]) -> int:
    """Run the work and return the exit code."""
    die_with_parent()
    work, folder = arguments[0], Path(arguments[1])
    kind, *options = work.split("-")
    try:
        write_json(folder / "found.json", WORKS[kind](folder, *options))
        return 0
    except Exception as error:
        write_json(folder / "failure.json", {"state": "failed", "reason": in_words(error)})
        return 1


def _devices(_folder: Path) -> dict[str, Any]:
    """Return the GPUs with their memory, the CPU's cores, and its matrix-product speed."""
    import torch

    from march_search.cost.devices import this_cpu

    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    cpu = this_cpu()
    return {
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": cpu.memory_bytes,
        "fp32_flops": cpu.fp32_flops,
        "bf16_flops": cpu.bf16_flops,
    }


def _store(folder: Path) -> dict[str, Any]:
    """Prepare a token store of made-up words."""
    return {"store": str(_prepared(folder, DATA, 100))}


def _tokens(folder: Path, vocab_size: str, length: str, density: str, span: str) -> dict[str, Any]:
    """Prepare a token store of made-up words that passes for one with `vocab_size` tokens, of which it uses few."""
    from march_search.files.json_tables import read_table, sealed

    data = replace(
        DATA,
        vocab_size=min(DATA.vocab_size, int(vocab_size)),
        sequence_length=int(length),
        noise_density=float(density),
        mean_span_length=float(span),
        validation_sequences=2,
    )
    path = _prepared(folder, data, 100 + int(length))
    index = read_table(path / "index.json", {}, "")
    write_json(path / "index.json", sealed(index | {"data": index["data"] | {"vocab_size": int(vocab_size)}}))
    return {"store": str(path)}


def _prepared(folder: Path, data: DataConfig, documents: int) -> Path:
    """Prepare a token store of made-up words."""
    from march_search.data.prepare import prepare

    corpus, rng = folder / "corpus", random.Random(0)
    corpus.mkdir()
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(300)]
    for number in range(documents):
        (corpus / f"{number:05d}.txt").write_text(" ".join(rng.choices(words, k=120)))
    return prepare(replace(data, corpus=str(corpus)), folder, corpus, tokens=1)


def _parity(_folder: Path, precision: str, stage: str) -> dict[str, Any]:
    """Compare the DeepSpeed engine with plain torch.

    Raises:
        TrialError: If a loss is not finite, which JSON cannot hold.
    """
    from march_search.training.parity import compare

    found = compare(precision, int(stage))
    if not all(map(math.isfinite, (*found["engine"], *found["torch"], found["update_difference"]))):
        raise TrialError(f"a loss is not finite: {found['engine']} with DeepSpeed, {found['torch']} in plain torch")
    return found


WORKS: dict[str, Callable[..., dict[str, Any]]] = {
    "devices": _devices,
    "store": _store,
    "tokens": _tokens,
    "parity": _parity,
}


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # unloading torch after using gloo occasionally aborts
