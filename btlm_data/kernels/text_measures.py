"""The measures of Gopher's rules (Rae et al. 2021, arXiv 2112.11446, appendix A.1.1), of whole batches of texts.

`quality` has what "Quality Filtering" compares, `repetition` what "Repetition Removal" does (table A1). Words
are split at white space, lines and paragraphs as Python's `str` splits them; shares are of words, of lines, or
of the characters of words. Words, lines and n-grams are compared by 64-bit hashes. The plain twin is
tests/reference/text_measures.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from btlm_data.kernels.buckets import readonly
from btlm_data.kernels.compiling import jit

UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

QUALITY = (
    "words",
    "mean_word_length",
    "hash_ratio",
    "ellipsis_ratio",
    "bullet_lines",
    "ellipsis_lines",
    "alphabetic_words",
    "stop_words",
)
REPETITION = (
    "duplicate_lines",
    "duplicate_line_chars",
    "duplicate_paragraphs",
    "duplicate_paragraph_chars",
    "top_2_gram",
    "top_3_gram",
    "top_4_gram",
    *(f"duplicate_{n}_grams" for n in range(5, 11)),
)
_SPACE, _LETTER, _BREAK = 1, 2, 4
_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_BULLETS = "•-*‣▪●◦–·"
_AROUND_WORDS = ".,;:!?\"'()"
_DOT, _ELLIPSIS, _HASH, _NEWLINE = 0x2E, 0x2026, 0x23, 0x0A


def quality(texts: Sequence[str]) -> Float64Array:
    """The measures named in QUALITY, (n, 8) float64; shares are 0 where there is nothing to share."""
    points, bounds = _code_points(texts)
    out = np.zeros((len(texts), len(QUALITY)))
    _quality(points, bounds, *_tables(), out)
    return out


def repetition(texts: Sequence[str]) -> Float64Array:
    """The measures named in REPETITION, (n, 13) float64; shares are 0 where there is nothing to share."""
    points, bounds = _code_points(texts)
    out = np.zeros((len(texts), len(REPETITION)))
    _repetition(points, bounds, _tables()[0], out)
    return out


def _code_points(texts: Sequence[str]) -> tuple[UInt32Array, Int64Array]:
    bounds = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=bounds[1:])
    return np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32), bounds


@cache
def _tables() -> tuple[UInt8Array, UInt32Array, UInt32Array, UInt64Array]:
    """Kinds of every code point; bullets; characters around words; stop words, a byte a letter."""
    kinds = np.zeros(0x110000, np.uint8)
    for point in range(0x110000):
        character = chr(point)
        kinds[point] = _SPACE * character.isspace() + _LETTER * character.isalpha()
    kinds[[ord(character) for character in _BREAKS]] |= _BREAK
    bullets, around = (np.array(list(map(ord, text)), np.uint32) for text in (_BULLETS, _AROUND_WORDS))
    words = np.array([int.from_bytes(word.encode(), "little") for word in _STOP_WORDS], np.uint64)
    return readonly(kinds), readonly(bullets), readonly(around), readonly(words)


@jit
def _quality(
    points: UInt32Array,
    bounds: Int64Array,
    kinds: UInt8Array,
    bullets: UInt32Array,
    around: UInt32Array,
    stop_words: UInt64Array,
    out: Float64Array,
) -> None:
    for d in range(len(bounds) - 1):
        first, last = bounds[d], bounds[d + 1]
        words, letters, with_letter, stops = 0, 0, 0, 0
        i = first
        while i < last:
            if kinds[points[i]] & _SPACE:
                i += 1
                continue
            begin, has_letter = i, False
            while i < last and not kinds[points[i]] & _SPACE:
                has_letter |= kinds[points[i]] & _LETTER != 0
                i += 1
            words += 1
            letters += i - begin
            with_letter += has_letter
            stops |= _stop_word(points, begin, i, around, stop_words)
        hashes, ellipses = 0, 0
        i = first
        while i < last:
            hashes += points[i] == _HASH
            ellipses += points[i] == _ELLIPSIS
            if i + 2 < last and points[i] == _DOT and points[i + 1] == _DOT and points[i + 2] == _DOT:
                ellipses += 1
                i += 2
            i += 1
        lines, bullet_lines, ellipsis_lines = 0, 0, 0
        i = first
        while i < last:
            begin = i
            while i < last and not kinds[points[i]] & _BREAK:
                i += 1
            a, b = _stripped(points, begin, i, kinds)
            if a < b:
                lines += 1
                bullet_lines += _is_in(points[a], bullets)
                is_dots = (
                    b - a >= 3 and points[b - 1] == _DOT and points[b - 2] == _DOT and points[b - 3] == _DOT
                )
                ellipsis_lines += is_dots or points[b - 1] == _ELLIPSIS
            i += 1
        out[d, 0] = words
        if words:
            out[d, 1], out[d, 2], out[d, 3] = letters / words, hashes / words, ellipses / words
            out[d, 6] = with_letter / words
        if lines:
            out[d, 4], out[d, 5] = bullet_lines / lines, ellipsis_lines / lines
        while stops:
            out[d, 7] += stops & 1
            stops >>= 1


@jit
def _stop_word(
    points: UInt32Array, begin: int, end: int, around: UInt32Array, stop_words: UInt64Array
) -> int:
    """The bit of the stop word that a word is, without what stands around it; 0 where it is none."""
    while begin < end and _is_in(points[begin], around):
        begin += 1
    while begin < end and _is_in(points[end - 1], around):
        end -= 1
    if end - begin > 4:
        return 0
    spelled = np.uint64(0)
    for i in range(begin, end):
        point = points[i]
        if point == 0 or point > 0x7A:  # zeros stand behind the letters of a stop word
            return 0
        if 0x41 <= point <= 0x5A:
            point += np.uint32(0x20)
        spelled |= np.uint64(point) << np.uint64(8 * (i - begin))
    for k in range(len(stop_words)):
        if spelled == stop_words[k]:
            return 1 << k
    return 0


@jit
def _is_in(point: int, some: UInt32Array) -> bool:
    for k in range(len(some)):  # noqa: SIM110  (compiled)
        if some[k] == point:
            return True
    return False


@jit
def _stripped(points: UInt32Array, begin: int, end: int, kinds: UInt8Array) -> tuple[int, int]:
    while begin < end and kinds[points[begin]] & _SPACE:
        begin += 1
    while begin < end and kinds[points[end - 1]] & _SPACE:
        end -= 1
    return begin, end


@jit
def _hash_of(points: UInt32Array, begin: int, end: int) -> np.uint64:
    value = np.uint64(0xCBF29CE484222325)
    for i in range(begin, end):
        value = (value ^ np.uint64(points[i])) * np.uint64(0x9E3779B97F4A7C15)
        value ^= value >> np.uint64(29)
    return value


@jit
def _repetition(points: UInt32Array, bounds: Int64Array, kinds: UInt8Array, out: Float64Array) -> None:
    longest = 0
    for d in range(len(bounds) - 1):
        longest = max(longest, bounds[d + 1] - bounds[d])
    size = _slots(longest + 1)  # at most every second character begins a word or a line, the last one too
    keys, counts, lengths_of = np.zeros(size, np.uint64), np.zeros(size, np.int64), np.zeros(size, np.int64)
    hashes = np.empty(longest // 2 + 2, np.uint64)
    grams = np.empty(longest // 2 + 2, np.uint64)
    ends = np.empty(longest // 2 + 3, np.int64)
    for d in range(len(bounds) - 1):
        first, last = bounds[d], bounds[d + 1]
        for unit in range(2):
            number, chars, repeats, repeated = 0, 0, 0, 0
            slots = _slots(last - first)
            counts[:slots] = 0
            i = first
            while i < last:
                begin = i
                while i < last and not (
                    points[i] == _NEWLINE and (unit == 0 or (i + 1 < last and points[i + 1] == _NEWLINE))
                ):
                    i += 1
                a, b = _stripped(points, begin, i, kinds)
                if a < b:
                    number += 1
                    chars += b - a
                    slot = _slot(_hash_of(points, a, b), keys, counts, slots)
                    counts[slot] += 1
                    if counts[slot] > 1:
                        repeats += 1
                        repeated += b - a
                i += 1 + unit
            if number:
                out[d, 2 * unit], out[d, 2 * unit + 1] = repeats / number, repeated / chars
        words = 0
        ends[0] = 0
        i = first
        while i < last:
            if kinds[points[i]] & _SPACE:
                i += 1
                continue
            begin = i
            while i < last and not kinds[points[i]] & _SPACE:
                i += 1
            hashes[words] = _hash_of(points, begin, i)
            ends[words + 1] = ends[words] + i - begin
            words += 1
        grams[:words] = hashes[:words]
        for n in range(2, 11):
            if words < n:
                break
            slots = _slots(2 * words)
            counts[:slots] = 0
            for w in range(words - n + 1):
                value = grams[w] * np.uint64(0x9E3779B97F4A7C15) ^ hashes[w + n - 1]
                grams[w] = value ^ (value >> np.uint64(29))
                slot = _slot(grams[w], keys, counts, slots)
                counts[slot] += 1
                lengths_of[slot] = ends[w + n] - ends[w]
            covered, reached = 0, 0
            if n <= 4:
                for k in range(slots):
                    if counts[k] > 1:
                        covered = max(covered, counts[k] * lengths_of[k])
            else:
                for w in range(words - n + 1):
                    if counts[_slot(grams[w], keys, counts, slots)] > 1:
                        covered += ends[w + n] - ends[max(reached, w)]
                        reached = w + n
            out[d, n + 2] = covered / ends[words]


@jit
def _slots(chars: int) -> int:
    """Slots of a table for the words or lines of so many characters: a power of two, more than twice as many."""
    slots = 4
    while slots < 2 * (chars // 2 + 2):
        slots *= 2
    return slots


@jit
def _slot(value: np.uint64, keys: UInt64Array, counts: Int64Array, slots: int) -> np.int64:
    """Where a hash is in the table, or where it belongs; counts: 0 where a slot is free."""
    slot = np.int64(value & np.uint64(slots - 1))
    while counts[slot] and keys[slot] != value:
        slot = (slot + np.int64(1)) & np.int64(slots - 1)
    keys[slot] = value
    return slot
