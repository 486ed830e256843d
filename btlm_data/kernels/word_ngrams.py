"""Word n-grams of normalised text and a table to look them up in: a rolling hash finds candidates, their bytes decide.

Normalised text (kernels/minhash.py) has one space between words, so an n-gram of words is one stretch of bytes. Numba kernels; callers
check ranges. The plain twin is in tests/reference/word_ngrams.py.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

NGRAM_WORDS = 13
NONE = 0xFFFFFFFF
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_LEAVING = np.uint64(
    pow(0x9E3779B97F4A7C15, NGRAM_WORDS, 2**64)
)  # the factor of the word that leaves the window
UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]
_jit = numba.njit(cache=True, nogil=True)


def word_ngrams(
    utf8: UInt8Array, offsets: Int64Array
) -> tuple[UInt64Array, Int64Array, Int64Array, Int64Array]:
    """All n-grams of n normalised texts: (hashes, starts, stops, texts), stretches of utf8 and the text each is from."""
    utf8, offsets = _readonly(utf8), _readonly(offsets)
    count = _ngrams(
        utf8,
        offsets,
        np.empty(0, np.uint64),
        np.empty(0, np.int64),
        np.empty(0, np.int64),
        np.empty(0, np.int64),
    )
    hashes, starts, stops, texts = (
        np.empty(count, np.uint64),
        np.empty(count, np.int64),
        np.empty(count, np.int64),
        np.empty(count, np.int64),
    )
    _ngrams(utf8, offsets, hashes, starts, stops, texts)
    return hashes, starts, stops, texts


@_jit
def _word_end(utf8: UInt8Array, i: int, end: int) -> tuple[int, np.uint64]:
    """Where the word at i ends, and its hash."""
    h = np.uint64(0)
    while i < end and utf8[i] != 0x20:
        h = (h ^ np.uint64(utf8[i])) * _MULTIPLIER
        h ^= h >> np.uint64(32)
        i += 1
    return i, h


@_jit
def _roll(rolled: np.uint64, entering: np.uint64, leaving: np.uint64) -> np.uint64:
    return rolled * _MULTIPLIER + entering - leaving * _LEAVING


@_jit
def _finish(rolled: np.uint64) -> np.uint64:
    h = (rolled ^ (rolled >> np.uint64(32))) * _MULTIPLIER
    return h ^ (h >> np.uint64(29))


@_jit
def _ngrams(
    utf8: UInt8Array,
    offsets: Int64Array,
    hashes: UInt64Array,
    starts: Int64Array,
    stops: Int64Array,
    texts: Int64Array,
) -> int:
    """Write the n-grams if there is room for them; returns how many there are."""
    words, word_starts = np.zeros(NGRAM_WORDS, np.uint64), np.zeros(NGRAM_WORDS, np.int64)
    count = 0
    for d in range(len(offsets) - 1):
        i, end, seen = offsets[d], offsets[d + 1], 0
        rolled = np.uint64(0)
        words[:] = 0
        while i < end:
            slot = seen % NGRAM_WORDS
            start = i
            i, h = _word_end(utf8, i, end)
            rolled = _roll(rolled, h, words[slot])
            words[slot], word_starts[slot] = h, start
            seen += 1
            if seen >= NGRAM_WORDS:
                if len(hashes) > 0:
                    hashes[count] = _finish(rolled)
                    starts[count], stops[count], texts[count] = word_starts[seen % NGRAM_WORDS], i, d
                count += 1
            i += 1
    return count


def build_table(
    utf8: UInt8Array, hashes: UInt64Array, starts: Int64Array, stops: Int64Array
) -> tuple[UInt32Array, UInt64Array]:
    """(slots, filter) over n-grams: an open-addressing table of their numbers, the first of each text; and 16 bits or more each of a filter."""
    size = 1 << max(4, (2 * len(hashes)).bit_length())
    slots, bits = np.full(size, NONE, np.uint32), np.zeros(size // 8, np.uint64)
    _build_table(_readonly(utf8), _readonly(hashes), _readonly(starts), _readonly(stops), slots, bits)
    return slots, bits


@_jit
def _equal(
    one: UInt8Array, start: int, stop: int, other: UInt8Array, other_start: int, other_stop: int
) -> bool:
    if stop - start != other_stop - other_start:
        return False
    k = 0
    while k < stop - start and one[start + k] == other[other_start + k]:
        k += 1
    return k == stop - start


@_jit
def _build_table(
    utf8: UInt8Array,
    hashes: UInt64Array,
    starts: Int64Array,
    stops: Int64Array,
    slots: UInt32Array,
    bits: UInt64Array,
) -> None:
    mask, bit_mask = np.uint64(len(slots) - 1), np.uint64(64 * len(bits) - 1)
    for g in range(len(hashes)):
        bit = hashes[g] & bit_mask
        bits[bit >> np.uint64(6)] |= np.uint64(1) << (bit & np.uint64(63))
        slot = (hashes[g] >> np.uint64(32)) & mask
        while slots[slot] != NONE:
            there = slots[slot]
            if hashes[there] == hashes[g] and _equal(
                utf8, starts[there], stops[there], utf8, starts[g], stops[g]
            ):
                break
            slot = (slot + np.uint64(1)) & mask
        if slots[slot] == NONE:
            slots[slot] = g


def find(
    utf8: UInt8Array,
    offsets: Int64Array,
    chosen: Int64Array,
    table: tuple[UInt8Array, UInt64Array, Int64Array, Int64Array, UInt32Array, UInt64Array],
) -> tuple[UInt32Array, UInt32Array]:
    """(hits, first) of the chosen texts: how many of their n-grams are in the table, and the number of the first, or NONE.

    table: (utf8, hashes, starts, stops) of its n-grams, slots and filter.
    """
    hits, first = np.zeros(len(chosen), np.uint32), np.full(len(chosen), NONE, np.uint32)
    eval_utf8, hashes, starts, stops, slots, bits = table
    ngrams = (_readonly(eval_utf8), _readonly(hashes), _readonly(starts), _readonly(stops))
    _find(
        _readonly(utf8),
        _readonly(offsets),
        _readonly(chosen),
        *ngrams,
        _readonly(slots),
        _readonly(bits),
        hits,
        first,
    )
    return hits, first


@_jit
def _find(
    utf8: UInt8Array,
    offsets: Int64Array,
    chosen: Int64Array,
    eval_utf8: UInt8Array,
    hashes: UInt64Array,
    starts: Int64Array,
    stops: Int64Array,
    slots: UInt32Array,
    bits: UInt64Array,
    hits: UInt32Array,
    first: UInt32Array,
) -> None:
    words, word_starts = np.zeros(NGRAM_WORDS, np.uint64), np.zeros(NGRAM_WORDS, np.int64)
    mask, bit_mask = np.uint64(len(slots) - 1), np.uint64(64 * len(bits) - 1)
    for c in range(len(chosen)):
        i, end, seen = offsets[chosen[c]], offsets[chosen[c] + 1], 0
        rolled = np.uint64(0)
        words[:] = 0
        while i < end:
            slot = seen % NGRAM_WORDS
            start = i
            i, h = _word_end(utf8, i, end)
            rolled = _roll(rolled, h, words[slot])
            words[slot], word_starts[slot] = h, start
            seen += 1
            if seen >= NGRAM_WORDS:
                h = _finish(rolled)
                bit = h & bit_mask
                if (bits[bit >> np.uint64(6)] >> (bit & np.uint64(63))) & np.uint64(1):
                    start = word_starts[seen % NGRAM_WORDS]
                    place = (h >> np.uint64(32)) & mask
                    while slots[place] != NONE:
                        g = slots[place]
                        if hashes[g] == h and _equal(utf8, start, i, eval_utf8, starts[g], stops[g]):
                            hits[c] += np.uint32(1)
                            first[c] = g if first[c] == NONE else first[c]
                            break
                        place = (place + np.uint64(1)) & mask
            i += 1


def _readonly(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A read-only contiguous view: memory maps and fresh arrays then reach the kernels as one type, compiled once."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
