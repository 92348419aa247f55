"""`march-search export`: Hugging Face's T5 loads a trained trial, with the same logits and the same tokens."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.command_line import command_in_process, one_line_error
from helpers.studies import SHAPES, write_study
from helpers.trials import DATA, MakeTrial, train, trial_maker
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import march_search
from march_search import Architecture
from march_search.cli import main
from march_search.data.prepare import prepare
from march_search.data.store import Store
from march_search.data.tokenizer import load
from march_search.errors import StorageError
from march_search.files.atomic import save_tensors
from march_search.model import build
from march_search.training import weights

TIED = "L1-D32-H2x16-F64-V400"
UNTIED = "L1-D32-H2x16-F64-geglu-untied-V400"
INPUTS = torch.randint(2, 300, (3, 30), generator=torch.Generator().manual_seed(5))
TARGETS = torch.randint(2, 300, (3, 9), generator=torch.Generator().manual_seed(6))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def make(store: Path, tmp_path: Path) -> MakeTrial:
    """A function that makes trials of a study in `tmp_path / "study"`."""
    (tmp_path / "study" / "trials").mkdir(parents=True)
    (tmp_path / "study" / "study.json").write_text('{"settings": {}}')
    return trial_maker(store, tmp_path / "study" / "trials")


def export(tmp_path: Path, trial: str = "0", output: str = "out") -> int:
    return main(["export", "study", trial, "--root", str(tmp_path), "-o", str(tmp_path / output)])


def loaded(folder: Path, **options: object):
    """Return the exported model for evaluation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raised by the import
        transformers = pytest.importorskip("transformers", reason="transformers is not installed to load the export")
    return transformers.T5ForConditionalGeneration.from_pretrained(folder, **options).eval()


def ours(name: str, trial: Path):
    """Return our model with the weights of a trial."""
    model = build(Architecture.parse(name))
    model.load_state_dict(weights.load(trial))
    return model


@pytest.mark.parametrize(
    ("name", "training"),
    [
        pytest.param(TIED, {}, id="tied"),
        pytest.param(TIED, {"precision": "bf16"}, id="bf16", marks=pytest.mark.torture),
        pytest.param(
            UNTIED, {"ranks": 2, "zero_stage": 3}, id="untied, two ranks with ZeRO 3", marks=pytest.mark.torture
        ),
    ],
)
def test_hugging_face_loads_the_export_with_equal_logits(
    make: MakeTrial, tmp_path: Path, name: str, training: dict
) -> None:
    trial = make(f"0000-{name}-s0", architecture=name, tokens=8 * 256, checkpoints=0, **training)
    assert train(trial).returncode == 0
    assert export(tmp_path, "best") == 0
    model, theirs = ours(name, trial), loaded(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(input_ids=INPUTS, labels=TARGETS)
    torch.testing.assert_close(model.logits(INPUTS, TARGETS).detach(), expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(model(INPUTS, TARGETS).detach(), expected.loss, atol=1e-5, rtol=1e-5)
    stored = json.loads((tmp_path / "out" / "config.json").read_text())["dtype"]
    assert stored == ("bfloat16" if training.get("precision") == "bf16" else "float32")
    assert loaded(tmp_path / "out").dtype == getattr(torch, stored)


LOSS = """
import sys, torch
sys.path.insert(0, "out")
from load import load
net, batch = load(), torch.load("batch.pt", weights_only=True)
torch.save(net(*batch).detach(), "loss.pt")
print(sum(p.numel() for p in net.parameters()))
"""


@pytest.mark.parametrize(
    ("name", "training"),
    [
        pytest.param(f"{TIED}-rope", {}, id="a shape that T5 cannot express"),
        pytest.param(UNTIED, {"precision": "bf16"}, id="bf16", marks=pytest.mark.torture),
    ],
)
def test_load_py_gives_the_model_of_the_trial_with_the_same_loss_to_the_bit(
    make: MakeTrial, tmp_path: Path, name: str, training: dict
) -> None:
    name = Architecture.parse(name).name
    trial = make(f"0000-{name}-s0", architecture=name, tokens=8 * 256, checkpoints=0, **training)
    assert train(trial).returncode == 0
    command = ["export", "study", "best", "--format", "torch", "--root", str(tmp_path), "-o", str(tmp_path / "a/out")]
    assert main(command) == 0
    made = {path.name for path in (tmp_path / "a/out").iterdir()}
    assert made == {"config.json", "load.py", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    torch.save((INPUTS, TARGETS), tmp_path / "a" / "batch.pt")
    code = f"import torch; torch.set_num_threads(1){LOSS}"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(Path(march_search.__file__).parent.parent)}
    ended = subprocess.run(command, cwd=tmp_path / "a", env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) == Architecture.parse(name).num_params
    tensors = weights.load(trial)
    model = build(Architecture.parse(name)).to(tensors["embedding"].dtype)
    model.load_state_dict(tensors)
    assert torch.equal(torch.load(tmp_path / "a" / "loss.pt", weights_only=True), model(INPUTS, TARGETS).detach())
    config = json.loads((tmp_path / "a/out/config.json").read_text())
    assert (config["name"], config["sequence_length"], config["eos_token_id"]) == (name, DATA.sequence_length, 1)


def test_the_export_includes_the_tokenizer_and_does_not_need_transformers(
    make: MakeTrial, tmp_path: Path, store: Path
) -> None:
    trial = make(f"0000-{TIED}-s0", architecture=TIED, tokens=256, checkpoints=0)
    assert train(trial).returncode == 0
    arguments = ["export", "study", TIED, "--root", str(tmp_path), "--format", "hf", "-o", str(tmp_path / "a" / "out")]
    code = f"import sys; sys.modules['transformers'] = None; from march_search.cli import main; main({arguments})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert ended.stderr == f"{tmp_path}/a/out: trial 0, {TIED}, complete\n"
    modes = {path.stat().st_mode for path in (*(tmp_path / "a" / "out").iterdir(), trial / weights.NAME)}
    assert len(modes) == 1, "all files have the same permissions"
    loaded(tmp_path / "a" / "out")
    from transformers import AutoTokenizer

    theirs, own = AutoTokenizer.from_pretrained(tmp_path / "a" / "out"), load(store / "tokenizer.json")
    text = "abc  dé\n f"
    assert theirs(text)["input_ids"] == own.encode(text).ids
    assert theirs.decode(theirs(text)["input_ids"]) == text
    assert len(theirs) == Store.open(store).vocab_size == 400
    assert (theirs.pad_token_id, theirs.eos_token_id) == (0, 1)
    assert theirs("a <extra_id_0> b")["input_ids"].count(399) == 1
    assert theirs.decode([399], skip_special_tokens=True) == ""


@pytest.mark.parametrize("pad", ["<|padding|>", None])
def test_the_export_of_a_loaded_tokenizer_uses_its_own_ids_and_generates_on_a_padded_batch(
    corpus: Path, tmp_path: Path, pad: str | None
) -> None:
    """A tokenizer as GPT-NeoX publishes it: end token 0, padding token 1, no sentinels, more rows than tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", *([pad] if pad else [])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(file) for file in corpus.iterdir()], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    data = replace(DATA, corpus=str(corpus), tokenizer=str(tmp_path / "tokenizer.json"))
    own = prepare(data, tmp_path / "root", tmp_path, tokens=1)
    (tmp_path / "study" / "trials").mkdir(parents=True)
    (tmp_path / "study" / "study.json").write_text('{"settings": {}}')
    trial = trial_maker(own, tmp_path / "study" / "trials")(
        f"0000-{TIED}-s0", architecture=TIED, tokens=256, checkpoints=0
    )
    assert train(trial).returncode == 0
    assert export(tmp_path) == 0
    model = loaded(tmp_path / "out")
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    pad_id = 1 if pad else 0
    assert (theirs.eos_token, theirs.eos_token_id, theirs.pad_token_id) == ("<|endoftext|>", 0, pad_id)
    ids = (model.config.eos_token_id, model.config.pad_token_id, model.config.decoder_start_token_id)
    assert ids == (0, pad_id, 0)
    assert len(theirs) == 390 <= model.get_input_embeddings().num_embeddings == 400
    assert max(theirs.get_vocab().values()) == 389
    batch = theirs(["abc def", "a b c d e f g h i j"], padding=True, return_tensors="pt")
    assert (batch["input_ids"][0] == pad_id).any()
    both = model.generate(**batch, max_new_tokens=5, do_sample=False)
    alone = model.generate(**theirs("abc def", return_tensors="pt"), max_new_tokens=5, do_sample=False)
    assert torch.equal(both[0, : alone.shape[1]], alone[0])
    assert all(isinstance(text, str) for text in theirs.batch_decode(both, skip_special_tokens=True))


def test_a_changed_tokenizer_is_not_exported(
    make: MakeTrial, tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = make(f"0000-{TIED}-s0", architecture=TIED)
    save_tensors(build(Architecture.parse(TIED)).state_dict(), trial / weights.NAME)
    own = tmp_path / "store"
    shutil.copytree(store, own)
    (own / "tokenizer.json").write_text((own / "tokenizer.json").read_text().replace("</s>", "</t>"))
    config = json.loads((trial / "trial.json").read_text())
    (trial / "trial.json").write_text(json.dumps(config | {"store": str(own)}))
    assert export(tmp_path) == 5
    assert "tokenizer.json has changed since it was written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_never_exported_because_it_is_a_pickle(
    make: MakeTrial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = make(f"0003-{TIED}-s0", architecture=TIED)
    assert train(trial, "--until", str(12 * 256)).returncode == 0
    assert list(trial.glob("checkpoints/step-*/*.pt"))
    assert export(tmp_path, "3") == 4
    err = capsys.readouterr().err
    assert "has no weights: a complete trial keeps them only if keep_weights is true; resume an unfinished trial" in err
    assert not (tmp_path / "out").exists()


def test_the_package_reads_no_pickle_but_its_own_checkpoints() -> None:
    sources = {path: path.read_text() for path in Path(march_search.__file__).parent.rglob("*.py")}
    words = ("torch.load", "pickle.load", "weights_only", "object_list", "all_gather_object", "allow_pickle=True")
    assert not [(path, word) for path, text in sources.items() for word in words if word in text]
    loaders = [path.name for path, text in sources.items() if ".load_checkpoint(" in text]
    assert loaders == ["checkpoint.py"]


def test_a_trial_without_weights_cannot_be_exported(
    make: MakeTrial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = make(f"0000-{TIED}-s0", architecture=TIED, tokens=256, checkpoints=0, keep_weights=False)
    assert train(trial).returncode == 0
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
def test_what_t5_cannot_express_is_refused_by_field(
    make: MakeTrial, tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, field: str
) -> None:
    name = Architecture.parse(f"{TIED}-{word}").name
    make(f"0000-{name}-s0", architecture=name)
    assert export(tmp_path) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.endswith(f"is not a Hugging Face T5: {field}. Use --format torch, which writes every shape.\n")
    assert not (tmp_path / "out").exists()


def test_an_export_takes_nothing_from_one_that_was_stopped_and_replaces_nothing(
    make: MakeTrial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = make(f"0000-{TIED}-s0", architecture=TIED)
    save_tensors(build(Architecture.parse(TIED)).state_dict(), trial / weights.NAME)
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "load.py").write_text("of --format torch")
    assert export(tmp_path) == 0
    assert not (tmp_path / "out" / "load.py").exists()
    (tmp_path / "file").write_text("mine")
    capsys.readouterr()
    assert export(tmp_path, output="file") == 2
    assert capsys.readouterr().err.endswith("file already exists: remove it, or choose another folder with -o.\n")
    assert (tmp_path / "file").read_text() == "mine"
    assert not list(tmp_path.glob(".file*"))


def test_weights_that_cannot_be_written_are_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"missing/w: cannot be written: .*No such file or directory"):
        save_tensors({"x": torch.zeros(2)}, tmp_path / "missing" / "w")


def test_an_invalid_request_is_refused_in_one_line(
    make: MakeTrial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, seed in ((0, 0), (7, 1)):
        trial = make(f"{number:04d}-{TIED}-s{seed}", architecture=TIED)
        config = json.loads((trial / "trial.json").read_text())
        (trial / "trial.json").write_text(json.dumps(config | {"seed": seed}))
    weights_file = make(f"0008-{UNTIED}-s0", architecture=UNTIED) / weights.NAME
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


def test_curves_are_written_as_a_table_for_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = SHAPES[:2]
    write_study(tmp_path, {name: [4.0 - number / 10, 4.2] for number, name in enumerate(names)}, name="two")
    command, curves = command_in_process(capsys), ("export", "two", "--root", str(tmp_path), "--format", "curves")
    printed = command(*curves)
    assert printed.returncode == 0
    table = json.loads(printed.stdout)
    assert (table["schema_version"], table["unit"], len(table["runs"])) == (2, "nats per target token", 4)
    assert [run["architecture"] for run in table["runs"]] == [names[0], names[0], names[1], names[1]]
    assert table["runs"][2]["evaluations"][-1] == [1 << 20, pytest.approx(3.9)]
    written = command(*curves, "-o", str(tmp_path / "curves.json"))
    assert (written.returncode, written.stdout) == (0, "")
    assert json.loads((tmp_path / "curves.json").read_text()) == table
    asked = ("--strategy", "rungs", "--root", str(tmp_path), "--format", "json")
    replayed = [command("replay", source, *asked) for source in (str(tmp_path / "curves.json"), "two")]
    assert [ended.returncode for ended in replayed] == [0, 0]
    assert replayed[0].stdout.replace(str(tmp_path / "curves.json"), "two") == replayed[1].stdout
    for arguments, words in (
        ((*curves, "best"), "--format curves writes all complete trials of the study: remove TRIAL."),
        (curves[:4], "--format hf needs a TRIAL and an output folder: march-search export STUDY best -o DIR."),
        ((*curves[:4], "best"), "--format hf needs a TRIAL and an output folder"),
        (
            (*curves[:4], "--format", "torch"),
            "--format torch needs a TRIAL and an output folder: march-search export STUDY best --format torch -o DIR.",
        ),
    ):
        refused = command(*arguments)
        assert refused.returncode == 2
        assert words in one_line_error(refused)
