"""Huffman codes and block headers of deflate (RFC 1950, RFC 1951), in plain Python: made once for many rows.

kernels/deflate.py searches and writes; here is what it writes with.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

WINDOW = 32768  # bytes a match may reach back
MAX_CODE_BITS = 12  # four literals then fit one 64-bit word beside each other
END = 256  # end-of-block symbol

# RFC 1951, 3.2.5: first length (distance) and number of extra bits of each code.
LENGTH_EXTRA = np.array([0] * 8 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 4 + [0])
LENGTH_BASE = np.append(3 + np.cumsum(1 << LENGTH_EXTRA[:-1]) - (1 << LENGTH_EXTRA[:-1]), 258)
DISTANCE_EXTRA = np.array([0, 0] + [max(0, i // 2 - 1) for i in range(2, 30)])
DISTANCE_BASE = np.concatenate([[1], 1 + np.cumsum(1 << DISTANCE_EXTRA)[:-1]])
CODE_LENGTH_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)  # RFC 1951, 3.2.7

LENGTH_SYMBOL = np.searchsorted(LENGTH_BASE, np.arange(259), side="right").astype(np.int64) - 1


# An operation of the search is a word of 32 bits: a | b << 10.
#   a  0..255 a literal byte                             256 + k  a match of k units
#   b  0..255 a second byte and the zeros above it       544 + d  d units back           288 + x  a literal byte alone
#                                                        287      the three bytes above it as in the unit before (width 4)
MATCH, PREVIOUS, ALONE, DISTANCE = 256, 287, 288, 544


class Code(msgspec.Struct, frozen=True):
    """One Huffman code for a call. An entry packs a bit string and its length: bits << 6 | number of bits.

    a (512,), b (545 + units in the window,): the entries of an operation's two parts; length: (259,) of a match length in bytes
    with its extra bits; distance: (30,) of a distance symbol; end: of the end of the block; header: the zlib and block
    headers.
    """

    a: U64
    b: U64
    length: list[int]
    distance: list[int]
    end: int
    header: BitString


def make_code(counts: npt.NDArray[np.int64], distance_counts: npt.NDArray[np.int64], width: int) -> Code:
    """The Huffman code for counts of literals and lengths (286,) and distances (30,); what may occur must
    have a count.
    """
    literal_lengths = huffman_lengths(counts, MAX_CODE_BITS)
    distance_lengths = huffman_lengths(distance_counts, MAX_CODE_BITS)
    literal, distance = _canonical(literal_lengths), _canonical(distance_lengths)
    length = [0] * 259
    for size in range(3, 259):
        symbol = int(LENGTH_SYMBOL[size])
        if literal_lengths[257 + symbol]:
            length[size] = _join(
                literal[257 + symbol], (size - int(LENGTH_BASE[symbol])) << 6 | int(LENGTH_EXTRA[symbol])
            )
    second = literal[:256]
    for _ in range(width - 2):
        second = [_join(entry, literal[0]) for entry in second]
    of_units = distances_of(width)
    a, b = np.zeros(2 * MATCH, np.uint64), np.zeros(DISTANCE + 1 + len(of_units.symbol), np.uint64)
    a[:256], b[:256], b[ALONE:DISTANCE] = literal[:256], second, literal[:256]
    codes = np.array(distance, np.uint64)[of_units.symbol]
    code_bits, six = codes & np.uint64(63), np.uint64(6)
    b[DISTANCE + 1 :] = (codes >> six | of_units.rest << code_bits) << six | code_bits + of_units.extra
    a[MATCH + 2 : MATCH + 256 // width + 1] = length[2 * width : 257 : width]
    if width == 4:
        a[MATCH + 1] = length[4]
        b[PREVIOUS] = _join(length[3], distance[distance_symbol(4)])
    return Code(a, b, length, distance, literal[END], _headers(literal_lengths, distance_lengths))


class Distances(NamedTuple):
    """How deflate writes the distances of 1, 2, ... units, n of them. symbol: (n,) int64; extra, rest: (n,) uint64, the number of
    its extra bits and their value.
    """

    symbol: npt.NDArray[np.int64]
    extra: U64
    rest: U64


def distances_of(width: int) -> Distances:
    """Of units of `width` bytes, as far as the window reaches."""
    back = np.arange(width, WINDOW + 1, width)
    symbol = np.searchsorted(DISTANCE_BASE, back, side="right") - 1
    rest = back - DISTANCE_BASE[symbol]
    return Distances(symbol, DISTANCE_EXTRA[symbol].astype(np.uint64), rest.astype(np.uint64))


def huffman_lengths(counts: npt.NDArray[np.int64], limit: int) -> list[int]:
    """Code lengths of an optimal prefix code (Huffman 1952) for the symbols with a count, none above `limit`
    bits.

    Where the optimum is deeper, counts are halved (rounding up) until it is not: a little longer, and simple.
    Ties go to the lower symbol, and to symbols before pairs. A single symbol gets one bit. counts: (symbols,)
    int64.
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
    """Entries (bits << 6 | number) of the canonical code, bits in the order deflate writes them (RFC 1951,
    3.2.2).
    """
    entries, code, last = [0] * len(lengths), 0, 0
    for bits, symbol in sorted((bits, symbol) for symbol, bits in enumerate(lengths) if bits):
        code <<= bits - last
        entries[symbol] = int(f"{code:0{bits}b}"[::-1], 2) << 6 | bits
        code, last = code + 1, bits
    return entries


def _join(first: int, second: int) -> int:
    """The entry whose bits are those of `first` and then those of `second`."""
    return ((first >> 6) | (second >> 6) << (first & 63)) << 6 | ((first & 63) + (second & 63))


class BitString:
    """A bit string under construction, least significant bit first."""

    def __init__(self) -> None:
        self.value = 0
        self.count = 0

    def put(self, value: int, count: int) -> None:
        """Append the `count` low bits of `value`."""
        self.value |= value << self.count
        self.count += count

    def entry(self, entry: int) -> None:
        """Append the bits of an entry."""
        self.put(entry >> 6, entry & 63)

    def pieces(self) -> U64:
        """The bits in pieces of 56: what the kernel appends at once."""
        return np.array(
            [self.value >> start & (1 << 56) - 1 for start in range(0, self.count, 56)], np.uint64
        )


def _headers(ll_bits: list[int], d_bits: list[int]) -> BitString:
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
    hclen = max(i + 1 for i, s in enumerate(CODE_LENGTH_ORDER) if own[s])
    out = BitString()
    out.put(0x0178, 16)  # deflate, 32 KB window, fastest; 0x7801 is a multiple of 31
    out.put(1, 1)
    out.put(2, 2)
    out.put(hlit - 257, 5)
    out.put(len(distances) - 1, 5)
    out.put(max(4, hclen) - 4, 4)
    for s in CODE_LENGTH_ORDER[: max(4, hclen)]:
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


def distance_symbol(distance: int) -> int:
    """The symbol of a distance of 1 to 32,768 bytes."""
    return int(np.searchsorted(DISTANCE_BASE, distance, side="right")) - 1
