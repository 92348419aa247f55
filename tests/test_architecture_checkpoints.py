"""Public models by name: their published counts, and what a user may write instead of a name."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers.reference import decoder_checkpoints, t5_checkpoints

from march_search import Architecture
from march_search.architecture.checkpoints import CHECKPOINTS, read_architecture
from march_search.cli import main
from march_search.config.counts import parse_parameters
from march_search.errors import ArchitectureError, BudgetError

PUBLISHED = {
    "flan-t5-large": 783_150_080,
    "flan-t5-xl": 2_849_757_184,
    "flan-t5-xxl": 11_135_332_352,
    "mt5-small": 300_176_768,
    "mt5-base": 582_401_280,
    "mt5-large": 1_229_581_312,
    "mt5-xl": 3_742_619_648,
    "mt5-xxl": 12_921_057_280,
    "byt5-small": 299_637_760,
    "byt5-base": 581_653_248,
    "ul2": 19_459_613_696,
    "flan-ul2": 19_459_613_696,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "pythia-14m": 14_067_712,
    "pythia-31m": 30_494_720,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}
"""Counts that the authors, or the hub, give for these models."""

PUBLISHED |= {row["name"]: row["num_params"] for row in (*t5_checkpoints(), *decoder_checkpoints())}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_public_model_has_its_published_count(name: str) -> None:
    assert parse_parameters(name.upper()) == PUBLISHED[name]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_public_model_goes_through_its_config(name: str) -> None:
    a = read_architecture(name)
    assert a.name == CHECKPOINTS[name]
    assert Architecture.from_huggingface(a.to_huggingface()) == a


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("mt5-smal", 'Did you mean "mt5-small"?'),
        ("gpt2-huge", 'Did you mean "gpt2'),
        ("falcon-7b", "use a number such as 220M"),
    ],
)
def test_an_unknown_model_names_the_nearest(word: str, words: str) -> None:
    with pytest.raises(BudgetError) as budget:
        parse_parameters(word)
    assert words in str(budget.value)
    with pytest.raises(ArchitectureError) as shape:
        read_architecture(word)
    assert len(str(budget.value)) < 300
    assert len(str(shape.value)) < 320


def test_commands_take_the_files_of_the_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"model_type": "llama", **next(r for r in decoder_checkpoints() if r["name"] == "smollm2-135m")["config"]}
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "rope_theta": 100000,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    for text in (str(path), str(tmp_path), "smollm2-135m"):
        assert main(["explain", text, "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["name"] == CHECKPOINTS["smollm2-135m"]
    near = ["solve", "--budget", "smollm2-135m", "--near", str(path), "--top", "1", "--format", "json"]
    assert main(near) == 0
    found = json.loads(capsys.readouterr().out)["architectures"][0]
    assert abs(found["num_params"] / 134_515_008 - 1) < 0.015
    path.write_text(json.dumps(config | {"attention_bias": True}))
    assert main(["explain", str(path)]) == 2
    assert capsys.readouterr().err.count("attention_bias is True and mlp_bias is False") == 1


def test_an_exported_folder_of_torch_weights_names_its_own_shape(tmp_path: Path) -> None:
    name = "L2-D64-H4x16-F128-reglu-rope-dec-V512-RS8"
    a = Architecture.parse(name)
    (tmp_path / "config.json").write_text(json.dumps({"name": name, "architecture": asdict(a)}))
    assert read_architecture(str(tmp_path)) == read_architecture(str(tmp_path / "config.json")) == a
