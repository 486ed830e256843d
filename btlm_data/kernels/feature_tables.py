"""Where each feature of a text stands: the tables that comparing texts rests on (shingles.py).

A table is one array of numbers: slots, by hash, with the position of each feature's first occurrence in the text, counted from
1; a bit for each byte of the text: a feature stands here first; and the stretches of features that stood before. Features
are compared by their bytes, so a hash never decides.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from btlm_data.kernels.compiling import jit
from btlm_data.kernels.minhash import CHARS, _hash, _hash13, _width, _word

_SPACE = 0x20
TABLE_BYTES = 2**22  # of text in a table; of a longer one each pass takes a share of the features
_SPARSE_SLOTS = 2**22  # up to which a quarter of a table's slots are used, and a half of a larger one's
_AT_ONCE = 64  # features that are hashed before they are looked up
_NUMBERS = 3  # of a stretch
UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]


@jit
def _slots(num_features: int) -> int:
    """Slots for so many features: a power of two, at most a quarter of it used (a half takes an eighth longer), of a large table a
    half.
    """
    slots = 16
    while slots < 2 * num_features or (slots < 4 * num_features and slots < _SPARSE_SLOTS):
        slots *= 2
    return slots


@jit
def _room(num_bytes: int, passes: int) -> int:
    """Numbers in the table of a text, at most: every feature can begin a stretch; of several passes none is noted."""
    before = _slots(min(num_bytes, TABLE_BYTES)) + num_bytes // 32 + 2
    return before + _NUMBERS * num_bytes if passes == 1 else before


@jit
def _used(table: UInt32Array, num_bytes: int) -> int:
    """Numbers in a table up to its last stretch."""
    before = _slots(min(num_bytes, TABLE_BYTES)) + num_bytes // 32 + 2
    return before + _NUMBERS * int(np.int64(table[before - 1]))


@jit
def _parts(table: UInt32Array, num_bytes: int) -> tuple[UInt32Array, UInt32Array, UInt32Array, UInt32Array]:
    """The slots of a table; its bits; the number of stretches, (1,); and these: where each begins, where its features stand
    first, and how many bytes behind its first feature the last one begins.
    """
    slots, words = _slots(min(num_bytes, TABLE_BYTES)), num_bytes // 32 + 1
    bits = slots + words
    return table[:slots], table[slots:bits], table[bits : bits + 1], table[bits + 1 :]


@jit
def _is_in(h: np.uint32, part: int, passes: int) -> bool:
    """Whether a feature belongs to a pass, by the upper bits of its hash: its slot depends on the lower ones."""
    return bool(passes == 1 or np.uint64(h) * np.uint64(passes) >> np.uint64(32) == np.uint64(part))


@jit
def _fill(
    utf8: UInt8Array,
    begin: int,
    end: int,
    unit: int,
    size: int,
    table: UInt32Array,
    part: int,
    passes: int,
) -> np.uint32:
    """Make the table of a text: where each of its features stands first, counted from 1; returns how many there are."""
    slots, firsts, num_stretches, stretches = _parts(table, end - begin)
    slots[:], firsts[:] = 0, 0
    mask, num_features, one = np.uint64(len(slots) - 1), np.uint32(0), np.uint64(1)
    hashes, bounds = np.empty(_AT_ONCE, np.uint32), np.empty((_AT_ONCE, 2), np.uint64)
    word, bits = np.uint64(0), np.uint32(0)  # of `firsts`, not written yet
    start, stop = np.uint64(begin), np.uint64(_first_stop(utf8, begin, end, unit, size))
    finish, n = np.uint64(end), 0
    jump = behind = np.uint64(
        0
    )  # features before `jump` are in the latest stretch, whose last one ends at `behind`
    while start <= finish:
        number, start, stop = _features(utf8, start, stop, finish, unit, hashes, bounds)
        for k in range(number):
            first, last, h = bounds[k, 0], bounds[k, 1], hashes[k]
            if first < jump or not _is_in(h, part, passes) or num_features >= mask:
                continue
            at, slot = first - np.uint64(begin), np.uint64(h) & mask
            while True:
                entry = np.uint64(slots[slot])
                if entry == np.uint64(0):
                    slots[slot] = np.uint32(at + one)
                    if at >> np.uint64(5) != word:
                        firsts[word] = bits
                        word, bits = at >> np.uint64(5), np.uint32(0)
                    bits |= np.uint32(1) << np.uint32(at & np.uint64(31))
                    num_features += np.uint32(1)
                    break
                position = np.uint64(begin) + entry - one
                if _same(utf8, position, finish, first, last):
                    if passes == 1:
                        behind = _agree(utf8, last, finish, position + (last - first), finish, unit)
                        jump = max(first, _back(utf8, behind, np.uint64(begin), unit, size)) + one
                        stretches[n], stretches[n + 1] = np.uint32(at), np.uint32(entry - one)
                        stretches[n + 2] = np.uint32(jump - one - first)
                        n += _NUMBERS
                    break
                slot = (slot + one) & mask
        if jump > start:  # the stretch goes on after these features
            start, stop = _behind(utf8, jump - one, behind, finish, unit)
    firsts[word] = bits
    num_stretches[0] = n // _NUMBERS
    return num_features


@jit
def _features(
    utf8: UInt8Array,
    start: np.uint64,
    stop: np.uint64,
    finish: np.uint64,
    unit: int,
    hashes: UInt32Array,
    bounds: npt.NDArray[np.uint64],
) -> tuple[int, np.uint64, np.uint64]:
    """The next features from start:stop on: how many, and the one that follows (it starts behind the text after the last)."""
    one, two, three, four = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
    n, most = np.uint64(0), np.uint64(len(hashes))
    while n + four <= most:
        if (
            unit == CHARS
            and stop - start == np.uint64(13)
            and stop + four <= finish
            and _four_are_ascii(utf8, stop)
        ):
            for k in range(4):
                bounds[n + np.uint64(k), 0] = start + np.uint64(k)
                bounds[n + np.uint64(k), 1] = stop + np.uint64(k)
            hashes[n], hashes[n + one] = _hash13(utf8, start), _hash13(utf8, start + one)
            hashes[n + two], hashes[n + three] = _hash13(utf8, start + two), _hash13(utf8, start + three)
            n, start, stop = n + four, start + four, stop + four
            continue
        hashes[n], bounds[n, 0], bounds[n, 1] = _hash(utf8, start, stop), start, stop
        n += one
        start, stop = _behind(utf8, start, stop, finish, unit)
        if start > finish:
            break
    return int(np.int64(n)), start, stop


@jit
def _four_are_ascii(utf8: UInt8Array, i: np.uint64) -> bool:
    return bool((utf8[i] | utf8[i + np.uint64(1)] | utf8[i + np.uint64(2)] | utf8[i + np.uint64(3)]) < 0x80)


@jit
def _behind(
    utf8: UInt8Array, start: np.uint64, stop: np.uint64, finish: np.uint64, unit: int
) -> tuple[np.uint64, np.uint64]:
    """The feature after start:stop; after a text's last one it starts behind the text."""
    if stop >= finish:
        return finish + np.uint64(1), stop
    return _next(utf8, start, finish, unit), _next(utf8, stop, finish, unit)


@jit
def _walk(
    utf8: UInt8Array,
    begin: int,
    end: int,
    other_begin: int,
    other_end: int,
    unit: int,
    size: int,
    table: UInt32Array,
    part: int,
    passes: int,
    missing: UInt32Array,
    seen: UInt32Array,
    most: int,
) -> int:
    """Mark in `seen` where the other text has features of this one; returns how many different ones it lacks, or -1: more
    than `most`. missing: slots for those.
    """
    slots = _parts(table, other_end - other_begin)[0]
    mask, missing_mask = np.uint32(len(slots) - 1), np.uint32(len(missing) - 1)
    num_missing = 0
    start, stop = np.uint64(begin), np.uint64(_first_stop(utf8, begin, end, unit, size))
    finish, other_finish = np.uint64(end), np.uint64(other_end)
    # A text shorter than a feature is only in one that is the very same.
    is_in_vain = _is_short(utf8, begin, end, unit, size) and end - begin != other_end - other_begin
    while True:
        h = _hash_of(utf8, start, stop)
        if _is_in(h, part, passes):
            at = -1
            slot = np.uint32(h & mask)
            while slots[slot] != 0 and not is_in_vain:
                position = np.uint64(other_begin) + np.uint64(slots[slot]) - np.uint64(1)
                if _same(utf8, position, other_finish, start, stop):
                    at = int(np.int64(position))
                    break
                slot = np.uint32((slot + np.uint32(1)) & mask)
            if at < 0:
                slot = np.uint32(h & missing_mask)
                while True:
                    entry = missing[slot]
                    if entry == 0:
                        missing[slot] = np.uint32(start - np.uint64(begin)) + np.uint32(1)
                        num_missing += 1
                        if num_missing > most or num_missing >= len(missing):
                            return -1
                        break
                    if _same(utf8, np.uint64(begin) + np.uint64(entry) - np.uint64(1), finish, start, stop):
                        break
                    slot = np.uint32((slot + np.uint32(1)) & missing_mask)
            else:
                first, before = at - other_begin, start
                if passes == 1:
                    stop = _agree(utf8, stop, finish, np.uint64(at) + (stop - start), other_finish, unit)
                    start = max(start, _back(utf8, stop, np.uint64(begin), unit, size))
                _mark(seen, first, first + int(np.int64(start - before)))
        if stop >= finish:
            return num_missing
        start, stop = _next(utf8, start, finish, unit), _next(utf8, stop, finish, unit)


@jit
def _count_seen(num_bytes: int, table: UInt32Array, seen: UInt32Array) -> int:
    """How many different features of a text are marked: one that is marked where it is repeated counts where it is first."""
    _, firsts, num_stretches, stretches = _parts(table, num_bytes)
    # From the last to the first: what a stretch repeats stands before it, and may repeat something itself.
    for k in range(_NUMBERS * (int(np.int64(num_stretches[0])) - 1), -1, -_NUMBERS):
        at, first = int(np.int64(stretches[k])), int(np.int64(stretches[k + 1]))
        length = int(np.int64(stretches[k + 2]))
        if _are_marked(seen, at, at + length):
            _mark(seen, first, first + length)
        elif not _are_marked(seen, first, first + length):
            for m in range(length, -1, -1):
                if _are_marked(seen, at + m, at + m):
                    _mark(seen, first + m, first + m)
    total = 0
    for word in range(len(seen)):
        total += _ones(seen[word] & firsts[word])
    return total


@jit
def _are_marked(bits: UInt32Array, first: int, last: int) -> bool:
    """Whether bits first to last are all set."""
    ones = np.uint32(0xFFFFFFFF)
    low, high = first >> 5, last >> 5
    begin, end = np.uint32(ones << np.uint32(first & 31)), np.uint32(ones >> np.uint32(31 - (last & 31)))
    if low == high:
        return bool(~bits[low] & begin & end == 0)
    if ~bits[low] & begin != 0 or ~bits[high] & end != 0:
        return False
    word = low + 1
    while word < high and bits[word] == ones:
        word += 1
    return bool(word == high)


@jit
def _ones(word: np.uint32) -> int:
    """Bits that are set (Hacker's Delight, section 5-1)."""
    word -= (word >> np.uint32(1)) & np.uint32(0x55555555)
    word = (word & np.uint32(0x33333333)) + ((word >> np.uint32(2)) & np.uint32(0x33333333))
    word = (word + (word >> np.uint32(4))) & np.uint32(0x0F0F0F0F)
    return int(np.int64(np.uint32(word * np.uint32(0x01010101)) >> np.uint32(24)))


@jit
def _mark(bits: UInt32Array, first: int, last: int) -> None:
    """Set bits first to last."""
    ones = np.uint32(0xFFFFFFFF)
    low, high = first >> 5, last >> 5
    begin, end = np.uint32(ones << np.uint32(first & 31)), np.uint32(ones >> np.uint32(31 - (last & 31)))
    if low == high:
        bits[low] |= begin & end
        return
    bits[low] |= begin
    for word in range(low + 1, high):
        bits[word] = ones
    bits[high] |= end


@jit
def _same(
    utf8: UInt8Array, position: np.uint64, finish: np.uint64, start: np.uint64, stop: np.uint64
) -> bool:
    """Whether the bytes at `position`, of a text that ends at `finish`, are those of the feature start:stop."""
    length, eight = stop - start, np.uint64(8)
    if position + length > finish:
        return False
    if length < eight:
        k = np.uint64(0)
        while k < length and utf8[start + k] == utf8[position + k]:
            k += np.uint64(1)
        return bool(k == length)
    # Words of eight bytes; the last one may overlap the one before.
    last, k = length - eight, np.uint64(0)
    while k < last:
        if _word(utf8, start + k) != _word(utf8, position + k):
            return False
        k += eight
    return bool(_word(utf8, start + last) == _word(utf8, position + last))


@jit
def _hash_of(utf8: UInt8Array, start: np.uint64, stop: np.uint64) -> np.uint32:
    """minhash.ngram_hash32 of a feature, the commonest length first."""
    return _hash13(utf8, start) if stop - start == np.uint64(13) else _hash(utf8, start, stop)


@jit
def _agree(
    utf8: UInt8Array, at: np.uint64, end: np.uint64, other: np.uint64, other_end: np.uint64, unit: int
) -> np.uint64:
    """How far two texts agree, from there on: the end of the last whole character or word in the first."""
    one, eight, first = np.uint64(1), np.uint64(8), at
    while at + eight <= end and other + eight <= other_end and _word(utf8, at) == _word(utf8, other):
        at, other = at + eight, other + eight
    while at < end and other < other_end and utf8[at] == utf8[other]:
        at, other = at + one, other + one
    if unit == CHARS:
        while at < end and (utf8[at] & 0xC0) == 0x80:
            at -= one
    else:
        while at > first and utf8[at - one] != _SPACE:
            at -= one
    return at


@jit
def _back(utf8: UInt8Array, stop: np.uint64, begin: np.uint64, unit: int, size: int) -> np.uint64:
    """Where the feature begins that ends at `stop`."""
    one = np.uint64(1)
    for _ in range(size):
        if stop <= begin:
            break
        stop -= one
        if unit == CHARS:
            while stop > begin and (utf8[stop] & 0xC0) == 0x80:
                stop -= one
        else:
            while stop > begin and utf8[stop - one] != _SPACE:
                stop -= one
    return stop


@jit
def _next(utf8: UInt8Array, at: np.uint64, end: np.uint64, unit: int) -> np.uint64:
    """Where the character or word (with the space behind it) ends that begins here."""
    if unit == CHARS:
        return at + _width(utf8[at]) if at < end else end
    while at < end and utf8[at] != _SPACE:
        at += np.uint64(1)
    return min(at + np.uint64(1), end)


@jit
def _first_stop(utf8: UInt8Array, begin: int, end: int, unit: int, size: int) -> int:
    """Where the first feature ends, at the latest with the text."""
    stop, finish = np.uint64(begin), np.uint64(end)
    for _ in range(size):
        if stop >= finish:
            break
        stop = _next(utf8, stop, finish, unit)
    return min(int(np.int64(stop)), end)


@jit
def _is_short(utf8: UInt8Array, begin: int, end: int, unit: int, size: int) -> bool:
    """Whether a text has fewer characters or words than a feature."""
    return bool(_first_stop(utf8, begin, end, unit, size - 1) >= end)
