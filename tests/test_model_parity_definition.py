"""The model against its definition in NumPy and float64, for combinations that no model of transformers has."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from march_search import Architecture
from march_search.model import build

Array = NDArray[np.float64]

SHAPES = {
    "windows, global layers, soft cap": "L4-D40-H6x8-F52-V97-swiglu-rope-untied-dec-KV3-W5-G2-RB500-C2.5",
    "a window of one position, no positions": "L2-D40-H4x8-F52-V97-dec-nopos-W1-G2-noop-KV2",
    "parallel, normalised behind": "L2-D40-H4x8-F52-V97-rope-dec-qknormall-ln-postnorm-bqkv-par-RF0.5-C4-noopfixed",
    "learned positions, windows": "L3-D40-H4x8-F52-V97-M64-exactgelu-abs-dec-KV2-W7-qknorm-noop-E0.001",
    "relative, grouped, windows": "L3+2-D40-H6x8-F52-V97-KV2-W6-G2",
    "relative, normalised queries": "L2-D40-H4x8-F52-V97-geglu-qknorm-ln-KV1-noop-C3",
    "rotary, everything": "L3-D40-H6x8-F52-V97-geglu-rope-untied-qknormall-ln-postnorm-ball-KV2-RF0.5-RB500-W4-G3-C5",
    "rotary, scaled": "L2-D40-H4x12-F52-V97-rope-KV2-RB400000-RS16",
    "keys of encoder layers, grouped": "L2-D40-H6x8-F52-V97-rope-xlayer-ball-KV3-W9-noopfixed",
    "shared keys of encoder layers": "L2-D40-H6x8-F52-V97-M64-abs-xshared-bqkv-KV2-ln-E0.01",
}
GENERATOR = torch.Generator().manual_seed(5)
INPUTS = torch.randint(2, 97, (40,), generator=GENERATOR)
TARGETS = torch.randint(2, 97, (23,), generator=GENERATOR)


pytestmark = pytest.mark.usefixtures("one_thread")


def softmax(scores: Array) -> Array:
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rms(x: Array, weight: Array, epsilon: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weight


def rotated(x: Array, base: float, dims: int, scaling: float) -> Array:
    """One head (L, K), whose first `dims` dimensions turn by position."""
    half, y = dims // 2, x.copy()
    for position in range(len(x)):
        for j in range(half):
            wavelength = 2 * math.pi * base ** (2 * j / dims)
            share = min(1, max(0, (8192 / wavelength - 1) / 3))  # of the frequency that stays
            angle = position * 2 * math.pi / wavelength * (share + (1 - share) / scaling)
            p, q = x[position, j], x[position, j + half]
            y[position, j] = p * math.cos(angle) - q * math.sin(angle)
            y[position, j + half] = q * math.cos(angle) + p * math.sin(angle)
    return y


def bucket(query: int, key: int, causal: bool) -> int:
    """T5's bucket of a pair of positions."""
    count, first = (32, 0) if causal else (16, 16 * (key > query))
    distance = max(query - key, 0) if causal else abs(query - key)
    if distance < count // 2:
        return first + distance
    far = count // 2 + int(math.log(2 * distance / count) / math.log(256 / count) * count / 2)
    return first + min(far, count - 1)


class Definition:
    """The forward pass of one example, head by head and layer by layer."""

    def __init__(self, a: Architecture, weights: dict[str, Array]) -> None:
        self.a, self.w = a, weights

    def linear(self, x: Array, name: str, rows: slice = slice(None)) -> Array:
        y = x @ self.w[name][rows].T
        return y + self.w[f"{name}_bias"][rows] if f"{name}_bias" in self.w else y

    def norm(self, x: Array, name: str) -> Array:
        if self.a.norm == "rms":
            return rms(x, self.w[f"{name}.weight"], self.a.norm_epsilon)
        unit = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + self.a.norm_epsilon)
        return unit * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def heads(self, x: Array, norm: str, turns: bool) -> list[Array]:
        """Return the heads of queries or keys, normalised and turned."""
        a, weight = self.a, self.w.get(f"{norm}.weight")
        if a.qk_norm == "all":
            x = rms(x, weight, a.norm_epsilon)
        parts = np.split(x, x.shape[1] // a.d_kv, 1)
        if a.qk_norm == "head":
            parts = [rms(part, weight, a.norm_epsilon) for part in parts]
        turning = a.rotary_base, round(a.d_kv * a.rotary_fraction), a.rotary_scaling
        return [rotated(p, *turning) if turns else p for p in parts]

    def attention(self, name: str, q: Array, k: Array, v: Array, stack: str, layer: int | None) -> Array:
        """Return what an attention adds; `layer` is None in cross-attention."""
        a, is_own, out = self.a, layer is not None, []
        queries, keys = (
            self.heads(x, f"{name}.{n}_norm", is_own and a.position == "rotary") for x, n in ((q, "q"), (k, "k"))
        )
        values = np.split(v, len(keys), 1)
        window = None if not is_own or (a.global_every and (layer + 1) % a.global_every == 0) else a.attention_window
        scale = 1 if a.position == "relative" and a.qk_norm == "none" else a.d_kv**-0.5
        for head, query in enumerate(queries):
            group = head * len(keys) // len(queries)
            scores = query @ keys[group].T * scale
            for i, j in np.ndindex(scores.shape):
                if is_own and a.position == "relative":
                    scores[i, j] += self.w[f"{stack}.relative_bias"][bucket(i, j, stack == "decoder"), head]
                is_future = is_own and stack == "decoder" and j > i
                if is_future or (window is not None and abs(i - j) >= window):
                    scores[i, j] = -np.inf
            if a.noop_key != "none":
                noop = np.split(self.w.get(f"{name}.noop_key", np.zeros(k.shape[1])), len(keys))[group]
                probabilities = softmax(np.column_stack((scores, query @ noop * scale)))[:, :-1]
            else:
                probabilities = softmax(scores)
            out.append(probabilities @ values[group])
        return self.linear(np.concatenate(out, 1), f"{name}.o")

    def feed_forward(self, x: Array, name: str) -> Array:
        kind = self.a.feed_forward_proj
        hidden, act = torch.from_numpy(self.linear(x, f"{name}.wi")), kind.removeprefix("gated-")
        gate, *up = np.split(hidden.numpy(), 2, 1) if self.a.is_gated else (hidden.numpy(),)
        functions = {
            "relu": torch.relu,
            "silu": torch.nn.functional.silu,
            "gelu": torch.nn.GELU(approximate="tanh"),
            "exact-gelu": torch.nn.GELU(),
        }
        active = functions[act](torch.from_numpy(gate)).numpy()
        return self.linear(active * up[0] if up else active, f"{name}.wo")

    def layer(self, x: Array, stack: str, index: int, memory: Array | None, keys_values: list) -> Array:
        a, name = self.a, f"{stack}.layers.{index}"
        inner, keys = a.num_heads * a.d_kv, a.key_value_heads * a.d_kv
        post = a.norm_position == "post"

        def added(x: Array, norm: str, compute) -> Array:
            return self.norm(compute(x), norm) if post else compute(self.norm(x, norm))

        def own(x: Array) -> Array:
            q, k, v = np.split(self.linear(x, f"{name}.attention.qkv"), (inner, inner + keys), 1)
            if stack == "encoder":
                keys_values.append((k, v))
            return self.attention(f"{name}.attention", q, k, v, stack, index)

        def cross(x: Array) -> Array:
            at = f"{name}.cross_attention"
            if a.cross_attention == "output":
                k, v = np.split(self.linear(memory, f"{at}.kv"), 2, 1)
            else:
                k, v = keys_values[index]
            if a.cross_attention == "layer":
                k, v = self.linear(k, f"{at}.kv", slice(keys)), self.linear(v, f"{at}.kv", slice(keys, None))
            return self.attention(at, self.linear(x, f"{at}.q"), k, v, stack, None)

        before, x = x, x + added(x, f"{name}.norm", own)
        if memory is not None and stack == "decoder":
            x = x + added(x, f"{name}.cross_norm", cross)
        read = before if a.parallel_block else x
        return x + added(read, f"{name}.feed_forward_norm", lambda y: self.feed_forward(y, f"{name}.feed_forward"))

    def logits(self, inputs: NDArray[np.int64], targets: NDArray[np.int64]) -> Array:
        a, memory, keys_values = self.a, None, []

        def embed(tokens: NDArray[np.int64]) -> Array:
            x = self.w["embedding"][tokens]
            return x if a.position != "absolute" else (x + self.w["position_embedding"][: len(tokens)]) / 2

        if a.structure == "encoder-decoder":
            memory = embed(inputs)
            for i in range(a.num_layers):
                memory = self.layer(memory, "encoder", i, None, keys_values)
            memory = self.norm(memory, "encoder.norm")
        y = embed(np.concatenate(([0], targets[:-1])))
        for i in range(a.decoder_layers):
            y = self.layer(y, "decoder", i, memory, keys_values)
        y = self.norm(y, "decoder.norm")
        z = y @ self.w["embedding"].T / math.sqrt(a.d_model) if a.tie_word_embeddings else y @ self.w["lm_head"].T
        return z if a.logit_softcap is None else a.logit_softcap * np.tanh(z / a.logit_softcap)


@pytest.mark.parametrize("keys", [512, 0], ids=["products", "sdpa"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_model_equals_its_definition(monkeypatch: pytest.MonkeyPatch, shape: str, keys: int) -> None:
    monkeypatch.setattr("march_search.model.attention_path.CPU_KEYS", {"fp32": keys, "other": keys})
    torch.manual_seed(0)
    a = Architecture.parse(SHAPES[shape])
    model = build(a)
    for parameter in model.parameters():  # ones and zeros would hide a missing norm or bias
        parameter.data += 0.2 * torch.randn_like(parameter) * (1 if parameter.ndim == 1 else parameter.std())
    weights = {name: parameter.double().numpy() for name, parameter in model.state_dict().items()}
    expected = Definition(a, weights).logits(INPUTS.numpy(), TARGETS.numpy())
    inputs = None if a.structure == "decoder-only" else INPUTS[None]
    np.testing.assert_allclose(model.logits(inputs, TARGETS[None])[0].detach().numpy(), expected, atol=1e-4)
    losses = -np.log(softmax(expected)[np.arange(len(TARGETS)), TARGETS.numpy()])
    found = model(inputs, TARGETS[None], "token_losses")[0].numpy()
    np.testing.assert_allclose(found, losses, atol=1e-5)
    assert model(inputs, TARGETS[None]).item() == pytest.approx(losses.mean(), abs=1e-5)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_the_gradient_of_a_soft_cap_is_that_of_autograd(
    monkeypatch: pytest.MonkeyPatch, softcap: float | None, z_loss: float
) -> None:
    from march_search.model.loss import mean_loss

    monkeypatch.setattr("march_search.model.loss.CHUNK_LOGITS", {"cpu": 500, "other": 500})
    monkeypatch.setattr("march_search.model.loss.BLOCK_LOGITS", {"cpu": 200, "other": 200})
    torch.manual_seed(0)
    x, weight = torch.randn(23, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(0, 50, (23,))
    logits = x.double() @ weight.double().T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    each = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    loss = mean_loss(x, weight, targets, z_loss, softcap)
    torch.testing.assert_close(loss.double(), each.mean())
    full = (each + z_loss * logits.logsumexp(-1) ** 2).mean()
    for one, other in zip(torch.autograd.grad(loss, [x, weight]), torch.autograd.grad(full, [x, weight]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
