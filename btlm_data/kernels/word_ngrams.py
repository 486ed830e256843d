"""Word n-grams of normalised text and a table to look them up in: a rolling hash finds candidates, their
bytes decide.

Normalised text (kernels/normalisation.py) has one space between words, so an n-gram of words is one stretch of
bytes. The public functions check ranges, the numba kernels do not. The plain twin is in
tests/reference/word_ngrams.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_below, check_offsets, check_same_length, check_stretches

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


class Table(NamedTuple):
    """The n-grams of some texts, and where to look them up.

    utf8: (b,) uint8. hashes: (g,) uint64; starts, stops: (g,) int64: n-gram i is utf8[starts[i]:stops[i]].
    slots: (2^k,) uint32, an open-addressing table of n-gram numbers, NONE where empty, the first of each
    text. bits: (2^m,) uint64, 16 bits or more of a filter for each n-gram.
    """

    utf8: UInt8Array
    hashes: UInt64Array
    starts: Int64Array
    stops: Int64Array
    slots: UInt32Array
    bits: UInt64Array

    def check(self) -> None:
        """Raise DataError if a value would make `find` read outside an array or never end."""
        check_same_length("The n-grams of the evaluation sets", self.hashes, self.starts, self.stops)
        check_stretches(self.starts, self.stops, len(self.utf8), "The n-gram of an evaluation set")
        used = self.slots != NONE
        check_below(self.slots[used], len(self.hashes), "The slot of an n-gram")
        for name, size in (("slots", len(self.slots)), ("filter", len(self.bits))):
            if size == 0 or size & (size - 1):
                raise DataError(
                    f"The table of evaluation n-grams has {size} {name}, not a power of two. "
                    "Its file is damaged. Delete it and rerun the same command."
                )
        if bool(used.all()):
            raise DataError(
                "The table of evaluation n-grams has no empty slot. "
                "Its file is damaged. Delete it and rerun the same command."
            )


def word_ngrams(
    utf8: UInt8Array, offsets: Int64Array
) -> tuple[UInt64Array, Int64Array, Int64Array, Int64Array]:
    """All g n-grams of n normalised texts: (hashes, starts, stops, texts), each (g,).

    utf8: (b,) uint8; offsets: (n + 1,) int64. N-gram i is utf8[starts[i]:stops[i]] and comes from text
    texts[i].
    """
    check_offsets(offsets, len(utf8), "The offsets of texts")
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


@jit
def _word_end(utf8: UInt8Array, i: int, end: int) -> tuple[int, np.uint64]:
    """Where the word at i ends, and its hash."""
    h = np.uint64(0)
    while i < end and utf8[i] != 0x20:
        h = (h ^ np.uint64(utf8[i])) * _MULTIPLIER
        h ^= h >> np.uint64(32)
        i += 1
    return i, h


@jit
def _roll(rolled: np.uint64, entering: np.uint64, leaving: np.uint64) -> np.uint64:
    return rolled * _MULTIPLIER + entering - leaving * _LEAVING


@jit
def _finish(rolled: np.uint64) -> np.uint64:
    h = (rolled ^ (rolled >> np.uint64(32))) * _MULTIPLIER
    return h ^ (h >> np.uint64(29))


@jit
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


def build_table(utf8: UInt8Array, hashes: UInt64Array, starts: Int64Array, stops: Int64Array) -> Table:
    """The table of the n-grams that `word_ngrams` found in utf8. utf8: (bytes,) uint8; hashes: (n,) uint64;
    starts, stops: (n,) int64.
    """
    check_same_length("The n-grams", hashes, starts, stops)
    check_stretches(starts, stops, len(utf8), "The n-gram")
    size = 1 << max(4, (2 * len(hashes)).bit_length())
    slots, bits = np.full(size, NONE, np.uint32), np.zeros(size // 8, np.uint64)
    _build_table(_readonly(utf8), _readonly(hashes), _readonly(starts), _readonly(stops), slots, bits)
    return Table(utf8, hashes, starts, stops, slots, bits)


@jit
def _equal(
    left: UInt8Array, start: int, stop: int, right: UInt8Array, right_start: int, right_stop: int
) -> bool:
    if stop - start != right_stop - right_start:
        return False
    k = 0
    while k < stop - start and left[start + k] == right[right_start + k]:
        k += 1
    return k == stop - start


@jit
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
            candidate = slots[slot]
            if hashes[candidate] == hashes[g] and _equal(
                utf8, starts[candidate], stops[candidate], utf8, starts[g], stops[g]
            ):
                break
            slot = (slot + np.uint64(1)) & mask
        if slots[slot] == NONE:
            slots[slot] = g


def find(
    utf8: UInt8Array, offsets: Int64Array, chosen: Int64Array, table: Table
) -> tuple[UInt32Array, UInt32Array]:
    """(hits, first), each (c,), of the chosen texts: how many of their n-grams are in the table, and the
    number of the first, or NONE.

    utf8, offsets: normalised texts as for `word_ngrams`; chosen: (c,) int64, numbers of texts. table:
    checked, see Table.check.
    """
    check_offsets(offsets, len(utf8), "The offsets of texts")
    check_below(chosen, len(offsets) - 1, "The chosen text")
    hits, first = np.zeros(len(chosen), np.uint32), np.full(len(chosen), NONE, np.uint32)
    ngrams = tuple(_readonly(array) for array in table)
    documents = _readonly(utf8), _readonly(offsets), _readonly(chosen)
    _find(*documents, *ngrams, hits, first)  # type: ignore[call-arg]
    return hits, first


@jit
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
                    probe = (h >> np.uint64(32)) & mask
                    while slots[probe] != NONE:
                        g = slots[probe]
                        if hashes[g] == h and _equal(utf8, start, i, eval_utf8, starts[g], stops[g]):
                            hits[c] += np.uint32(1)
                            first[c] = g if first[c] == NONE else first[c]
                            break
                        probe = (probe + np.uint64(1)) & mask
            i += 1


def _readonly(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A read-only contiguous view: memory maps and fresh arrays then reach the kernels as one type, compiled
    once.
    """
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
