"""Texts that badly made patterns take very long for, or make very long.

An expression such as (x+x+)+y takes exponential time for a run of x that no y follows; a rule that replaces x
by many grows with a run of x. So: runs of every character, and of every pair of neighbours, that a pattern
names, and of a character of each class; alone, and with the pattern's own text at some distance behind,
because libraries skip texts that lack a letter that an expression needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

_MAX_PATTERNS = 200
_MAX_PATTERN_CHARS = 300
_MAX_RUNS = 1000
_CLASSES = ("a", "A", "1", " ", "\n", "!", "é", "中", "'", "_")


def straining_texts(patterns: Iterable[str], repeats: Sequence[int]) -> Iterator[str]:
    """The texts for these patterns, each run as many times as `repeats` says, in its order."""
    runs: dict[tuple[str, str], None] = dict.fromkeys((unit, "") for unit in _CLASSES)
    for pattern in itertools.islice(patterns, _MAX_PATTERNS):
        shown = pattern[:_MAX_PATTERN_CHARS]
        pairs = (first + second for first, second in itertools.pairwise(shown))
        runs |= dict.fromkeys((unit, shown) for unit in (*dict.fromkeys(shown), *dict.fromkeys(pairs)))
        runs |= dict.fromkeys((unit, shown) for unit in _CLASSES)
    chosen = list(runs)[:_MAX_RUNS]
    for times in repeats:
        for unit, pattern in chosen:
            run = unit * times
            yield run
            yield f"{run}\x00{pattern}"  # U+0000: a character that no pattern is likely to expect
