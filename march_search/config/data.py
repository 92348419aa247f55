"""`[data]`: the text and how examples are cut from it."""

from dataclasses import dataclass

from march_search.config.checks import check_finite
from march_search.errors import ConfigError
from march_search.spans import SpanLengths, span_lengths


@dataclass(frozen=True)
class DataConfig:
    """`[data]`: which text, which tokenizer, and how examples are cut from it."""

    corpus: str = "wikipedia-summaries"
    """A corpus by name (`data/corpora.py`), a local file, folder or glob of .txt, .jsonl or .parquet, or
    `hub:OWNER/NAME` for any data set of the Hugging Face hub."""
    hub_config: str | None = None
    """Configuration of a hub data set, where it has several."""
    hub_split: str = "train"
    """Split of a hub data set."""
    hub_revision: str | None = None
    """Pinned git revision of a hub data set; None takes the newest and records which."""
    text_column: str = "text"
    """Column that holds the text."""
    vocab_size: int = 32128
    """Tokens of the vocabulary, special ones included; the architectures'. A loaded tokenizer may have fewer, up to the
    next multiple of 128: T5's has 32,100 for 32,128."""
    tokenizer: str | None = None
    """A tokenizer.json, or the folder of a T5 tokenizer; None trains byte-level BPE."""
    tokenizer_corpus: str | None = None
    """Corpus to train the tokenizer on, written like `corpus`; None for `corpus` itself."""
    tokenizer_bytes: int = 50_000_000
    """Bytes of text the tokenizer is trained on, from the first training documents."""
    split_digits: bool = False
    """Train the tokenizer with every digit as a token of its own."""
    sequence_length: int = 512
    """Tokens of text an example is made from, before corruption. The data budget counts these."""
    noise_density: float = 0.15
    """Share of an example's tokens that the target holds."""
    mean_span_length: float = 3.0
    """Mean tokens of a corrupted span."""
    validation_fraction: float = 0.02
    """Share of documents kept for validation, chosen by a hash of their text."""
    validation_sequences: int = 512
    """Examples of the fixed validation set."""

    def __post_init__(self) -> None:
        """Refuses settings that cannot be meant."""
        check_finite(self, "data")
        if self.tokenizer_bytes < 1:
            raise ConfigError("[data]: tokenizer_bytes must be at least 1.")
        try:
            lengths = self.lengths
        except ValueError as error:
            raise ConfigError(f"[data]: {error}.") from None
        if lengths.spans > 100:
            raise ConfigError(
                f"[data]: {self.sequence_length} tokens make {lengths.spans} spans, more than the 100 sentinels: "
                "shorten sequence_length or lengthen mean_span_length."
            )
        if self.tokenizer and (self.tokenizer_corpus or self.split_digits):
            raise ConfigError(
                "[data]: tokenizer_corpus and split_digits are for a trained tokenizer: leave out one side."
            )
        if self.tokenizer is None and self.vocab_size < 384:
            raise ConfigError(
                f"[data]: vocab_size must be at least 384 (256 bytes, 102 special tokens), not {self.vocab_size}."
            )
        if not 0 < self.validation_fraction < 0.5:
            raise ConfigError(f"[data]: validation_fraction must lie in (0, 0.5), not {self.validation_fraction}.")
        if self.validation_sequences < 2:
            raise ConfigError("[data]: validation_sequences must be at least 2.")

    @property
    def lengths(self) -> SpanLengths:
        """Input and target lengths of an example."""
        return span_lengths(self.sequence_length, self.noise_density, self.mean_span_length)
