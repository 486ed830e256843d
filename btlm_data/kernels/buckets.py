"""Buckets of equal keys, and what becomes of them: partition, sort, find equals, attach to leaders.

Keys and ordinals come from files, so the public functions check shapes and ranges, and a kernel that writes
at a cursor checks that cursor.

Every function costs time linear in its input but for one in-place sort, regardless of the sizes of the
buckets: a million equal keys are one run. Plain twins are in tests/reference/buckets.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_below, check_offsets, check_same_length

UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]
Ordinals = npt.NDArray[Any]  # uint32 or int64
BoolArray = npt.NDArray[np.bool_]


def count_partitions(keys: UInt64Array, chosen: BoolArray, log_partitions: int, counts: Int64Array) -> None:
    """Add to counts (P,) how many keys of the chosen rows fall into each of P = 2^log_partitions ranges of
    their highest bits.

    keys: (n, B) uint64; chosen: (n,) bool. Raises DataError if the lengths differ, ValueError for other
    counts.
    """
    check_same_length("Keys and their marks", keys, chosen)
    _check_partitions(log_partitions, counts)
    _count_partitions(readonly(keys), readonly(chosen), log_partitions, counts)


@jit
def _count_partitions(keys: UInt64Array, chosen: BoolArray, log_partitions: int, counts: Int64Array) -> None:
    shift = np.uint64(64 - log_partitions)
    for i in range(keys.shape[0]):
        if chosen[i]:
            for band in range(keys.shape[1]):
                # Shifting by 64 bits is undefined, so one partition is a case of its own.
                counts[np.int64(keys[i, band] >> shift) if log_partitions > 0 else 0] += 1


def scatter(
    keys: UInt64Array,
    low: UInt64Array,
    chosen: BoolArray,
    first_ordinal: int,
    log_partitions: int,
    cursors: Int64Array,
    out_keys: UInt64Array,
    out_low: UInt64Array,
    out_ordinals: Ordinals,
) -> None:
    """Write each chosen row's keys, and the row's ordinal beside each, where its partition's cursor is,
    and advance the cursors.

    keys: (n, B) uint64; low: (n,) uint64, a second half of the key that goes along, or empty. chosen: (n,)
    bool. Row i is document first_ordinal + i; within a partition rows keep their order. cursors: (P,) int64.
    out_keys, out_ordinals: (m,), out_low: (m,), or empty if low is. Raises DataError where a cursor leaves
    them, because the keys are not the ones that were counted, ValueError for other shapes.
    """
    check_same_length("Keys and their marks", keys, chosen)
    _check_partitions(log_partitions, cursors)
    if len(out_keys) != len(out_ordinals) or (
        len(low) and (len(low) != len(keys) or len(out_low) != len(out_keys))
    ):
        raise ValueError(
            f"{len(keys)} keys with {len(low)} second halves into {len(out_keys)} places with {len(out_low)}"
        )
    fits = _scatter(
        readonly(keys),
        readonly(low),
        readonly(chosen),
        first_ordinal,
        log_partitions,
        cursors,
        out_keys,
        out_low,
        out_ordinals,
    )
    if not fits:
        raise DataError(
            "There are more keys than were counted: their file changed or is damaged. "
            "Delete the work folder and rerun the same command."
        )


def _check_partitions(log_partitions: int, per_partition: Int64Array) -> None:
    if not 0 <= log_partitions < 32 or len(per_partition) < 1 << log_partitions:
        raise ValueError(f"{len(per_partition)} places for 2^{log_partitions} partitions")


@jit
def _scatter(
    keys: UInt64Array,
    low: UInt64Array,
    chosen: BoolArray,
    first_ordinal: int,
    log_partitions: int,
    cursors: Int64Array,
    out_keys: UInt64Array,
    out_low: UInt64Array,
    out_ordinals: Ordinals,
) -> bool:
    shift = np.uint64(64 - log_partitions)
    for i in range(keys.shape[0]):
        if chosen[i]:
            for band in range(keys.shape[1]):
                partition = np.int64(keys[i, band] >> shift) if log_partitions > 0 else 0
                slot = cursors[partition]
                if slot < 0 or slot >= len(out_keys):
                    return False
                out_keys[slot] = keys[i, band]
                if len(low) > 0:
                    out_low[slot] = low[i]
                out_ordinals[slot] = first_ordinal + i
                cursors[partition] = slot + 1
    return True


def sort_order(keys: UInt64Array, shared_bits: int) -> tuple[UInt64Array, int]:
    """Indices in the order of their keys (all but the lowest bits of them), equal ones in index order.

    keys: (n,) uint64 whose highest `shared_bits` bits are the same in all. Returns (packed, mask): packed &
    mask are the indices, the bits above it the key's. Index and key share one 64-bit number, so that the sort
    is numpy's vectorised in-place sort of integers; about 40 bits of the key remain at 10 million, and
    `equal_runs` compares whole keys.
    """
    bits = max(1, (len(keys) - 1).bit_length()) if len(keys) else 1
    mask = (1 << bits) - 1
    packed = np.empty(len(keys), np.uint64)
    _pack(readonly(keys), np.uint64(shared_bits), np.uint64(mask), packed)
    packed.sort()
    return packed, mask


@jit
def _pack(keys: UInt64Array, shared_bits: np.uint64, mask: np.uint64, packed: UInt64Array) -> None:
    for i in range(len(keys)):
        packed[i] = ((keys[i] << shared_bits) & ~mask) | np.uint64(i)


def equal_runs(
    packed: UInt64Array, mask: int, keys: UInt64Array, low: UInt64Array
) -> tuple[Int64Array, Int64Array]:
    """The buckets of two or more equal keys: (members, starts); bucket b is members[starts[b]:starts[b + 1]].

    packed (n,) uint64, mask: from `sort_order(keys)`. keys: (n,) uint64; low: second halves of the keys, or
    empty. Members are indices into keys (int64), ascending within each bucket. Raises DataError if packed
    holds an index that is not one of keys.
    """
    check_same_length("Keys and their order", packed, keys)
    if len(low):
        check_same_length("Keys and their second halves", keys, low)
    num_members, num_buckets = _count_runs(packed, np.uint64(mask))
    if num_members < 0:
        raise DataError(
            f"The order of {len(keys)} keys is damaged. Delete the work folder and rerun the same command."
        )
    # Sharing the sorted bits is a superset of being equal, so these bounds hold.
    members, starts = np.empty(num_members, np.int64), np.empty(num_members // 2 + 1, np.int64)
    num_members, num_buckets = _fill_runs(
        packed, np.uint64(mask), readonly(keys), readonly(low), members, starts
    )
    starts[num_buckets] = num_members
    return members[:num_members], starts[: num_buckets + 1]


@jit
def _count_runs(packed: UInt64Array, mask: np.uint64) -> tuple[int, int]:
    """Members and number of runs that share all sorted bits; (-1, -1) if an index is not below
    len(packed).
    """
    num_members = num_runs = 0
    for i in range(len(packed)):
        if packed[i] & mask >= len(packed):
            return -1, -1
    i = 0
    while i < len(packed):
        j = i + 1
        while j < len(packed) and (packed[j] ^ packed[i]) <= mask:
            j += 1
        if j - i > 1:
            num_members += j - i
            num_runs += 1
        i = j
    return num_members, num_runs


@jit
def _fill_runs(
    packed: UInt64Array,
    mask: np.uint64,
    keys: UInt64Array,
    low: UInt64Array,
    members: Int64Array,
    starts: Int64Array,
) -> tuple[int, int]:
    written = num_buckets = 0
    i = 0
    while i < len(packed):
        j = i + 1
        while j < len(packed) and (packed[j] ^ packed[i]) <= mask:
            j += 1
        # The run shares all sorted bits. Nearly always its whole keys are equal; else take out one key after
        # the other.
        left = j - i
        while left > 1:
            first = packed[i] & mask
            start, others = written, i
            for k in range(i, i + left):
                index = packed[k] & mask
                same = keys[index] == keys[first]
                if len(low) > 0:
                    same = same and low[index] == low[first]
                if same:
                    members[written] = np.int64(index)
                    written += 1
                else:
                    packed[others] = packed[k]
                    others += 1
            if written - start > 1:
                starts[num_buckets] = start
                num_buckets += 1
            else:
                written = start
            left = others - i
        i = j
    return written, num_buckets


def star_edges(members: Int64Array, starts: Int64Array, ordinals: Ordinals) -> tuple[Ordinals, Ordinals]:
    """Link every member of a bucket to its first: (first, other) ordinals, one pair for each member but the
    first.

    members, starts: from `equal_runs`, no bucket empty. ordinals: (n,) uint32 or int64, as are the results. Raises DataError for other
    members or starts.
    """
    _check_buckets(members, starts, ordinals)
    first, other = (
        np.empty(len(members) - len(starts) + 1, ordinals.dtype),
        np.empty(len(members) - len(starts) + 1, ordinals.dtype),
    )
    _star_edges(members, starts, readonly(ordinals), first, other)
    return first, other


def _check_buckets(members: Int64Array, starts: Int64Array, ordinals: Ordinals) -> None:
    check_offsets(starts, len(members), "The starts of buckets")
    check_below(members, len(ordinals), "The member of a bucket")
    if starts[0] != 0 or starts[-1] != len(members) or bool((np.diff(starts) < 1).any()):
        raise DataError(
            "A bucket of equal keys has no member. Delete the work folder and rerun the same command."
        )


@jit
def _star_edges(
    members: Int64Array, starts: Int64Array, ordinals: Ordinals, first: Ordinals, other: Ordinals
) -> None:
    written = 0
    for b in range(len(starts) - 1):
        for k in range(starts[b] + 1, starts[b + 1]):
            first[written] = ordinals[members[starts[b]]]
            other[written] = ordinals[members[k]]
            written += 1


LEADERS = NEIGHBOURS = (
    4  # of a bucket: each member is nominated with its first ones, and those just before it
)


def nominate(
    members: Int64Array, starts: Int64Array, ordinals: Ordinals, num_done: int
) -> tuple[Ordinals, Ordinals, BoolArray]:
    """Pairs of documents of one bucket that are to be compared, and the rows that later members need.

    members, starts: from `equal_runs`. ordinals: (n,) uint32 or int64, whose first num_done rows are left of earlier
    calls and are in no new pair with each other. Every member is paired with the first LEADERS of its bucket
    and with the NEIGHBOURS before it, so a bucket of m costs at most 8 m pairs, and one of up to nine gives
    all its pairs. Returns (first, other, is_needed): first is before other in the bucket; is_needed (n,)
    marks rows in no bucket, and the first and the last of each. Raises DataError for other members or starts.
    """
    _check_buckets(members, starts, ordinals)
    most = (LEADERS + NEIGHBOURS) * len(members)
    first, other = np.empty(most, ordinals.dtype), np.empty(most, ordinals.dtype)
    is_needed = np.ones(len(ordinals), np.bool_)
    written = _nominate(members, starts, readonly(ordinals), num_done, first, other, is_needed)
    return first[:written].copy(), other[:written].copy(), is_needed


@jit
def _nominate(
    members: Int64Array,
    starts: Int64Array,
    ordinals: Ordinals,
    num_done: int,
    first: Ordinals,
    other: Ordinals,
    is_needed: BoolArray,
) -> int:
    written = 0
    for b in range(len(starts) - 1):
        begin, end = starts[b], starts[b + 1]
        for k in range(begin, end):
            is_needed[members[k]] = k < begin + LEADERS or k >= end - NEIGHBOURS
            if members[k] < num_done:
                continue
            leaders = min(k, begin + LEADERS)
            for rank in range(begin, leaders + min(NEIGHBOURS, k - leaders)):
                earlier = rank if rank < leaders else k - 1 - (rank - leaders)
                first[written] = ordinals[members[earlier]]
                other[written] = ordinals[members[k]]
                written += 1
    return written


class Leaders:
    """Verification of a bucket's members against its leaders: linear, and exact for buckets of up to
    MAX_LEADERS unlike documents.

    A member is linked to the first leader that its signature agrees with in at least `needed` places; one
    that agrees with none becomes a leader itself. Of more than MAX_LEADERS leaders in one bucket the latest
    stay. Buckets may span calls.
    """

    MAX_LEADERS = 16

    def __init__(self, num_perm: int, needed: int) -> None:
        self._signatures = np.zeros((self.MAX_LEADERS, num_perm), np.uint32)
        self._ordinals = np.zeros(self.MAX_LEADERS, np.int64)
        self._state = np.zeros(
            3, np.int64
        )  # leaders ever made in this bucket, comparisons, comparisons below the threshold
        self._needed = needed

    @property
    def compared(self) -> int:
        """Pairs compared so far."""
        return int(self._state[1])

    @property
    def rejected(self) -> int:
        """Of them, pairs below the threshold."""
        return int(self._state[2])

    def attach(self, signatures: UInt32Array, ordinals: Ordinals, begins: BoolArray) -> Ordinals:
        """The leader of each next member (n,), its own ordinal if it becomes one. signatures: (n, P); begins:
        (n,), where buckets begin.
        """
        if signatures.shape != (len(ordinals), self._signatures.shape[1]) or begins.shape != ordinals.shape:
            raise ValueError(
                f"{len(ordinals)} documents with signatures {signatures.shape} and marks {begins.shape}; "
                "expected "
                f"{self._signatures.shape[1]} permutations"
            )
        leader = np.empty(len(ordinals), ordinals.dtype)
        _attach(
            signatures, ordinals, begins, self._signatures, self._ordinals, self._state, self._needed, leader
        )
        return leader


@jit
def _attach(
    signatures: UInt32Array,
    ordinals: Ordinals,
    begins: BoolArray,
    leader_signatures: UInt32Array,
    leader_ordinals: Int64Array,
    state: Int64Array,
    needed: int,
    out: Ordinals,
) -> None:
    for i in range(len(ordinals)):
        if begins[i]:
            state[0] = 0
        out[i] = ordinals[i]
        for leader in range(min(state[0], len(leader_ordinals))):
            equal = 0
            for k in range(signatures.shape[1]):
                equal += int(signatures[i, k] == leader_signatures[leader, k])
            state[1] += 1
            if equal >= needed:
                out[i] = leader_ordinals[leader]
                break
            state[2] += 1
        if out[i] == ordinals[i]:
            slot = state[0] % len(leader_ordinals)
            leader_signatures[slot] = signatures[i]
            leader_ordinals[slot] = ordinals[i]
            state[0] += 1


def readonly(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A read-only contiguous view: memory maps and fresh arrays then reach the kernels as one type, compiled
    once. Keeps shape and dtype: (n, ...).
    """
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
