"""Trials with masked documents: what they learn from, and that they resume to the same bits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.trials import DATA, MakeTrial, change_config, lines, result, stop_at_step, train

from march_search import Architecture
from march_search.data.batches import Batches
from march_search.data.store import Store
from march_search.model import build

SHAPE = "L2-D32-H4x8-F64-geglu-rope-dec-V400-KV2"
BATCH = {"tokens": 24 * 512, "global_batch_tokens": 512, "checkpoints": 2, "evaluations": 2}
"""24 steps of four sequences, checkpoints after steps 8 and 16."""


def masked(folder: Path) -> Path:
    """Mask the documents of a trial, in sequences that hold one or two, and return its folder."""
    return change_config(folder, "data", documents="masked", sequence_length=128, validation_sequences=8)


def test_masked_documents_are_trained_alone_and_resume_to_the_same_bits(make_trial: MakeTrial, store: Path) -> None:
    whole = masked(make_trial("whole", architecture=SHAPE, **BATCH))
    ended = train(whole)
    assert ended.returncode == 0, ended.stderr
    killed = masked(make_trial("killed", architecture=SHAPE, **BATCH))
    stop_at_step(killed, 19)
    assert [path.name for path in (killed / "checkpoints").iterdir()][-1] == "step-000000016"
    assert train(killed).returncode == 0
    assert lines(killed, "train") == lines(whole, "train")
    assert lines(killed, "evaluation") == lines(whole, "evaluation")
    assert (killed / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    first = lines(whole, "train")[0]
    # The first loss is that of the documents of the first batch, each alone in the initial model.
    config = replace(DATA, documents="masked", sequence_length=128, validation_sequences=8)
    batches = Batches(Store.open(store), config, 0, "decoder-only")
    texts = batches.train(0, 4)[1]
    starts = batches.document_starts(texts)
    torch.manual_seed(0)
    model, losses, documents = build(Architecture.parse(SHAPE)), [], 0
    with torch.no_grad():
        for row, begins in zip(torch.from_numpy(texts), starts.tolist(), strict=True):
            for start in sorted(set(begins)):
                part = row[start : begins.count(start) + start]
                losses.append(model(None, part[None], "token_losses").flatten())
                documents += 1
    assert documents > 4
    assert first["loss"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)


@pytest.mark.torture
def test_masked_documents_train_alike_in_one_process_and_in_two(make_trial: MakeTrial) -> None:
    whole = masked(make_trial("whole", architecture=SHAPE, **BATCH))
    assert train(whole).returncode == 0
    two = masked(make_trial("two", ranks=2, architecture=SHAPE, micro_batch_sequences=1, **BATCH))
    assert train(two).returncode == 0
    for key in ("loss", "context_gain", "bits_per_byte"):
        assert result(two)[key] == pytest.approx(result(whole)[key], abs=1e-4)
