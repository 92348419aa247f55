"""Bits per byte: the bytes of text of each token, and losses that do not depend on the vocabulary."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.corpora import TEXTS_CONFIG, numbered_texts, write_jsonl, write_t5_tokenizer

from march_search.data import tokenizer
from march_search.data.batches import Batches
from march_search.data.ngrams import reference_nats
from march_search.data.prepare import prepare
from march_search.data.shards import SPLITS
from march_search.data.store import Store
from march_search.data.text_bytes import bits_per_nat, token_bytes

TEXTS = [f"{text} déjà vu – 狗 🐕 {i}\n\ttab" for i, text in enumerate(numbered_texts(60))]
"""Texts with characters of one to four bytes."""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return a folder with the texts."""
    write_jsonl(tmp_path / "texts.jsonl", TEXTS)
    return tmp_path


def store_of(base: Path, **changed: object) -> Store:
    """Return a store of the texts."""
    return Store.open(prepare(dataclasses.replace(TEXTS_CONFIG, **changed), base / "root", base, tokens=0))


def every(store: Store, split: str) -> np.ndarray:
    """Return all tokens of a split."""
    return np.concatenate([np.asarray(part) for part in store.tokens(split).parts])


@pytest.mark.parametrize("vocab_size", [384, 460])
def test_the_bytes_of_byte_level_tokens_add_up_to_those_of_the_text(base: Path, vocab_size: int) -> None:
    store = store_of(base, vocab_size=vocab_size)
    bytes_V = token_bytes(store)
    for split in SPLITS:
        assert bytes_V[every(store, split)].sum() == store.index["splits"][split]["text_bytes"]
    bpe = tokenizer.load(store.folder / "tokenizer.json")
    for text in TEXTS[:5]:
        for cut in (1, 7, 20):
            ids = bpe.encode(text).ids[:cut]
            exact = b"".join(bytes_of(bpe.id_to_token(i)) for i in ids)
            assert bytes_V[ids].sum() == len(exact)
            assert text.encode().startswith(exact)
    special = store.special
    assert bytes_V[[0, special.eos, *(special.sentinel(i) for i in range(100))]].sum() == 0


def bytes_of(piece: str) -> bytes:
    """Return the bytes that a piece of byte-level BPE stands for, as GPT-2 defines them."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in kept]
    table = {chr(byte): byte for byte in kept} | {chr(256 + n): byte for n, byte in enumerate(others)}
    return bytes(table[character] for character in piece)


def test_other_tokenizers_are_scaled_to_the_bytes_of_the_validation_text(base: Path) -> None:
    write_t5_tokenizer(base / "t5")  # it adds a space, and has no token for digits and most other characters
    store = store_of(base, tokenizer="t5", vocab_size=130)
    bytes_V, split = token_bytes(store), store.index["splits"]["validation"]
    assert bytes_V[every(store, "validation")].sum() == pytest.approx(split["text_bytes"])
    assert bytes_V[store.special.eos] == 0
    letters = json.loads((store.folder / "tokenizer.json").read_text())["model"]["vocab"]
    (a,) = (i for i, (piece, _) in enumerate(letters) if piece == "a")
    (space,) = (i for i, (piece, _) in enumerate(letters) if piece == "▁")
    assert bytes_V[a] == bytes_V[space] > 0


def test_bits_per_byte_count_all_nats_over_the_bytes_of_the_text(base: Path) -> None:
    store, config = store_of(base), TEXTS_CONFIG
    text = Batches(store, config, 0, "decoder-only").validation(0, 8)[1]
    bytes_V = token_bytes(store)
    nats_N = np.random.default_rng(0).uniform(1, 5, text.size)
    expected = nats_N.sum() / math.log(2) / bytes_V[text].sum()
    assert nats_N.mean() * bits_per_nat(store, text) == pytest.approx(expected)
    targets = Batches(store, config, 0).validation(0, 8)[1]
    hidden = targets[~store.special.is_sentinel(targets) & (targets != store.special.eos)]
    assert bits_per_nat(store, targets) == pytest.approx(targets.size / bytes_V[hidden].sum() / math.log(2))
    assert bits_per_nat(store, np.full(4, store.special.eos)) is None


def test_a_uniform_code_of_bytes_costs_the_same_bits_in_every_vocabulary(base: Path) -> None:
    """A model that predicts every byte with 1/256 pays eight bits per byte, whatever the tokens are."""
    for vocab_size in (384, 420, 460):
        store = store_of(base, vocab_size=vocab_size)
        config = dataclasses.replace(TEXTS_CONFIG, vocab_size=vocab_size)
        text = Batches(store, config, 0, "decoder-only").validation(0, 8)[1]
        nats = token_bytes(store)[text].mean() * math.log(256)
        assert nats * bits_per_nat(store, text) == pytest.approx(8)


def test_the_losses_of_ngrams_come_with_the_factor_to_bits_per_byte(base: Path) -> None:
    store = store_of(base)
    losses = reference_nats(store, TEXTS_CONFIG)
    for name, structure in (("target", "encoder-decoder"), ("text", "decoder-only")):
        rows = Batches(store, TEXTS_CONFIG, 0, structure).validation(0, 8)[1]
        assert losses[f"{name}_bits_per_nat"] == bits_per_nat(store, rows)
