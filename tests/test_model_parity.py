"""The model against independent implementations: Hugging Face's T5 and Llama, and NumPy from the definition."""

import warnings

import numpy as np
import pytest
import torch

from march_search import Architecture
from march_search.model import build
from march_search.model.t5_weights import t5_tensors

SHAPE = {"num_layers": 2, "d_model": 48, "num_heads": 3, "d_kv": 8, "d_ff": 64, "vocab_size": 97}
GENERATOR = torch.Generator().manual_seed(5)
INPUTS = torch.randint(2, 97, (3, 150), generator=GENERATOR)  # beyond the last bucket's distance of 128
TARGETS = torch.randint(2, 97, (3, 20), generator=GENERATOR)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers", reason="transformers is not installed: no parity with its models")


@pytest.mark.parametrize("decoder_layers", [None, 3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("feed_forward_proj", ["relu", "gelu", "gated-gelu", "gated-silu"])
def test_t5_has_the_same_logits_loss_and_gradients(transformers, feed_forward_proj, tied, decoder_layers):
    a = Architecture(
        **SHAPE, feed_forward_proj=feed_forward_proj, tie_word_embeddings=tied, num_decoder_layers=decoder_layers
    )
    torch.manual_seed(0)
    ours = build(a)
    config = transformers.T5Config.from_dict(a.to_huggingface() | {"dtype": "float32", "use_cache": False})
    theirs = transformers.T5ForConditionalGeneration(config).train()
    if not tied:  # transformers 5 always ties the weights of T5; untied models only lack the scaling
        theirs.lm_head = torch.nn.Linear(a.d_model, a.vocab_size, bias=False)
    with torch.no_grad():
        missing = theirs.load_state_dict(t5_tensors(a, ours.state_dict()), strict=False)
    assert not missing.unexpected_keys
    assert all("embed_tokens" in key or (tied and key == "lm_head.weight") for key in missing.missing_keys)

    expected = theirs(input_ids=INPUTS, labels=TARGETS)
    loss = ours(INPUTS, TARGETS)
    torch.testing.assert_close(ours.logits(INPUTS, TARGETS), expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.example_losses(INPUTS, TARGETS).mean(), expected.loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.loss.backward()
    grads = t5_tensors(a, {name: p.grad for name, p in ours.named_parameters()})
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, atol=2e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_a_rotary_decoder_has_the_logits_of_llama(transformers):
    a = Architecture(
        **SHAPE,
        structure="decoder-only",
        position="rotary",
        feed_forward_proj="gated-silu",
        tie_word_embeddings=False,
    )
    ours = build(a)
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=8,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        use_cache=False,
    )
    weights = ours.state_dict()
    named = {
        "model.embed_tokens.weight": weights["embedding"],
        "lm_head.weight": weights["lm_head"],
        "model.norm.weight": weights["decoder.norm.weight"],
    }
    for i in range(2):
        ours_i, theirs_i = f"decoder.layers.{i}", f"model.layers.{i}"
        qkv, wi = weights[f"{ours_i}.attention.qkv"].chunk(3), weights[f"{ours_i}.feed_forward.wi"].chunk(2)
        named |= {f"{theirs_i}.self_attn.{n}_proj.weight": t for n, t in zip("qkv", qkv, strict=True)}
        named |= {f"{theirs_i}.mlp.{n}_proj.weight": t for n, t in zip(("gate", "up"), wi, strict=True)}
        named[f"{theirs_i}.self_attn.o_proj.weight"] = weights[f"{ours_i}.attention.o"]
        named[f"{theirs_i}.mlp.down_proj.weight"] = weights[f"{ours_i}.feed_forward.wo"]
        named[f"{theirs_i}.input_layernorm.weight"] = weights[f"{ours_i}.norm.weight"]
        named[f"{theirs_i}.post_attention_layernorm.weight"] = weights[f"{ours_i}.feed_forward_norm.weight"]
    theirs = transformers.LlamaForCausalLM(config)
    theirs.load_state_dict(named)
    shifted = torch.nn.functional.pad(INPUTS[:, :-1], (1, 0))
    torch.testing.assert_close(ours.logits(None, INPUTS), theirs(input_ids=shifted).logits, atol=1e-4, rtol=0)


# The baseline of the 2023 study, from its definition, in NumPy and float64.


def norm(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def softmax(scores):
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(q, k, v, o, heads, causal=False):
    """One example: q (L, X), k and v (M, X), o (D, X)."""
    width, out = q.shape[1] // heads, []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[:, part] @ k[:, part].T / np.sqrt(width)
        if causal:
            scores = np.where(np.tri(len(q), len(k), dtype=bool), scores, -np.inf)
        out.append(softmax(scores) @ v[:, part])
    return np.concatenate(out, 1) @ o.T


def baseline_logits(w, layers, heads, inputs, targets):
    """Logits (T, V) of one example; `w` maps our names to float64 arrays."""

    def embed(tokens):
        return (w["embedding"][tokens] + w["position_embedding"][: len(tokens)]) / 2

    def feed_forward(x, name):
        hidden = norm(x, w[f"{name}.feed_forward_norm.weight"]) @ w[f"{name}.feed_forward.wi"].T
        return x + np.maximum(hidden, 0) @ w[f"{name}.feed_forward.wo"].T

    def self_attention(x, name, causal):
        q, k, v = (norm(x, w[f"{name}.norm.weight"]) @ m.T for m in np.split(w[f"{name}.attention.qkv"], 3))
        return x + attention(q, k, v, w[f"{name}.attention.o"], heads, causal), k, v

    x, memory = embed(inputs), []
    for i in range(layers):
        x, k, v = self_attention(x, f"encoder.layers.{i}", causal=False)
        memory.append((k, v))
        x = feed_forward(x, f"encoder.layers.{i}")
    y = embed(np.concatenate(([0], targets[:-1])))
    for i in range(layers):
        name, (k, v) = f"decoder.layers.{i}", memory[i]
        y, _, _ = self_attention(y, name, causal=True)
        q = norm(y, w[f"{name}.cross_norm.weight"]) @ w[f"{name}.cross_attention.q"].T
        if f"{name}.cross_attention.kv" in w:
            to_k, to_v = np.split(w[f"{name}.cross_attention.kv"], 2)
            k, v = k @ to_k.T, v @ to_v.T
        y = y + attention(q, k, v, w[f"{name}.cross_attention.o"], heads)
        y = feed_forward(y, name)
    return norm(y, w["decoder.norm.weight"]) * y.shape[1] ** -0.5 @ w["embedding"].T


@pytest.mark.parametrize("cross_attention", ["layer", "layer-shared"])
def test_the_2023_baseline_equals_its_definition(cross_attention):
    torch.manual_seed(0)
    model = build(Architecture(**SHAPE, position="absolute", max_length=200, cross_attention=cross_attention))
    for parameter in model.parameters():  # norms too, because weights of 1 would hide a missing norm
        parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
    weights = {name: p.double().numpy() for name, p in model.state_dict().items()}
    logits = model.logits(INPUTS, TARGETS).detach().double().numpy()
    losses = model.example_losses(INPUTS, TARGETS).numpy()
    for example in range(len(INPUTS)):
        expected = baseline_logits(weights, 2, 3, INPUTS[example].numpy(), TARGETS[example].numpy())
        np.testing.assert_allclose(logits[example], expected, atol=1e-4)
        probs = softmax(expected)[np.arange(TARGETS.shape[1]), TARGETS[example].numpy()]
        assert losses[example] == pytest.approx(-np.log(probs).mean(), abs=1e-5)
    assert model(INPUTS, TARGETS).item() == pytest.approx(losses.mean(), abs=1e-5)
