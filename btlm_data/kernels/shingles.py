"""How alike two documents are, from their text: the sets of their features counted against each other.

Features are those of kernels/minhash.py: the 13-character n-grams of the normalised text; a shorter text is
one feature. Each feature stands for itself by a 63-bit hash of its bytes. The counts are exact unless two
different features of one pair of documents have the same hash: for n features in both together that has a
chance of about n^2 / 2^64 (one in 10^7 for a million), and it changes a count by one. Plain twins are in
tests/reference/shingles.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.kernels.buckets import readonly
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.minhash import NGRAM_CHARS, _four_are_ascii, _step, _width, _word
from btlm_data.kernels.ranges import check_below, check_offsets, check_same_length

_MULTIPLIER = 0x9E3779B97F4A7C15
_START13 = (13 * _MULTIPLIER) & (2**64 - 1)
_TOP = 1 << 63  # marks a slot whose feature was found in the document at hand; hashes have 63 bits
_AT_ONCE = 1024  # features hashed before they are looked up
MAX_SLOTS = 2**22  # of a table: 32 MB; a document with more features is counted in several passes
UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]


JACCARD, CONTAINMENT = 0, 1  # shared features over all of both; over those of the text that would go


class Decisions(NamedTuple):
    """What became of n texts. anchor (n,) int64: the text that one goes for, -1 where it stays; shared (n,)
    uint32: its features in that one. sizes (n,) uint32: different features of each text that was looked at,
    else 0. compared, similar: pairs.
    """

    anchor: Int64Array
    shared: UInt32Array
    sizes: UInt32Array
    compared: int
    similar: int


def decide(
    utf8: UInt8Array,
    offsets: Int64Array,
    candidates: Int64Array,
    bounds: Int64Array,
    kind: int,
    threshold: float,
) -> Decisions:
    """Decide which texts go, in their order.

    utf8, offsets: n normalised texts, as minhash.Normalised holds them. candidates[bounds[i]:bounds[i + 1]]:
    earlier texts that text i is compared with, the most promising first. Text i goes for the first of them
    that stays and is similar enough. In place of one that goes stands the one that it goes for. kind: JACCARD
    or CONTAINMENT. Pairs that cannot reach the threshold, by their numbers of features alone, are not counted
    to the end. Memory: 40 bytes a text and two tables. Raises DataError for a candidate that is not an
    earlier text. utf8: (bytes,) uint8; offsets: (n + 1,) int64; candidates: (m,) int64; bounds: (n + 1,)
    int64.
    """
    check_offsets(offsets, len(utf8), "The offsets of documents")
    check_offsets(bounds, len(candidates), "The bounds of candidates")
    check_same_length("Texts and their candidates", offsets, bounds)
    owners = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    check_same_length("Candidates and their texts", candidates, owners)
    check_below(candidates, max(1, len(offsets) - 1), "The candidate")
    if bool((candidates >= owners).any()):
        raise DataError(
            "A candidate does not stand before its text. Delete the work folder and rerun the same command."
        )
    count = len(offsets) - 1
    most = int(np.diff(offsets).max()) if count else 0
    tables = np.zeros((2, _slots(most)), np.uint64)
    anchor, shared, sizes = (
        np.full(count, -1, np.int64),
        np.zeros(count, np.uint32),
        np.zeros(count, np.uint32),
    )
    totals = np.zeros(2, np.int64)
    texts = (readonly(utf8), readonly(offsets))
    _decide(
        *texts, readonly(candidates), readonly(bounds), kind, threshold, tables, anchor, shared, sizes, totals
    )
    return Decisions(anchor, shared, sizes, int(totals[0]), int(totals[1]))


class Counts(NamedTuple):
    """Different features in both of two texts, in the first, in the second."""

    shared: int
    first: int
    second: int


def count(utf8: UInt8Array, offsets: Int64Array) -> Counts:
    """Count the features of two normalised texts, laid down as for `decide`. utf8: (bytes,) uint8; offsets:
    (n + 1,) int64.
    """
    check_offsets(offsets, len(utf8), "The offsets of documents")
    if len(offsets) != 3:
        raise ValueError(f"{len(offsets) - 1} texts, two are compared")
    table = np.zeros(_slots(int(np.diff(offsets).max())), np.uint64)
    utf8, offsets = readonly(utf8), readonly(offsets)
    first, second = _size(utf8, offsets, 0, table), _size(utf8, offsets, 1, table)
    return Counts(int(_shared(utf8, offsets, 1, 0, table, False, 0)), int(first), int(second))


@jit
def _decide(
    utf8: UInt8Array,
    offsets: Int64Array,
    candidates: Int64Array,
    bounds: Int64Array,
    kind: int,
    threshold: float,
    tables: UInt64Array,
    anchor: Int64Array,
    shared: UInt32Array,
    sizes: UInt32Array,
    totals: Int64Array,
) -> None:
    tried = np.empty(1, np.int64)
    for i in range(len(bounds) - 1):
        first, last = bounds[i], bounds[i + 1]
        if first == last:
            continue
        if len(tried) < last - first:
            tried = np.empty(last - first, np.int64)
        is_filled = offsets[i + 1] - offsets[i] <= MAX_SLOTS // 2
        sizes[i] = _size(utf8, offsets, i, tables[0])
        num_tried = 0
        for k in range(first, last):
            other = candidates[k]
            if anchor[other] >= 0:
                other = anchor[other]
            is_new = True
            for j in range(num_tried):
                is_new = is_new and tried[j] != other
            if not is_new:
                continue
            tried[num_tried] = other
            num_tried += 1
            if sizes[other] == 0:
                sizes[other] = _size(utf8, offsets, other, tables[1])
            totals[0] += 1
            least = _least(kind, threshold, sizes[i], sizes[other])
            if min(sizes[i], sizes[other]) < least:
                continue
            found = _shared(utf8, offsets, i, other, tables[0], is_filled, int(least))
            if found >= least:
                totals[1] += 1
                anchor[i] = other
                shared[i] = found
                break


@jit
def _least(kind: int, threshold: float, size: np.uint32, other: np.uint32) -> np.int64:
    """The least number of shared features whose similarity reaches the threshold, by the very division that
    is reported.
    """
    if kind == CONTAINMENT:
        least = np.int64(threshold * size) - 1
        while least / size < threshold:
            least += 1
        return least
    total = np.int64(size) + np.int64(other)
    least = np.int64(threshold / (1 + threshold) * total) - 1
    while least / (total - least) < threshold:
        least += 1
    return least


@jit
def _size(utf8: UInt8Array, offsets: Int64Array, document: int, table: UInt64Array) -> np.uint32:
    """Different features of a document; up to MAX_SLOTS / 2 bytes they are in the table afterwards."""
    slots = table[: _slots(offsets[document + 1] - offsets[document])]
    passes = _passes(offsets[document + 1] - offsets[document])
    size = np.uint32(0)
    for part in range(passes):
        size += _fill(utf8, offsets[document], offsets[document + 1], slots, np.uint64(part), passes)
    return size


@jit
def _passes(num_bytes: int) -> np.uint64:
    return np.uint64(1 + 2 * num_bytes // MAX_SLOTS if num_bytes * 2 > MAX_SLOTS else 1)


@jit
def _shared(
    utf8: UInt8Array,
    offsets: Int64Array,
    document: int,
    other: int,
    table: UInt64Array,
    is_filled: bool,
    least: int,
) -> np.int64:
    """Features of `document` that `other` has; some number below `least` where there are fewer than that.

    is_filled: the table holds the features of `document`, some of them marked by an earlier call.
    """
    num_bytes = offsets[document + 1] - offsets[document]
    slots, passes = table[: _slots(num_bytes)], _passes(num_bytes)
    found = np.int64(0)
    for part in range(passes):
        if is_filled:
            for slot in range(len(slots)):
                slots[slot] &= ~np.uint64(_TOP)
        else:
            _fill(utf8, offsets[document], offsets[document + 1], slots, np.uint64(part), passes)
        needed = np.int64(least if passes == np.uint64(1) else 0)
        found += _count(utf8, offsets[other], offsets[other + 1], slots, np.uint64(part), passes, needed)
    return found


@jit
def _slots(num_bytes: int) -> int:
    """Slots of a table for a document of so many bytes: a power of two, at most half of it used."""
    slots = 64
    while slots < 2 * num_bytes and slots < MAX_SLOTS:
        slots *= 2
    return slots


@jit
def _fill(
    utf8: UInt8Array, begin: np.int64, end: np.int64, slots: UInt64Array, part: np.uint64, passes: np.uint64
) -> np.uint32:
    """Put a document's features into the table, emptied first; returns how many different ones there are.

    Only those of one pass: whose hash, by its higher bits, belongs to `part`.
    """
    slots[:] = 0
    mask = np.uint64(len(slots) - 1)
    hashes = np.empty(_AT_ONCE + 4, np.uint64)
    place = np.array([begin, _first_stop(utf8, begin, end)])
    found = np.uint32(0)
    while place[0] >= 0:
        for i in range(_hashes(utf8, end, place, hashes)):
            h = hashes[i]
            if passes > 1 and (h >> np.uint64(32)) % passes != part:
                continue
            slot = h & mask
            while slots[slot] != h:
                if slots[slot] == np.uint64(0):
                    slots[slot] = h
                    found += np.uint32(1)
                    break
                slot = (slot + np.uint64(1)) & mask
    return found


@jit
def _count(
    utf8: UInt8Array,
    begin: np.int64,
    end: np.int64,
    slots: UInt64Array,
    part: np.uint64,
    passes: np.uint64,
    needed: np.int64,
) -> np.int64:
    """How many different features of a document are in the table, where no slot is marked; marks those.

    Gives up, with a smaller number, once `needed` is out of reach.
    """
    mask, low = np.uint64(len(slots) - 1), ~np.uint64(_TOP)
    hashes = np.empty(_AT_ONCE + 4, np.uint64)
    place = np.array([begin, _first_stop(utf8, begin, end)])
    found = np.int64(0)
    # A feature takes one byte of the text at least: those left cannot give more.
    while place[0] >= 0 and found + (end - place[0]) >= needed:
        for i in range(_hashes(utf8, end, place, hashes)):
            h = hashes[i]
            if passes > 1 and (h >> np.uint64(32)) % passes != part:
                continue
            slot = h & mask
            while slots[slot] & low != h and slots[slot] != np.uint64(0):
                slot = (slot + np.uint64(1)) & mask
            if slots[slot] == h:
                slots[slot] = h | np.uint64(_TOP)
                found += 1
    return found


@jit
def _first_stop(utf8: UInt8Array, begin: np.int64, end: np.int64) -> np.int64:
    """Where the first feature ends: behind 13 characters, or with the text."""
    stop = np.uint64(begin)
    for _ in range(NGRAM_CHARS):
        if stop >= np.uint64(end):
            break
        stop += _width(utf8[stop])
    return min(np.int64(stop), end)


@jit
def _hashes(utf8: UInt8Array, end: np.int64, place: Int64Array, out: UInt64Array) -> int:
    """The next _AT_ONCE features or a few more; returns how many. place: start and stop of the next one,
    start -1 behind the last.
    """
    one, two, three, four = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
    start, stop, finish = np.uint64(place[0]), np.uint64(place[1]), np.uint64(end)
    written = np.uint64(0)
    while written < np.uint64(_AT_ONCE):
        if stop - start == np.uint64(13) and stop + four <= finish and _four_are_ascii(utf8, stop):
            out[written] = _hash13(utf8, start)
            out[written + one] = _hash13(utf8, start + one)
            out[written + two] = _hash13(utf8, start + two)
            out[written + three] = _hash13(utf8, start + three)
            written += four
            start += four
            stop += four
            continue
        out[written] = _hash(utf8, start, stop)
        written += one
        if stop >= finish:
            place[0] = -1
            return int(written)
        start += _width(utf8[start])
        stop += _width(utf8[stop])
    place[0], place[1] = np.int64(start), np.int64(stop)
    return int(written)


@jit
def _short(h: np.uint64) -> np.uint64:
    """63 bits of a hash; 0 marks an empty slot, so it becomes 1."""
    h = h & ~np.uint64(_TOP)
    return h + np.uint64(h == np.uint64(0))


@jit
def _hash13(utf8: UInt8Array, start: np.uint64) -> np.uint64:
    return _short(_step(_step(np.uint64(_START13), _word(utf8, start)), _word(utf8, start + np.uint64(5))))


@jit
def _hash(utf8: UInt8Array, start: np.uint64, stop: np.uint64) -> np.uint64:
    """All of the state whose low half is minhash.ngram_hash32."""
    length = stop - start
    h = length * np.uint64(_MULTIPLIER)
    while start + np.uint64(8) < stop:
        h = _step(h, _word(utf8, start))
        start += np.uint64(8)
    if length >= np.uint64(8):
        return _short(_step(h, _word(utf8, stop - np.uint64(8))))
    word = np.uint64(0)
    for k in range(length):
        word |= np.uint64(utf8[start + np.uint64(k)]) << np.uint64(8 * k)
    return _short(_step(h, word))
