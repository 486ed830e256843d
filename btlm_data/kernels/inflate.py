"""Undo deflate for many rows of token ids at once: the streams that kernels/deflate.py writes.

All rows of one call of the compressor share one Huffman code, so its tables are made once for as long as rows
begin with the same header, which is what a general inflate spends most of its time on for a row of some
thousand tokens. A row may also be read only as far as somebody needs it. What such streams never are (several
blocks, stored or fixed ones, codes of more than 12 bits) and what is damaged is left to another inflate, which
knows how to say what is wrong. Plain twin: `zlib`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.kernels.buckets import readonly
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.deflate_codes import (
    CODE_LENGTH_ORDER,
    DISTANCE_BASE,
    DISTANCE_EXTRA,
    END,
    LENGTH_BASE,
    LENGTH_EXTRA,
    MAX_CODE_BITS,
)
from btlm_data.kernels.words import load64, store64

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
U64 = npt.NDArray[np.uint64]

MARGIN = 8  # bytes behind the last stream, since eight are loaded at once
_SLACK = 258 + 16  # bytes behind the last row: the longest copy, and eight are stored at once
_SIZE = 1 << MAX_CODE_BITS
_MASK = np.uint64(_SIZE - 1)
_OTHER = np.uint64(1 << 63)  # an entry that is not of literals
_COPY = np.uint64(1 << 62)  # of those: the length of a copy
_ORDER = np.array(CODE_LENGTH_ORDER, np.int64)
_LENGTH_BASE, _LENGTH_EXTRA = LENGTH_BASE.astype(np.int64), LENGTH_EXTRA.astype(np.int64)
_DISTANCE_BASE, _DISTANCE_EXTRA = DISTANCE_BASE.astype(np.int64), DISTANCE_EXTRA.astype(np.int64)


def inflate_beginnings(
    stored: UInt8Array, begins: Int64Array, sizes: Int64Array, num_bytes: int
) -> tuple[UInt8Array, BoolArray]:
    """The first `num_bytes` bytes of zlib streams, and which of them could be read here.

    stored: (bytes,) uint8; stream i is stored[begins[i] : begins[i] + sizes[i]], (n,) int64 each, with MARGIN
    bytes more behind the last. Returns (n, num_bytes) uint8 and (n,) bool; where that is False the row has no
    meaning. Checksums are not compared. Raises ValueError for streams outside `stored`.
    """
    inside = (begins >= 0) & (sizes >= 0) & (begins + sizes + MARGIN <= len(stored))
    if not inside.all():
        raise ValueError(f"stream {int(np.flatnonzero(~inside)[0])} is outside the {len(stored)} bytes")
    out = np.empty(len(begins) * num_bytes + _SLACK, np.uint8)
    is_done = np.zeros(len(begins), np.bool_)
    tables = np.zeros((2, _SIZE), np.uint64)
    _inflate(readonly(stored), begins, sizes, num_bytes, tables, out, is_done)
    return out[: len(begins) * num_bytes].reshape(len(begins), num_bytes), is_done


@jit
def _inflate(
    stored: UInt8Array,
    begins: Int64Array,
    sizes: Int64Array,
    num_bytes: int,
    tables: U64,
    out: UInt8Array,
    is_done: BoolArray,
) -> None:
    """Rows one after another, in order: what a row writes past its end is where the next one begins."""
    header_begin, header_bits = 0, 0
    for row in range(len(begins)):
        begin: Any = begins[row]
        end: Any = begin + sizes[row]
        if header_bits == 0 or not _same_bits(stored, header_begin, begin, end, header_bits):
            header_begin, header_bits = begin, _read_header(stored, begin, end, tables)
        if header_bits == 0:
            continue
        is_done[row] = _inflate_row(
            stored, begin, end, header_bits, tables[0], tables[1], out, row * num_bytes, num_bytes
        )


@jit
def _same_bits(stored: UInt8Array, one: int, other: int, end: int, count: int) -> bool:
    """Whether `count` bits from byte `one` on are those from byte `other` on, all of them before `end`."""
    if other + (count + 7) // 8 > end:
        return False
    for k in range(0, count, 64):
        difference = load64(stored, one + k // 8) ^ load64(stored, other + k // 8)
        if count - k < 64:
            difference &= (np.uint64(1) << np.uint64(count - k)) - np.uint64(1)
        if difference != 0:
            return False
    return True


@jit
def _inflate_row(
    stored: UInt8Array,
    begin: int,
    end: int,
    header_bits: int,
    literals: U64,
    distances: U64,
    out: UInt8Array,
    start: int,
    num_bytes: int,
) -> bool:
    """One row into out[start : start + num_bytes]; False where it cannot be read here."""
    low6, low3 = np.uint64(63), np.uint64(7)
    at: Any = begin + header_bits // 8
    acc = load64(stored, at) >> np.uint64(header_bits % 8)
    n = np.uint64(56 - header_bits % 8)  # bits of `acc` before byte `at`; those above are loaded once more
    at += 7
    to: Any = start
    stop = start + num_bytes
    while to < stop:
        if at > end:
            return False
        acc |= load64(stored, at) << n
        at += np.int64((low6 - n) >> np.uint64(3))
        n |= np.uint64(56)
        entry = literals[acc & _MASK]
        if entry < _OTHER:
            store64(out, to, entry >> np.uint64(16))
            to += np.int64((entry >> np.uint64(6)) & low3)
            acc >>= entry & low6
            n -= entry & low6
            entry = literals[acc & _MASK]
            if entry < _OTHER:
                store64(out, to, entry >> np.uint64(16))
                to += np.int64((entry >> np.uint64(6)) & low3)
                acc >>= entry & low6
                n -= entry & low6
                continue
        if entry & _COPY == 0 or to >= stop:
            break
        # 44 bits are left: of a length at most 12 + 5, of a distance 12 + 13.
        bits, extra = entry & low6, (entry >> np.uint64(6)) & low6
        acc >>= bits
        length = np.int64((entry >> np.uint64(16)) & np.uint64(0xFFFF)) + np.int64(
            acc & ((np.uint64(1) << extra) - np.uint64(1))
        )
        acc >>= extra
        n -= bits + extra
        entry = distances[acc & _MASK]
        bits, extra = entry & low6, (entry >> np.uint64(6)) & low6
        acc >>= bits
        distance = np.int64(entry >> np.uint64(16)) + np.int64(acc & ((np.uint64(1) << extra) - np.uint64(1)))
        acc >>= extra
        n -= bits + extra
        if distance == 0 or distance > to - start:
            return False
        if distance >= 8 or length <= distance:
            store64(out, to, load64(out, to - distance))  # most copies are of two or three tokens
            store64(out, to + 8, load64(out, to + 8 - distance))
            for k in range(16, length, 8):
                store64(out, to + k, load64(out, to + k - distance))
        else:
            for k in range(length):
                out[to + k] = out[to + k - distance]
        to += length
    return bool(to >= stop and at * 8 - np.int64(n) <= end * 8)


@jit
def _read_header(stored: UInt8Array, begin: int, end: int, tables: U64) -> int:
    """Make the tables that a stream's header describes. Returns the header's bits, 0 where it is none of
    deflate.py's.
    """
    if end - begin < 8:
        return 0
    first = load64(stored, begin)
    method, flags = first & np.uint64(0xFF), (first >> np.uint64(8)) & np.uint64(0xFF)
    is_zlib = method & np.uint64(15) == 8 and method < 0x80 and flags & np.uint64(32) == 0
    if not is_zlib or (method * np.uint64(256) + flags) % np.uint64(31):
        return 0
    if (first >> np.uint64(16)) & np.uint64(7) != 5:  # the last block, with codes of its own
        return 0
    num_literals = np.int64((first >> np.uint64(19)) & np.uint64(31)) + 257
    num_distances = np.int64((first >> np.uint64(24)) & np.uint64(31)) + 1
    num_codes = np.int64((first >> np.uint64(29)) & np.uint64(15)) + 4
    if num_literals > 286 or num_distances > 30:
        return 0
    at: Any = 33  # bits from `begin`
    lengths = np.zeros(19, np.int64)
    for k in range(num_codes):
        if begin + at // 8 > end:
            return 0
        lengths[_ORDER[k]] = np.int64((load64(stored, begin + at // 8) >> np.uint64(at % 8)) & np.uint64(7))
        at += 3
    symbols, bits = np.zeros(_SIZE, np.int64), np.zeros(_SIZE, np.int64)
    if not _fill(lengths, symbols, bits):
        return 0
    all_lengths = np.zeros(286 + 30, np.int64)
    at = _read_lengths(stored, begin, end, at, symbols, bits, all_lengths[: num_literals + num_distances])
    if at == 0 or all_lengths[END] == 0:
        return 0
    if not _fill(all_lengths[:num_literals], symbols, bits):
        return 0
    _join_literals(symbols, bits, tables[0])
    if not _fill(all_lengths[num_literals : num_literals + num_distances], symbols, bits):
        return 0
    for code in range(_SIZE):
        tables[1, code] = 0
        if bits[code]:
            symbol = symbols[code]
            tables[1, code] = np.uint64(
                _DISTANCE_BASE[symbol] << 16 | _DISTANCE_EXTRA[symbol] << 6 | bits[code]
            )
    return int(at)


@jit
def _read_lengths(
    stored: UInt8Array,
    begin: int,
    end: int,
    at: Any,
    symbols: Int64Array,
    bits: Int64Array,
    lengths: Int64Array,
) -> Any:
    """The code lengths of a header from bit `at` on, into `lengths`. Returns the bit behind them, 0 where they
    make no sense.
    """
    done: Any = 0
    while done < len(lengths):
        if begin + at // 8 > end:
            return 0
        acc = load64(stored, begin + at // 8) >> np.uint64(at % 8)
        code = np.int64(acc & _MASK)
        if bits[code] == 0:
            return 0
        symbol = symbols[code]
        at += bits[code]
        acc >>= np.uint64(bits[code])
        if symbol < 16:
            lengths[done] = symbol
            done += 1
            continue
        if symbol == 16 and done == 0:
            return 0
        # Symbol 16 repeats the length before it, 17 and 18 are few and many zeros.
        value = lengths[done - 1] if symbol == 16 else np.int64(0)
        least, extra = (3, symbol - 14) if symbol < 18 else (11, np.int64(7))
        repeat = least + np.int64(acc & ((np.uint64(1) << np.uint64(extra)) - np.uint64(1)))
        at += extra
        if done + repeat > len(lengths):
            return 0
        lengths[done : done + repeat] = value
        done += repeat
    return at if begin * 8 + at <= end * 8 else 0


@jit
def _fill(lengths: Int64Array, symbols: Int64Array, bits: Int64Array) -> bool:
    """The symbol that every 12 bits begin with and the bits it takes, 0 where they begin with none; False for
    lengths that are no prefix code of at most 12 bits (RFC 1951, 3.2.2), or one that leaves bits without a
    symbol, which only a single symbol of one bit may.
    """
    bits[:] = 0
    code = np.int64(0)
    for length in range(1, MAX_CODE_BITS + 1):
        code <<= 1
        for symbol in range(len(lengths)):
            if lengths[symbol] != length:
                continue
            if code >> length:
                return False
            reverse = np.int64(0)
            for k in range(length):
                reverse |= ((code >> k) & 1) << (length - 1 - k)
            for entry in range(reverse, _SIZE, 1 << length):
                symbols[entry], bits[entry] = symbol, length
            code += 1
    longest = lengths.max()
    return bool(longest <= MAX_CODE_BITS and (code == _SIZE or longest == 1))


@jit
def _join_literals(symbols: Int64Array, bits: Int64Array, table: U64) -> None:
    """Entries of 12 bits: as many whole literals as they begin with, up to four; else a length; else 0 with
    _OTHER.

    literals: bytes << 16 | how many << 6 | bits; a length: base << 16 | extra bits << 6 | bits, with _OTHER
    and _COPY.
    """
    for code in range(_SIZE):
        value, count, used = np.uint64(0), np.int64(0), np.int64(0)
        while count < 4:
            rest = code >> used
            if bits[rest] == 0 or bits[rest] + used > MAX_CODE_BITS or symbols[rest] >= END:
                break
            value |= np.uint64(symbols[rest]) << np.uint64(8 * count)
            used += bits[rest]
            count += 1
        symbol = symbols[code]
        if count:
            table[code] = value << np.uint64(16) | np.uint64(count << 6 | used)
        elif bits[code] and symbol > END:
            length = symbol - END - 1
            table[code] = (
                _OTHER
                | _COPY
                | np.uint64(_LENGTH_BASE[length] << 16 | _LENGTH_EXTRA[length] << 6 | bits[code])
            )
        else:
            table[code] = _OTHER
