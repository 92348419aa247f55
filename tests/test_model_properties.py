"""Properties of all systems of the 2023 study: visibility, weight sharing, kernels, precision, and learning."""

import pytest
import torch
import torch.nn.functional as F

from march_search import Architecture
from march_search.architecture.parameters import LayerGroup
from march_search.config import DataConfig
from march_search.data.batches import Batches
from march_search.data.prepare import prepare
from march_search.data.store import Store
from march_search.model import build
from march_search.model.attention import SelfAttention, scaled_attention
from march_search.model.layers import RMSNorm
from march_search.model.loss import mean_loss, token_losses
from march_search.model.positions import PositionInfo

TINY = {"num_layers": 2, "d_model": 64, "num_heads": 2, "d_kv": 16, "d_ff": 96, "vocab_size": 50, "max_length": 32}
GATED = {"feed_forward_proj": "gated-gelu"}
LLAMA = {"structure": "decoder-only", "position": "rotary", "feed_forward_proj": "gated-silu"}
SYSTEMS = {
    "baseline of the study": {"position": "absolute", "cross_attention": "layer"},
    "T5": {},
    "T5, unequal depths": {"num_decoder_layers": 3},
    "more heads, fewer layers": {"num_layers": 1, "num_heads": 4},
    "more dim, fewer layers": {"num_layers": 1, "d_model": 128},
    "more of both, fewer layers": {"num_layers": 1, "num_heads": 4, "d_model": 128},
    "T5 v1.1": {**GATED, "tie_word_embeddings": False},
    "no cross key/value weights": {"position": "absolute", "cross_attention": "layer-shared"},
    "gated relu": {"feed_forward_proj": "gated-relu"},
    "gated silu": {"feed_forward_proj": "gated-silu"},
    "heads more first": {"head_schedule": "more-first", "cross_attention": "layer"},
    "heads more last, same width": {"head_schedule": "more-last-same-width", "position": "rotary"},
    "baseline V2, rotary": {**GATED, "position": "rotary", "cross_attention": "layer-shared"},
    "baseline V2, relative": {**GATED, "cross_attention": "layer-shared"},
    "ALBERT": {"share_layers": "all"},
    "decoder-only": {"structure": "decoder-only"},
    "decoder-only, rotary, no-op": {"structure": "decoder-only", "position": "rotary", "noop_key": "learned"},
    "decoder-only, absolute, no-op": {"structure": "decoder-only", "position": "absolute", "noop_key": "fixed"},
    "flat bottleneck": {"bottleneck": "flat", "d_bottleneck": 32},
    "shrinking": {"d_model": 128, "bottleneck": "shrinking", "d_bottleneck": 64},
    "growing": {"d_model": 128, "bottleneck": "growing", "d_bottleneck": 64, "position": "rotary"},
    "length reduction, learned no-op": {"num_layers": 3, "length_reduction": 0.5, "noop_key": "learned"},
    "length reduction, fixed no-op": {"length_reduction": 0.4, "noop_key": "fixed", "position": "rotary"},
    "Llama": {**LLAMA, "num_heads": 4, "num_key_value_heads": 2},
    "Qwen3, one key head": {
        **LLAMA,
        "num_heads": 4,
        "num_key_value_heads": 1,
        "qk_norm": "head",
        "noop_key": "learned",
    },
    "OLMo 2": {**LLAMA, "qk_norm": "all", "norm_position": "post"},
    "GPT-NeoX": {
        "structure": "decoder-only",
        "position": "rotary",
        "rotary_fraction": 0.25,
        "rotary_base": 500.0,
        "norm": "layer",
        "bias": "all",
        "feed_forward_proj": "exact-gelu",
        "parallel_block": True,
    },
    "no positions, soft cap": {"structure": "decoder-only", "position": "none", "logit_softcap": 10.0, "bias": "qkv"},
    "window, global layers, grouped": {
        "num_layers": 3,
        "num_heads": 4,
        "num_key_value_heads": 2,
        "attention_window": 6,
        "global_every": 3,
        "qk_norm": "head",
        "norm": "layer",
        "norm_position": "post",
        "bias": "all",
    },
    "grouped by layer": {"num_heads": 4, "num_key_value_heads": 2, "cross_attention": "layer", "bias": "all"},
    "length reduction by layer": {"num_layers": 3, "length_reduction": 0.5, "cross_attention": "layer"},
}
GENERATOR = torch.Generator().manual_seed(2)
INPUTS = torch.randint(2, 50, (4, 12), generator=GENERATOR)
TARGETS = torch.randint(2, 50, (4, 9), generator=GENERATOR)
every_system = pytest.mark.parametrize("system", SYSTEMS)


pytestmark = pytest.mark.usefixtures("one_thread")


def built(system: str, **more):
    """Return the model of a system, and its inputs."""
    torch.manual_seed(0)
    architecture = Architecture(**TINY | SYSTEMS[system])
    model = build(architecture, **more)
    return model, None if architecture.structure == "decoder-only" else INPUTS


@pytest.fixture(scope="module")
def wikipedia(tmp_path_factory):
    """Examples from the embedded Wikipedia summaries, with a vocabulary of 512."""
    config = DataConfig(vocab_size=512, sequence_length=40, tokenizer_bytes=500_000, validation_sequences=64)
    root = tmp_path_factory.mktemp("wikipedia")
    return Batches(Store.open(prepare(config, root, root, tokens=1)), config, seed=0)


@every_system
def test_thirty_steps_on_real_text_lower_training_and_validation_loss(wikipedia, system):
    torch.manual_seed(0)
    a = Architecture(**TINY | SYSTEMS[system] | {"vocab_size": 512, "max_length": 64})
    model, steps = build(a), [wikipedia.train(16 * step, 16) for step in range(30)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, fused=True)

    def batch(examples):
        inputs, targets = map(torch.from_numpy, examples)
        return (None if a.structure == "decoder-only" else inputs), targets

    held_out, losses = batch(wikipedia.validation(0, 64)), []
    before = model.example_losses(*held_out).mean().item()
    for examples in steps:
        loss = model(*batch(examples))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5]) - 5
    assert model.example_losses(*held_out).mean().item() < before - 1


@every_system
def test_targets_change_later_logits_only_and_inputs_change_all(system):
    model, inputs = built(system)
    changed = TARGETS.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 50
    before, after = model.logits(inputs, TARGETS), model.logits(inputs, changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()
    if inputs is not None:
        for index in (0, 6, 11):
            changed = inputs.clone()
            changed[:, index] = (changed[:, index] + 1) % 50
            assert (before != model.logits(changed, TARGETS)).any(-1).all()


@pytest.mark.parametrize("position", ["relative", "absolute", "rotary"])
def test_the_encoder_is_bidirectional(position):
    model = build(Architecture(**TINY, position=position))
    changed = INPUTS.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 50
    before, after = (model.encoder(model._embed(tokens), None).output_BSD for tokens in (INPUTS, changed))
    assert (before != after).any(-1).all()


@every_system
def test_checkpointing_gives_the_same_loss_and_gradients(system):
    results = []
    for checkpointing in (False, True):
        model, inputs = built(system, checkpointing=checkpointing)
        loss = model(inputs, TARGETS)
        loss.backward()
        results.append({"loss": loss, **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}})
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, msg=name)


@every_system
def test_sdpa_gives_the_same_loss_and_gradients_as_the_cpu_kernels(monkeypatch, system):
    results = []
    for keys in (512, 0):
        monkeypatch.setattr("march_search.model.attention_path.CPU_KEYS", {"fp32": keys, "other": keys})
        model, inputs = built(system)
        loss = model(inputs, TARGETS)
        loss.backward()
        results.append({"loss": loss, **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}})
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, atol=1e-5, rtol=1e-3, msg=name)


@every_system
def test_every_system_can_be_cast_to_bf16(system):
    model, inputs = built(system)
    exact = model(inputs, TARGETS)
    model = model.to(torch.bfloat16)
    loss = model(inputs, TARGETS)
    loss.backward()
    assert loss.dtype == torch.float32
    assert model.example_losses(inputs, TARGETS).dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_system
def test_only_weights_that_layer_wise_cross_attention_never_reads_have_no_gradient(system):
    model, inputs = built(system)
    model(inputs, TARGETS).backward()
    unread = {name for name, p in model.named_parameters() if p.grad is None}
    last = model.encoder.uses[-1] if model.encoder is not None else 0
    expected = ("encoder.norm", "encoder.projections", f"encoder.layers.{last}")
    assert not unread if model.architecture.cross_attention == "output" else all(n.startswith(expected) for n in unread)
    losses = model.example_losses(inputs, TARGETS)
    assert losses.shape == (4,)
    assert not losses.requires_grad
    assert losses.mean().item() == pytest.approx(model(inputs, TARGETS).item(), rel=1e-5)


def test_layer_shared_has_no_key_and_value_weights():
    model, _ = built("no cross key/value weights")
    cross = {name for name, _ in model.decoder.layers[0].cross_attention.named_parameters()}
    assert cross == {"q", "o"}


@pytest.mark.parametrize("share", ["all", 2])
def test_the_gradient_of_a_shared_layer_is_the_sum_over_its_uses(share):
    torch.manual_seed(0)
    shape = TINY | {"num_layers": 4, "cross_attention": "layer"}
    shared, apart = build(Architecture(**shape, share_layers=share)), build(Architecture(**shape))
    apart.load_state_dict(shared.state_dict(), strict=False)
    for stack in ("encoder", "decoder"):
        ours, theirs = getattr(shared, stack), getattr(apart, stack)
        for layer, use in zip(theirs.layers, ours.uses, strict=True):
            layer.load_state_dict(ours.layers[use].state_dict())
    losses = [model(INPUTS, TARGETS) for model in (shared, apart)]
    assert losses[0].item() == losses[1].item()
    sum(losses).backward()
    for stack in ("encoder", "decoder"):
        ours, theirs = getattr(shared, stack), getattr(apart, stack)
        for use, layer in enumerate(ours.layers):
            copies = [dict(c.named_parameters()) for c, u in zip(theirs.layers, ours.uses, strict=True) if u == use]
            for name, parameter in layer.named_parameters():
                total = sum(c[name].grad for c in copies if c[name].grad is not None)
                torch.testing.assert_close(parameter.grad, total, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("noop_key", ["none", "fixed", "learned"])
def test_with_a_no_op_key_attention_sums_to_less_than_one(noop_key):
    torch.manual_seed(0)
    attention = SelfAttention(
        Architecture(position="rotary", noop_key=noop_key), LayerGroup(1, 1, False, 8, 2, 4, 2), 1
    )
    with torch.no_grad():
        attention.o.copy_(torch.eye(8))
        if attention.noop_key is not None:
            attention.noop_key.normal_()
    q, k, ones = torch.randn(1, 5, 2, 4), torch.randn(1, 3, 2, 4), torch.ones(1, 3, 2, 4)
    sums = attention.attend(q, k, ones, PositionInfo(None, False, None, None))
    if noop_key == "none":
        torch.testing.assert_close(sums, torch.ones_like(sums))
    else:
        assert (sums < 1).all()
        assert (sums > 0).all()
    if noop_key == "fixed":
        e = torch.einsum("blhk,bmhk->blhm", q, k).div(2).exp().sum(-1)
        torch.testing.assert_close(sums, (e / (1 + e))[..., None].expand(-1, -1, -1, 4).flatten(2))


@pytest.mark.parametrize("block_scores", [2**21, 150], ids=["one block", "many blocks"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_attention_on_a_cpu_equals_sdpa_with_its_gradients(monkeypatch, causal, has_bias, block_scores):
    monkeypatch.setattr("march_search.model.cpu.BLOCK_SCORES", block_scores)
    torch.manual_seed(0)
    qkv = torch.randn(3, 2, 4, 6, 8, requires_grad=True)
    bias = torch.randn(4, 6, 6, requires_grad=True) if has_bias else None
    mask = bias if bias is None or not causal else bias + torch.full((6, 6), -torch.inf).triu(1)
    flag = causal and not has_bias
    theirs = F.scaled_dot_product_attention(*qkv, mask if mask is None else mask[None], is_causal=flag, scale=0.3)
    wanted = [qkv] if bias is None else [qkv, bias]
    cotangent = torch.randn_like(theirs)
    expected = torch.autograd.grad(theirs, wanted, cotangent, retain_graph=True)
    ours = scaled_attention(*qkv, mask, flag, 0.3)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(torch.autograd.grad(ours, wanted, cotangent), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_norm_on_a_cpu_equals_torchs_with_its_gradients():
    torch.manual_seed(0)
    norm, x = RMSNorm(16), torch.randn(3, 5, 16, requires_grad=True)
    norm.weight.data.uniform_(0.5, 2)
    y, expected = norm(x), F.rms_norm(x, (16,), norm.weight, 1e-6)
    torch.testing.assert_close(y, expected)
    cotangent = torch.randn_like(y)
    grads = (torch.autograd.grad(z, [x, norm.weight], cotangent) for z in (y, expected))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_in_chunks_equals_cross_entropy_with_its_gradients(monkeypatch, dtype):
    monkeypatch.setattr("march_search.model.loss.CHUNK_LOGITS", {"cpu": 500, "other": 500})
    monkeypatch.setattr("march_search.model.loss.BLOCK_LOGITS", {"cpu": 200, "other": 200})
    torch.manual_seed(0)
    x = torch.randn(23, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(50, 16, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 50, (23,))
    each = F.cross_entropy(F.linear(x, weight).float(), targets, reduction="none")
    torch.testing.assert_close(token_losses(x, weight, targets), each)
    loss = mean_loss(x, weight, targets)
    torch.testing.assert_close(loss, each.mean())
    expected = torch.autograd.grad(each.mean() * 3, [x, weight])
    rtol, atol = (1e-4, 1e-6) if dtype == torch.float32 else (2e-2, 2e-3)
    for one, other in zip(torch.autograd.grad(loss * 3, [x, weight]), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_z_loss_adds_its_gradient_but_not_its_value(monkeypatch, dtype):
    monkeypatch.setattr("march_search.model.loss.CHUNK_LOGITS", {"cpu": 500, "other": 500})
    monkeypatch.setattr("march_search.model.loss.BLOCK_LOGITS", {"cpu": 200, "other": 200})
    torch.manual_seed(0)
    x = torch.randn(23, 16).to(dtype).requires_grad_()
    weight = torch.randn(50, 16).to(dtype).requires_grad_()
    targets, coefficient = torch.randint(0, 50, (23,)), 0.05
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    logits = F.linear(*exact)
    reference = F.cross_entropy(logits, targets) + coefficient * logits.logsumexp(-1).square().mean()
    expected = torch.autograd.grad(reference, exact)
    loss = mean_loss(x, weight, targets, coefficient)
    torch.testing.assert_close(loss, mean_loss(x, weight, targets))
    without = torch.autograd.grad(mean_loss(x, weight, targets), [x, weight])
    rtol, atol = (1e-5, 1e-7) if dtype == torch.float32 else (2e-2, 2e-3)
    for one, other, plain in zip(torch.autograd.grad(loss, [x, weight]), expected, without, strict=True):
        torch.testing.assert_close(one, other.to(dtype), rtol=rtol, atol=atol)
        assert (one - plain).abs().max() > 10 * atol
