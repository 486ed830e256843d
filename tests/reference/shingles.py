"""Plain twin of btlm_data/kernels/shingles.py: sets of strings."""

from __future__ import annotations

import re
import string

NGRAM_CHARS = 13


def features(text: str, unit: str = "chars", size: int = NGRAM_CHARS) -> set[str]:
    """SlimPajama's features of a text (not normalised yet), as its own script makes them; or others of its units."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    text = re.sub(r"\s+", " ", text.strip())
    if unit == "words":
        words = text.split(" ")
        return {" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}
    return {text[i : i + size] for i in range(max(1, len(text) - size + 1))}


def jaccard(one: set[str], other: set[str]) -> float:
    """Shared features over all features."""
    return len(one & other) / len(one | other)
