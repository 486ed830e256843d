"""Plain twin of btlm_data/kernels/word_ngrams.py: 13 words in a row, as GPT-3's appendix C defines a gram."""

from __future__ import annotations

import string


def word_ngrams(text: str, words: int = 13) -> list[str]:
    """Lower-case, white-space delimited words without punctuation, 13 in a row."""
    kept = text.lower().translate(str.maketrans("", "", string.punctuation)).split()
    return [" ".join(kept[i : i + words]) for i in range(len(kept) - words + 1)]
