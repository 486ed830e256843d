"""Deflate for token ids: the bytes of a zlib stream (RFC 1950, RFC 1951), searched and coded by whole tokens.

A general compressor looks for repeats at every byte. Rows of token ids repeat only in whole elements, and a sample's labels
are its inputs one token on, so this one looks at a quarter of the positions and does not look at the labels at all:

    inputs   LZ77 over tokens: one probe of a hash of two tokens, then of the last place of this token
    mask     four literals and a run, the same bits in every full row
    labels   a copy from 2L - 1 tokens back where that is within deflate's window (L <= 4096), else the inputs' bits again

The Huffman code is one for all rows of a call, made from an even sample of them, so a row costs no code construction.
All arithmetic is on integers and nothing depends on a library's version or the processor: the same rows give the same bytes
everywhere. Any inflate reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from btlm_data.kernels.words import load64, store64, trailing_zeros

U64 = npt.NDArray[np.uint64]
_jit = numba.njit(cache=True, nogil=True)

WINDOW = 32768  # bytes a match may reach back
MAX_CODE_BITS = 12  # four literals then fit one 64-bit word beside each other
_END = 256  # end-of-block symbol
_NEVER = 16  # bits: more than an operation's second part costs where it is worth taking
_HASH_BITS = 15
_SAMPLED_UNITS = 1 << 17  # units looked at to make the Huffman code
_GROUP_UNITS = 1 << 17  # units searched before they are coded

# RFC 1951, 3.2.5: first length (distance) and number of extra bits of each code.
_LENGTH_BASE = np.array(
    [
        3,
        4,
        5,
        6,
        7,
        8,
        9,
        10,
        11,
        13,
        15,
        17,
        19,
        23,
        27,
        31,
        35,
        43,
        51,
        59,
        67,
        83,
        99,
        115,
        131,
        163,
        195,
        227,
        258,
    ]
)
_LENGTH_EXTRA = np.array([0] * 8 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 4 + [0])
_DISTANCE_EXTRA = np.array([0, 0] + [max(0, i // 2 - 1) for i in range(2, 30)])
_DISTANCE_BASE = np.concatenate([[1], 1 + np.cumsum(1 << _DISTANCE_EXTRA)[:-1]])
_CODE_LENGTH_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)  # RFC 1951, 3.2.7

_LENGTH_SYMBOL = np.searchsorted(_LENGTH_BASE, np.arange(259), side="right").astype(np.int64) - 1
# Distances 1..256 by themselves, longer ones by their upper bits: no code longer than 256 starts within 128.
_DISTANCE_SYMBOL = np.concatenate(
    [
        np.searchsorted(_DISTANCE_BASE, np.arange(1, 257), side="right") - 1,
        np.searchsorted(_DISTANCE_BASE, np.arange(WINDOW // 128) * 128 + 1, side="right") - 1,
    ]
).astype(np.int64)


# An operation of the search is one word: a | b << 10 | number of extra bits << 20 | extra bits << 24.
#   a  0..255 a literal byte                             256 + k  a match of k units
#   b  0..255 a second byte and the zeros above it       256 + c  distance symbol c      288 + x  a literal byte alone
#                                                        287      the three bytes above it as in the unit before (width 4)
_MATCH, _PREVIOUS, _ALONE, _ENTRIES = 256, 287, 288, 544


@dataclass(frozen=True)
class Code:
    """One Huffman code for a call. An entry packs a bit string and its length: bits << 6 | number of bits.

    a, b: (544,) the entries of an operation's two parts; length: (259,) of a match length in bytes with its extra bits;
    distance: (30,) of a distance symbol; end: of the end of the block; header: the zlib and block headers.
    """

    a: U64
    b: U64
    length: list[int]
    distance: list[int]
    end: int
    header: _Bits


def make_code(counts: npt.NDArray[np.int64], distance_counts: npt.NDArray[np.int64], width: int) -> Code:
    """The Huffman code for counts of literals and lengths (286,) and distances (30,); what may occur must have a count."""
    literal_lengths = huffman_lengths(counts, MAX_CODE_BITS)
    distance_lengths = huffman_lengths(distance_counts, MAX_CODE_BITS)
    literal, distance = _canonical(literal_lengths), _canonical(distance_lengths)
    length = [0] * 259
    for size in range(3, 259):
        symbol = int(_LENGTH_SYMBOL[size])
        if literal_lengths[257 + symbol]:
            length[size] = _join(
                literal[257 + symbol], (size - int(_LENGTH_BASE[symbol])) << 6 | int(_LENGTH_EXTRA[symbol])
            )
    second = literal[:256]
    for _ in range(width - 2):
        second = [_join(entry, literal[0]) for entry in second]
    a, b = np.zeros(_ENTRIES, np.uint64), np.zeros(_ENTRIES, np.uint64)
    a[:256], b[:256], b[_ALONE:] = literal[:256], second, literal[:256]
    b[_MATCH : _MATCH + 30] = distance
    a[_MATCH + 2 : _MATCH + 256 // width + 1] = length[2 * width : 257 : width]
    if width == 4:
        a[_MATCH + 1] = length[4]
        b[_PREVIOUS] = _join(length[3], distance[_distance_symbol(4)])
    return Code(a, b, length, distance, literal[_END], _headers(literal_lengths, distance_lengths))


def huffman_lengths(counts: npt.NDArray[np.int64], limit: int) -> list[int]:
    """Code lengths of an optimal prefix code (Huffman 1952) for the symbols with a count, none above `limit` bits.

    Where the optimum is deeper, counts are halved (rounding up) until it is not: a little longer, and simple. Ties go to the
    lower symbol, and to symbols before pairs. A single symbol gets one bit.
    """
    values = [int(c) for c in counts]
    while True:
        symbols = sorted((c, s) for s, c in enumerate(values) if c)
        weights = [c for c, _ in symbols]
        parent = [0] * (2 * len(symbols) - 1)
        leaf, pair = (
            0,
            len(symbols),
        )  # the lightest symbol and the lightest pair not joined yet; both kinds are in order of weight
        for joined in range(len(symbols), len(parent)):
            total = 0
            for _ in range(2):
                if pair >= joined or (leaf < len(symbols) and weights[leaf] <= weights[pair]):
                    node, leaf = leaf, leaf + 1
                else:
                    node, pair = pair, pair + 1
                parent[node] = joined
                total += weights[node]
            weights.append(total)
        depth = [0] * len(parent)
        for node in range(len(parent) - 2, -1, -1):
            depth[node] = depth[parent[node]] + 1
        if max(depth, default=0) <= limit:
            lengths = [0] * len(values)
            for (_, symbol), bits in zip(symbols, depth, strict=False):
                lengths[symbol] = max(1, bits)
            return lengths
        values = [(c + 1) // 2 for c in values]


def _canonical(lengths: list[int]) -> list[int]:
    """Entries (bits << 6 | number) of the canonical code, bits in the order deflate writes them (RFC 1951, 3.2.2)."""
    entries, code = [0] * len(lengths), 0
    for bits in range(1, 16):
        for symbol, own in enumerate(lengths):
            if own == bits:
                entries[symbol] = int(f"{code:0{bits}b}"[::-1], 2) << 6 | bits
                code += 1
        code <<= 1
    return entries


def _join(first: int, second: int) -> int:
    """The entry whose bits are those of `first` and then those of `second`."""
    return ((first >> 6) | (second >> 6) << (first & 63)) << 6 | ((first & 63) + (second & 63))


class _Bits:
    """A bit string under construction, least significant bit first."""

    def __init__(self) -> None:
        self.value = 0
        self.count = 0

    def put(self, value: int, count: int) -> None:
        self.value |= value << self.count
        self.count += count

    def entry(self, entry: int) -> None:
        self.put(entry >> 6, entry & 63)

    def pieces(self) -> U64:
        """The bits in pieces of 56: what the kernel appends at once."""
        return np.array(
            [self.value >> start & (1 << 56) - 1 for start in range(0, self.count, 56)], np.uint64
        )


def _headers(ll_bits: list[int], d_bits: list[int]) -> _Bits:
    """The two bytes of zlib and the header of one final dynamic block (RFC 1950, 2.2; RFC 1951, 3.2.7)."""
    lengths = ll_bits[: max(257, 1 + max(s for s, b in enumerate(ll_bits) if b))]
    hlit = len(lengths)
    distances = d_bits[: 1 + max(s for s, b in enumerate(d_bits) if b)]
    lengths = lengths + distances
    symbols: list[tuple[int, int, int]] = []  # code-length symbol, extra value, extra bits
    i = 0
    while i < len(lengths):
        run = 1
        while i + run < len(lengths) and lengths[i + run] == lengths[i]:
            run += 1
        if lengths[i] == 0 and run >= 11:
            run = min(run, 138)
            symbols.append((18, run - 11, 7))
        elif lengths[i] == 0 and run >= 3:
            symbols.append((17, run - 3, 3))
        elif lengths[i] and run >= 4:
            run = min(run, 7)
            symbols += [(lengths[i], 0, 0), (16, run - 4, 2)]
        else:
            symbols.append((lengths[i], 0, 0))
            run = 1
        i += run
    counts = np.bincount([s for s, _, _ in symbols], minlength=19)
    own = huffman_lengths(counts, 7)
    entries = _canonical(own)
    hclen = max(i + 1 for i, s in enumerate(_CODE_LENGTH_ORDER) if own[s])
    out = _Bits()
    out.put(0x0178, 16)  # deflate, 32 KB window, fastest; 0x7801 is a multiple of 31
    out.put(1, 1)
    out.put(2, 2)
    out.put(hlit - 257, 5)
    out.put(len(distances) - 1, 5)
    out.put(max(4, hclen) - 4, 4)
    for s in _CODE_LENGTH_ORDER[: max(4, hclen)]:
        out.put(own[s], 3)
    for symbol, extra, extra_bits in symbols:
        out.entry(entries[symbol])
        out.put(extra, extra_bits)
    return out


def run_lengths(total: int) -> list[int]:
    """Match lengths of 3 to 258 bytes that add up to `total` (0 or at least 4)."""
    lengths = [258] * (total // 258)
    rest = total % 258
    if 0 < rest < 3:
        lengths[-1] -= 3
        rest += 3
    return lengths + ([rest] if rest else [])


def deflate_samples(rows: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Compress full samples: row i of `rows` (n, L+1), uint16 or uint32, becomes the zlib stream of its three int32 planes.

    Returns the streams one after another and the n + 1 offsets between them.
    """
    rows = _narrow(rows)
    length = rows.shape[1] - 1
    back = 4 * (2 * length - 1)
    mask_runs = run_lengths(4 * length - 4)
    label_runs = mask_runs if back <= WINDOW else []
    counts, distance_counts, looked = _counts(rows, length, 4, 0)
    for size in mask_runs + label_runs:
        counts[257 + _LENGTH_SYMBOL[size]] += looked
    distance_counts[_distance_symbol(4)] += looked * len(mask_runs)
    if label_runs:
        distance_counts[_distance_symbol(back)] += looked * len(label_runs)
    code = make_code(counts, distance_counts, 4)
    tail = _Bits()
    for byte in (1, 0, 0, 0):
        tail.entry(int(code.b[_ALONE + byte]))
    for size in mask_runs:
        tail.entry(code.length[size])
        tail.entry(code.distance[_distance_symbol(4)])
    for size in label_runs:
        symbol = _distance_symbol(back)
        tail.entry(code.length[size])
        tail.entry(code.distance[symbol])
        tail.put(back - int(_DISTANCE_BASE[symbol]), int(_DISTANCE_EXTRA[symbol]))
    return _deflate(rows, length, 4, 0, code, tail, 3, back > WINDOW)


def deflate_units(
    units: npt.NDArray[Any], width: int, hint: int = 0
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Compress rows of units (n, M), uint16 or uint32: row i becomes the zlib stream of them as little-endian elements of `width` bytes.

    width: 2 or 4, at least that of the units. hint: a distance in units at which long repeats are likely (0: none). Returns the streams one after another and the n + 1 offsets between them.
    """
    units = _narrow(units)
    counts, distance_counts, _ = _counts(units, units.shape[1], width, hint)
    return _deflate(
        units, units.shape[1], width, hint, make_code(counts, distance_counts, width), _Bits(), 1, False
    )


def _narrow(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values as uint16 where they fit: half the work, and one compiled version of the kernels for nearly all data."""
    return rows.astype(np.uint16) if rows.dtype != np.uint16 and rows.size and rows.max() < 2**16 else rows


def _deflate(
    rows: npt.NDArray[Any],
    body: int,
    width: int,
    hint: int,
    code: Code,
    tail: _Bits,
    planes: int,
    repeat: bool,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Search and code all rows, some at a time so that the operations stay in the processor's cache."""
    group = max(1, _GROUP_UNITS // body)
    search = _Search(body, group)
    costs = ((code.a & np.uint64(63)).astype(np.uint8), (code.b & np.uint64(63)).astype(np.uint8))
    # No operation takes more bits than the literals it stands for can: MAX_CODE_BITS a byte.
    most = (
        code.header.count + tail.count + MAX_CODE_BITS * width * (body * (2 if repeat else 1) + 2)
    ) // 8 + 32
    out = np.empty(len(rows) * most, np.uint8)
    offsets = np.zeros(len(rows) + 1, np.int64)
    header, ending = code.header.pieces(), tail.pieces()
    # Copied, so that the kernels see one memory layout (rows may overlap, or be read-only) and need no second compilation.
    buffer = np.empty((group, rows.shape[1]), rows.dtype)
    for start in range(0, len(rows), group):
        some = buffer[: len(rows) - start]
        some[:] = rows[start : start + group]
        search.run(some, body, width, hint, costs)
        _emit(
            some, body, width, planes, repeat, search.ops, search.ends, header, code.header.count, ending, tail.count,
            code.a, code.b, np.uint64(code.end), out, offsets[start:],
        )  # fmt: skip
    return out[: offsets[-1]], offsets


def _distance_symbol(distance: int) -> int:
    return int(
        _DISTANCE_SYMBOL[distance - 1] if distance <= 256 else _DISTANCE_SYMBOL[256 + (distance - 1) // 128]
    )


def _counts(
    rows: npt.NDArray[Any], body: int, width: int, hint: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """Symbol counts (286,) and (30,) of an even sample of rows, 1 for every other symbol that may occur; rows looked at."""
    sample = rows[:: max(1, rows.size // _SAMPLED_UNITS)].copy()
    search = _Search(body, len(sample))
    guess = (
        np.full(_ENTRIES, 8, np.uint8),
        np.full(_ENTRIES, 8, np.uint8),
    )  # bits of each part before anything is known
    guess[0][_MATCH:], guess[1][_MATCH:_ALONE] = 3, 4
    if not hint:
        guess[1][_PREVIOUS] = (
            _NEVER  # good for the counters of the vsl layout; in text it would take bits from what is better
        )
    search.run(sample, body, width, hint, guess)
    ops = search.ops[: search.ends[len(sample) - 1]]
    a = np.bincount((ops & np.uint64(1023)).astype(np.int64), minlength=_ENTRIES)
    b = np.bincount((ops >> np.uint64(10) & np.uint64(1023)).astype(np.int64), minlength=_ENTRIES)
    counts, distance_counts = np.zeros(286, np.int64), b[_MATCH : _MATCH + 30].copy()
    counts[:256] = a[:256] + b[:256] + b[_ALONE:]
    counts[0] += (width - 2) * b[:256].sum()
    counts[_END] = len(sample)
    if width == 4:
        counts[257 + _LENGTH_SYMBOL[3]] += b[_PREVIOUS] + 1
        distance_counts[_distance_symbol(4)] += b[_PREVIOUS] + 1
    sizes = np.arange(1, 256 // width + 1)
    np.add.at(counts, 257 + _LENGTH_SYMBOL[sizes * width], a[_MATCH + sizes])
    possible = np.zeros(286, bool)
    possible[:257] = True
    possible[257 + _LENGTH_SYMBOL[np.arange(4, 257, width)]] = True
    counts[possible] = np.maximum(counts[possible], 1)
    reachable = np.arange(30) <= _distance_symbol(min(WINDOW, width * body))
    distance_counts[reachable] = np.maximum(distance_counts[reachable], 1)
    return counts, distance_counts, len(sample)


class _Search:
    """The search's tables and its result for a group of rows."""

    def __init__(self, body: int, group: int) -> None:
        self.tables = np.zeros((3, 1 << _HASH_BITS), np.uint16)
        self.distances = np.zeros((3, body), np.uint16)
        self.ops = np.empty(2 * body * group, np.uint64)
        self.ends = np.zeros(group, np.int64)

    def run(
        self,
        rows: npt.NDArray[Any],
        body: int,
        width: int,
        hint: int,
        costs: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]],
    ) -> None:
        _find(
            rows, body, width, hint if 0 < hint * width <= WINDOW else body, costs[0], costs[1], _DISTANCE_SYMBOL, _DISTANCE_BASE,
            _DISTANCE_EXTRA, self.tables, self.distances, self.ops, self.ends,
        )  # fmt: skip


@_jit
def _find(
    rows: npt.NDArray[Any], body: int, width: int, hint: int, cost_a: npt.NDArray[np.uint8], cost_b: npt.NDArray[np.uint8],
    symbol: npt.NDArray[np.int64], base_distance: npt.NDArray[np.int64], extra: npt.NDArray[np.int64],
    tables: npt.NDArray[np.uint16], distances: npt.NDArray[np.uint16], ops: U64, ends: npt.NDArray[np.int64],
) -> None:  # fmt: skip
    """LZ77 over each row's first `body` units: writes operations to `ops` and each row's end among them to `ends`.

    First the last place of each unit, pair and triple, for all positions and without a branch; then a walk that takes the
    longest match found, or a single unit's where that is cheaper than its literals. Places are kept modulo 2^16 and the tables
    are not cleared between rows: what they say is only ever a hint, the units themselves are compared.
    At distance `hint` every position is tried (`body`: at none).
    Unit 0 is always a literal and never copied from, so that a sample's labels can start at unit 1.
    """
    item = rows.itemsize
    per_load = 8 // item
    to_units = 4 if item == 2 else 5  # from equal low bits to equal units
    last = body - max(per_load, 3)  # where eight bytes and three units can still be read
    longest = 256 // width
    window = min(body, WINDOW // width - 1)
    multiplier = np.uint64(0x9E3779B97F4A7C15)
    shift = np.uint64(64 - _HASH_BITS)
    byte = np.uint64(255)
    none = np.uint16(0)
    single_cost = np.full(30, 10000, np.int64)
    if width == 4:
        for c in range(30):
            single_cost[c] = np.int64(cost_a[_MATCH + 1]) + np.int64(cost_b[_MATCH + c]) + extra[c]
    counters = width == 4 and cost_b[_PREVIOUS] < _NEVER
    count = 0
    base = 0
    for r in range(len(rows)):
        row = rows[r]
        for i in range(1, last + 1):
            one = np.uint64(row[i])
            pair = (one | np.uint64(row[i + 1]) << np.uint64(32)) * multiplier
            triple = (pair ^ np.uint64(row[i + 2])) * multiplier
            place = np.uint16(base + i)
            limit = np.uint16(min(i - 1, window))
            h = (one * multiplier) >> shift
            d = np.uint16(place - tables[0, h])
            tables[0, h] = place
            distances[0, i] = d if d <= limit else none
            h = pair >> shift
            d = np.uint16(place - tables[1, h])
            tables[1, h] = place
            distances[1, i] = d if d <= limit else none
            h = triple >> shift
            d = np.uint16(place - tables[2, h])
            tables[2, h] = place
            distances[2, i] = d if d <= limit else none
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
                here = load64(row, i * item)
                # A distance of 0 is no hint, and the comparison of a place with itself counts as nothing.
                n2 = (trailing_zeros(here ^ load64(row, (i - d2) * item)) >> to_units) * min(d2, np.int64(1))
                n3 = (trailing_zeros(here ^ load64(row, (i - d3) * item)) >> to_units) * min(d3, np.int64(1))
                length = max(n2, n3)
                distance = d3 if n3 >= n2 else d2
                if i > hint and (trailing_zeros(here ^ load64(row, (i - hint) * item)) >> to_units) >= length:
                    length = trailing_zeros(here ^ load64(row, (i - hint) * item)) >> to_units
                    distance = np.int64(hint)
                if length == per_load:
                    while length < longest and i + length + per_load <= body:
                        more = load64(row, (i + length) * item) ^ load64(row, (i + length - distance) * item)
                        same = trailing_zeros(more) >> to_units
                        length += same
                        if same < per_load:
                            break
            if length >= 2:
                back = distance * width - 1
                c = symbol[back if back < 256 else 256 + (back >> 7)]
                ops[count] = (
                    (_MATCH + length)
                    | (_MATCH + c) << 10
                    | extra[c] << 20
                    | (back + 1 - base_distance[c]) << 24
                )
                i += int(length)
            else:
                token = np.uint64(row[i])
                low = token & byte
                second = (token >> np.uint64(8)) & byte
                high = token >> np.uint64(16)
                # A literal or a match of one unit: both go on at i + 1, so neither needs a branch that cannot be predicted.
                back = max(single, np.int64(1)) * width - 1
                c = symbol[back if back < 256 else 256 + (back >> 7)]
                match = np.uint64(
                    (_MATCH + 1) | (_MATCH + c) << 10 | extra[c] << 20 | (back + 1 - base_distance[c]) << 24
                )
                # Its upper bytes may stand in the unit before as well (not in unit 0: the labels have another one before unit 1).
                known = counters and i > 1 and np.uint64(row[i - 1]) >> np.uint64(8) == token >> np.uint64(8)
                upper_cost = np.int64(cost_b[second]) + (16 if high else 0)
                known = known and np.int64(cost_b[_PREVIOUS]) < upper_cost
                literal_cost = np.int64(cost_a[low]) + (np.int64(cost_b[_PREVIOUS]) if known else upper_cost)
                taken = (single > 0) & (row[i - single] == row[i]) & (single_cost[c] < literal_cost)
                literal = low | (np.uint64(_PREVIOUS) if known else second) << np.uint64(10)
                if high and not taken and not known:
                    ops[count] = low | (np.uint64(_ALONE) + second) << np.uint64(10)
                    count += 1
                    literal = high & byte | (np.uint64(_ALONE) + (high >> np.uint64(8))) << np.uint64(10)
                ops[count] = match if taken else literal
                i += 1
            count += 1
        ends[r] = count


@_jit
def _put(
    out: npt.NDArray[np.uint8], at: int, acc: np.uint64, n: np.uint64, code: np.uint64, bits: np.uint64
) -> tuple[Any, np.uint64, np.uint64]:
    """Append at most 56 bits: `acc` holds the n < 8 bits that do not fill a byte yet, `at` is where their byte lies."""
    acc |= code << n
    n += bits
    store64(out, at, acc)
    return at + np.int64(n >> np.uint64(3)), acc >> (n & np.uint64(56)), n & np.uint64(7)


@_jit
def _emit(
    rows: npt.NDArray[Any], body: int, width: int, planes: int, repeat: bool, ops: U64, ends: npt.NDArray[np.int64],
    header: U64, header_bits: int, tail: U64, tail_bits: int, code_a: U64, code_b: U64, end: np.uint64,
    out: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64],
) -> None:  # fmt: skip
    """Code each row's operations into `out` from offsets[0] on; offsets[r + 1] becomes the end of row r's stream."""
    six, low, byte = np.uint64(6), np.uint64(63), np.uint64(255)
    at = offsets[0]
    k = 0
    for r in range(len(rows)):
        row = rows[r]
        acc = np.uint64(0)
        n = np.uint64(0)
        for j in range(len(header)):
            at, acc, n = _put(out, at, acc, n, header[j], np.uint64(min(56, header_bits - 56 * j)))
        first = k
        body_at, body_bit = at, n
        while k < ends[r]:
            op = ops[k]
            a = code_a[op & np.uint64(1023)]
            b = code_b[(op >> np.uint64(10)) & np.uint64(1023)]
            na = a & low
            nab = na + (b & low)
            code = a >> six | (b >> six) << na | (op >> np.uint64(24)) << nab
            at, acc, n = _put(out, at, acc, n, code, nab + ((op >> np.uint64(20)) & np.uint64(15)))
            k += 1
            if k == first + 1 or (k == first + 2 and np.uint64(row[0]) >> np.uint64(16)):
                body_at, body_bit = at, n  # behind unit 0
        body_bits = (at - body_at) * 8 + np.int64(n) - np.int64(body_bit)
        for j in range(len(tail)):
            at, acc, n = _put(out, at, acc, n, tail[j], np.uint64(min(56, tail_bits - 56 * j)))
        if repeat:
            for j in range(0, body_bits, 56):
                bits = np.uint64(min(56, body_bits - j))
                code = (load64(out, body_at + j // 8) >> body_bit) & ((np.uint64(1) << bits) - np.uint64(1))
                at, acc, n = _put(out, at, acc, n, code, bits)
        one, two = _adler_sums(row, 1 if planes == 3 else 0, body, width)
        size = np.uint64(body * width)
        if planes == 3:
            # Each plane's bytes weigh their distance from the end of the stream. Inputs: unit 0, then units 1..; labels: units 1.., then
            # unit `body`; mask: a byte 1 in every unit.
            first_one, first_two = np.uint64(0), np.uint64(0)
            last_one, last_two = np.uint64(0), np.uint64(0)
            for j in range(4):
                value = (np.uint64(row[body]) >> np.uint64(8 * j)) & byte
                entry = code_b[np.uint64(_ALONE) + value]
                at, acc, n = _put(out, at, acc, n, entry >> six, entry & low)
                last_one += value
                last_two += np.uint64(4 - j) * value
                value = (np.uint64(row[0]) >> np.uint64(8 * j)) & byte
                first_one += value
                first_two += (size - np.uint64(j)) * value
            units = np.uint64(body)
            two = (
                first_two + two + np.uint64(2) * size * (first_one + one)
                + np.uint64(2) * units * (units + np.uint64(1)) + size * units
                + two + np.uint64(4) * one + last_two
            )  # fmt: skip
            one = first_one + one + units + one + last_one
            size *= np.uint64(3)
        at, acc, n = _put(out, at, acc, n, end >> six, end & low)
        at += 1 if n else 0
        adler = ((two + size) % np.uint64(65521)) << np.uint64(16) | (one + np.uint64(1)) % np.uint64(65521)
        for j in range(4):
            out[at + j] = (adler >> np.uint64(24 - 8 * j)) & byte
        at += 4
        offsets[r + 1] = at


@_jit
def _adler_sums(row: npt.NDArray[Any], start: int, stop: int, width: int) -> tuple[np.uint64, np.uint64]:
    """Over units start..stop-1 of `width` bytes: the sum of their bytes, and of each byte times its distance from the end.

    The last byte has distance 1. A running sum of running sums gives each unit its weight without a multiplication.
    """
    byte = np.uint64(255)
    one, runs, within = np.uint64(0), np.uint64(0), np.uint64(0)
    for i in range(start, stop):
        token = np.uint64(row[i])
        b1, b2, b3 = (token >> np.uint64(8)) & byte, (token >> np.uint64(16)) & byte, token >> np.uint64(24)
        one += (token & byte) + b1 + b2 + b3
        runs += one
        within += b1 + np.uint64(2) * b2 + np.uint64(3) * b3
    return one, np.uint64(width) * runs - within
