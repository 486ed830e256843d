"""What kernels/word_samples.py takes of a text, in plain Python."""

from __future__ import annotations

_BITS = 2**64 - 1
_MULTIPLIER = 0x9E3779B97F4A7C15


def word_samples(text: bytes, words: int, grams: int) -> list[int]:
    """The least hash of every `grams` n-grams in a row, each of `words` words; repeats in a row are left out."""
    hashes = [_hash_of(word) for word in text.split(b" ")] if text else []
    mixed = [_mixed(hashes[k : k + words]) for k in range(len(hashes) - words + 1)]
    taken = [min(mixed[k : k + grams]) for k in range(len(mixed) - grams + 1)]
    return [value for k, value in enumerate(taken) if k == 0 or value != taken[k - 1]]


def _hash_of(word: bytes) -> int:
    value = 0
    for byte in word:
        value = (value ^ byte) * _MULTIPLIER & _BITS
        value ^= value >> 32
    return value


def _mixed(words: list[int]) -> int:
    value = 0
    for word in words:
        value = (value * _MULTIPLIER + word) & _BITS
    value = (value ^ value >> 32) * 0xBF58476D1CE4E5B9 & _BITS
    return value ^ value >> 29
