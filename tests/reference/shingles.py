"""Plain twin of btlm_data/kernels/shingles.py: sets of strings."""

from __future__ import annotations

import re
import string

NGRAM_CHARS = 13


def features(text: str) -> set[str]:
    """SlimPajama's features of a text (not normalised yet), as its own script makes them."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    text = re.sub(r"\s+", " ", text.strip())
    return {text[i : i + NGRAM_CHARS] for i in range(max(1, len(text) - NGRAM_CHARS + 1))}


def jaccard(one: set[str], other: set[str]) -> float:
    """Shared features over all features."""
    return len(one & other) / len(one | other)
