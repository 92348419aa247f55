"""A trained trial as a folder: Hugging Face's T5 opens it, with the same logits and the same tokens."""

import json
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import run_trial, start_trial, trial_maker
from test_training import wait_for_step

from march_search import Architecture
from march_search.cli import main
from march_search.data.store import Store
from march_search.data.tokenizer import load
from march_search.errors import StorageError
from march_search.files import save_tensors
from march_search.model import build
from march_search.training import weights

TIED = "L1-D32-H2x16-F64-V400"
UNTIED = "L1-D32-H2x16-F64-geglu-untied-V400"
INPUTS = torch.randint(2, 300, (3, 30), generator=torch.Generator().manual_seed(5))
TARGETS = torch.randint(2, 300, (3, 9), generator=torch.Generator().manual_seed(6))
Maker = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def make(store: Path, tmp_path: Path) -> Maker:
    """Makes trials of a study in `tmp_path / "study"`."""
    (tmp_path / "study" / "trials").mkdir(parents=True)
    (tmp_path / "study" / "study.json").write_text("{}")
    return trial_maker(store, tmp_path / "study" / "trials")


def export(tmp_path: Path, trial: str = "0", output: str = "out") -> int:
    return main(["export", "study", trial, "--root", str(tmp_path), "-o", str(tmp_path / output)])


def opened(folder: Path, **options: object):
    """The exported model, for evaluation, opened without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the import
        transformers = pytest.importorskip("transformers", reason="transformers is not installed: export not opened")
    return transformers.T5ForConditionalGeneration.from_pretrained(folder, **options).eval()


def ours(name: str, trial: Path):
    """Our model with the weights the trial left."""
    model = build(Architecture.parse(name))
    model.load_state_dict(weights.load(trial))
    return model


@pytest.mark.parametrize(
    ("name", "training"),
    [(TIED, {}), (TIED, {"precision": "bf16"}), (UNTIED, {"ranks": 2, "zero_stage": 3})],
    ids=["tied", "bf16", "untied, two ranks under ZeRO 3"],
)
def test_hugging_face_opens_it_with_equal_logits(make: Maker, tmp_path: Path, name: str, training: dict) -> None:
    trial = make(f"0000-{name}-s0", architecture=name, tokens=8 * 256, checkpoints=0, **training)
    assert run_trial(trial).returncode == 0
    assert export(tmp_path, "best") == 0
    model, theirs = ours(name, trial), opened(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(input_ids=INPUTS, labels=TARGETS)
    torch.testing.assert_close(model.logits(INPUTS, TARGETS).detach(), expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(model(INPUTS, TARGETS).detach(), expected.loss, atol=1e-5, rtol=1e-5)
    stored = json.loads((tmp_path / "out" / "config.json").read_text())["dtype"]
    assert stored == ("bfloat16" if training.get("precision") == "bf16" else "float32")
    assert opened(tmp_path / "out").dtype == getattr(torch, stored)


def test_the_tokenizer_comes_with_it_and_transformers_is_not_needed(make: Maker, tmp_path: Path, store: Path) -> None:
    trial = make(f"0000-{TIED}-s0", architecture=TIED, tokens=256, checkpoints=0)
    assert run_trial(trial).returncode == 0
    arguments = ["export", "study", TIED, "--root", str(tmp_path), "--format", "hf", "-o", str(tmp_path / "a" / "out")]
    code = f"import sys; sys.modules['transformers'] = None; from march_search.cli import main; main({arguments})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert ended.stderr == f"{tmp_path}/a/out: trial 0, {TIED}, complete\n"
    modes = {path.stat().st_mode for path in (*(tmp_path / "a" / "out").iterdir(), trial / weights.NAME)}
    assert len(modes) == 1, "whoever may read one file may read all"
    opened(tmp_path / "a" / "out")
    from transformers import AutoTokenizer

    theirs, own = AutoTokenizer.from_pretrained(tmp_path / "a" / "out"), load(store / "tokenizer.json")
    text = "abc  dé\n f"
    assert theirs(text)["input_ids"] == own.encode(text).ids
    assert theirs.decode(theirs(text)["input_ids"]) == text
    assert len(theirs) == Store.open(store).vocab_size == 400
    assert (theirs.pad_token_id, theirs.eos_token_id) == (0, 1)
    assert theirs("a <extra_id_0> b")["input_ids"].count(399) == 1
    assert theirs.decode([399], skip_special_tokens=True) == ""


@pytest.mark.parametrize("training", [{"precision": "bf16"}, {"zero_stage": 3}], ids=["bf16", "ZeRO 3"])
def test_an_interrupted_trial_is_exported_from_its_checkpoint(make: Maker, tmp_path: Path, training: dict) -> None:
    trial = make(f"0003-{TIED}-s0", architecture=TIED, tokens=4000 * 256, **training)
    process = start_trial(trial)
    wait_for_step(trial, 3, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert export(tmp_path, "3") == 0
    fresh = build(Architecture.parse(TIED)).state_dict()
    left = weights.load(trial)
    assert left.keys() == fresh.keys()
    assert not torch.equal(left["decoder.norm.weight"].float(), fresh["decoder.norm.weight"])
    with torch.no_grad():
        theirs = opened(tmp_path / "out", dtype=torch.float32)(input_ids=INPUTS, labels=TARGETS).logits
    torch.testing.assert_close(ours(TIED, trial).logits(INPUTS, TARGETS).detach(), theirs, atol=1e-4, rtol=0)


def test_weights_can_be_left_out(make: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial = make(f"0000-{TIED}-s0", architecture=TIED, tokens=256, checkpoints=0, keep_weights=False)
    assert run_trial(trial).returncode == 0
    assert not (trial / weights.NAME).exists()
    assert export(tmp_path) == 4
    assert "has no weights: a complete trial keeps them only if keep_weights is true" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("rope", "position is 'rotary', but T5 supports only 'relative'"),
        ("xlayer", "cross_attention is 'layer', but T5 supports only 'output'"),
        ("Sall", "share_layers is 'all', but T5 supports only 1"),
        ("noopfixed", "noop_key is 'fixed', but T5 supports only 'none'"),
    ],
)
def test_what_is_no_t5_is_refused_by_its_field(
    make: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, field: str
) -> None:
    make("0000-x", architecture=f"{TIED}-{word}")
    assert export(tmp_path) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.endswith(f"is not a Hugging Face T5: {field}.\n")
    assert not (tmp_path / "out").exists()


def test_weights_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"missing/w: cannot be written: .*No such file or directory"):
        save_tensors({"x": torch.zeros(2)}, tmp_path / "missing" / "w")


def test_what_a_person_gets_wrong_is_one_line(make: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, seed in ((0, 0), (7, 1)):
        make(f"{number:04d}-{TIED}-s{seed}", architecture=TIED)
    weights_file = make("0008-damaged", architecture=UNTIED) / weights.NAME
    weights_file.write_bytes(b"no weights")
    (tmp_path / "taken").mkdir()
    for trial, output, code, words in (
        ("best", "out", 2, "study has no complete trial, so there is no best trial yet; use a trial number."),
        ("1", "out", 2, 'study has no trial "1"; use best, an architecture name or a trial number (0, 7, 8).'),
        (TIED, "out", 2, f"study has several trials of {TIED}; use a trial number (0, 7)."),
        ("7", "out", 4, "has no weights"),
        ("8", "out", 4, f"{weights_file}: cannot be read ("),
    ):
        assert export(tmp_path, trial, output) == code
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
