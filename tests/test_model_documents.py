"""Masked documents: in a packed sequence, each document has the logits and gradients that it has alone."""

import random
from dataclasses import replace

import pytest
import torch
from packaging.version import Version

from march_search import Architecture
from march_search.errors import ArchitectureError
from march_search.model import Seq2Seq, build, flex
from march_search.model.attention_path import CPU_KEYS, Platform, choose_path
from march_search.model.positions import attention_mask, document_mask

VOCAB = 40
H100 = Platform(device="cuda", torch_version=Version("2.11.0+cu130"), capability=(9, 0), has_compiler=True)
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


def shapes(count: int) -> list[Architecture]:
    """Return random decoder-only shapes with all kinds of positions, heads, norms, windows and no-op keys."""
    draw, found = random.Random(5), []
    kinds = ["rotary", "relative", "absolute", "none"]
    for number in range(count):
        position = kinds[number % len(kinds)]
        heads, key_heads = draw.choice([(4, 2), (4, 1), (2, 2), (3, 3), (6, 3)])
        window = draw.choice([None, 3, 6])
        turned = {"rotary_fraction": draw.choice([1.0, 0.5]), "rotary_base": draw.choice([1e4, 500.0])}
        shape = Architecture(
            structure="decoder-only",
            position=position,
            num_layers=draw.choice([2, 3]),
            d_model=24,
            num_heads=heads,
            num_key_value_heads=key_heads,
            d_kv=draw.choice([4, 8]),
            d_ff=32,
            vocab_size=VOCAB,
            max_length=128,
            qk_norm=draw.choice(["none", "head", "all"]),
            norm=draw.choice(["rms", "layer"]),
            norm_position=draw.choice(["pre", "post"]),
            bias=draw.choice(["none", "qkv", "all"]),
            parallel_block=draw.choice([False, True]),
            attention_window=window,
            global_every=0 if window is None else draw.choice([0, 2]),
            noop_key=draw.choice(["none", "learned", "fixed"]),
            share_layers=draw.choice([1, "all"]),
            feed_forward_proj=draw.choice(["gelu", "gated-silu"]),
            **(turned if position == "rotary" else {}),
        )
        found.append(shape)
    return found


def random_model(a: Architecture, seed: int) -> Seq2Seq:
    """Return a model in fp64 with random parameters, large enough that attention matters."""
    torch.manual_seed(seed)
    model = build(a).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def packed(lengths: list[list[int]], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of documents with these lengths, and where the document of each token starts."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCAB, (len(lengths), sum(lengths[0])), generator=generator)
    starts = [
        [start for start, length in zip(cumulated(row), row, strict=True) for _ in range(length)] for row in lengths
    ]
    return tokens, torch.tensor(starts)


def cumulated(lengths: list[int]) -> list[int]:
    """Return where each document starts."""
    return [sum(lengths[:i]) for i in range(len(lengths))]


def alone(model: Seq2Seq, tokens: torch.Tensor, lengths: list[list[int]]) -> torch.Tensor:
    """Return the logits of each document, computed alone, in the places that they have in the packed sequences."""
    rows = []
    for row, sizes in zip(tokens, lengths, strict=True):
        pieces = [model.logits(None, part[None])[0] for part in row.split(sizes)]
        rows.append(torch.cat(pieces))
    return torch.stack(rows)


def gradients(model: Seq2Seq, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradient of a random sum of the logits by parameter."""
    model.zero_grad()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(9), dtype=logits.dtype)
    (logits * weights).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kernel", ["cpu-products", "sdpa"])
@pytest.mark.parametrize("number", range(16))
def test_each_document_of_a_sequence_is_computed_as_if_it_were_alone(monkeypatch, number: int, kernel: str) -> None:
    monkeypatch.setitem(CPU_KEYS, "other", 512 if kernel == "cpu-products" else 0)
    model, draw = random_model(shapes(16)[number], number), random.Random(number)
    lengths = [[draw.randint(1, 7), draw.randint(1, 5)] for _ in range(3)]
    lengths = [[*row, 20 - sum(row)] for row in lengths]
    tokens, starts = packed(lengths, number)
    found = model(None, tokens, "logits", starts)
    assert {path.name for path in model.attention_paths.values()} == {kernel}
    expected = alone(model, tokens, lengths)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    ours, theirs = gradients(model, found), gradients(model, expected)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-9, rtol=1e-8, msg=lambda text, n=name: f"{n}: {text}")
    joined = model(None, tokens, "logits")  # the test sees a mask that is off
    is_later = starts > 0
    assert (joined - expected)[is_later].abs().max() > 1e-3
    torch.testing.assert_close(joined[~is_later], expected[~is_later], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_count_every_token_once_from_its_own_document(checkpointing: bool) -> None:
    torch.manual_seed(0)
    model = build(Architecture.parse("L2-D32-H4x8-F64-geglu-rope-dec-V40-KV2"), checkpointing=checkpointing)
    lengths = [[5, 1, 10], [16], [8, 8]]
    tokens, starts = packed(lengths, 1)
    with torch.no_grad():
        parts = [
            model(None, part[None], "token_losses")[0]
            for row, sizes in zip(tokens, lengths, strict=True)
            for part in row.split(sizes)
        ]
    expected = torch.cat(parts).view_as(tokens)
    torch.testing.assert_close(model(None, tokens, "token_losses", starts), expected)
    torch.testing.assert_close(model(None, tokens, "example_losses", starts), expected.mean(1))
    loss = model(None, tokens, starts_BT=starts)
    torch.testing.assert_close(loss.detach(), expected.mean())
    loss.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for row, sizes in zip(tokens, lengths, strict=True):
        for part in row.split(sizes):
            (model(None, part[None]) * part.numel() / tokens.numel()).backward()
    for mine, parameter in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, atol=1e-6, rtol=1e-4)


def test_one_document_per_sequence_is_the_joined_sequence() -> None:
    for a in shapes(4):
        model, (tokens, starts) = random_model(a, 3), packed([[12], [12]], 3)
        torch.testing.assert_close(model(None, tokens, "logits", starts), model(None, tokens, "logits"))


def test_an_encoder_decoder_masks_no_documents() -> None:
    model = build(Architecture.parse("L1-D32-H2x8-F32-V40"))
    tokens, starts = packed([[4, 4]], 0)
    with pytest.raises(ArchitectureError, match="has an encoder and masks no documents: pass None"):
        model(tokens, tokens, starts_BT=starts)


@pytest.mark.parametrize("window", [None, 1, 3])
def test_the_mask_hides_other_documents_the_future_and_what_is_outside_the_window(window: int | None) -> None:
    _, starts = packed([[3, 1, 5], [9, 0, 0], [1, 7, 1]], 0)
    mask = document_mask(starts, window, torch.zeros(()))
    causal = attention_mask(9, 9, True, window, torch.zeros(()))
    other = starts[:, None, :, None] != starts[:, None, None, :]
    torch.testing.assert_close(mask, causal.expand(3, 1, 9, 9).masked_fill(other, -torch.inf))


@pytest.mark.parametrize("window", [None, 5, 200])
@pytest.mark.parametrize("has_noop", [False, True])
@pytest.mark.parametrize("length", [9, 128, 300, 512])
def test_the_block_mask_equals_torchs_own(length: int, has_noop: bool, window: int | None) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    draw, rows = random.Random(length), []
    for mean in (3, 100, 1000):
        row: list[int] = []
        while sum(row) < length:
            row.append(min(draw.randint(1, 2 * mean), length - sum(row)))
        rows.append(row)
    starts = torch.stack([packed([row], 0)[1][0] for row in rows])
    mask = flex.document_block_mask(starts, has_noop, window)
    expected = create_block_mask(mask.mask_mod, 3, None, length, length + has_noop, device="cpu")
    dense = document_mask(starts, window, torch.zeros(()))[:, 0] == 0
    examples, queries, keys = (torch.arange(n) for n in (3, length, length + has_noop))
    seen = mask.mask_mod(examples[:, None, None], 0, queries[:, None], keys)
    assert torch.equal(seen[:, :, :length], dense)
    assert seen[:, :, length:].all()
    assert mask.seq_lengths == expected.seq_lengths == (length, length + has_noop)
    assert mask.BLOCK_SIZE == expected.BLOCK_SIZE
    for kind in ("kv", "full_kv", "q", "full_q"):
        numbers, indices = (getattr(mask, f"{kind}_{part}") for part in ("num_blocks", "indices"))
        wanted, wanted_indices = (getattr(expected, f"{kind}_{part}") for part in ("num_blocks", "indices"))
        assert torch.equal(numbers, wanted), kind
        is_used = torch.arange(indices.shape[-1]) < numbers[..., None]
        assert torch.equal(indices[is_used], wanted_indices[is_used]), kind


@pytest.mark.parametrize(
    ("platform", "dtype", "bias", "setting", "name", "reason"),
    [
        (H100, torch.bfloat16, "fixed", "auto", "flex", "it skips the scores of other documents"),
        (H100, torch.bfloat16, "trained", "auto", "flex", "sums the gradient"),
        (H100, torch.bfloat16, "fixed", "sdpa", "efficient", 'documents are masked, and attention = "sdpa" is set'),
        (H100, torch.float32, "fixed", "auto", "efficient", "documents are masked, and FlexAttention is used in bf16"),
        (H100, torch.float32, "fixed", "flex", "flex", "it skips"),
        (H100, torch.float64, "fixed", "flex", "math", "fp64"),
        (replace(H100, torch_version=Version("2.6.0")), torch.bfloat16, "fixed", "flex", "efficient", "from torch 2.7"),
        (replace(H100, is_deterministic=True), torch.bfloat16, "fixed", "flex", "efficient", "varying order"),
        (replace(H100, device="cpu"), torch.bfloat16, "fixed", "flex", "cpu-products", "a CPU is faster"),
    ],
)
def test_the_path_of_masked_documents_and_its_reason(platform, dtype, bias, setting, name, reason) -> None:
    path = choose_path(platform, dtype, 64, bias, 100, setting, has_documents=True)
    assert path.name == name
    assert reason in path.reason


@pytest.mark.parametrize("number", range(8))
def test_flex_attention_gives_the_same_loss_and_gradients(dense_flex, monkeypatch, number: int) -> None:
    a, results = shapes(8)[number], []
    tokens, starts = packed([[5, 1, 10], [16, 0, 0], [8, 7, 1]], number)
    for setting in ("sdpa", "flex"):
        if setting == "flex":
            platform = replace(H100, torch_version=Version(torch.__version__))
            monkeypatch.setattr("march_search.model.stack.platform_of", lambda device, found=platform: found)
        torch.manual_seed(number)
        model = build(a, attention=setting)
        if model.decoder.relative_bias is not None:
            with torch.no_grad():
                model.decoder.relative_bias.normal_()
        loss = model(None, tokens, starts_BT=starts)
        loss.backward()
        results.append({"loss": loss, **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}})
        if setting == "flex":
            assert {path.name for path in model.attention_paths.values()} == {"flex"}
    for key, value in results[0].items():
        torch.testing.assert_close(
            results[1][key], value, atol=2e-6, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_a_wrong_document_mask_of_flex_attention_is_noticed(dense_flex, monkeypatch) -> None:
    platform = replace(H100, torch_version=Version(torch.__version__))
    monkeypatch.setattr("march_search.model.stack.platform_of", lambda device: platform)
    right = flex.document_block_mask
    monkeypatch.setattr(flex, "document_block_mask", lambda starts, *more: right(torch.zeros_like(starts), *more))
    torch.manual_seed(0)
    model = build(Architecture.parse("L1-D32-H2x16-F32-rope-dec-V40"), attention="auto").bfloat16()
    tokens, starts = packed([[5, 1, 10], [8, 7, 1]], 0)
    model(None, tokens, starts_BT=starts)
    path = model.attention_paths["decoder self"]
    assert path.name == "efficient"
    assert "it differs from SDPA by " in path.reason
