"""Name tie groups by letters: architectures that share one are not separated (compact display, Piepho 2004)."""

import re
from collections.abc import Iterable, Sequence

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letters(count: int, separated: Iterable[Sequence[int]]) -> tuple[str, ...]:
    """Return the letters of `count` architectures, best first; `a` is the leader's group.

    Two architectures share a letter if and only if the pair is not in `separated` (insert-and-absorb algorithm).
    """
    groups = [frozenset(range(count))]
    for pair in sorted(tuple(sorted(p)) for p in separated):
        split = [group - {member} for group in groups if set(pair) <= group for member in pair]
        merged = [group for group in groups if not set(pair) <= group]
        for group in split:
            if not any(group <= other for other in merged):
                merged = [other for other in merged if not other <= group] + [group]
        groups = merged
    groups.sort(key=sorted)
    return tuple("".join(_letter(n) for n, group in enumerate(groups) if i in group) for i in range(count))


def short(named: str) -> str:
    """Return letters in the short form for tables: a run of four or more becomes `c-h`."""
    own = re.findall(r"[a-zA-Z]|\(\d+\)", named)
    numbers = [int(letter[1:-1]) - 1 if letter.startswith("(") else ALPHABET.index(letter) for letter in own]
    is_run = len(own) > 3 and numbers[-1] - numbers[0] == len(own) - 1
    return f"{own[0]}-{own[-1]}" if is_run else named


def _letter(number: int) -> str:
    """Return `a` to `z`, then `A` to `Z`, then numbers in parentheses."""
    return ALPHABET[number] if number < len(ALPHABET) else f"({number + 1})"
