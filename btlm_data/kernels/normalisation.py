"""SlimPajama's normalisation of documents, from one UTF-8 buffer to another: `str.lower`, delete `string.punctuation`, strip
and collapse white space.

Documents travel as one UTF-8 buffer with n + 1 offsets; no Python object exists per character. The plain twin is
`normalise` in tests/reference/minhash.py.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import cache

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.kernels import ascii_blocks
from btlm_data.kernels.buckets import readonly
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_offsets

UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]
Int64Array = npt.NDArray[np.int64]

_CASE_LIMIT = 0x20000
_DELETED = 0xFF  # in tables of bytes: no UTF-8 text contains it


class Normalised(msgspec.Struct, frozen=True):
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
    check_offsets(offsets, len(utf8), "The offsets of documents")
    # Lower case can be longer: two bytes become three (U+023A), never more. A block is written with its end.
    out = np.empty(len(utf8) + len(utf8) // 2 + ascii_blocks.BLOCK, np.uint8)
    new_offsets = np.zeros(len(offsets), np.int64)
    num_chars = np.zeros(len(offsets) - 1, np.int64)
    utf8, offsets = readonly(utf8), readonly(offsets)
    in_blocks = ascii_blocks.has_instructions()
    document = 0
    while True:
        document = _normalise(
            utf8, offsets, document, in_blocks, *_case_tables(), out, new_offsets, num_chars
        )
        if document == len(num_chars):
            return Normalised(out[: new_offsets[-1]], new_offsets, num_chars)
        begin, end = offsets[document : document + 2]
        text = texts[document] if texts is not None else utf8[begin:end].tobytes().decode()
        lowered = readonly(np.frombuffer(text.lower().encode(), np.uint8))
        at, own_offsets = new_offsets[document], np.zeros(2, np.int64)
        whole = readonly(np.array([0, len(lowered)], np.int64))
        own_chars = num_chars[document : document + 1]
        _normalise(lowered, whole, 0, in_blocks, *_case_tables(), out[at:], own_offsets, own_chars)
        document += 1
        new_offsets[document] = at + own_offsets[1]


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
    return readonly(ascii_table), readonly(mapping.astype(np.uint32))


@jit
def _normalise(
    src: UInt8Array,
    offsets: Int64Array,
    document: int,
    in_blocks: bool,
    ascii_table: UInt8Array,
    lower: UInt32Array,
    out: UInt8Array,
    new_offsets: Int64Array,
    num_chars: Int64Array,
) -> int:
    """Write documents from `document` on to `out`, up to the first that holds U+03A3 or is no text: returns which; else how
    many there are. in_blocks: whether the processor can take 64 ASCII bytes at a time.
    """
    block = np.uint64(ascii_blocks.BLOCK)
    j = np.uint64(new_offsets[document])
    one = np.uint64(1)
    for d in range(document, len(offsets) - 1):
        first = j
        continuations = np.uint64(0)
        last = np.uint8(0x20)  # as if a space stood before: leading ones vanish
        i, end = np.uint64(offsets[d]), np.uint64(offsets[d + 1])
        while i < end:
            byte = src[i]
            if byte < 128:
                if in_blocks and i + block <= np.uint64(len(src)):
                    consumed, written, is_space = ascii_blocks.normalise_block(
                        src, i, min(block, end - i), out, j, np.uint64(last == 0x20)
                    )
                    if consumed:  # none, where this was compiled without the instructions
                        i, j, last = i + consumed, j + written, np.uint8(0x20 if is_space else 0x80)
                        continue
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
        if i < end:
            return d
        if j > first and last == 0x20:
            j -= one
        new_offsets[d + 1] = np.int64(j)
        num_chars[d] = np.int64(j - first - continuations)
    return len(offsets) - 1


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
