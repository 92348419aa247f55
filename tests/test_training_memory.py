"""A trial that runs out of memory restarts with smaller micro batches, and failures name their cause."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.trials import MakeTrial, result, train, trial_config

from march_search.training import micro_batch
from march_search.trial import outcome

BROAD = "L2-D64-H4x16-F256-geglu-rope-V400"
"""Most of its memory is activations."""

BATCH = {"tokens": 2048 * 32, "global_batch_tokens": 2048 * 32, "checkpoints": 0, "evaluations": 1}
"""One step of 2,048 sequences."""


def run_with_memory(folder: Path, gigabytes: float, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command that trains a trial, with a memory limit for each process."""
    code = (
        f"import resource, runpy; resource.setrlimit(resource.RLIMIT_DATA, ({int(gigabytes * 2**30)},) * 2);"
        "runpy.run_module('march_search.training', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", code, str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(("ranks", "gigabytes"), [(1, 1.0), pytest.param(2, 0.8, marks=pytest.mark.torture)])
def test_out_of_memory_halves_the_micro_batch_and_trains_the_same_tokens(
    make_trial: MakeTrial, ranks: int, gigabytes: float
) -> None:
    whole = make_trial("whole", architecture=BROAD, micro_batch_sequences=256, **BATCH)
    assert train(whole).returncode == 0
    tight = make_trial("tight", architecture=BROAD, ranks=ranks, micro_batch_sequences=2048 // ranks, **BATCH)
    ended = run_with_memory(tight, gigabytes)
    assert ended.returncode == 0, ended.stderr
    assert "out of memory: restarting with half the micro batch." in ended.stderr
    got, saved = result(tight), json.loads((tight / "micro_batch.json").read_text())
    assert got["micro_batch_halvings"] == saved["halvings"] >= 1
    assert got["training"]["micro_batch_sequences"] == saved["micro_batch"] == 2048 // ranks >> saved["halvings"]
    assert got["tokens"] == result(whole)["tokens"]
    assert got["loss"] == pytest.approx(result(whole)["loss"], abs=1e-5)
    assert not (tight / "failure.json").exists()


def test_with_once_a_smaller_micro_batch_is_left_to_the_caller(make_trial: MakeTrial) -> None:
    tight = make_trial("tight", architecture=BROAD, micro_batch_sequences=2048, **BATCH)
    codes = [run_with_memory(tight, 1.0, "--once").returncode]
    while codes[-1] == outcome.SMALLER:
        codes.append(run_with_memory(tight, 1.0, "--once").returncode)
    assert codes == [outcome.SMALLER] * result(tight)["micro_batch_halvings"] + [0]
    assert len(codes) > 1


def test_a_model_that_fits_at_no_micro_batch_is_infeasible(make_trial: MakeTrial) -> None:
    huge = "L1-D512-H2x16-F131072-rope-V400"
    folder = make_trial("huge", architecture=huge, tokens=256, micro_batch_sequences=2, checkpoints=0)
    ended = run_with_memory(folder, 1.0)
    assert ended.returncode == 1
    failure = json.loads((folder / "failure.json").read_text())
    assert (failure["state"], failure["halvings"]) == ("infeasible_memory", 1)
    assert failure["reason"].startswith("out of memory: ")


def test_the_first_micro_batch_is_predicted_from_the_free_memory(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from march_search.training import micro_batch
    from march_search.training.engine import RankInfo

    config = trial_config(make_trial("one", architecture=BROAD))
    config = replace(config, training=replace(config.training, tokens=4096 * 32, global_batch_tokens=4096 * 32))
    rank_info, found = RankInfo(0, 1, torch.device("cpu")), []
    for free in (2**22, 2**28, 2**29, 2**36):
        monkeypatch.setattr(micro_batch, "_free_bytes", lambda *_, free=free: free)
        found.append(micro_batch._predicted(config, rank_info))
    assert found[0] == 1 < found[1] < found[2] < found[3] == 4096
    assert all(4096 % micro == 0 for micro in found)


def test_the_cause_of_a_kill_is_read_from_the_kernels_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = tmp_path / "vmstat"
    monkeypatch.setattr(outcome, "_KERNEL_COUNTS", counts)
    assert outcome.kill_reason(outcome.memory_kills()) == "the machine may have run out of memory"
    counts.write_text("nr_free_pages 5\noom_kill 3\n")
    before = outcome.memory_kills()
    assert "another process sent it" in outcome.kill_reason(before)
    counts.write_text("nr_free_pages 5\noom_kill 4\n")
    assert "the machine ran out of memory; decrease micro_batch_sequences" in outcome.kill_reason(before)


@pytest.mark.parametrize(
    ("words", "is_memory"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA driver error: cudaErrorMemoryAllocation", True),
        ("NCCL Error 1: unhandled cuda error", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_out_of_memory_is_known_by_the_words_of_every_library(words: str, is_memory: bool) -> None:
    assert micro_batch.is_out_of_memory(RuntimeError(words)) is is_memory
