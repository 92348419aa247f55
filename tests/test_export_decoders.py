"""Decoder-only winners are exported to the class of transformers with their shape, which generates the same text."""

import json
import random
import warnings
from pathlib import Path

import pytest
import torch
from helpers.command_line import json_of, run_command
from helpers.trials import MakeTrial, train, trial_maker
from torch import Tensor

from march_search import Architecture
from march_search.architecture.huggingface import START_TOKEN
from march_search.cli import main
from march_search.data.store import Store
from march_search.data.tokenizer import load
from march_search.model import Seq2Seq, build, from_huggingface
from march_search.training import weights

FAMILIES = {
    "LlamaForCausalLM": "L1-D32-H4x8-F64-V400-swiglu-rope-dec-KV2",
    "MistralForCausalLM": "L1-D32-H4x8-F64-V400-swiglu-rope-dec-W6",
    "Qwen2ForCausalLM": "L1-D32-H4x8-F64-V400-swiglu-rope-dec-bqkv-KV2",
    "Qwen3ForCausalLM": "L2-D32-H4x10-F64-V400-swiglu-rope-untied-dec-qknorm-KV2-W6-G2",
    "Olmo2ForCausalLM": "L1-D32-H4x8-F64-V400-swiglu-rope-dec-qknormall-postnorm",
    "GPTNeoXForCausalLM": "L1-D32-H4x8-F64-V400-rope-untied-dec-exactgelu-ln-ball-par-RF0.25",
    "GPT2LMHeadModel": "L1-D32-H4x8-F64-V400-M64-gelu-abs-dec-ln-ball",
}
QUICK = ("LlamaForCausalLM", "Qwen3ForCausalLM", "GPT2LMHeadModel")
TEXTS = ("abc  dé\n\n f", "the 1234 quick brown fox")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers", reason="transformers is not installed to load the export")


def continued(model: Seq2Seq, tokens: list[int], count: int) -> list[int]:
    """Return the `count` likeliest tokens after a text, one after the other, until the end token 1."""
    added: list[int] = []
    while len(added) < count and added[-1:] != [1]:
        text = torch.tensor([[*tokens, *added, 0]])  # the last token is only predicted
        added.append(int(model.logits(None, text)[0, -1].argmax()))
    return added


def tokenizer_of(transformers, folder: Path):
    """Return the exported tokenizer; `AutoTokenizer` replaces that of every Qwen2 by one with its own rules."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    loader = transformers.PreTrainedTokenizerFast if kind == "qwen2" else transformers.AutoTokenizer
    return loader.from_pretrained(folder)


def check_generation(transformers, folder: Path, model: Seq2Seq, tokens: list[int], text: str) -> None:
    """Check that transformers continues a text as our model does, alone and in a padded batch."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = tokenizer_of(transformers, folder)
    expected = tokenizer.decode(continued(model, tokens, 8))
    prompt = tokenizer(text, return_tensors="pt")
    assert prompt["input_ids"].tolist() == [[START_TOKEN, *tokens]]
    for options in ({}, {"attention_mask": prompt["attention_mask"]}):
        output: Tensor = theirs.generate(prompt["input_ids"], **options, max_new_tokens=8, do_sample=False)
        assert tokenizer.decode(output[0, 1 + len(tokens) :]) == expected
    batch = tokenizer([text, text + " and a longer one"], padding=True, return_tensors="pt")
    both = theirs.generate(**batch, max_new_tokens=8, do_sample=False)
    text_of_first = tokenizer.decode(both[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text_of_first == tokenizer.decode(continued(model, tokens, 8), skip_special_tokens=True)


@pytest.mark.parametrize(
    "expected_class",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.torture) for name in FAMILIES],
)
def test_the_export_has_equal_logits_and_generates_the_same_text(
    transformers, store: Path, tmp_path: Path, expected_class: str
) -> None:
    name = Architecture.parse(FAMILIES[expected_class]).name
    (tmp_path / "study" / "trials").mkdir(parents=True)
    (tmp_path / "study" / "study.json").write_text('{"settings": {}}')
    make: MakeTrial = trial_maker(store, tmp_path / "study" / "trials")
    trial = make(f"0000-{name}-s0", architecture=name, tokens=2048, checkpoints=0)
    assert train(trial).returncode == 0
    folder = tmp_path / "out"
    assert main(["export", "study", "best", "--root", str(tmp_path), "-o", str(folder)]) == 0

    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [expected_class]
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (START_TOKEN, 1, 1)
    model = build(Architecture.parse(name))
    model.load_state_dict(weights.load(trial))
    own = load(store / "tokenizer.json")
    for text in TEXTS:
        check_generation(transformers, folder, model, own.encode(text).ids, text)
    tokens = torch.randint(2, 300, (3, 30), generator=torch.Generator().manual_seed(5))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    shifted = torch.nn.functional.pad(tokens[:, :-1], (1, 0), value=START_TOKEN)
    logits = model.logits(None, tokens).detach()
    torch.testing.assert_close(logits, theirs(input_ids=shifted).logits.detach(), atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, from_huggingface(folder).logits(None, tokens).detach(), atol=1e-5, rtol=0)
    tokenizer = tokenizer_of(transformers, folder)
    assert (tokenizer.bos_token_id, len(tokenizer)) == (START_TOKEN, Store.open(store).vocab_size)
    assert tokenizer.decode(tokenizer(TEXTS[0])["input_ids"], skip_special_tokens=True) == TEXTS[0]


SPACE = """description = "Grouped-query attention and QK-norm at 40k parameters"
[budget]
parameters = 40_000
tolerance = "3%"
[axes]
structure = "decoder-only"
num_layers = 2
d_model = 32
num_heads = 4
d_kv = 8
d_ff = { min = 16, max = 256, multiple_of = 4 }
num_key_value_heads = [1, 2]
qk_norm = ["none", "head"]
feed_forward_proj = "gated-silu"
position = "rotary"
vocab_size = 400
"""

STUDY = """question = "Does QK-norm help, with one key head or two?"
space = "space.toml"
[search]
strategy = "design"
spread = ["num_key_value_heads", "qk_norm"]
trials = 4
[pruner]
kind = "none"
[confirm]
max_seeds = 1
[data]
corpus = "texts"
vocab_size = 400
sequence_length = 32
validation_fraction = 0.3
validation_sequences = 16
[training]
tokens = 8192
global_batch_tokens = 256
precision = "fp32"
[devices]
kind = "cpu"
threads = 1
parallel_trials = 2
"""


@pytest.mark.torture
def test_a_study_of_grouped_queries_and_qk_norm_ends_in_a_model_that_transformers_runs(
    transformers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(200)]
    (tmp_path / "texts").mkdir()
    for number in range(60):
        (tmp_path / "texts" / f"{number}.txt").write_text(" ".join(rng.choices(words, k=100)) + "\n")
    (tmp_path / "space.toml").write_text(SPACE)
    (tmp_path / "grouped.toml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str):
        ended = run_command(*arguments, "--root", str(tmp_path / "runs"))
        assert ended.returncode == 0, ended.stderr
        return ended

    command("study", "run", "grouped.toml")
    ranked = json_of(command("rank", "grouped", "--format", "json"))["ranked"]
    shapes = [Architecture.parse(row["name"]) for row in ranked]
    assert {(a.num_key_value_heads, a.qk_norm) for a in shapes} == {(n, q) for n in (1, 2) for q in ("none", "head")}
    command("report", "grouped", "-o", "report.html")
    assert "qknorm" in (tmp_path / "report.html").read_text()
    for a, row in zip(shapes, ranked, strict=True):
        folder = tmp_path / f"model-{a.name}"
        command("export", "grouped", str(row["trials"][0]), "-o", str(folder))
        kind = json.loads((folder / "config.json").read_text())["model_type"]
        assert kind == ("llama" if a.qk_norm == "none" else "qwen3")
        [trial] = (tmp_path / "runs/grouped/trials").glob(f"{row['trials'][0]:04d}-*")
        model = build(a)
        model.load_state_dict(weights.load(trial))
        [tokenizer] = (tmp_path / "runs/data").glob("texts-*/tokenizer.json")
        check_generation(transformers, folder, model, load(tokenizer).encode("abc ab").ids, "abc ab")
