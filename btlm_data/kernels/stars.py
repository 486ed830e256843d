"""Connected components where no process can hold all documents: large-star and small-star.

Kiveris, Lattanzi, Mirrokni, Rastogi & Vassilvitskii, "Connected Components in MapReduce and Beyond" (SoCC 2014), section 3. An edge
leads from a document to an earlier one. Small-star links what a document leads to, and the document itself, to the earliest of
these; large-star links what leads to a document to the earliest that the document leads to. Neither makes more edges or connects
what was not, and one after the other they end where each document leads to the first one of its component alone; by their theorem
2 after O(log^2 n) rounds.

An edge is a uint64: the place of a document in its range, above `bits` bits of another document's ordinal (dedupe/ranges.py).
Plain twins are in tests/reference/stars.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.kernels.buckets import readonly
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_same_length

UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]


def lower(earliest: Int64Array, codes: UInt64Array, bits: int) -> None:
    """Lower the earliest document that each one leads to. earliest: (n,) int64, of a range; codes: (e,) uint64, its edges. Raises
    DataError for a place beyond the range.
    """
    if not _lower(earliest, readonly(codes), np.uint64(bits)):
        raise _beyond(len(earliest))


@jit
def _lower(earliest: Int64Array, codes: UInt64Array, bits: np.uint64) -> bool:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    for k in range(len(codes)):
        place = np.int64(codes[k] >> bits)
        if place >= len(earliest):
            return False
        earliest[place] = min(earliest[place], np.int64(codes[k] & mask))
    return True


def count_others(earliest: Int64Array, codes: UInt64Array, bits: int) -> int:
    """Edges that do not lead to the earliest. earliest: (n,) int64; codes: (e,) uint64, which `lower` has read. Raises DataError for a
    place beyond the range.
    """
    count: int = _count_others(earliest, readonly(codes), np.uint64(bits))
    if count < 0:
        raise _beyond(len(earliest))
    return count


@jit
def _count_others(earliest: Int64Array, codes: UInt64Array, bits: np.uint64) -> int:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    count = 0
    for k in range(len(codes)):
        place = np.int64(codes[k] >> bits)
        if place >= len(earliest):
            return -1
        count += int(earliest[place] != np.int64(codes[k] & mask))
    return count


def small_star(
    earliest: Int64Array, codes: UInt64Array, bits: int, base: int
) -> tuple[Int64Array, Int64Array]:
    """What the edges of a range become: (later, earlier), (e,) int64 each. base: the first document of the range; the others as
    `lower` has read them. Raises DataError for a place beyond the range.
    """
    later, earlier = np.empty(len(codes), np.int64), np.empty(len(codes), np.int64)
    if not _small_star(earliest, readonly(codes), np.uint64(bits), base, later, earlier):
        raise _beyond(len(earliest))
    return later, earlier


@jit
def _small_star(
    earliest: Int64Array,
    codes: UInt64Array,
    bits: np.uint64,
    base: int,
    later: Int64Array,
    earlier: Int64Array,
) -> bool:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    for k in range(len(codes)):
        place, to = np.int64(codes[k] >> bits), np.int64(codes[k] & mask)
        if place >= len(earliest):
            return False
        first = earliest[place]
        later[k] = base + place if to == first else to
        earlier[k] = first
    return True


def large_star(
    earliest: Int64Array, codes: UInt64Array, bits: int, base: int
) -> tuple[Int64Array, Int64Array, int]:
    """What the edges that lead into a range become: (later, earlier), (e,) int64 each, and how many are others than before.

    earliest: (n,) int64, what each document of the range leads to, itself where to none. codes: (e,) uint64, the places that are led
    to, above the documents that lead there. Raises DataError for a place beyond the range.
    """
    later, earlier = np.empty(len(codes), np.int64), np.empty(len(codes), np.int64)
    changed: int = _large_star(earliest, readonly(codes), np.uint64(bits), base, later, earlier)
    if changed < 0:
        raise _beyond(len(earliest))
    return later, earlier, changed


@jit
def _large_star(
    earliest: Int64Array,
    codes: UInt64Array,
    bits: np.uint64,
    base: int,
    later: Int64Array,
    earlier: Int64Array,
) -> int:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    changed = 0
    for k in range(len(codes)):
        place = np.int64(codes[k] >> bits)
        if place >= len(earliest):
            return -1
        later[k], earlier[k] = np.int64(codes[k] & mask), earliest[place]
        changed += int(earliest[place] != base + place)
    return changed


def by_range(
    ordinals: Int64Array, others: Int64Array, log: int, bits: int, num_ranges: int
) -> tuple[UInt64Array, Int64Array]:
    """Edges in the ranges of one end: (codes, bounds), range r is codes[bounds[r]:bounds[r + 1]], ascending, each once.

    ordinals, others: (e,) int64; a range has 2^log documents. Raises DataError for a document beyond the ranges.
    """
    check_same_length("Ends of edges", ordinals, others)
    counts = np.zeros(num_ranges + 1, np.int64)
    if not _count_ranges(readonly(ordinals), log, counts):
        raise _beyond(num_ranges << log)
    bounds = np.cumsum(counts)
    codes = np.empty(len(ordinals), np.uint64)
    _scatter(readonly(ordinals), readonly(others), log, np.uint64(bits), bounds[:-1].copy(), codes)
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        codes[first:last].sort()
    written = _drop_equal(codes, bounds)
    return codes[:written], bounds


@jit
def _count_ranges(ordinals: Int64Array, log: int, counts: Int64Array) -> bool:
    for k in range(len(ordinals)):
        number = ordinals[k] >> log
        if number < 0 or number >= len(counts) - 1:
            return False
        counts[number + 1] += 1
    return True


@jit
def _scatter(
    ordinals: Int64Array,
    others: Int64Array,
    log: int,
    bits: np.uint64,
    cursors: Int64Array,
    codes: UInt64Array,
) -> None:
    for k in range(len(ordinals)):
        number = ordinals[k] >> log
        place = ordinals[k] - (number << log)
        codes[cursors[number]] = (np.uint64(place) << bits) | np.uint64(others[k])
        cursors[number] += 1


@jit
def _drop_equal(codes: UInt64Array, bounds: Int64Array) -> int:
    """Edges that stay; bounds become theirs."""
    written = begin = 0
    for number in range(len(bounds) - 1):
        end = bounds[number + 1]
        bounds[number] = written
        for k in range(begin, end):
            if k == begin or codes[k] != codes[k - 1]:
                codes[written] = codes[k]
                written += 1
        begin = end
    bounds[len(bounds) - 1] = written
    return written


def _beyond(num_documents: int) -> DataError:
    return DataError(
        f"An edge leads beyond {num_documents:,} documents: its file is damaged. Remove the folder dedupe of the work folder and rerun "
        "the same command."
    )
