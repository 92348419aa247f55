"""Display training examples as text. A sentinel has the same colour in the input and in the target."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

COLOURS = ("bright_yellow", "bright_cyan", "bright_magenta", "bright_green", "bright_red", "bright_blue")
"""Colours of the sentinels, used cyclically."""

_VISIBLE = {code: chr(0x2400 + code) for code in range(32)} | {0x0A: "↵ ", 0x7F: "␡"}
"""Replacements that keep control characters in a text from reaching the terminal."""


class ExampleText:
    """Converter from token ids to coloured terminal text."""

    def __init__(self, decode: Callable[..., str], first_sentinel: int, step: int) -> None:
        """Create a converter for ids in which sentinel i, from 0 to 99, is `first_sentinel + step * i`."""
        self._decode, self._first, self._step = decode, first_sentinel, step

    def of(self, ids: Sequence[int]) -> "Text":
        """Return the text of `ids`, with sentinels as coloured <0>, <1>, ..."""
        from rich.text import Text

        text, words = Text(), list[int]()
        for token in [*ids, None]:
            number = None if token is None else (token - self._first) * self._step
            if token is not None and not (number is not None and 0 <= number < 100):
                words.append(token)
                continue
            text.append(self._decode(words, skip_special_tokens=False).translate(_VISIBLE))
            words = []
            if number is not None:
                text.append(f"<{number}>", style=f"bold {COLOURS[number % len(COLOURS)]}")
        return text
