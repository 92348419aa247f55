"""Tokenizers: vocabulary size, special tokens, lossless decoding, and loaded vocabularies."""

import dataclasses
import json
import random

import numpy as np
import pytest
from helpers.corpora import TEXTS_CONFIG, numbered_texts, write_jsonl, write_t5_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from march_search.config import DataConfig
from march_search.data import tokenizer as bpe
from march_search.data import vocabulary
from march_search.data.batches import Batches
from march_search.data.ngrams import reference_nats
from march_search.data.prepare import prepare
from march_search.data.store import Store
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
        (
            {"a": 0},
            "the vocabulary has no end token (</s>, <|endoftext|>, <|end_of_text|>, <eos>, [SEP]); set end_token.",
        ),
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


@pytest.mark.parametrize(("tokens", "vocab_size"), [(50_257, 50_257), (1_000, 1_000), (1_000, 1_024)])
def test_decoder_only_models_need_no_room_for_sentinels(tokens, vocab_size, tmp_path):
    write_tokenizer(tmp_path / "t.json", {"<|endoftext|>": tokens - 1} | {f"t{i}": i for i in range(tokens - 1)})
    config = DataConfig(tokenizer="t.json", vocab_size=vocab_size)
    loaded = vocabulary.obtain(config, tmp_path, tmp_path)
    assert bpe.size(loaded) == tokens
    special = vocabulary.special(loaded, config, tmp_path)
    assert special == (tokens - 1, None, -1)
    assert (special.start, trained(512).start) == (tokens - 1, 0)
    assert not special.is_sentinel(np.arange(vocab_size)).any()
    description = f"vocabulary {vocab_size:,}, of which {tokens:,} from t.json, without sentinels"
    assert vocabulary.check(config, tmp_path) == description
    with pytest.raises(DataError) as caught:
        vocabulary.check(config, tmp_path, "encoder-decoder")
    assert str(caught.value) == (
        f"t.json: encoder-decoders need 100 sentinels after its {tokens:,} tokens, so vocab_size must be at least "
        f"{tokens + 100:,}, got {vocab_size:,}: change it in [data] and in the architectures."
    )
    with pytest.raises(DataError) as caught:
        vocabulary.check(dataclasses.replace(config, vocab_size=tokens - 1), tmp_path)
    assert str(caught.value).startswith(
        f"t.json: the tokenizer has {tokens:,} tokens, so vocab_size must be from {tokens:,} (encoder-decoders: "
        f"{tokens + 100:,}, with sentinels) to "
    )


@pytest.mark.parametrize(("vocab_size", "fits"), [(511, False), (512, True), (640, True), (641, False)])
def test_vocab_size_must_fit_the_tokenizer(vocab_size, fits, tmp_path):
    TOKENIZER.save(str(tmp_path / "t.json"))
    config = DataConfig(tokenizer="t.json", vocab_size=vocab_size)
    if fits:
        assert vocabulary.check(config, tmp_path) == f"vocabulary {vocab_size}, of which 512 from t.json"
        return
    with pytest.raises(DataError) as caught:
        vocabulary.check(config, tmp_path)
    assert str(caught.value) == (
        f"t.json: the tokenizer has 512 tokens with sentinels, so vocab_size must be from 512 to 640, got "
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


def write_tokenizer(path, vocab: dict[str, int], special: tuple[str, ...] = (), **settings) -> None:
    """Write a tokenizer.json in which the tokens `special` are special."""
    from tokenizers import Tokenizer, models

    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.add_special_tokens(list(special))
    path.write_text(json.dumps(json.loads(made.to_str()) | settings))


def test_ids_with_gaps_are_a_range_by_the_largest_id(tmp_path):
    write_tokenizer(tmp_path / "t.json", {"<eos>": 0, "a": 1, "b": 3, "c": 210}, ("<eos>",))
    loaded = bpe.load(tmp_path / "t.json")
    assert loaded.get_vocab_size() == 104
    assert bpe.size(loaded) == 311
    assert [loaded.token_to_id(token) for token in ("<eos>", "a", "b", "c")] == [0, 1, 3, 210]
    assert bpe.special_of(loaded, "") == (0, 310, -1)
    assert loaded.encode("abc").ids == [1, 3, 210]
    assert len({*loaded.get_vocab().values()}) == 104, "no id has two tokens"
    loaded.save(str(tmp_path / "again.json"))
    assert bpe.sha256(bpe.load(tmp_path / "again.json")) == bpe.sha256(loaded)
    with pytest.raises(DataError, match=r"the tokenizer has 211 tokens, so vocab_size must be from 211 \("):
        vocabulary.check(DataConfig(tokenizer="t.json", vocab_size=128), tmp_path)
    assert vocabulary.check(DataConfig(tokenizer="t.json", vocab_size=384), tmp_path)


@pytest.mark.parametrize(
    ("tokens", "vocab_size", "fits"),
    [
        pytest.param(151_665, 151_936, True, id="Qwen2.5"),
        pytest.param(50_295, 51_200, True, id="phi-2"),
        pytest.param(100_015, 102_400, True, id="DeepSeek-V2"),
        pytest.param(128_256, 128_512, True, id="Llama 3"),
        pytest.param(50_295, 64_000, False, id="a quarter too many"),
    ],
)
def test_padded_vocabularies_as_published_fit(tokens, vocab_size, fits, tmp_path):
    write_tokenizer(tmp_path / "t.json", {"<|endoftext|>": 0} | {f"t{i}": i for i in range(1, tokens)})
    config = DataConfig(tokenizer="t.json", vocab_size=vocab_size)
    if fits:
        assert vocabulary.check(config, tmp_path).endswith(f"of which {tokens + 100:,} from t.json")
    else:
        with pytest.raises(DataError, match=f"tokens with sentinels, so vocab_size must be from {tokens + 100:,} to "):
            vocabulary.check(config, tmp_path)


def test_the_end_token_is_named_or_found_beside_the_tokenizer(tmp_path):
    vocab = {"a": 0, "<EOT>": 1, "<stop>": 2}
    write_tokenizer(tmp_path / "tokenizer.json", vocab, ("<EOT>", "<stop>"))
    config = DataConfig(tokenizer=".", vocab_size=128)

    def end(config: DataConfig) -> int:
        vocabulary.check(config, tmp_path)
        return vocabulary.special(vocabulary.obtain(config, tmp_path, tmp_path), config, tmp_path).eos

    with pytest.raises(DataError, match=r"no end token \(.*\); set end_token\.$"):
        end(config)
    assert end(dataclasses.replace(config, end_token="<EOT>")) == 1
    for token in ("<stop>", {"content": "<stop>", "special": True}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))
        assert end(config) == 2
        assert end(dataclasses.replace(config, end_token="<EOT>")) == 1
    with pytest.raises(DataError) as caught:
        end(dataclasses.replace(config, end_token="<EOS>"))
    assert str(caught.value) == (
        f'{tmp_path}: the vocabulary has no token "<EOS>". Set end_token. Did you mean "<EOT>"?'
    )
    with pytest.raises(ConfigError, match="end_token applies only to a loaded tokenizer"):
        DataConfig(end_token="<EOT>")


def test_another_end_token_makes_another_store(tmp_path):
    write_jsonl(tmp_path / "texts.jsonl", numbered_texts())
    write_tokenizer(tmp_path / "t.json", {"</s>": 0, "<EOT>": 1, "e": 2}, ("</s>", "<EOT>"))
    config = dataclasses.replace(TEXTS_CONFIG, tokenizer="t.json", vocab_size=128)
    named = dataclasses.replace(config, end_token="<EOT>")
    found = [prepare(c, tmp_path / "root", tmp_path, tokens=0) for c in (config, named)]
    assert found[0] != found[1]
    assert [Store.open(folder).special.eos for folder in found] == [0, 1]
    assert prepare(dataclasses.replace(config, end_token="</s>"), tmp_path / "root", tmp_path, tokens=0) == found[0]


DAMAGED = {
    "a charsmap that panics": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a prefix that panics": {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"], "continuing_subword_prefix": "#" * 9}
    },
    "an unknown merge": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}},
    "no model": {"model": None},
    "a version of the future": {"version": "2.0"},
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_tokenizer_is_one_line(damage, tmp_path, capfd):
    write_tokenizer(tmp_path / "t.json", {"</s>": 0}, ("</s>",), **DAMAGED[damage])
    with pytest.raises(DataError) as caught:
        bpe.load(tmp_path / "t.json")
    assert str(caught.value).startswith(f"{tmp_path}/t.json: not a readable tokenizer (")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("cut", [0, 1, 40, 300])
def test_a_cut_tokenizer_is_one_line(cut, tmp_path):
    write_tokenizer(tmp_path / "t.json", {"</s>": 0}, ("</s>",))
    (tmp_path / "t.json").write_bytes((tmp_path / "t.json").read_bytes()[:cut] + b"\xff" * (cut == 40))
    with pytest.raises(DataError, match=r"not a readable tokenizer \([^\n]*\)\.$"):
        bpe.load(tmp_path / "t.json")


def test_a_byte_level_tokenizer_without_sentinels_prepares_text_for_decoder_only_models(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(numbered_texts(), trainer)
    made.save(str(tmp_path / "t.json"))
    write_jsonl(tmp_path / "texts.jsonl", numbered_texts())
    config = dataclasses.replace(TEXTS_CONFIG, tokenizer="t.json", vocab_size=300)
    store = Store.open(prepare(config, tmp_path / "root", tmp_path, tokens=0))
    assert store.special == (0, None, -1)
    assert store.special.start == 0  # the end token
    kept = bpe.load(store.folder / "tokenizer.json", store.vocab_size)
    assert bpe.sha256(kept) == bpe.sha256(bpe.load(tmp_path / "t.json", 300))
    assert "extra_id" not in (store.folder / "tokenizer.json").read_text()
    tokens = np.concatenate([store.tokens(split).parts[0] for split in ("train", "validation")])
    assert tokens.max() < 300
    texts = "".join(kept.decode(part.tolist()) for part in np.split(tokens, np.flatnonzero(tokens == 0) + 1))
    assert sorted(texts) == sorted("".join(numbered_texts()))
    inputs, targets = Batches(store, config, 0, "decoder-only").train(0, 4)
    assert (inputs, targets.shape) == (None, (4, 16))
    found = reference_nats(store, config)
    assert set(found) == {"text_unigram_nats", "text_bigram_nats", "text_bits_per_nat"}
    with pytest.raises(DataError, match="the vocabulary has no sentinels, which encoder-decoders need"):
        Batches(store, config, 0)
    (store.folder / "tokenizer.json").write_text("{}")  # repaired from the study's own file
    prepare(config, tmp_path / "root", tmp_path, tokens=0, repaired=lambda names: None)
    assert Store.open(store.folder).special == (0, None, -1)
    with_room = prepare(dataclasses.replace(config, vocab_size=400), tmp_path / "root", tmp_path, tokens=0)
    assert Store.open(with_room).special == (0, 399, -1)
