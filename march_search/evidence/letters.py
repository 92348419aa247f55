"""Tie groups as letters: two architectures that share one are not separated (compact letter display, Piepho 2004)."""

import re
from collections.abc import Iterable, Sequence

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letters(count: int, separated: Iterable[Sequence[int]]) -> tuple[str, ...]:
    """Letters of `count` architectures, best first, by insert and absorb: `a` for the leader's group, and so on.

    Two share a letter exactly if the pair is not among `separated`.
    """
    groups = [frozenset(range(count))]
    for pair in sorted(tuple(sorted(p)) for p in separated):
        split = [group - {member} for group in groups if set(pair) <= group for member in pair]
        kept = [group for group in groups if not set(pair) <= group]
        for group in split:
            if not any(group <= other for other in kept):
                kept = [other for other in kept if not other <= group] + [group]
        groups = kept
    groups.sort(key=sorted)
    return tuple("".join(_letter(n) for n, group in enumerate(groups) if i in group) for i in range(count))


def short(named: str) -> str:
    """An architecture's letters for a table: runs of four and more as `c-h`."""
    own = re.findall(r"[a-zA-Z]|\(\d+\)", named)
    numbers = [int(one[1:-1]) - 1 if one.startswith("(") else ALPHABET.index(one) for one in own]
    is_run = len(own) > 3 and numbers[-1] - numbers[0] == len(own) - 1
    return f"{own[0]}-{own[-1]}" if is_run else named


def _letter(number: int) -> str:
    """`a` to `z`, then `A` to `Z`, then numbers in brackets."""
    return ALPHABET[number] if number < len(ALPHABET) else f"({number + 1})"
