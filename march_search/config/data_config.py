"""The `[data]` table: corpus, tokenizer, and how training examples are cut from the text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from march_search.architecture.spans import SpanLengths, span_lengths
from march_search.config.loader import not_finite, refuse
from march_search.errors import ConfigError

SENTINELS = 100
"""Number of sentinels, `<extra_id_0>` to `<extra_id_99>`, each for one corrupted span. Their ids are consecutive."""

LEAST_VOCABULARY = 384
"""Smallest vocabulary of a trained tokenizer."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The `[data]` table: corpus, tokenizer, and how training examples are cut from the text."""

    corpus: str = "wikipedia-summaries"
    """Text to train on: the name of a corpus in `march_search/data/corpora.py`, a local file, folder or glob of .txt,
    .jsonl, .json (these also with .gz or .zst) or .parquet files, or `hub:OWNER/NAME` for any dataset on the Hugging
    Face Hub."""
    hub_config: str | None = None
    """Configuration (subset) of a Hub dataset; None for the dataset's default, or that of the known corpus."""
    hub_split: str = "train"
    """Split of a Hub dataset."""
    hub_revision: str | None = None
    """Git revision of a Hub dataset. None uses the newest revision and records it with the token store."""
    text_column: str = "text"
    """Column that holds the text, in JSON and Parquet files and Hub datasets; `data.text` for the field `text` of the
    column `data`. Other columns are not read."""
    bad_row_tolerance: float = 0.01
    """Fraction of rows that may be unusable, in [0, 1): damaged JSON, no text column, or a value that is not text. Such
    rows are skipped, counted and named; more of them are an error."""
    vocab_size: int = 32128
    """Vocabulary size, including special tokens. It sets that of the architectures if the space leaves `vocab_size`
    out; if only the space or only the tokenizer sets one, it may be left out here. At least 384 for a trained
    tokenizer. For a loaded tokenizer, from its size (its largest id plus 1) up to 5% more, rounded up to a multiple of
    128: T5's has 32,100 tokens and fits 32,128. If it has no sentinels, 100 are added where `vocab_size` has room for
    them, which encoder-decoders need; GPT-2's has 50,257 tokens and fits 50,257 for decoder-only models."""
    tokenizer: str | None = None
    """Path of a tokenizer.json or of a folder that holds one; None trains a byte-level BPE tokenizer."""
    end_token: str | None = None
    """Token of a loaded tokenizer that ends documents, inputs and targets; None finds a usual one, such as `</s>` or
    `<|endoftext|>`, or else the `eos_token` in the tokenizer_config.json beside the tokenizer."""
    tokenizer_corpus: str | None = None
    """Corpus on which the tokenizer is trained, in the same form as `corpus`; None uses `corpus`."""
    tokenizer_bytes: int = 50_000_000
    """Bytes of text on which the tokenizer is trained, taken from the first training documents; at least 1."""
    split_digits: bool = False
    """Whether the trained tokenizer makes every digit a separate token."""
    sequence_length: int = 512
    """Tokens of text per example, before span corruption; at least 2. The data budget counts these tokens.
    Encoder-decoder models need a sentinel for each corrupted span, and there are 100: about 2,000 tokens with the
    default `noise_density` and `mean_span_length`. Decoder-only models read plain text of any length."""
    documents: Literal["joined", "masked"] = "joined"
    """What a token of a decoder-only model sees where a sequence holds several documents. `joined`: all text before it
    in the sequence, also of other documents. `masked`: only its own document, with positions that restart there; the
    first token of each document is predicted from the start token, and every token counts in the loss, in training and
    in evaluations. Encoder-decoders need `joined`."""
    noise_density: float = 0.15
    """Fraction of an example's tokens that span corruption moves from the input to the target, in (0, 1)."""
    mean_span_length: float = 3.0
    """Mean length of a corrupted span, in tokens; at least 1."""
    validation_fraction: float = 0.02
    """Fraction of documents held out for validation, in (0, 0.5). Documents are selected by a hash of their text."""
    validation_sequences: int = 512
    """Number of examples in the fixed validation set; at least 2."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        refuse(not_finite(self, "data"))
        refuse(self._faults())

    def _faults(self) -> Iterator[str]:
        """Yield one sentence for each setting or pair of settings that is refused."""
        if not 0 <= self.bad_row_tolerance < 1:
            yield f"[data]: bad_row_tolerance must be in [0, 1), not {self.bad_row_tolerance}."
        if self.end_token and not self.tokenizer:
            yield "[data]: end_token applies only to a loaded tokenizer: set tokenizer or remove end_token."
        if self.tokenizer_bytes < 1:
            yield "[data]: tokenizer_bytes must be at least 1."
        try:
            _ = self.lengths
        except ValueError as error:
            yield f"[data]: {error}."
        if self.tokenizer and (self.tokenizer_corpus or self.split_digits):
            yield (
                "[data]: tokenizer_corpus and split_digits apply only to a trained tokenizer: remove them or tokenizer."
            )
        if self.tokenizer is None and self.vocab_size < LEAST_VOCABULARY:
            yield (
                f"[data]: vocab_size must be at least {LEAST_VOCABULARY} (256 bytes, 102 special tokens), not "
                f"{self.vocab_size}."
            )
        if not 0 < self.validation_fraction < 0.5:
            yield f"[data]: validation_fraction must be in (0, 0.5), not {self.validation_fraction}."
        if self.validation_sequences < 2:
            yield "[data]: validation_sequences must be at least 2."

    def check_structure(self, structure: str) -> None:
        """Check that models of this `structure` can read the examples. Decoder-only models can: they read plain text.

        Raises:
            ConfigError: If documents are masked for an encoder-decoder, or it has fewer sentinels than corrupted spans.
        """
        if structure == "decoder-only":
            return
        if self.documents == "masked":
            raise ConfigError(
                '[data]: documents = "masked" needs decoder-only models: a corrupted span may hold the end of one '
                'document and the beginning of the next. Set documents = "joined", or structure = "decoder-only" in '
                "the space."
            )
        if (spans := self.lengths.spans) > SENTINELS:
            raise ConfigError(
                f"[data]: {self.sequence_length} tokens give {spans} spans, but there are only {SENTINELS} sentinels: "
                "decrease sequence_length or increase mean_span_length."
            )

    @property
    def lengths(self) -> SpanLengths:
        """Input and target lengths of an example, in tokens."""
        return span_lengths(self.sequence_length, self.noise_density, self.mean_span_length)
