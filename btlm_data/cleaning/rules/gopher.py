"""The quality and repetition rules of Gopher (Rae et al. 2021, arXiv 2112.11446), appendix A.1.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.cleaning.rules.base import FilterParameters, Rule, Verdict

_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_BULLETS = ("•", "-", "*", "‣", "▪", "●", "◦", "–", "·")
_ELLIPSES = ("...", "…")


class GopherQuality(FilterParameters):
    """Quality rules ("Quality Filtering"). Words are split at white space; shares are of words or of
    lines.
    """

    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: float = 3.0
    max_mean_word_length: float = 10.0
    max_symbol_ratio: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.8
    min_stop_words: int = 2

    def rule(self, resource: Any) -> Rule:
        """See the class."""
        return lambda text, _: (self._fault(text), text)

    def _fault(self, text: str) -> Verdict:
        words = text.split()
        n = len(words)
        if n < self.min_words:
            return "too_few_words"
        if n > self.max_words:
            return "too_many_words"
        mean = sum(map(len, words)) / n if n else 0.0
        if mean < self.min_mean_word_length:
            return "words_too_short"
        if mean > self.max_mean_word_length:
            return "words_too_long"
        if text.count("#") > self.max_symbol_ratio * n:
            return "too_many_hashes"
        if text.count("...") + text.count("…") > self.max_symbol_ratio * n:
            return "too_many_ellipses"
        lines = [stripped for line in text.splitlines() if (stripped := line.strip())]
        if sum(line.startswith(_BULLETS) for line in lines) > self.max_bullet_lines * len(lines):
            return "too_many_bullet_lines"
        if sum(line.endswith(_ELLIPSES) for line in lines) > self.max_ellipsis_lines * len(lines):
            return "too_many_ellipsis_lines"
        if sum(any(map(str.isalpha, word)) for word in words) < self.min_alphabetic_words * n:
            return "too_few_alphabetic_words"
        stop_words = _STOP_WORDS.intersection(word.strip(".,;:!?\"'()").lower() for word in words)
        return "too_few_stop_words" if len(stop_words) < self.min_stop_words else None


_TOP_NGRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))
_DUPLICATE_NGRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))


class GopherRepetition(FilterParameters):
    """Repetition rules ("Repetition Removal"), table A1.

    The characters of n-grams are those of their words; the most frequent n-gram counts only where it occurs
    twice. ngrams: also the nine rules on word n-grams, with table A1's thresholds.
    """

    max_duplicate_lines: float = 0.30
    max_duplicate_paragraphs: float = 0.30
    max_duplicate_line_chars: float = 0.20
    max_duplicate_paragraph_chars: float = 0.20
    ngrams: bool = True

    def rule(self, resource: Any) -> Rule:
        """See the class."""
        return lambda text, _: (self._fault(text), text)

    def _fault(self, text: str) -> Verdict:
        for unit, parts, max_share, max_chars in (
            ("line", text.split("\n"), self.max_duplicate_lines, self.max_duplicate_line_chars),
            (
                "paragraph",
                text.split("\n\n"),
                self.max_duplicate_paragraphs,
                self.max_duplicate_paragraph_chars,
            ),
        ):
            stripped = [part for part in map(str.strip, parts) if part]
            num_duplicates, duplicate_chars = _duplicates(stripped)
            if num_duplicates > max_share * len(stripped):
                return f"duplicate_{unit}s"
            if duplicate_chars > max_chars * sum(map(len, stripped)):
                return f"duplicate_{unit}_chars"
        return _repeated_ngrams(text.split()) if self.ngrams else None


def _duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """How many of the parts occur earlier in the list, and how many characters they have."""
    seen: set[str] = set()
    number = chars = 0
    for part in parts:
        if part in seen:
            number += 1
            chars += len(part)
        else:
            seen.add(part)
    return number, chars


def _repeated_ngrams(words: Sequence[str]) -> Verdict:
    """Which of table A1's n-gram rules `words` breaks, if any. n-grams are compared by a 64-bit hash."""
    codes: dict[str, int] = {}
    ids = np.fromiter((codes.setdefault(word, len(codes)) for word in words), np.uint64, len(words))
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    total = int(lengths.sum())
    ends = np.concatenate(([0], np.cumsum(lengths)))
    hashes: npt.NDArray[np.uint64] = ids + np.uint64(1)
    limits = dict((*_TOP_NGRAMS, *_DUPLICATE_NGRAMS))
    for n in range(2, 11):
        if len(words) < n:
            return None
        hashes = (hashes[:-1] * np.uint64(0x9E3779B97F4A7C15)) ^ (ids[n - 1 :] + np.uint64(n))
        hashes ^= hashes >> np.uint64(29)
        _, first, inverse, counts = np.unique(
            hashes, return_index=True, return_inverse=True, return_counts=True
        )
        if n <= 4:
            sizes = ends[first + n] - ends[first]
            covered = int((counts * sizes)[counts > 1].max(initial=0))
            if covered > limits[n] * total:
                return f"top_{n}_gram"
        else:
            starts = np.flatnonzero(counts[inverse] > 1)
            edges = np.zeros(len(words) + 1, np.int64)
            np.add.at(edges, starts, 1)
            np.add.at(edges, starts + n, -1)
            if int(lengths[np.cumsum(edges[:-1]) > 0].sum()) > limits[n] * total:
                return f"duplicate_{n}_grams"
    return None
