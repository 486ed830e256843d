"""MinHash sketches of documents, straight from UTF-8 buffers: normalise, hash every 13-gram, permute, take
minima.

Features of a document are SlimPajama's: `str.lower`, delete `string.punctuation`, strip and collapse white
space, then the set of character 13-grams (their code calls `ngrams(s, 13)` on a string, so 13 counts
characters). Documents travel as one UTF-8 buffer with n + 1 offsets; no Python object exists per character or
n-gram. Plain twins of every kernel are in tests/reference/minhash.py. Callers check ranges and types;
everything here is little-endian.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash
from numba import types
from numba.extending import intrinsic

from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_offsets, check_same_length, check_stretches

if TYPE_CHECKING:
    import datasketch

Scheme = Literal["affine32", "legacy"]
UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]

CHARS, WORDS = 0, 1
_MULTIPLIER = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd
_MASK64 = 2**64 - 1
_MERSENNE_PRIME = 2**61 - 1
# No code point from here on has a case or is white space: ideographs, tags and private use (a test checks).
_CASE_LIMIT = 0x20000
_DELETED = 0xFF  # in tables of bytes: no UTF-8 text contains it


class Shingle(NamedTuple):
    """What a feature of a text is: `size` characters, or `size` words with single spaces between, in a row."""

    unit: int
    size: int

    @staticmethod
    def of(unit: Literal["chars", "words"], size: int) -> Shingle:
        """As a recipe names it."""
        return Shingle(CHARS if unit == "chars" else WORDS, size)


SLIMPAJAMA = Shingle(CHARS, 13)


@dataclass(frozen=True)
class Normalised:
    """Documents as their features are taken from: document i is utf8[offsets[i]:offsets[i + 1]], num_chars[i]
    characters long.
    """

    utf8: UInt8Array
    offsets: Int64Array
    num_chars: Int64Array

    def __len__(self) -> int:
        return len(self.num_chars)


def normalise(texts: Sequence[str] | None, utf8: UInt8Array, offsets: Int64Array) -> Normalised:
    """Lower-case, delete ASCII punctuation, strip and collapse white space, each exactly as Python's `str`
    does it.

    utf8, offsets: n documents, encoded one after the other, and n + 1 offsets. texts: the same documents, or
    None. A capital sigma's lower case depends on its neighbours, so documents with one go through
    `str.lower`; all others never leave the buffer. utf8: (bytes,) uint8; offsets: (n + 1,) int64.
    """
    n = _run_normalise(utf8, offsets)
    sigmas = np.flatnonzero(n.num_chars < 0)
    if not len(sigmas):
        return n
    bounds = offsets.tolist()
    original = (
        texts[d] if texts is not None else utf8[bounds[d] : bounds[d + 1]].tobytes().decode()
        for d in sigmas.tolist()
    )
    lowered = [text.lower().encode() for text in original]
    lengths = np.cumsum([len(text) for text in lowered])
    return _replace(
        n,
        sigmas,
        _run_normalise(
            np.frombuffer(b"".join(lowered), np.uint8), np.concatenate((np.zeros(1, np.int64), lengths))
        ),
    )


def _run_normalise(utf8: UInt8Array, offsets: Int64Array) -> Normalised:
    check_offsets(offsets, len(utf8), "The offsets of documents")
    # Lower case can be longer: two bytes become three (U+023A), never more.
    out = np.empty(len(utf8) + len(utf8) // 2 + 1, np.uint8)
    new_offsets = np.zeros(len(offsets), np.int64)
    num_chars = np.zeros(len(offsets) - 1, np.int64)
    _normalise(_readonly(utf8), _readonly(offsets), *_case_tables(), out, new_offsets, num_chars)
    return Normalised(out[: new_offsets[-1]], new_offsets, num_chars)


def _replace(n: Normalised, documents: Int64Array, by: Normalised) -> Normalised:
    """`n` with document documents[k] replaced by by's document k."""
    pieces: list[UInt8Array] = []
    lengths, num_chars = np.diff(n.offsets), n.num_chars.copy()
    lengths[documents], num_chars[documents] = np.diff(by.offsets), by.num_chars
    done = 0
    for k, d in enumerate(documents):
        pieces += [n.utf8[done : n.offsets[d]], by.utf8[by.offsets[k] : by.offsets[k + 1]]]
        done = int(n.offsets[d + 1])
    pieces.append(n.utf8[done:])
    return Normalised(
        np.concatenate(pieces), np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths))), num_chars
    )


@cache
def _case_tables() -> tuple[UInt8Array, UInt32Array]:
    """What becomes of each byte below 128, and of each code point above: Python's own tables, read out once.

    First: lower case, 0x20 for white space, 0xFF for what is deleted. Second: the lower-case code point or
    0x20; code points beyond its end stay as they are. U+03A3 never gets here; U+0130 alone becomes two
    characters, in the kernel.
    """
    mapping = np.arange(_CASE_LIMIT, dtype="<u4")
    special = np.zeros(_CASE_LIMIT, np.bool_)
    special[0xD800:0xE000] = special[[0x3A3, 0x130]] = True
    points = mapping[~special]
    characters = points.tobytes().decode("utf-32-le")
    mapping[points] = np.frombuffer(characters.lower().encode("utf-32-le"), "<u4")
    mapping[[ord(c) for c in re.findall(r"\s", characters)]] = 0x20
    ascii_table = mapping[:128].astype(np.uint8)
    ascii_table[[ord(c) for c in string.punctuation]] = _DELETED
    return _readonly(ascii_table), _readonly(mapping.astype(np.uint32))


@jit
def _normalise(
    src: UInt8Array,
    offsets: Int64Array,
    ascii_table: UInt8Array,
    lower: UInt32Array,
    out: UInt8Array,
    new_offsets: Int64Array,
    num_chars: Int64Array,
) -> None:
    """Write every document to `out`; num_chars is -1 for one that holds U+03A3 (what is written of it is of
    no use).
    """
    j = np.uint64(0)
    one = np.uint64(1)
    for d in range(len(offsets) - 1):
        first = j
        continuations = np.uint64(0)
        last = np.uint8(0x20)  # as if a space stood before: leading ones vanish
        i, end = np.uint64(offsets[d]), np.uint64(offsets[d + 1])
        while i < end:
            byte = src[i]
            if byte < 128:
                # No branch: what is not kept is overwritten by what follows.
                mapped = ascii_table[byte]
                out[j] = mapped
                j += np.uint64((mapped != 0xFF) & ((mapped != 0x20) | (last != 0x20)))
                last = last if mapped == 0xFF else mapped
                i += one
                continue
            if byte < 0xE0:
                width = np.uint64(2)
                if i + width > end:
                    break
                point = (np.uint32(byte & 0x1F) << 6) | np.uint32(src[i + one] & 0x3F)
            elif byte < 0xF0:
                width = np.uint64(3)
                if i + width > end:
                    break
                point = (
                    (np.uint32(byte & 0x0F) << 12)
                    | (np.uint32(src[i + one] & 0x3F) << 6)
                    | np.uint32(src[i + np.uint64(2)] & 0x3F)
                )
            else:
                width = np.uint64(4)
                if i + width > end:
                    break
                point = (np.uint32(byte & 0x07) << 18) | (np.uint32(src[i + one] & 0x3F) << 12)
                point |= (np.uint32(src[i + np.uint64(2)] & 0x3F) << 6) | np.uint32(
                    src[i + np.uint64(3)] & 0x3F
                )
            mapped32 = lower[point] if point < len(lower) else np.uint32(point)
            if point == 0x3A3:
                break
            if point == 0x130:
                out[j], out[j + one], out[j + np.uint64(2)] = (
                    0x69,
                    0xCC,
                    0x87,
                )  # "i" and a combining dot above
                j += np.uint64(3)
                continuations += one
                last = np.uint8(0x69)
            elif mapped32 == 0x20:
                out[j] = 0x20
                j += np.uint64(last != 0x20)
                last = np.uint8(0x20)
            elif mapped32 == point:
                for k in range(width):
                    out[j + np.uint64(k)] = src[i + np.uint64(k)]
                j += width
                continuations += width - one
                last = np.uint8(0x80)
            else:
                new_width = _encode(mapped32, out, j)
                j += new_width
                continuations += new_width - one
                last = np.uint8(0x80)
            i += width
        if j > first and last == 0x20:
            j -= one
        new_offsets[d + 1] = np.int64(j)
        num_chars[d] = np.int64(j - first - continuations) if i >= end else -1


@jit
def _encode(point: np.uint32, out: UInt8Array, j: np.uint64) -> np.uint64:
    """Write one code point as UTF-8; returns its bytes."""
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
    if point < 0x80:
        out[j] = point
        return one
    if point < 0x800:
        out[j] = 0xC0 | (point >> 6)
        out[j + one] = 0x80 | (point & 0x3F)
        return two
    if point < 0x10000:
        out[j] = 0xE0 | (point >> 12)
        out[j + one] = 0x80 | ((point >> 6) & 0x3F)
        out[j + two] = 0x80 | (point & 0x3F)
        return three
    out[j] = 0xF0 | (point >> 18)
    out[j + one] = 0x80 | ((point >> 12) & 0x3F)
    out[j + two] = 0x80 | ((point >> 6) & 0x3F)
    out[j + three] = 0x80 | (point & 0x3F)
    return np.uint64(4)


def ngram_hash32(data: bytes) -> int:
    """The 32-bit hash of one feature's UTF-8 bytes, of any length; fixed forever, as signatures and indexes
    depend on it.

        h = len(data) * K mod 2^64                         K = 0x9E3779B97F4A7C15
        for each word w: h = (h ^ w) * K mod 2^64; h = h ^ (h >> 32)
        result: the low 32 bits of h

    Words are 8 bytes, little-endian: those at 0, 8, 16, ... that end before the last byte, and then the last
    8 bytes of data, which may overlap the word before (data shorter than 8 bytes is one word, filled up with
    zero bytes). So 13 bytes are two words, at 0 and at 5. Each step is a bijection of h, and of w.
    """
    h = len(data) * _MULTIPLIER & _MASK64
    for start in (*range(0, len(data) - 8, 8), max(len(data) - 8, 0)):
        h = (h ^ int.from_bytes(data[start : start + 8], "little")) * _MULTIPLIER & _MASK64
        h ^= h >> 32
    return h & 0xFFFFFFFF


def signatures(
    n: Normalised,
    num_perm: int = 128,
    seed: int = 1,
    scheme: Scheme = "affine32",
    shingle: Shingle = SLIMPAJAMA,
) -> UInt32Array:
    """MinHash signatures (Broder 1997), (n, num_perm) uint32: bit-identical to datasketch 2.0's.

    "affine32" equals MinHash(num_perm, seed, scheme="affine32", hashfunc=ngram_hash32): h = fmix32(hash),
    then min(a * h + b mod 2^32). "legacy" equals MinHash(num_perm, seed, scheme="legacy") with its SHA-1
    hash, which is what SlimPajama used: min((a * h + b mod 2^64) mod (2^61 - 1) mod 2^32); it knows SlimPajama's
    features only. A document shorter than a feature, even an empty one, has its whole text as its one feature.
    """
    if scheme == "legacy" and shingle != SLIMPAJAMA:
        raise ValueError(f"the legacy scheme takes 13 characters as a feature, not {shingle.size}")
    check_offsets(n.offsets, len(n.utf8), "The offsets of documents")
    check_same_length("Documents", n.offsets[1:], n.num_chars)
    check_stretches(n.num_chars, np.diff(n.offsets), len(n.utf8), "The characters and bytes of document")
    out = np.full((len(n), num_perm), 0xFFFFFFFF, np.uint32)
    a, b = permutations(num_perm, seed, scheme)
    utf8, offsets = _readonly(n.utf8), _readonly(n.offsets)
    if scheme == "affine32":
        _affine32(utf8, offsets, *shingle, a, b, out)
    else:
        _legacy(utf8, offsets, _readonly(n.num_chars), a, b, out)
    return out


@cache
def permutations(num_perm: int, seed: int, scheme: Scheme) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The multipliers and addends of each permutation, drawn as datasketch 2.0 draws them: (num_perm,)
    uint32, or uint64 for legacy.
    """
    generator = np.random.RandomState(seed)
    if scheme == "affine32":
        a = generator.randint(0, 2**31, num_perm, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
        b = generator.randint(0, 2**32, num_perm, dtype=np.uint32)
        return _readonly(a), _readonly(b)
    pairs = [
        (
            generator.randint(1, _MERSENNE_PRIME, dtype=np.uint64),
            generator.randint(0, _MERSENNE_PRIME, dtype=np.uint64),
        )
        for _ in range(num_perm)
    ]
    a64, b64 = np.array(pairs, np.uint64).T
    return _readonly(np.ascontiguousarray(a64)), _readonly(np.ascontiguousarray(b64))


def _wide_vectors(typing_context: Any) -> Any:
    """Ask LLVM for 512-bit vectors in the calling kernel, where there are any.

    Its default for processors that have them is 256 (early ones lowered their clock); here 512 is a quarter
    faster.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        set.add(
            builder.function.attributes, '"prefer-vector-width"="512"'
        )  # llvmlite's own add() knows fewer names
        return context.get_dummy_value()

    return types.void(), generate


_prefer_wide_vectors: Any = intrinsic(_wide_vectors)


@jit
def _affine32(
    utf8: UInt8Array,
    offsets: Int64Array,
    unit: int,
    size: int,
    a: UInt32Array,
    b: UInt32Array,
    out: UInt32Array,
) -> None:
    _prefer_wide_vectors()
    one, two, three, four = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
    plain = np.uint64(size if unit == CHARS else 0)  # bytes of a feature of ASCII characters
    hashes = np.empty(4, np.uint32)
    for d in range(len(offsets) - 1):
        signature = out[d]
        end = np.uint64(offsets[d + 1])
        start = np.uint64(offsets[d])  # of the next feature, in bytes
        stop = _stop(utf8, start, end, unit, size)
        is_last = False
        while not is_last:
            if stop - start == plain and stop + four <= end and _four_are_ascii(utf8, stop):
                if plain == np.uint64(13):
                    h0, h1, h2, h3 = (
                        _hash13(utf8, start),
                        _hash13(utf8, start + one),
                        _hash13(utf8, start + two),
                        _hash13(utf8, start + three),
                    )
                else:
                    h0, h1, h2, h3 = (
                        _hash(utf8, start, stop),
                        _hash(utf8, start + one, stop + one),
                        _hash(utf8, start + two, stop + two),
                        _hash(utf8, start + three, stop + three),
                    )
                start += four
                stop += four
            else:
                for i in range(4):
                    hashes[i] = _hash(utf8, start, stop)
                    is_last = bool(stop >= end)
                    if not is_last:  # else the last one again: a minimum does not mind
                        start = _behind_unit(utf8, start, end, unit)
                        stop = _stop(utf8, stop if unit == CHARS else stop + one, end, unit, 1)
                h0, h1, h2, h3 = hashes[0], hashes[1], hashes[2], hashes[3]
            h0, h1, h2, h3 = _fmix32(h0), _fmix32(h1), _fmix32(h2), _fmix32(h3)
            # Vectorised over the permutations; four hashes at a time, so that each load of a and b serves
            # four, and the scalar work on the next four runs beside it.
            for k in range(len(signature)):
                a_k, b_k = a[k], b[k]
                low = min(np.uint32(a_k * h0 + b_k), np.uint32(a_k * h1 + b_k))
                high = min(np.uint32(a_k * h2 + b_k), np.uint32(a_k * h3 + b_k))
                signature[k] = min(signature[k], min(low, high))


@jit
def _stop(utf8: UInt8Array, start: np.uint64, end: np.uint64, unit: int, size: int) -> np.uint64:
    """Where the feature ends that begins at `start`: behind its last character or word, or with the text."""
    stop = start
    for k in range(size):
        if stop >= end:
            break
        if unit == CHARS:
            stop += _width(utf8[stop])
            continue
        stop += np.uint64(k > 0)  # the space
        while stop < end and utf8[stop] != 0x20:
            stop += np.uint64(1)
    return min(stop, end)


@jit
def _behind_unit(utf8: UInt8Array, start: np.uint64, end: np.uint64, unit: int) -> np.uint64:
    """Where the character or word begins that follows the one at `start`."""
    return start + _width(utf8[start]) if unit == CHARS else _stop(utf8, start, end, unit, 1) + np.uint64(1)


@jit
def _four_are_ascii(utf8: UInt8Array, i: np.uint64) -> bool:
    return bool((utf8[i] | utf8[i + np.uint64(1)] | utf8[i + np.uint64(2)] | utf8[i + np.uint64(3)]) < 0x80)


@jit
def _fmix32(h: np.uint32) -> np.uint32:
    """MurmurHash3's 32-bit finaliser (Appleby 2008), which datasketch applies before the permutations."""
    h = np.uint32(h ^ (h >> np.uint32(16)))
    h = np.uint32(h * np.uint32(0x85EBCA6B))
    h = np.uint32(h ^ (h >> np.uint32(13)))
    h = np.uint32(h * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))


@jit
def _width(byte: np.uint8) -> np.uint64:
    """Bytes of the character that begins with `byte`."""
    return np.uint64(1) + np.uint64(byte >= 0xC0) + np.uint64(byte >= 0xE0) + np.uint64(byte >= 0xF0)


@jit
def _word(utf8: UInt8Array, i: np.uint64) -> np.uint64:
    """Eight bytes as a little-endian number (LLVM makes one load of it)."""
    word = np.uint64(0)
    for k in range(8):
        word |= np.uint64(utf8[i + np.uint64(k)]) << np.uint64(8 * k)
    return word


@jit
def _step(h: np.uint64, word: np.uint64) -> np.uint64:
    h = (h ^ word) * np.uint64(_MULTIPLIER)
    return h ^ (h >> np.uint64(32))


@jit
def _hash13(utf8: UInt8Array, start: np.uint64) -> np.uint32:
    h = _step(np.uint64((13 * _MULTIPLIER) & _MASK64), _word(utf8, start))
    return np.uint32(_step(h, _word(utf8, start + np.uint64(5))))


@jit
def _hash(utf8: UInt8Array, start: np.uint64, stop: np.uint64) -> np.uint32:
    length = stop - start
    h = length * np.uint64(_MULTIPLIER)
    while start + np.uint64(8) < stop:
        h = _step(h, _word(utf8, start))
        start += np.uint64(8)
    if length >= np.uint64(8):
        return np.uint32(_step(h, _word(utf8, stop - np.uint64(8))))
    word = np.uint64(0)
    for k in range(length):
        word |= np.uint64(utf8[start + np.uint64(k)]) << np.uint64(8 * k)
    return np.uint32(_step(h, word))


@jit
def _legacy(
    utf8: UInt8Array,
    offsets: Int64Array,
    num_chars: Int64Array,
    a: UInt64Array,
    b: UInt64Array,
    out: UInt32Array,
) -> None:
    schedule = np.empty(80, np.uint32)
    for d in range(len(num_chars)):
        start = stop = np.uint64(offsets[d])
        end = np.uint64(offsets[d + 1])
        for _ in range(min(np.int64(13), num_chars[d])):
            stop += _width(utf8[stop])
        while True:
            h = np.uint64(_sha1_hash32(utf8, start, stop, schedule))
            for k in range(len(a)):
                value = np.uint32(_mod_mersenne61(a[k] * h + b[k]))
                out[d, k] = min(out[d, k], value)
            if stop >= end:
                break
            start += _width(utf8[start])
            stop += _width(utf8[stop])


@jit
def _mod_mersenne61(x: np.uint64) -> np.uint64:
    """X mod 2^61 - 1 without a division: 2^61 counts as 1."""
    prime = np.uint64(_MERSENNE_PRIME)
    x = (x & prime) + (x >> np.uint64(61))
    return x - prime if x >= prime else x


@jit
def _sha1_hash32(utf8: UInt8Array, start: np.uint64, stop: np.uint64, schedule: UInt32Array) -> np.uint32:
    """The first four bytes of SHA-1 (FIPS 180-4, section 6.1) as a little-endian number, of at most 55 bytes:
    one block.

    13 characters are at most 52 bytes. schedule: 80 words of scratch space.
    """
    length = stop - start
    for t in range(16):
        word = np.uint32(0)
        for k in range(4):
            position = np.uint64(4 * t + k)
            byte = np.uint32(0)
            if position < length:
                byte = np.uint32(utf8[start + position])
            elif position == length:
                byte = np.uint32(0x80)
            word = np.uint32(word << np.uint32(8)) | byte
        schedule[t] = word
    schedule[15] = np.uint32(length * np.uint64(8))
    for t in range(16, 80):
        schedule[t] = _rotate(schedule[t - 3] ^ schedule[t - 8] ^ schedule[t - 14] ^ schedule[t - 16], 1)
    a, b, c, d, e = (
        np.uint32(0x67452301),
        np.uint32(0xEFCDAB89),
        np.uint32(0x98BADCFE),
        np.uint32(0x10325476),
        np.uint32(0xC3D2E1F0),
    )
    for t in range(80):
        if t < 20:
            f, constant = (b & c) | (~b & d), np.uint32(0x5A827999)
        elif t < 40:
            f, constant = b ^ c ^ d, np.uint32(0x6ED9EBA1)
        elif t < 60:
            f, constant = (b & c) | (b & d) | (c & d), np.uint32(0x8F1BBCDC)
        else:
            f, constant = b ^ c ^ d, np.uint32(0xCA62C1D6)
        new = np.uint32(_rotate(a, 5) + np.uint32(f) + e + constant + schedule[t])
        e, d, c, b, a = d, c, _rotate(b, 30), a, new
    first = np.uint32(a + np.uint32(0x67452301))
    return np.uint32(
        (first >> np.uint32(24))
        | ((first >> np.uint32(8)) & np.uint32(0xFF00))
        | ((first & np.uint32(0xFF00)) << np.uint32(8))
        | (first << np.uint32(24))
    )


@jit
def _rotate(x: np.uint32, bits: int) -> np.uint32:
    return np.uint32((np.uint32(x) << np.uint32(bits)) | (np.uint32(x) >> np.uint32(32 - bits)))


def band_keys(signatures: UInt32Array, bands: int, rows: int) -> UInt64Array:
    """Hash each band of a signature to one key (Leskovec et al., Mining of Massive Datasets, section 3.4).

    signatures: (n, P) uint32, P >= bands * rows. Returns (n, bands) uint64; a band's number is part of its
    key, so equal keys mean equal rows of the same band (but for one chance in 2^64 a pair). Two documents of
    Jaccard similarity s share a key with probability 1 - (1 - s**rows)**bands. Raises ValueError if the
    signatures are too short.
    """
    if bands * rows > signatures.shape[1]:
        raise ValueError(
            f"{bands} bands of {rows} rows need {bands * rows} permutations, the signatures have "
            f"{signatures.shape[1]}"
        )
    out = np.empty((len(signatures), bands), np.uint64)
    _band_keys(_readonly(signatures), rows, out)
    return out


@jit
def _band_keys(signatures: UInt32Array, rows: int, out: UInt64Array) -> None:
    for d in range(out.shape[0]):
        for band in range(out.shape[1]):
            h = np.uint64(band + 1) * np.uint64(_MULTIPLIER)
            for row in range(rows):
                h = _step(h, np.uint64(signatures[d, band * rows + row]))
            # Two more steps mix the last rows into every bit: keys are partitioned by their highest ones.
            out[d, band] = _step(_step(h, np.uint64(rows)), np.uint64(rows))


def exact_hashes(n: Normalised) -> UInt64Array:
    """XXH3-128 of each normalised text, (n, 2) uint64, high half first."""
    data = np.ascontiguousarray(n.utf8).data
    bounds = n.offsets.tolist()
    digests = b"".join([xxhash.xxh3_128_digest(data[i:j]) for i, j in pairwise(bounds)])
    return np.frombuffer(digests, ">u8").astype(np.uint64).reshape(len(n), 2)


def similarity(left: UInt32Array, right: UInt32Array) -> npt.NDArray[np.float64]:
    """Estimated Jaccard similarity of signatures (n, P) and (n, P): the share of equal values, (n,)."""
    return np.asarray(np.count_nonzero(left == right, axis=-1) / left.shape[-1])


def to_lean_minhash(
    signature: UInt32Array, seed: int = 1, scheme: Scheme = "affine32"
) -> datasketch.LeanMinHash:
    """One signature (P,) as datasketch's LeanMinHash. Needs datasketch >= 2.0."""
    import datasketch

    dtype = np.uint32 if scheme == "affine32" else np.uint64
    return datasketch.LeanMinHash(seed=seed, hashvalues=signature.astype(dtype), scheme=scheme)


def from_lean_minhash(minhash: datasketch.LeanMinHash) -> UInt32Array:
    """The signature (P,) uint32 of a datasketch MinHash or LeanMinHash of a 32-bit scheme. Raises ValueError
    for another scheme.
    """
    if minhash.scheme not in ("affine32", "legacy"):
        raise ValueError(
            f"a signature of scheme {minhash.scheme!r} does not fit in 32 bits; make it with affine32 or "
            "legacy"
        )
    return np.asarray(minhash.hashvalues).astype(np.uint32)


def _readonly(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A read-only contiguous view: memory maps and fresh arrays then reach the kernels as one type, compiled
    once.
    """
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
