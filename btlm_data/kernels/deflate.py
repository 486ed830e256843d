"""Deflate for token ids: the bytes of a zlib stream (RFC 1950, RFC 1951), searched and coded by whole tokens.

A general compressor looks for repeats at every byte. Rows of token ids repeat only in whole elements, and a
sample's labels are its inputs one token on, so this one looks at a quarter of the positions and does not look
at the labels at all:

    inputs   LZ77 over tokens: one probe of a hash of two tokens, then of the last position of this token
    mask     four literals and a run, the same bits in every full row
    labels   a copy from 2L - 1 tokens back where that is within deflate's window (L <= 4096), else the
             inputs' bits again

The Huffman code is one for all rows of a call, made from an even sample of them, so a row costs no code
construction. All arithmetic is on integers and nothing depends on a library's version or the processor: the
same rows give the same bytes everywhere. Any inflate reads them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from btlm_data.kernels.compiling import jit
from btlm_data.kernels.deflate_codes import (
    ALONE,
    DISTANCE,
    DISTANCE_BASE,
    DISTANCE_EXTRA,
    END,
    LENGTH_SYMBOL,
    MATCH,
    MAX_CODE_BITS,
    PREVIOUS,
    U64,
    WINDOW,
    BitString,
    Code,
    distance_symbol,
    distances_of,
    make_code,
    run_lengths,
)
from btlm_data.kernels.words import itemsize, load64, store64, trailing_zeros

_NEVER = 16  # bits: more than an operation's second part costs where it is worth taking
_IMPOSSIBLE = 255  # bits: more than an operation can take
_HASH_BITS = 15
_SAMPLED_UNITS = 1 << 17  # units looked at to make the Huffman code
_GROUP_UNITS = 1 << 17  # units searched before they are coded


class _Shape(NamedTuple):
    """What a row is made into.

    body: units that are searched; width: bytes of a unit; hint: a distance in units at which every position
    is tried (body: none). planes: 3 where mask and labels follow (1: nothing follows); repeat: the labels are
    the body's bits again.
    """

    body: int
    width: int
    hint: int
    planes: int
    repeat: bool


class _Costs(NamedTuple):
    """Bits that each first and each second part of an operation takes, (512,) and (545 + units in the window,) uint8; 255: what is not
    to be taken.
    """

    a: npt.NDArray[np.uint8]
    b: npt.NDArray[np.uint8]


class _Found(NamedTuple):
    """A search's memory and its result for a group of rows.

    tables (3, 2^15) uint16: last position of each unit, pair and triple, by hash. distances (3, body) uint16:
    how far back that is, for each position of a row. ops: (room,) uint32 operations of all rows, one after another;
    ends (rows,) int64: where each row's end.
    """

    tables: npt.NDArray[np.uint16]
    distances: npt.NDArray[np.uint16]
    ops: npt.NDArray[np.uint32]
    ends: npt.NDArray[np.int64]


class _Bitstrings(NamedTuple):
    """What coding needs of a Code: header and tail in pieces of 56 bits, entries of an operation's parts, the
    block's end.
    """

    header: U64
    header_bits: int
    tail: U64
    tail_bits: int
    a: U64
    b: U64
    end: np.uint64


def deflate_samples(rows: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Compress full samples: row i of `rows` (n, L+1), uint16 or uint32, becomes the zlib stream of its three
    int32 planes.

    Returns the streams one after another and the n + 1 offsets between them.
    """
    rows = _narrow(rows)
    length = rows.shape[1] - 1
    if length < 1:
        raise ValueError(f"rows of {length} inputs; a sample has 1 or more")
    back = 4 * (2 * length - 1)
    mask_runs = run_lengths(4 * length - 4)
    label_runs = mask_runs if back <= WINDOW else []
    shape = _Shape(body=length, width=4, hint=length, planes=3, repeat=back > WINDOW)
    counts, distance_counts, looked = _counts(rows, shape)
    for size in mask_runs + label_runs:
        counts[257 + LENGTH_SYMBOL[size]] += looked
    distance_counts[distance_symbol(4)] += looked * len(mask_runs)
    if label_runs:
        distance_counts[distance_symbol(back)] += looked * len(label_runs)
    code = make_code(counts, distance_counts, 4)
    tail = BitString()
    for byte in (1, 0, 0, 0):
        tail.entry(int(code.b[ALONE + byte]))
    for size in mask_runs:
        tail.entry(code.length[size])
        tail.entry(code.distance[distance_symbol(4)])
    for size in label_runs:
        symbol = distance_symbol(back)
        tail.entry(code.length[size])
        tail.entry(code.distance[symbol])
        tail.put(back - int(DISTANCE_BASE[symbol]), int(DISTANCE_EXTRA[symbol]))
    return _deflate(rows, shape, code, tail)


def deflate_units(
    units: npt.NDArray[Any], width: int, hint: int = 0
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Compress rows of units (n, M), uint16 or uint32: row i becomes the zlib stream of them as little-endian
    elements of `width` bytes.

    width: 2 or 4, at least that of the units. hint: a distance in units at which long repeats are likely (0:
    none). Returns the streams one after another and the n + 1 offsets between them.
    """
    units = _narrow(units)
    body = units.shape[1]
    if body < 1 or width not in (2, 4) or width < units.itemsize:
        raise ValueError(f"rows of {body} units of {units.itemsize} bytes as elements of {width}")
    near = 0 < hint < body and hint * width <= WINDOW
    shape = _Shape(body, width, hint if near else body, planes=1, repeat=False)
    counts, distance_counts, _ = _counts(units, shape)
    return _deflate(units, shape, make_code(counts, distance_counts, width), BitString())


def _narrow(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values as uint16 where they fit: half the work, and one compiled version of the kernels for
    nearly all data.
    """
    return rows.astype(np.uint16) if rows.dtype != np.uint16 and rows.size and rows.max() < 2**16 else rows


def _deflate(
    rows: npt.NDArray[Any], shape: _Shape, code: Code, tail: BitString
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Search and code all rows, some at a time so that the operations stay in the processor's cache."""
    group = max(1, _GROUP_UNITS // shape.body)
    matches = _memory(shape.body, group)
    a, b = ((entries & np.uint64(63)).astype(np.uint8) for entries in (code.a, code.b))
    costs = _costs(a, b, shape)
    # No operation takes more bits than the literals it stands for can: MAX_CODE_BITS a byte.
    units = shape.body * (2 if shape.repeat else 1) + 2
    most = (code.header.count + tail.count + MAX_CODE_BITS * shape.width * units) // 8 + 32
    out = np.empty(len(rows) * most, np.uint8)
    offsets = np.zeros(len(rows) + 1, np.int64)
    bitstrings = _Bitstrings(
        code.header.pieces(),
        code.header.count,
        tail.pieces(),
        tail.count,
        code.a,
        code.b,
        np.uint64(code.end),
    )
    # Copied, so that the kernels see one memory layout (rows may overlap, or be read-only) and need no second
    # compilation.
    buffer = np.empty((group, rows.shape[1]), rows.dtype)
    for start in range(0, len(rows), group):
        some = buffer[: len(rows) - start]
        some[:] = rows[start : start + group]
        _find(some, shape, costs, matches)
        _emit(some, shape, matches, bitstrings, out, offsets[start:])
    return out[: offsets[-1]], offsets


def _memory(body: int, group: int) -> _Found:
    """For `group` rows of `body` units."""
    return _Found(
        tables=np.zeros((3, 1 << _HASH_BITS), np.uint16),
        distances=np.zeros((3, body), np.uint16),
        ops=np.empty(2 * body * group, np.uint32),
        ends=np.zeros(group, np.int64),
    )


def _costs(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8], shape: _Shape) -> _Costs:
    """With a distance of 0 (there is none) and a match of two bytes (deflate has none) put out of reach, in place. a, b: of _Costs."""
    b[DISTANCE] = _IMPOSSIBLE
    if shape.width == 2:
        a[MATCH + 1] = _IMPOSSIBLE
    return _Costs(a, b)


def _counts(
    rows: npt.NDArray[Any], shape: _Shape
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """Symbol counts (286,) and (30,) of an even sample of rows, 1 for every other symbol that may occur; rows
    looked at.
    """
    width = shape.width
    sample = rows[:: max(1, rows.size // _SAMPLED_UNITS)].copy()
    matches = _memory(shape.body, len(sample))
    # Bits of each part before anything is known.
    of_units = distances_of(width)
    bits_of_distance = 4 + of_units.extra.astype(np.uint8)
    guess = _costs(
        np.repeat(np.array([8, 3], np.uint8), MATCH),
        np.concatenate([np.full(DISTANCE + 1, 8, np.uint8), bits_of_distance]),
        shape,
    )
    guess.b[PREVIOUS] = 4
    if shape.hint == shape.body:
        # Good for the counters of the vsl layout; in text it would take bits from what is better.
        guess.b[PREVIOUS] = _NEVER
    _find(sample, shape, guess, matches)
    ops = matches.ops[: matches.ends[len(sample) - 1]]
    a = np.bincount((ops & np.uint32(1023)).astype(np.int64), minlength=len(guess.a))
    b = np.bincount((ops >> np.uint32(10)).astype(np.int64), minlength=len(guess.b))
    counts, distance_counts = np.zeros(286, np.int64), np.zeros(30, np.int64)
    np.add.at(distance_counts, of_units.symbol, b[DISTANCE + 1 :])
    counts[:256] = a[:256] + b[:256] + b[ALONE:DISTANCE]
    counts[0] += (width - 2) * b[:256].sum()
    counts[END] = len(sample)
    if width == 4:
        counts[257 + LENGTH_SYMBOL[3]] += b[PREVIOUS] + 1
        distance_counts[distance_symbol(4)] += b[PREVIOUS] + 1
    sizes = np.arange(1, 256 // width + 1)
    np.add.at(counts, 257 + LENGTH_SYMBOL[sizes * width], a[MATCH + sizes])
    possible = np.zeros(286, bool)
    possible[:257] = True
    possible[257 + LENGTH_SYMBOL[np.arange(4, 257, width)]] = True
    counts[possible] = np.maximum(counts[possible], 1)
    reachable = np.arange(30) <= distance_symbol(min(WINDOW, width * shape.body))
    distance_counts[reachable] = np.maximum(distance_counts[reachable], 1)
    return counts, distance_counts, len(sample)


@jit
def _find(rows: npt.NDArray[Any], shape: _Shape, costs: _Costs, matches: _Found) -> None:
    """LZ77 over each row's first `body` units: writes the operations, and each row's end among them, to
    `matches`.

    First the last position of each unit, pair and triple, for all positions and without a branch; then a walk
    that takes the longest match found, or a single unit's where that is cheaper than its literals. Positions
    are kept modulo 2^16 and the tables are not cleared between rows: what they say is only ever a hint, the
    units themselves are compared. At distance `hint` every position is tried (`body`: at none). Unit 0 is
    always a literal and never copied from, so that a sample's labels can start at unit 1.
    """
    body, width, hint = shape.body, shape.width, shape.hint
    cost_a, cost_b = costs.a, costs.b
    tables, distances, ops, ends = matches.tables, matches.distances, matches.ops, matches.ends
    hashes = np.empty((3, body), np.uint16)
    item = itemsize(rows)
    per_load = 8 // item
    to_units = 4 if item == 2 else 5  # from equal low bits to equal units
    last = body - max(per_load, 3)  # where eight bytes and three units can still be read
    longest = 256 // width
    window = min(body, WINDOW // width - 1)
    multiplier = np.uint64(0x9E3779B97F4A7C15)
    shift = np.uint64(64 - _HASH_BITS)
    byte = np.uint64(255)
    none = np.uint16(0)
    single_cost = np.int64(cost_a[MATCH + 1])
    counters = width == 4 and cost_b[PREVIOUS] < _NEVER
    count = 0
    base = 0
    for r in range(len(rows)):
        row = rows[r]
        # What is the same for all positions becomes vectors; between, only the tables are looked up.
        for i in range(1, last + 1):
            single_unit = np.uint64(row[i])
            pair = (single_unit | np.uint64(row[i + 1]) << np.uint64(32)) * multiplier
            triple = (pair ^ np.uint64(row[i + 2])) * multiplier
            hashes[0, i] = np.uint16((single_unit * multiplier) >> shift)
            hashes[1, i] = np.uint16(pair >> shift)
            hashes[2, i] = np.uint16(triple >> shift)
        for i in range(1, last + 1):
            position = np.uint16(base + i)
            h = hashes[0, i]
            distances[0, i] = np.uint16(position - tables[0, h])
            tables[0, h] = position
            h = hashes[1, i]
            distances[1, i] = np.uint16(position - tables[1, h])
            tables[1, h] = position
            h = hashes[2, i]
            distances[2, i] = np.uint16(position - tables[2, h])
            tables[2, h] = position
        for k in range(3):
            for i in range(1, last + 1):
                d = distances[k, i]
                distances[k, i] = d if d <= np.uint16(min(i - 1, window)) else none
        base += body
        i = 0
        while i < body:
            length = np.int64(0)
            distance = np.int64(0)
            single = np.int64(0)
            if 0 < i <= last:
                single = np.int64(distances[0, i])
                d2 = np.int64(distances[1, i])
                d3 = np.int64(distances[2, i])
                loaded = load64(row, i * item)
                # A distance of 0 is no hint, and the comparison of a position with itself counts as nothing.
                n2 = (trailing_zeros(loaded ^ load64(row, (i - d2) * item)) >> to_units) * min(
                    d2, np.int64(1)
                )
                n3 = (trailing_zeros(loaded ^ load64(row, (i - d3) * item)) >> to_units) * min(
                    d3, np.int64(1)
                )
                length = max(n2, n3)
                distance = d3 if n3 >= n2 else d2
                if (
                    i > hint
                    and (trailing_zeros(loaded ^ load64(row, (i - hint) * item)) >> to_units) >= length
                ):
                    length = trailing_zeros(loaded ^ load64(row, (i - hint) * item)) >> to_units
                    distance = np.int64(hint)
                if length == per_load:
                    while length < longest and i + length + per_load <= body:
                        more = load64(row, (i + length) * item) ^ load64(row, (i + length - distance) * item)
                        same = trailing_zeros(more) >> to_units
                        length += same
                        if same < per_load:
                            break
            if length >= 2:
                ops[count] = (MATCH + length) | (DISTANCE + distance) << 10
                i += int(length)
            else:
                token = np.uint64(row[i])
                low = token & byte
                second = (token >> np.uint64(8)) & byte
                high = token >> np.uint64(16)
                # A literal or a match of one unit: both continue at i + 1, so neither needs a branch that
                # cannot be predicted.
                match = np.uint64((MATCH + 1) | (DISTANCE + single) << 10)
                match_cost = single_cost + np.int64(cost_b[DISTANCE + single])
                # Its upper bytes may be in the unit before as well (not in unit 0: the labels have another
                # one before unit 1).
                known = counters and i > 1 and np.uint64(row[i - 1]) >> np.uint64(8) == token >> np.uint64(8)
                upper_cost = np.int64(cost_b[second]) + (16 if high else 0)
                known = known and np.int64(cost_b[PREVIOUS]) < upper_cost
                literal_cost = np.int64(cost_a[low]) + (np.int64(cost_b[PREVIOUS]) if known else upper_cost)
                taken = (row[i - single] == row[i]) & (match_cost < literal_cost)
                literal = low | (np.uint64(PREVIOUS) if known else second) << np.uint64(10)
                if high and not taken and not known:
                    ops[count] = low | (np.uint64(ALONE) + second) << np.uint64(10)
                    count += 1
                    literal = high & byte | (np.uint64(ALONE) + (high >> np.uint64(8))) << np.uint64(10)
                ops[count] = match if taken else literal
                i += 1
            count += 1
        ends[r] = count


@jit
def _put(
    out: npt.NDArray[np.uint8], at: int, acc: np.uint64, n: np.uint64, code: np.uint64, bits: np.uint64
) -> tuple[Any, np.uint64, np.uint64]:
    """Append at most 56 bits: `acc` holds the n < 8 bits that do not fill a byte yet, `at` is where their
    byte is.
    """
    acc |= code << n
    n += bits
    store64(out, at, acc)
    return at + np.int64(n >> np.uint64(3)), acc >> (n & np.uint64(56)), n & np.uint64(7)


@jit
def _emit(
    rows: npt.NDArray[Any],
    shape: _Shape,
    matches: _Found,
    code: _Bitstrings,
    out: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
) -> None:
    """Code each row's operations into `out` from offsets[0] on; offsets[r + 1] becomes the end of row r's
    stream.
    """
    body, width, planes = shape.body, shape.width, shape.planes
    ops, ends = matches.ops, matches.ends
    header, header_bits, tail, tail_bits = code.header, code.header_bits, code.tail, code.tail_bits
    code_a, code_b, end = code.a, code.b, code.end
    six, low, byte = np.uint64(6), np.uint64(63), np.uint64(255)
    at = offsets[0]
    k = 0
    for r in range(len(rows)):
        row = rows[r]
        acc = np.uint64(0)
        n = np.uint64(0)
        for j in range(len(header)):
            at, acc, n = _put(out, at, acc, n, header[j], np.uint64(min(56, header_bits - 56 * j)))
        body_at, body_bit = at, n
        for part in range(2):  # unit 0, whose labels are elsewhere, and the others
            until = ends[r] if part else k + (2 if np.uint64(row[0]) >> np.uint64(16) else 1)
            while k < until:
                op = ops[k]
                a, b = code_a[op & np.uint32(1023)], code_b[op >> np.uint32(10)]
                na = a & low
                at, acc, n = _put(out, at, acc, n, a >> six | (b >> six) << na, na + (b & low))
                k += 1
            if part == 0:
                body_at, body_bit = at, n
        body_bits = (at - body_at) * 8 + np.int64(n) - np.int64(body_bit)
        for j in range(len(tail)):
            at, acc, n = _put(out, at, acc, n, tail[j], np.uint64(min(56, tail_bits - 56 * j)))
        if shape.repeat:
            for j in range(0, body_bits, 56):
                count = np.uint64(min(56, body_bits - j))
                bits = (load64(out, body_at + j // 8) >> body_bit) & ((np.uint64(1) << count) - np.uint64(1))
                at, acc, n = _put(out, at, acc, n, bits, count)
        byte_sum, weighted_sum = _adler_sums(row, 1 if planes == 3 else 0, body, width)
        size = np.uint64(body * width)
        if planes == 3:
            # Each plane's bytes weigh their distance from the end of the stream. Inputs: unit 0, then units
            # 1..; labels: units 1.., then unit `body`; mask: a byte 1 in every unit.
            first_one, first_two = np.uint64(0), np.uint64(0)
            last_one, last_two = np.uint64(0), np.uint64(0)
            for j in range(4):
                value = (np.uint64(row[body]) >> np.uint64(8 * j)) & byte
                entry = code_b[np.uint64(ALONE) + value]
                at, acc, n = _put(out, at, acc, n, entry >> six, entry & low)
                last_one += value
                last_two += np.uint64(4 - j) * value
                value = (np.uint64(row[0]) >> np.uint64(8 * j)) & byte
                first_one += value
                first_two += (size - np.uint64(j)) * value
            units = np.uint64(body)
            weighted_sum = (
                first_two + weighted_sum + np.uint64(2) * size * (first_one + byte_sum)
                + np.uint64(2) * units * (units + np.uint64(1)) + size * units
                + weighted_sum + np.uint64(4) * byte_sum + last_two
            )  # fmt: skip
            byte_sum = first_one + byte_sum + units + byte_sum + last_one
            size *= np.uint64(3)
        at, acc, n = _put(out, at, acc, n, end >> six, end & low)
        at += 1 if n else 0
        adler = ((weighted_sum + size) % np.uint64(65521)) << np.uint64(16) | (
            byte_sum + np.uint64(1)
        ) % np.uint64(65521)
        for j in range(4):
            out[at + j] = (adler >> np.uint64(24 - 8 * j)) & byte
        at += 4
        offsets[r + 1] = at


@jit
def _adler_sums(row: npt.NDArray[Any], start: int, stop: int, width: int) -> tuple[np.uint64, np.uint64]:
    """Over units start..stop-1 of `width` bytes: the sum of their bytes, and of each byte times its distance
    from the end.

    The last byte has distance 1. Each turn is by itself, so that the processor takes eight units at once.
    """
    byte = np.uint64(255)
    byte_sum, weighted, within = np.uint64(0), np.uint64(0), np.uint64(0)
    for i in range(start, stop):
        token = np.uint64(row[i])
        b1, b2, b3 = (token >> np.uint64(8)) & byte, (token >> np.uint64(16)) & byte, token >> np.uint64(24)
        in_unit = (token & byte) + b1 + b2 + b3
        byte_sum += in_unit
        weighted += in_unit * np.uint64(stop - i)
        within += b1 + np.uint64(2) * b2 + np.uint64(3) * b3
    return byte_sum, np.uint64(width) * weighted - within
