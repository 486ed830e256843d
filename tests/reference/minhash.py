"""Plain twins of btlm_data/kernels/minhash.py, and SlimPajama's features as its scripts compute them."""

from __future__ import annotations

import hashlib
import re
import string

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower-case, delete ASCII punctuation, strip and collapse white space."""
    return re.sub(r"\s+", " ", text.lower().translate(_DELETE_PUNCTUATION).strip())


def features(text: str) -> list[bytes]:
    """The character 13-grams of the normalised text; all of it if it is shorter."""
    normal = normalise(text)
    return [normal[i : i + 13].encode() for i in range(max(1, len(normal) - 12))]


def sha1_hash32(data: bytes) -> int:
    """The first four bytes of SHA-1 as a little-endian number, datasketch's default hash."""
    return int.from_bytes(hashlib.sha1(data).digest()[:4], "little")


def fmix32(h: int) -> int:
    """MurmurHash3's 32-bit finaliser."""
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


def affine32(hashes: list[int], a: list[int], b: list[int]) -> list[int]:
    """One signature from 32-bit feature hashes: the least a * fmix32(h) + b mod 2^32 of each permutation."""
    return [min((x * fmix32(h) + y) % 2**32 for h in hashes) for x, y in zip(a, b, strict=True)]


def legacy(hashes: list[int], a: list[int], b: list[int]) -> list[int]:
    """One signature of datasketch before 2.0; the product wraps at 64 bits, as numpy's does."""
    return [min((x * h + y) % 2**64 % (2**61 - 1) % 2**32 for h in hashes) for x, y in zip(a, b, strict=True)]


def catch_probability(similarity: float, bands: int, rows: int) -> float:
    """Of a pair of documents sharing at least one band (Leskovec et al., Mining of Massive Datasets, section 3.4)."""
    return 1 - (1 - similarity**rows) ** bands
