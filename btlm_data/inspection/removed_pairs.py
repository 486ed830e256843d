"""A removed document beside the one that was kept for it: a row of removals.parquet, both texts, and the words in
which they differ.
"""

from __future__ import annotations

import difflib
from typing import Any

import msgspec

TABLE = "removals.parquet"
SHOWN_WORDS = 120  # of each text, from shortly before the first difference
MARKS = ("«", "»")  # around words that the other text does not have there
_BEFORE = 12


class Pair(msgspec.Struct, frozen=True):
    """A row of removals.parquet with both texts, as cleaning left them. kept_text: None where an index has
    it.
    """

    row: dict[str, Any]
    text: str
    kept_text: str | None


class Words(msgspec.Struct, frozen=True):
    """A stretch of a text as words; differs: those that the other text does not have at this place."""

    words: tuple[str, ...]
    differs: tuple[bool, ...]

    def marked(self) -> str:
        """As plain text, differing words in marks."""
        return " ".join(
            f"{MARKS[0]}{word}{MARKS[1]}" if is_other else word
            for word, is_other in zip(self.words, self.differs, strict=True)
        )


def as_words(text: str) -> Words:
    """The first SHOWN_WORDS words of a text that is compared with none."""
    words = tuple(text.split()[:SHOWN_WORDS])
    return Words(words, (False,) * len(words))


def side_by_side(left: str, right: str) -> tuple[Words, Words]:
    """SHOWN_WORDS words of each text from shortly before their first difference (of equal texts, from their
    beginning), compared word by word.
    """
    a, b = left.split(), right.split()
    same = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    if a == b:
        same = 0
    start = max(0, same - _BEFORE)
    a, b = a[start : start + SHOWN_WORDS], b[start : start + SHOWN_WORDS]
    differs = ([True] * len(a), [True] * len(b))
    for block in difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks():
        differs[0][block.a : block.a + block.size] = [False] * block.size
        differs[1][block.b : block.b + block.size] = [False] * block.size
    return Words(tuple(a), tuple(differs[0])), Words(tuple(b), tuple(differs[1]))
