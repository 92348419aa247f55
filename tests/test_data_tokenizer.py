"""Tokenizers: vocabulary size, special tokens, lossless decoding, and loaded vocabularies."""

import dataclasses
import random

import pytest
from helpers.corpora import write_t5_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from march_search.config import DataConfig
from march_search.data import tokenizer as bpe
from march_search.data import vocabulary
from march_search.data.tokenizer import trained
from march_search.errors import ConfigError, DataError


def words(count: int) -> list[str]:
    letters = random.Random(0)
    made = ["".join(letters.choices("etaoinshrdlu", k=letters.randint(2, 7))) for _ in range(200)]
    return [" ".join(letters.choices(made, k=100)) for _ in range(count)]


TEXTS = words(50)
TOKENIZER = bpe.train(TEXTS, 512)


def test_the_vocabulary_has_the_requested_size():
    assert TOKENIZER.get_vocab_size() == 512


def test_special_tokens_have_the_ids_of_t5():
    assert (TOKENIZER.token_to_id("<pad>"), TOKENIZER.token_to_id("</s>")) == (0, 1)
    assert [TOKENIZER.token_to_id(f"<extra_id_{i}>") for i in range(100)] == [511 - i for i in range(100)]
    assert bpe.special_of(TOKENIZER, "") == (1, 511, -1) == trained(512)


@given(st.text())
@settings(deadline=None)
def test_decoding_restores_any_text(text):
    ids = TOKENIZER.encode(text).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text
    assert all(1 < i < 412 for i in ids)


@pytest.mark.parametrize("text", ["</s>", "<pad>", "a <extra_id_0> b", "\x00\r\n\t", "naïve 🦆"])
def test_text_never_encodes_to_a_special_token(text, tmp_path):
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (TOKENIZER, bpe.load(tmp_path / "tokenizer.json")):
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert all(1 < i < 412 for i in ids)


def test_training_is_deterministic(tmp_path):
    assert bpe.sha256(bpe.train(iter(TEXTS), 512)) == bpe.sha256(TOKENIZER)
    assert bpe.sha256(bpe.train(words(51), 512)) != bpe.sha256(TOKENIZER)
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    assert bpe.sha256(bpe.load(tmp_path / "tokenizer.json")) == bpe.sha256(TOKENIZER)


def test_too_little_text_reports_the_size_reached():
    with pytest.raises(DataError, match=r"too small for a vocabulary of 4,096: it gives 1 merges and 359 tokens"):
        bpe.train(["ab ab"], 4096)


def test_a_damaged_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json: not a readable tokenizer"):
        bpe.load(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match="no-file"):
        bpe.load(tmp_path / "no-file")


@given(st.text(alphabet="a 12\n9٣²"))
@settings(deadline=None)
def test_split_digits_makes_one_token_per_digit(text):
    ids = DIGITS.encode(text).ids
    assert DIGITS.decode(ids, skip_special_tokens=False) == text
    tokens = [DIGITS.decode([i], skip_special_tokens=False) for i in ids]
    assert all(len(token) == 1 for token in tokens if any(c in "129" for c in token))


DIGITS = bpe.train([*TEXTS, *["year 1999, 12 of 21, 121"] * 50], 520, split_digits=True)


def test_numbers_are_merged_without_split_digits():
    merged = bpe.train([*TEXTS, *["year 1999, 12 of 21, 121"] * 50], 520)
    assert len(merged.encode("1999").ids) < 4 == len(DIGITS.encode("1999").ids)


def test_a_t5_folder_is_loaded_with_its_sentinels(tmp_path):
    loaded = bpe.load(write_t5_tokenizer(tmp_path))
    special = bpe.special_of(loaded, "")
    assert special.eos == 1
    assert [loaded.id_to_token(special.sentinel(i)) for i in (0, 1, 99)] == [
        "<extra_id_0>",
        "<extra_id_1>",
        "<extra_id_99>",
    ]
    config = DataConfig(tokenizer=str(tmp_path), vocab_size=256)
    assert vocabulary.check(config, tmp_path) == f"vocabulary 256, of which 130 from {tmp_path}"


@pytest.mark.parametrize("name", ["", "spiece.model"])
def test_a_spiece_model_names_the_conversion(name, tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        bpe.load(tmp_path / name)
    line, folder = str(caught.value), f"'{tmp_path}'"
    code = f"from transformers import T5Tokenizer as T; T.from_pretrained({folder}).save_pretrained({folder})"
    assert line == (
        f"{tmp_path}/spiece.model: expected a tokenizer.json. Convert the file once, in a separate environment "
        f"(pip install 'transformers[sentencepiece]'), and set [data] tokenizer to {tmp_path}: python -c \"{code}\""
    )


def test_the_conversion_writes_a_tokenizer_that_loads(tmp_path):
    """Run the code of the message on a saved T5 tokenizer; reading spiece.model itself needs sentencepiece."""
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        bpe.load(tmp_path)
    written = write_t5_tokenizer(tmp_path) / "tokenizer.json"
    before = written.stat().st_mtime_ns
    exec(str(caught.value).split('"')[1])
    assert written.stat().st_mtime_ns > before
    assert bpe.special_of(bpe.load(tmp_path), "").eos == 1


def test_missing_sentinels_are_added_after_the_last_id(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE(vocab={"<|endoftext|>": 0, "a": 1, "b": 2}, merges=[])).save(str(tmp_path / "t.json"))
    loaded = bpe.load(tmp_path / "t.json")
    assert bpe.special_of(loaded, "") == (0, 102, -1)
    assert loaded.get_vocab_size() == 103


@pytest.mark.parametrize(
    ("vocab", "words"),
    [
        ({"a": 0}, "the vocabulary has no end token; add one of: </s>, <|endoftext|>"),
        (
            {"</s>": 0, "<extra_id_0>": 1},
            "the ids of <extra_id_0> to <extra_id_99> must be consecutive, ascending or descending",
        ),
    ],
)
def test_an_unusable_vocabulary_is_refused_with_the_reason(vocab, words, tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE(vocab=vocab, merges=[])).save(str(tmp_path / "t.json"))
    with pytest.raises(DataError) as caught:
        vocabulary.check(DataConfig(tokenizer="t.json", vocab_size=128), tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/t.json: {words}")


@pytest.mark.parametrize(("vocab_size", "fits"), [(511, False), (512, True), (513, False)])
def test_vocab_size_must_fit_the_tokenizer(vocab_size, fits, tmp_path):
    TOKENIZER.save(str(tmp_path / "t.json"))
    config = DataConfig(tokenizer="t.json", vocab_size=vocab_size)
    if fits:
        assert vocabulary.check(config, tmp_path) == "vocabulary 512, of which 512 from t.json"
        return
    with pytest.raises(DataError) as caught:
        vocabulary.check(config, tmp_path)
    assert str(caught.value) == (
        f"t.json: the tokenizer has 512 tokens with sentinels, so vocab_size must be from 512 to 512, got "
        f"{vocab_size}: change it in [data] and in the architectures."
    )


def test_the_tokenizer_may_be_trained_on_another_corpus(tmp_path):
    (tmp_path / "wiki").mkdir()
    (tmp_path / "wiki" / "a.txt").write_text("\n".join(TEXTS))
    config = DataConfig(corpus="elsewhere", tokenizer_corpus="wiki", split_digits=True, vocab_size=512)
    assert vocabulary.check(config, tmp_path).endswith(
        "tokenizer trained on wiki: 1 local file, 26,370 bytes, one token per digit"
    )
    made = vocabulary.obtain(config, tmp_path / "root", tmp_path)
    assert bpe.sha256(made) == bpe.sha256(bpe.train(["\n".join(TEXTS)], 512, split_digits=True))
    again = dataclasses.replace(config, corpus="another")
    assert bpe.sha256(vocabulary.obtain(again, tmp_path / "root", tmp_path)) == bpe.sha256(made)
    assert len(list((tmp_path / "root" / "data" / "tokenizers").glob("*.json"))) == 1
    with pytest.raises(ConfigError, match="tokenizer_corpus and split_digits apply only to a trained tokenizer"):
        DataConfig(tokenizer="t.json", split_digits=True)
