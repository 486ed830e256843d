"""How alike two documents are, from their text: the sets of their features counted against each other, exactly.

Features are stretches of the normalised text: `size` characters (SlimPajama's 13) or `size` words in a row; a shorter
text is one feature. Nothing rests on a hash: where two features may be the same, their bytes are compared.

Of the text that may stay a table has where each feature stands first. The other text is walked along: where a feature is
found, both texts are compared byte by byte from there as far as they agree, and all features of that stretch are shared.
So copies cost little more than one table for the text that they are copies of, and these are kept for the next ones.
Plain twins are in tests/reference/shingles.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.kernels import union_find
from btlm_data.kernels.buckets import readonly
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.feature_tables import TABLE_BYTES, _count_seen, _fill, _room, _slots, _used, _walk
from btlm_data.kernels.minhash import SLIMPAJAMA, WORDS, Shingle
from btlm_data.kernels.ranges import check_below, check_offsets, check_same_length

JACCARD, CONTAINMENT = 0, 1  # shared features over all of both; over those of the text that would go
_SPACE = 0x20
_CACHE = 2**21  # numbers in the tables that are kept: 8 MB; a far look-up costs less than another table
UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]
Int64Array = npt.NDArray[np.int64]


class Rule(NamedTuple):
    """What makes a text go. kind: JACCARD or CONTAINMENT; threshold: the similarity from which on."""

    kind: int
    threshold: float


class Decisions(NamedTuple):
    """What became of n texts under each of R rules.

    anchor (R, n) int64: the text that one goes for, -1 where it stays. closest (R, n) int64: the most similar text that it
    was compared with (its anchor, where it goes), -1 where none was; shared (R, n) uint32: its features in that one.
    sizes (n,) uint32: different features of each text that was counted, else 0. compared, similar: (R,) int64 pairs.
    """

    anchor: Int64Array
    closest: Int64Array
    shared: UInt32Array
    sizes: UInt32Array
    compared: Int64Array
    similar: Int64Array

    def put(self, part: Decisions, texts: Int64Array) -> None:
        """Enter what was decided of some of the texts. texts: (m,) int64, ascending, which ones the m of `part` are."""
        for ours, theirs in ((self.anchor, part.anchor), (self.closest, part.closest)):
            ours[:, texts] = np.where(theirs >= 0, texts[theirs], -1)
        self.shared[:, texts], self.sizes[texts] = part.shared, part.sizes
        self.compared[:] += part.compared
        self.similar[:] += part.similar


class Counts(NamedTuple):
    """Different features in both of two texts, in the first, in the second."""

    shared: int
    first: int
    second: int


def offsets_of(lengths: npt.NDArray[np.int64], shingle: Shingle) -> Int64Array:
    """Where texts of these lengths, (n,) int64, begin in a buffer for `decide`, and where the last one ends:
    (n + 1,) int64. Where features are words there is room for a space behind each text (`end_words`).
    """
    room = lengths + (shingle.unit == WORDS)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(room, dtype=np.int64)])


def end_words(utf8: UInt8Array, offsets: Int64Array, shingle: Shingle) -> None:
    """Put a space behind each text of a buffer where features are words: each word has one behind it. utf8: (room,) uint8;
    offsets: (n + 1,) int64.
    """
    if shingle.unit == WORDS:
        utf8[offsets[1:] - 1] = _SPACE


def undecided(num_rules: int, count: int) -> Decisions:
    """Of `count` texts that were compared with none."""
    each = (num_rules, count)
    return Decisions(
        np.full(each, -1, np.int64),
        np.full(each, -1, np.int64),
        np.zeros(each, np.uint32),
        np.zeros(count, np.uint32),
        np.zeros(num_rules, np.int64),
        np.zeros(num_rules, np.int64),
    )


def components(candidates: Int64Array, bounds: Int64Array) -> UInt32Array:
    """The first text of each text's component: (n,) uint32; texts are joined to those that they are compared with. candidates:
    (m,) int64, bounds: (n + 1,) int64, as `decide` takes them.
    """
    owners = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    component = np.arange(len(bounds) - 1, dtype=np.uint32)
    union_find.unite(component, readonly(candidates.astype(np.uint32)), readonly(owners.astype(np.uint32)))
    union_find.flatten(component)
    return component


def decide(
    utf8: UInt8Array,
    offsets: Int64Array,
    candidates: Int64Array,
    bounds: Int64Array,
    rules: Sequence[Rule],
    shingle: Shingle = SLIMPAJAMA,
    floor: float | None = None,
) -> Decisions:
    """Decide which texts go, in their order, under each rule; a pair that several rules need is counted once.

    utf8, offsets: n normalised texts, as `offsets_of` and `end_words` lay them. candidates[bounds[i]:bounds[i + 1]]: earlier texts that
    text i is compared with, the most promising first. Text i goes for the first of them that stays and is similar enough.
    In place of one that goes stands the one that it goes for. Pairs that can no longer reach `floor` (default: the lowest
    threshold) are not counted to the end. Memory: 20 bytes a text and 20 for each rule, and up to 150 MB where texts have
    megabytes. Raises DataError for a candidate that is not an earlier text. utf8: (bytes,) uint8; offsets: (n + 1,) int64;
    candidates: (m,) int64; bounds: (n + 1,) int64.
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
    # Component by component, so that a text's table is still there for those that are compared with it.
    order = np.argsort(components(candidates, bounds), kind="stable")
    decisions = undecided(len(rules), len(offsets) - 1)
    thresholds = np.array([rule.threshold for rule in rules], np.float64)
    _decide(
        readonly(utf8),
        readonly(offsets),
        readonly(candidates),
        readonly(bounds),
        order,
        np.array([rule.kind for rule in rules], np.int64),
        thresholds,
        float(thresholds.min()) if floor is None else floor,
        *shingle,
        *_room_for(offsets),
        decisions.anchor,
        decisions.closest,
        decisions.shared,
        decisions.sizes,
        decisions.compared,
        decisions.similar,
    )
    return decisions


def count(texts: Sequence[UInt8Array], shingle: Shingle = SLIMPAJAMA) -> Counts:
    """Count the features of two normalised texts, each (bytes,) uint8."""
    one, other = texts
    offsets = offsets_of(np.array([len(one), len(other)]), shingle)
    utf8 = np.empty(offsets[-1], np.uint8)
    utf8[: len(one)] = one
    utf8[offsets[1] : offsets[1] + len(other)] = other
    end_words(utf8, offsets, shingle)
    sizes, keeper = np.zeros(2, np.uint32), np.array([-1, -1, 0])
    shared = _shared(
        readonly(utf8), readonly(offsets), 1, 0, 0.0, *shingle, *_room_for(offsets), keeper, sizes
    )
    return Counts(int(shared), int(sizes[0]), int(sizes[1]))


def _room_for(offsets: Int64Array) -> tuple[UInt32Array, UInt32Array]:
    """Room for the tables that are kept, the largest at least, and for what is noted of one pair."""
    lengths = np.diff(offsets)
    kept = max(_CACHE, _room(int(lengths[lengths < TABLE_BYTES].max(initial=0)), 1))
    longest = int(lengths.max(initial=0))
    return np.empty(kept, np.uint32), np.empty(
        _slots(min(longest + 1, TABLE_BYTES)) + longest // 32 + 1, np.uint32
    )


@jit
def _decide(
    utf8: UInt8Array,
    offsets: Int64Array,
    candidates: Int64Array,
    bounds: Int64Array,
    order: Int64Array,
    kinds: Int64Array,
    thresholds: npt.NDArray[np.float64],
    floor: float,
    unit: int,
    size: int,
    cache: UInt32Array,
    scratch: UInt32Array,
    anchor: Int64Array,
    closest: Int64Array,
    shared: UInt32Array,
    sizes: UInt32Array,
    compared: Int64Array,
    similar: Int64Array,
) -> None:
    # Of each text that one is compared with under any rule: which, the features shared, and by which rule it was met last.
    tried = np.empty((1, 3), np.int64)
    # Where the table of each text is kept; the last: the end of them all.
    keeper = np.full(len(bounds), -1, np.int64)
    keeper[-1] = 0
    for i in order:
        first, last = bounds[i], bounds[i + 1]
        if len(tried) < len(kinds) * (last - first):
            tried = np.empty((len(kinds) * (last - first), 3), np.int64)
        num_tried = 0
        for rule in range(len(kinds)):
            highest = -1.0
            for k in range(first, last):
                other = candidates[k]
                if anchor[rule, other] >= 0:
                    other = anchor[rule, other]
                at = 0
                while at < num_tried and tried[at, 0] != other:
                    at += 1
                if at == num_tried:
                    num_tried += 1
                    tried[at, 0], tried[at, 2] = other, -1
                    tried[at, 1] = _shared(
                        utf8, offsets, i, other, floor, unit, size, cache, scratch, keeper, sizes
                    )
                if tried[at, 2] == rule:
                    continue
                tried[at, 2] = rule
                compared[rule] += 1
                num_shared = tried[at, 1]
                if num_shared < 0:
                    continue
                total = np.int64(sizes[i])
                if kinds[rule] == JACCARD:
                    total += np.int64(sizes[other]) - num_shared
                similarity = num_shared / total
                if similarity > highest:
                    highest = similarity
                    closest[rule, i], shared[rule, i] = other, num_shared
                if similarity >= thresholds[rule]:
                    similar[rule] += 1
                    anchor[rule, i] = other
                    break


@jit
def _shared(
    utf8: UInt8Array,
    offsets: Int64Array,
    document: int,
    other: int,
    floor: float,
    unit: int,
    size: int,
    cache: UInt32Array,
    scratch: UInt32Array,
    keeper: Int64Array,
    sizes: UInt32Array,
) -> int:
    """Features of `document` that `other` has, -1 where the pair cannot reach `floor`. Else the sizes of both are known."""
    begin, end = offsets[document], offsets[document + 1]
    length, other_length = end - begin, offsets[other + 1] - offsets[other]
    passes = 1 + max(length, other_length) // TABLE_BYTES
    if passes == 1:
        table = _kept(utf8, offsets, other, unit, size, cache, keeper, sizes)
    else:
        table = np.empty(_room(other_length, passes), np.uint32)
        if sizes[other] == 0:
            for part in range(passes):
                sizes[other] += _fill(
                    utf8, offsets[other], offsets[other + 1], unit, size, table, part, passes
                )
    most = _most_missing(int(np.int64(sizes[other])), floor, length)
    slots = _slots(min(most, TABLE_BYTES))
    missing, seen = scratch[:slots], scratch[slots : slots + other_length // 32 + 1]
    num_shared = num_missing = 0
    for part in range(passes):
        if passes > 1:
            _fill(utf8, offsets[other], offsets[other + 1], unit, size, table, part, passes)
        missing[:] = 0
        seen[:] = 0
        lost = _walk(
            utf8, begin, end, offsets[other], offsets[other + 1], unit, size, table, part, passes, missing, seen, most
        )  # fmt: skip
        if lost < 0:
            return -1
        num_missing += lost
        num_shared += _count_seen(other_length, table, seen)
    sizes[document] = num_shared + num_missing
    return num_shared


@jit
def _most_missing(size: int, threshold: float, length: int) -> int:
    """The most features that a text may have which the other, of `size` features, lacks, to be similar enough.

    All that are shared are at most all of the other's: s / (size + m), or s / (s + m), is at most size / (size + m).
    """
    if threshold <= 0:
        return length + 1
    most = int(np.int64(min(float(length), size / threshold - size))) + 2
    while most > 0 and size / (size + most) < threshold:
        most -= 1
    return min(most, length + 1)


@jit
def _kept(
    utf8: UInt8Array,
    offsets: Int64Array,
    document: int,
    unit: int,
    size: int,
    cache: UInt32Array,
    keeper: Int64Array,
    sizes: UInt32Array,
) -> UInt32Array:
    """The table of a text, made if it is not kept. The oldest tables give way: they lie in a ring, where a table that is
    larger stands alone.
    """
    num_bytes, end = offsets[document + 1] - offsets[document], keeper[-1]
    room, at = _room(num_bytes, 1), keeper[document]
    if at < 0 or at < end - _CACHE:
        at = end
        if at % _CACHE + room > _CACHE:
            at += _CACHE - at % _CACHE
        table = cache[at % _CACHE : at % _CACHE + room]
        sizes[document] = _fill(utf8, offsets[document], offsets[document + 1], unit, size, table, 0, 1)
        keeper[document], keeper[-1] = at, at + min(_used(table, num_bytes), _CACHE)
    return cache[at % _CACHE : at % _CACHE + room]
