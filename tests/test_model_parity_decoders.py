"""Decoder-only models against those of Hugging Face transformers, with weights copied both ways."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from march_search import Architecture
from march_search.errors import ArchitectureError, StorageError
from march_search.model import Seq2Seq, build, from_huggingface
from march_search.model.huggingface_folder import save_huggingface, to_huggingface

FAMILIES = {
    "Llama, grouped": "L2-D42-H6x10-F72-V97-swiglu-rope-untied-dec-KV2-RB500",
    "Llama, tied, one key head, biases": "L3-D36-H3x14-F50-V97-geglu-rope-dec-ball-KV1-E0.00001",
    "Llama, scaled rotary positions": "L2-D48-H3x16-F52-V97-swiglu-rope-dec-RB1000000-RS32",
    "Llama, relu": "L1-D40-H2x6-F72-V97-reglu-rope-untied-dec",
    "Mistral, heads that do not divide the width": "L2-D40-H6x10-F72-V97-swiglu-rope-untied-dec-KV2",
    "Mistral": "L2-D40-H4x6-F72-V97-swiglu-rope-untied-dec-KV2-W7",
    "Qwen2": "L2-D40-H4x10-F72-V97-swiglu-rope-dec-bqkv-KV2",
    "Qwen2, windows": "L5-D40-H4x10-F72-V97-swiglu-rope-untied-dec-bqkv-KV2-W5-G3",
    "Qwen3": "L2-D44-H6x10-F72-V97-swiglu-rope-dec-qknorm-KV3-RB1000000",
    "Qwen3, windows": "L4-D44-H6x10-F72-V97-swiglu-rope-untied-dec-qknorm-KV2-W4-G2",
    "OLMo 2": "L2-D48-H6x8-F52-V97-swiglu-rope-untied-dec-qknormall-postnorm-KV2-E0.00001",
    "OLMo 2, tied": "L3-D48-H3x16-F52-V97-swiglu-rope-dec-qknormall-postnorm",
    "GPT-NeoX": "L2-D48-H3x16-F52-V97-rope-untied-dec-exactgelu-ln-ball-par-RF0.25-E0.00001",
    "GPT-NeoX, in sequence, tied": "L3-D40-H2x20-F52-V97-gelu-rope-dec-ln-ball-RF0.5-RB500",
    "GPT-NeoX, scaled rotary positions": "L2-D48-H2x24-F52-V97-gelu-rope-dec-ln-ball-RF0.75-RB500000-RS3.5",
    "GPT-2": "L2-D48-H3x16-F52-V97-M64-gelu-abs-dec-ln-ball-E0.00001",
    "GPT-2, untied": "L3-D40-H4x10-F72-V97-M64-exactgelu-abs-untied-dec-ln-ball",
}
TOKENS = torch.randint(2, 97, (3, 40), generator=torch.Generator().manual_seed(5))
SHIFTED = nn.functional.pad(TOKENS[:, :-1], (1, 0))
every_family = pytest.mark.parametrize("family", FAMILIES)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers", reason="transformers is not installed: no parity with its models")


def disturbed(model: nn.Module) -> nn.Module:
    """Return the model with random norms and biases; ones and zeros would hide a missing one."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
        assert parameter.abs().sum() > 0, name
    return model


def ours(family: str) -> Seq2Seq:
    torch.manual_seed(0)
    return disturbed(build(Architecture.parse(FAMILIES[family])))


def random_theirs(transformers, a: Architecture) -> nn.Module:
    """Return their model for an architecture."""
    config = a.to_huggingface()
    config = transformers.AutoConfig.for_model(config["model_type"]).from_dict(config | {"use_cache": False})
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()


def loss_of(model: nn.Module) -> torch.Tensor:
    """Return the mean loss of their model, whose own would shift the labels again."""
    return nn.functional.cross_entropy(model(input_ids=SHIFTED).logits.flatten(0, 1), TOKENS.flatten())


@every_family
def test_logits_loss_and_gradients_are_equal(transformers, family: str, tmp_path: Path) -> None:
    model = ours(family)
    a = model.architecture
    save_huggingface(a, model.state_dict(), tmp_path, {})
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    theirs.set_attn_implementation("eager")
    theirs.train()
    assert not any(loading.values()), loading
    assert type(theirs).__name__.lower().startswith(family.partition(",")[0].lower().replace("-", "").replace(" ", ""))

    loss, expected = model(None, TOKENS), loss_of(theirs)
    torch.testing.assert_close(model.logits(None, TOKENS), theirs(input_ids=SHIFTED).logits, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    loss.backward()
    expected.backward()
    found = to_huggingface(a, {name: p.grad for name, p in model.named_parameters()}, are_gradients=True)
    grads = {name.replace("embed_out", "lm_head"): grad for name, grad in found.items()}  # renamed in transformers 5
    assert grads.keys() == {name for name, _ in theirs.named_parameters()}
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, atol=5e-6, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


@every_family
def test_their_folder_is_read_and_ours_is_read_back(transformers, family: str, tmp_path: Path) -> None:
    a = Architecture.parse(FAMILIES[family])
    torch.manual_seed(1)
    theirs = disturbed(random_theirs(transformers, a))
    shard = "1KB" if family == "Llama, grouped" else "1GB"
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) == 1 or shard == "1KB"
    model = from_huggingface(tmp_path / "theirs")
    assert model.architecture == a
    torch.testing.assert_close(model.logits(None, TOKENS), theirs(input_ids=SHIFTED).logits, atol=2e-5, rtol=1e-5)

    (tmp_path / "ours").mkdir()
    save_huggingface(a, model.state_dict(), tmp_path / "ours", {})
    again = from_huggingface(tmp_path / "ours")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, atol=0, rtol=3e-7, msg=name)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, atol=0, rtol=3e-7, msg=name)


def test_a_t5_is_read(transformers, tmp_path: Path) -> None:
    a = Architecture.parse("L2+3-D48-H3x8-F64-geglu-V97")
    torch.manual_seed(1)
    config = transformers.T5Config.from_dict(a.to_huggingface())
    theirs = disturbed(transformers.T5ForConditionalGeneration(config))
    theirs.save_pretrained(tmp_path)
    expected = theirs.eval()(input_ids=TOKENS, labels=TOKENS).loss
    torch.testing.assert_close(from_huggingface(tmp_path)(TOKENS, TOKENS), expected, atol=1e-5, rtol=1e-5)


def test_weights_in_bf16_stay_so(tmp_path: Path) -> None:
    model = ours("Qwen3").bfloat16()
    save_huggingface(model.architecture, model.state_dict(), tmp_path, {})
    again = from_huggingface(tmp_path)
    assert again.embedding.dtype == torch.bfloat16
    assert torch.equal(again.embedding, model.embedding)
    torch.testing.assert_close(again(None, TOKENS), model(None, TOKENS), atol=0.01, rtol=0)


def test_a_file_that_does_not_fit_its_config_is_named(tmp_path: Path) -> None:
    model = ours("OLMo 2")
    a, weights = model.architecture, dict(model.state_dict())
    save_huggingface(a, weights, tmp_path, {})
    config = json.loads((tmp_path / "config.json").read_text())

    def error_with(**change: object) -> str:
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(StorageError) as error:
            from_huggingface(tmp_path)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "model.layers.2.post_attention_layernorm.weight is missing, but L3-" in error_with(num_hidden_layers=3)
    assert "model.layers.1." in error_with(num_hidden_layers=1)
    assert "mlp.gate_proj.weight has the shape (52, 48), but" in error_with(intermediate_size=53)
    (tmp_path / "model.safetensors").unlink()
    assert "model.safetensors does not exist: only safetensors are read." in error_with()
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    assert "its weights cannot be read (" in error_with()
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ArchitectureError, match='model_type "bert" cannot be expressed'):
        from_huggingface(tmp_path)
