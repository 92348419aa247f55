"""The tokenizer: exact size, T5's special tokens, and every text comes back as it was."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from march_search.data import tokenizer as bpe
from march_search.errors import DataError


def words(count: int) -> list[str]:
    letters = random.Random(0)
    made = ["".join(letters.choices("etaoinshrdlu", k=letters.randint(2, 7))) for _ in range(200)]
    return [" ".join(letters.choices(made, k=100)) for _ in range(count)]


TEXTS = words(50)
TOKENIZER = bpe.train(TEXTS, 512)


def test_the_vocabulary_has_exactly_the_size_asked_for():
    assert TOKENIZER.get_vocab_size() == 512


def test_special_tokens_are_where_t5_has_them():
    assert (TOKENIZER.token_to_id("<pad>"), TOKENIZER.token_to_id("</s>")) == (0, 1)
    assert [TOKENIZER.token_to_id(f"<extra_id_{i}>") for i in range(100)] == [bpe.sentinel(i, 512) for i in range(100)]
    assert bpe.sentinel(0, 512) == 511


@given(st.text())
@settings(deadline=None)
def test_any_text_comes_back_as_it_was(text):
    ids = TOKENIZER.encode(text).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text
    assert all(1 < i < 412 for i in ids)


@pytest.mark.parametrize("text", ["</s>", "<pad>", "a <extra_id_0> b", "\x00\r\n\t", "naïve 🦆"])
def test_no_text_makes_a_special_token(text, tmp_path):
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (TOKENIZER, bpe.load(tmp_path / "tokenizer.json")):
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert all(1 < i < 412 for i in ids)


def test_the_same_texts_make_the_same_tokenizer(tmp_path):
    assert bpe.sha256(bpe.train(iter(TEXTS), 512)) == bpe.sha256(TOKENIZER)
    assert bpe.sha256(bpe.train(words(51), 512)) != bpe.sha256(TOKENIZER)
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    assert bpe.sha256(bpe.load(tmp_path / "tokenizer.json")) == bpe.sha256(TOKENIZER)


def test_too_little_text_says_how_many_merges_it_made():
    with pytest.raises(DataError, match=r"too small for a vocabulary of 4,096: it makes 1 merges and 359 tokens"):
        bpe.train(["ab ab"], 4096)


def test_a_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json: is no readable tokenizer"):
        bpe.load(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match="no-file"):
        bpe.load(tmp_path / "no-file")
