"""MinHash sketches of normalised documents, straight from UTF-8 buffers: hash every 13-gram, permute, take
minima.

Features of a document are SlimPajama's: the set of character 13-grams of its normalised text (normalisation.py; their
code calls `ngrams(s, 13)` on a string, so 13 counts characters). Documents travel as one UTF-8 buffer with n + 1 offsets; no Python object exists per character or
n-gram. Plain twins of every kernel are in tests/reference/minhash.py. Callers check ranges and types;
everything here is little-endian.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from btlm_data.kernels.buckets import readonly
from btlm_data.kernels.compiler import intrinsic, types
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.normalisation import Normalised
from btlm_data.kernels.ranges import check_offsets, check_same_length, check_stretches
from btlm_data.kernels.words import load64

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
_HIGH_BITS = np.uint64(0x8080808080808080)  # of eight bytes: none is set where all are ASCII
_HASHES = 512  # of features that are hashed before their minima are taken; 2 kB stay in the fastest cache
_MERSENNE_PRIME = 2**61 - 1
# No code point from here on has a case or is white space: ideographs, tags and private use (a test checks).


class Shingle(NamedTuple):
    """What a feature of a text is: `size` characters, or `size` words with single spaces between, in a row."""

    unit: int
    size: int

    @staticmethod
    def of(unit: Literal["chars", "words"], size: int) -> Shingle:
        """As a recipe names it."""
        return Shingle(CHARS if unit == "chars" else WORDS, size)


SLIMPAJAMA = Shingle(CHARS, 13)


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
    utf8, offsets = readonly(n.utf8), readonly(n.offsets)
    if scheme == "affine32":
        _affine32(utf8, offsets, *shingle, a, b, out)
    else:
        _legacy(utf8, offsets, readonly(n.num_chars), a, b, out)
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
        return readonly(a), readonly(b)
    pairs = [
        (
            generator.randint(1, _MERSENNE_PRIME, dtype=np.uint64),
            generator.randint(0, _MERSENNE_PRIME, dtype=np.uint64),
        )
        for _ in range(num_perm)
    ]
    a64, b64 = np.array(pairs, np.uint64).T
    return readonly(np.ascontiguousarray(a64)), readonly(np.ascontiguousarray(b64))


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
    hashes = np.empty(_HASHES, np.uint32)
    for d in range(len(offsets) - 1):
        start, end = np.uint64(offsets[d]), np.uint64(offsets[d + 1])
        stop = _stop(utf8, start, end, unit, size)
        is_last = False
        while not is_last:
            count, start, stop, is_last = _hash_features(utf8, start, stop, end, unit, size, hashes)
            _take_minima(hashes, count, a, b, out[d])


@jit
def _hash_features(
    utf8: UInt8Array,
    start: np.uint64,
    stop: np.uint64,
    end: np.uint64,
    unit: int,
    size: int,
    hashes: UInt32Array,
) -> tuple[int, np.uint64, np.uint64, bool]:
    """Hashes of the features from the one at [start, stop) on, until `hashes` is full or the text is at its end.

    Returns how many hashes, a multiple of 8 (the last one repeated: a minimum does not mind), where the next feature
    is, and whether there is none.
    """
    is_13 = unit == CHARS and size == 13
    count, is_last = 0, False
    while count < len(hashes):
        if is_13 and stop - start == np.uint64(13):
            run = _hash_ascii13(utf8, start, end, hashes[count:])
            count, start, stop = count + run, start + np.uint64(run), stop + np.uint64(run)
            if count == len(hashes):
                break
        hashes[count] = _hash(utf8, start, stop)
        count += 1
        is_last = bool(stop >= end)
        if is_last:
            break
        if unit == CHARS:
            start += _width(utf8[start])
            stop = min(stop + _width(utf8[stop]), end)
        else:
            start = _stop(utf8, start, end, unit, 1) + np.uint64(1)
            stop = _stop(utf8, stop + np.uint64(1), end, unit, 1)
    while count % 8:
        hashes[count] = hashes[count - 1]
        count += 1
    return count, start, stop, is_last


@jit
def _hash_ascii13(utf8: UInt8Array, start: np.uint64, end: np.uint64, hashes: UInt32Array) -> int:
    """Hashes of the features of 13 characters from `start` on, as long as the next eight characters are ASCII and have room
    in `hashes`; returns how many. The feature at `start` must be ASCII.

    In the order of a loop over every eighth feature, whose words lie side by side: so it becomes vectors (a minimum does not
    mind the order).
    """
    _prefer_wide_vectors()
    eight, stop, count = np.uint64(8), start + np.uint64(13), 0
    while count + 8 <= len(hashes) and stop + eight <= end and _word(utf8, stop) & _HIGH_BITS == 0:
        stop, count = stop + eight, count + 8
    each = count // 8
    for phase in range(8):
        for k in range(each):
            hashes[phase * each + k] = _hash13(utf8, start + np.uint64(phase + 8 * k))
    return count


@jit
def _take_minima(
    hashes: UInt32Array, count: int, a: UInt32Array, b: UInt32Array, signature: UInt32Array
) -> None:
    """Take the first `count` hashes, a multiple of 8, into a signature: its minima under each permutation.

    Vectorised over the permutations; eight hashes at a time, so that each load of a, b and the signature serves eight.
    """
    _prefer_wide_vectors()
    for i in range(count):
        hashes[i] = _fmix32(hashes[i])
    for i in range(0, count, 8):
        h0, h1, h2, h3 = hashes[i], hashes[i + 1], hashes[i + 2], hashes[i + 3]
        h4, h5, h6, h7 = hashes[i + 4], hashes[i + 5], hashes[i + 6], hashes[i + 7]
        for k in range(len(signature)):
            a_k, b_k = a[k], b[k]
            m0 = min(np.uint32(a_k * h0 + b_k), np.uint32(a_k * h1 + b_k))
            m1 = min(np.uint32(a_k * h2 + b_k), np.uint32(a_k * h3 + b_k))
            m2 = min(np.uint32(a_k * h4 + b_k), np.uint32(a_k * h5 + b_k))
            m3 = min(np.uint32(a_k * h6 + b_k), np.uint32(a_k * h7 + b_k))
            signature[k] = min(signature[k], min(min(m0, m1), min(m2, m3)))


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
    """Eight bytes as a little-endian number."""
    word: np.uint64 = load64(utf8, np.int64(i))
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
    _band_keys(readonly(signatures), rows, out)
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


def exact_hashes(utf8: UInt8Array, offsets: Int64Array) -> UInt64Array:
    """XXH3-128 of each normalised text utf8[offsets[i]:offsets[i + 1]], (n, 2) uint64, high half first."""
    data = np.ascontiguousarray(utf8).data
    bounds = offsets.tolist()
    digests = b"".join([xxhash.xxh3_128_digest(data[i:j]) for i, j in pairwise(bounds)])
    return np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)


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
