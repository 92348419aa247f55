"""How attention is computed: the choice on every device, and FlexAttention against SDPA in fp64 and in whole models.

FlexAttention has no backward pass on a CPU except the dense one that its eager mode runs on any device. The tests
switch off the check that refuses it, so that they see its mathematics and how it is called, but no GPU kernel.
"""

import itertools
import logging
import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from packaging.version import Version

from march_search import Architecture
from march_search.architecture.parameters import LayerGroup
from march_search.errors import ConfigError
from march_search.model import attention_path, build, flex
from march_search.model.attention import SelfAttention, scaled_attention
from march_search.model.attention_path import Platform, choose_path, padded_width
from march_search.model.positions import PositionInfo, pool, pool_by_product

H100 = Platform(device="cuda", torch_version=Version("2.11.0+cu130"), capability=(9, 0), has_compiler=True)
CPU = Platform(device="cpu", torch_version=Version("2.13.0"))
TINY = {"num_layers": 2, "d_model": 32, "num_heads": 2, "d_kv": 12, "d_ff": 64, "vocab_size": 50}
TOKENS = torch.randint(2, 50, (3, 12), generator=torch.Generator().manual_seed(2))
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # torch's compiler warns of its own code
]


def test_every_combination_has_a_path_and_a_reason_and_only_fp64_takes_the_math_backend() -> None:
    versions = [Version(text) for text in ("2.5.1", "2.6.0", "2.11.0+cu130", "2.14.0")]
    devices = [("cpu", (0, 0)), ("mps", (0, 0)), *(("cuda", c) for c in ((7, 5), (8, 0), (8, 9), (9, 0), (12, 0)))]
    dtypes = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    widths, biases, settings = (
        (4, 12, 64, 100, 224, 256, 320),
        ("none", "causal", "fixed", "trained"),
        ("auto", "sdpa", "flex"),
    )
    for (device, capability), version, compiler, strict in itertools.product(
        devices, versions, (True, False), (True, False)
    ):
        platform = Platform(
            device=device, torch_version=version, capability=capability, has_compiler=compiler, is_deterministic=strict
        )
        for dtype, d_kv, bias, keys, setting in itertools.product(dtypes, widths, biases, (16, 1024), settings):
            path = choose_path(platform, dtype, d_kv, bias, keys, setting)  # type: ignore[arg-type]
            assert path.reason
            assert not path.reason.endswith(".")
            expected = {"cpu": {"cpu-products", "sdpa"}, "mps": {"sdpa"}}
            assert path.name in expected.get(device, {"flash", "efficient", "flex", "math"})
            assert (path.name == "math") == (device == "cuda" and dtype == torch.float64)
            if path.name == "flash":
                assert bias in ("none", "causal")
                assert dtype != torch.float32
                assert d_kv <= 256
                assert capability >= (8, 0)
            if path.name == "flex":
                assert bias == "trained"
                assert compiler
                assert not strict
                assert setting != "sdpa"
                assert version >= Version("2.6")
            width = padded_width(path.name, d_kv)
            assert width >= d_kv
            assert path.name != "efficient" or width % 8 == 0
            assert path.name != "flex" or (width >= 16 and width & (width - 1) == 0)


@pytest.mark.parametrize(
    ("platform", "dtype", "bias", "setting", "name", "reason"),
    [
        (H100, torch.bfloat16, "trained", "auto", "flex", "sums the gradient"),
        (H100, torch.bfloat16, "trained", "sdpa", "efficient", 'attention = "sdpa" is set'),
        (H100, torch.float32, "trained", "auto", "efficient", "used in bf16"),
        (H100, torch.float32, "trained", "flex", "flex", "sums the gradient"),
        (replace(H100, torch_version=Version("2.5.1")), torch.bfloat16, "trained", "flex", "efficient", "torch 2.5.1"),
        (replace(H100, is_deterministic=True), torch.bfloat16, "trained", "auto", "efficient", "varying order"),
        (replace(H100, has_compiler=False), torch.bfloat16, "trained", "auto", "efficient", "Triton"),
        (H100, torch.bfloat16, "none", "auto", "flash", "no mask"),
        (H100, torch.bfloat16, "causal", "auto", "flash", "no mask"),
        (H100, torch.bfloat16, "fixed", "auto", "efficient", "takes no mask"),
        (H100, torch.float32, "none", "auto", "efficient", "fp32"),
        (CPU, torch.bfloat16, "trained", "flex", "cpu-products", "plain products up to 512 keys"),
        (CPU, torch.float32, "none", "auto", "sdpa", "SDPA beyond 64 keys"),
    ],
)
def test_the_reason_is_the_condition_that_decides(platform, dtype, bias, setting, name, reason) -> None:
    path = choose_path(platform, dtype, 64, bias, 100, setting)
    assert path.name == name
    assert reason in path.reason


def test_what_a_compiler_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert attention_path.missing_compiler("cpu") == "a C++ compiler"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert attention_path.missing_compiler("cuda") == "the package triton"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert attention_path.missing_compiler("cuda") == "a C compiler"
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("sysconfig.get_path", lambda name: "/nonexistent")
    assert attention_path.missing_compiler("cuda") == "Python's header files (python3-dev)"
    assert attention_path.missing_compiler("cpu") == ""


@pytest.mark.parametrize(("length", "reduced"), [(8, 4), (7, 3), (118, 59), (5, 5), (9, 2), (451, 226)])
def test_pooling_by_a_product_is_adaptive_average_pooling(length: int, reduced: int) -> None:
    x_BLW = torch.randn(2, length, 6, dtype=torch.float64, requires_grad=True)
    product, pooled = pool_by_product(x_BLW, reduced), pool(x_BLW, reduced)
    torch.testing.assert_close(product, pooled, rtol=1e-6, atol=1e-7)  # the weights are rounded to fp32
    grad = torch.randn_like(pooled)
    torch.testing.assert_close(
        *(torch.autograd.grad(x, x_BLW, grad)[0] for x in (product, pooled)), rtol=1e-6, atol=1e-7
    )


def mask_of(length: int, keys: int) -> torch.Tensor:
    """Return the causal mask in fp64; all queries see further keys."""
    mask = torch.full((length, length), -math.inf, dtype=torch.float64).triu(1)
    return F.pad(mask, (0, keys - length))


@pytest.mark.parametrize("d_kv", [4, 12, 16, 20])
@pytest.mark.parametrize(("length", "keys", "is_causal"), [(9, 9, True), (9, 10, True), (7, 13, False), (9, 9, False)])
def test_flex_equals_sdpa_in_fp64_forward_and_backward(dense_flex, length, keys, is_causal, d_kv) -> None:
    torch.manual_seed(0)
    shapes = [(3, 2, n, d_kv) for n in (length, keys, keys)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    bias = torch.randn(3, length, keys, requires_grad=True)  # of more heads than this layer has
    block_mask = flex.block_mask(length, keys > length, is_causal, None, torch.device("cpu"))
    found = scaled_attention(*inputs, bias[:2], False, 0.3, "flex", block_mask)
    exact = [x.detach().double().requires_grad_() for x in (*inputs, bias)]
    added = exact[3][:2] + (mask_of(length, keys) if is_causal else 0.0)
    expected = F.scaled_dot_product_attention(*exact[:3], added[None], scale=0.3)
    cotangent = torch.randn_like(found)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
    grads = torch.autograd.grad(found, [*inputs, bias], cotangent)
    exact_grads = torch.autograd.grad(expected, exact, cotangent.double())
    for one, other in zip(grads, exact_grads, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=1e-4)
    assert not grads[3][2].any()


def test_the_compiled_forward_pass_of_torchs_own_cpu_kernel_equals_sdpa() -> None:
    if attention_path.missing_compiler("cpu"):
        pytest.skip("needs a C++ compiler")
    torch.manual_seed(0)
    q, k, v, bias = (
        torch.randn(2, 2, 9, 16),
        torch.randn(2, 2, 10, 16),
        torch.randn(2, 2, 10, 16),
        torch.randn(2, 9, 10),
    )
    mask = flex.block_mask(9, True, True, None, torch.device("cpu"))
    with torch.no_grad():
        try:
            found = flex.attention(q, k, v, bias, mask, 0.3)
        except Exception as error:
            if "not supported" not in str(error):
                raise
            pytest.skip(f"this CPU has no kernel: {error}")
    expected = F.scaled_dot_product_attention(q, k, v, (bias + mask_of(9, 10).float())[None], scale=0.3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("d_kv", [4, 12])
@pytest.mark.parametrize("has_bias", [False, True])
def test_padded_heads_change_neither_values_nor_gradients(d_kv: int, has_bias: bool) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(3, 2, 4, 6, d_kv, requires_grad=True, dtype=torch.float64)
    bias = torch.randn(4, 6, 6, dtype=torch.float64, requires_grad=True) if has_bias else None
    wanted = [qkv] if bias is None else [qkv, bias]
    results = [scaled_attention(*qkv, bias, False, 0.3, path) for path in ("efficient", "sdpa")]
    torch.testing.assert_close(*results)
    grads = [torch.autograd.grad(result.square().sum(), wanted) for result in results]
    torch.testing.assert_close(*grads)


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Let models on the CPU choose as on an H100, with these changes."""
    platform = replace(H100, torch_version=Version(torch.__version__), **changes)
    monkeypatch.setattr("march_search.model.stack.platform_of", lambda device: platform)


MODELS = {
    "encoder-decoder": {},
    "no-op key": {"noop_key": "learned"},
    "decoder-only, no-op key": {"structure": "decoder-only", "noop_key": "fixed"},
    "half the positions": {"num_layers": 3, "length_reduction": 0.5, "noop_key": "learned"},
    "shared, keys of layers": {"share_layers": "all", "cross_attention": "layer"},
    "more heads first": {"head_schedule": "more-first", "num_layers": 3},
    "grouped, windows": {"num_heads": 4, "num_key_value_heads": 2, "attention_window": 4, "global_every": 2},
    "decoder-only, windows": {
        "structure": "decoder-only",
        "attention_window": 3,
        "noop_key": "fixed",
        "qk_norm": "all",
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_same_loss_and_gradients_with_flex(dense_flex, monkeypatch, name: str) -> None:
    results = []
    for setting in ("sdpa", "flex"):
        if setting == "flex":
            on_a_gpu(monkeypatch)
        torch.manual_seed(0)
        model = build(Architecture(**TINY | MODELS[name]), attention=setting)
        with torch.no_grad():  # the initial table is too small to matter
            for stack in model.stacks.values():
                stack.relative_bias.normal_()
        loss = model(None if model.encoder is None else TOKENS, TOKENS[:, :9])
        loss.backward()
        results.append({"loss": loss, **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}})
    for key, path in model.attention_paths.items():
        assert path.name == ("efficient" if key.endswith("cross") else "flex")
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        torch.testing.assert_close(
            results[1][key], value, atol=1e-6, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
    with torch.no_grad():  # evaluations need no gradient, so SDPA loses nothing
        again = model(None if model.encoder is None else TOKENS, TOKENS[:, :9])
    assert again.item() == pytest.approx(results[0]["loss"].item(), rel=1e-5)
    assert any(path.name == "flex" for path in model.attention_paths.values())


def test_a_failing_flex_attention_is_replaced_with_one_warning(monkeypatch, caplog) -> None:
    on_a_gpu(monkeypatch)  # FlexAttention refuses to train on a CPU: a real failure at its first use
    model = build(Architecture(**TINY)).bfloat16()
    with caplog.at_level(logging.WARNING):
        first, second = (model(TOKENS, TOKENS[:, :9]) for _ in range(2))
    first.backward()
    assert first.item() == second.item()
    texts = [record.message for record in caplog.records if "FlexAttention fails here" in record.message]
    assert 1 <= len(texts) <= 2  # one for the encoder, one for the decoder
    assert "and SDPA takes its place: " in texts[0]
    assert "\n" not in texts[0]
    path = model.attention_paths["encoder self"]
    assert path.name == "efficient"
    assert path.reason.startswith("FlexAttention failed: ")


def test_a_demanded_flex_attention_that_fails_is_a_one_line_error(monkeypatch) -> None:
    on_a_gpu(monkeypatch)
    model = build(Architecture(**TINY), attention="flex")
    with pytest.raises(ConfigError, match=re.escape('attention = "flex" fails here: ')) as caught:
        model(TOKENS, TOKENS)
    assert "\n" not in str(caught.value)


def test_wrong_numbers_of_flex_attention_are_noticed(dense_flex, monkeypatch) -> None:
    torch.manual_seed(0)
    attention = SelfAttention(Architecture(**TINY), LayerGroup(1, 1, False, 32, 2, 16, 2), 2)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    info = PositionInfo(torch.randn(2, 9, 9), False, None, None, "flex", None, None)
    assert flex.fault(attention, info, False, [(3, 9, 32)], torch.float32) == ""
    right = flex.attention
    for wrong in (
        lambda q, k, v, bias, mask, scale: right(q, k, v, bias, mask, scale) * 1.1,
        lambda q, k, v, bias, mask, scale: right(q, k, v, bias + 0.1 * (bias - bias.detach()), mask, scale),
        lambda q, k, v, bias, mask, scale: right(q, k, v, bias, mask, scale) * math.nan,
    ):
        monkeypatch.setattr(flex, "attention", wrong)
        assert "it differs from SDPA by " in flex.fault(attention, info, False, [(3, 9, 32)], torch.float32)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(flex, "attention", full)
    with pytest.raises(torch.OutOfMemoryError):
        flex.fault(attention, info, False, [(3, 9, 32)], torch.float32)
