"""Undo the filters of a stored chunk: gzip by ISA-L, HDF5's byte shuffle, Fletcher-32 checksums, LZF, and
LZ4.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from isal import igzip_lib

from btlm_data.formats.shard_formats.hdf5_head import DEFLATE, FLETCHER32, LZ4, SHUFFLE


class Torn(Exception):
    """A chunk's stored bytes are not what its filters make."""


def unpack(
    stored: bytes, filters: Sequence[int], skipped: int, num_bytes: int, itemsize: int
) -> bytes | memoryview:
    """The chunk's `num_bytes` bytes, and never more memory than they need.

    filters: their numbers, in the order applied when writing. skipped: bit i is set where filter i was left
    out (HDF5 leaves out what does not help). Raises Torn.
    """
    data: bytes | memoryview = stored
    for position in range(len(filters) - 1, -1, -1):
        if skipped >> position & 1:
            continue
        if filters[position] == DEFLATE:
            data = _inflate(data, num_bytes + 4)  # a checksum of four bytes may have been compressed with it
        elif filters[position] == SHUFFLE:
            data = _unshuffle(data, itemsize)
        elif filters[position] == FLETCHER32:
            data = _checked(data)
        elif filters[position] == LZ4:
            data = _lz4(data, num_bytes + 4)
        else:
            data = _lzf(data, num_bytes + 4)
    if len(data) != num_bytes:
        raise Torn(f"a chunk holds {len(data)} bytes instead of {num_bytes}")
    return data


def _inflate(stored: bytes | memoryview, most: int) -> bytes:
    inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB)
    try:
        data = inflater.decompress(stored, most + 1)
    except igzip_lib.IsalError as error:  # type: ignore[misc]  # untyped in its stub
        raise Torn(f"a chunk cannot be inflated: {error}") from None
    if not inflater.eof:
        raise Torn("a chunk's compressed bytes are cut off, or hold more than a chunk")
    return data


def _unshuffle(stored: bytes | memoryview, itemsize: int) -> memoryview:
    """All first bytes, then all second bytes, ... to elements; bytes left over at the end are copied
    unchanged.
    """
    if itemsize == 1:
        return memoryview(stored)
    count = len(stored) // itemsize
    planes = np.frombuffer(stored, np.uint8, count * itemsize).reshape(itemsize, count)
    values = np.empty(len(stored), np.uint8)
    elements = values[: count * itemsize].reshape(count, itemsize)
    for byte, plane in enumerate(planes):  # twice as fast as one transposed copy
        elements[:, byte] = plane
    values[count * itemsize :] = np.frombuffer(stored, np.uint8, offset=count * itemsize)
    return values.data


def _checked(stored: bytes | memoryview) -> memoryview:
    """The bytes before a Fletcher-32 checksum, which must be theirs (HDF5's sums 16-bit big-endian words
    modulo 65,535).
    """
    if len(stored) < 4:
        raise Torn("a chunk has no checksum")
    data = memoryview(stored)[:-4]
    words = np.frombuffer(data, ">u2", len(data) // 2).astype(np.uint64)
    if len(data) % 2:
        words = np.append(words, np.uint64(data[-1] << 8))
    first = int(words.sum())
    # Each word counts as often as there are words from it to the end. Sums of products stay below 2^64 in
    # stretches.
    second = 0
    for start in range(0, len(words), 1 << 20):
        piece = words[start : start + (1 << 20)]
        behind = len(words) - start - len(piece)
        weights = np.arange(len(piece), 0, -1, dtype=np.uint64)
        second += int((piece * weights).sum()) + behind * int(piece.sum())
    (stated,) = struct.unpack("<I", bytes(memoryview(stored)[-4:]))
    # Compared modulo 65,535, since its writers fold sums so that 0 may be stored as 65,535.
    if (stated & 0xFFFF) % 65535 != first % 65535 or (stated >> 16) % 65535 != second % 65535:
        raise Torn("a chunk's checksum is wrong")
    return data


def _lzf(stored: bytes | memoryview, most: int) -> bytes:
    """Decompress LZF (Lehmann's libLZF): runs of literals, and copies from at most 8,192 bytes back. Slow,
    and rare.
    """
    source = bytes(stored)
    out = bytearray()
    at = 0
    try:
        while at < len(source):
            control = source[at]
            at += 1
            if control < 32:
                if at + control + 1 > len(source):
                    raise Torn("a chunk's compressed bytes are cut off")
                out += source[at : at + control + 1]
                at += control + 1
            else:
                length = control >> 5
                if length == 7:
                    length += source[at]
                    at += 1
                distance = (control & 31) << 8 | source[at]
                at += 1
                start = len(out) - distance - 1
                if start < 0:
                    raise Torn("a chunk's compressed bytes are damaged")
                length += 2
                copied = bytes(out[start : start + length])
                while len(copied) < length:  # the copy overlaps what it makes
                    copied += copied[: length - len(copied)]
                out += copied
            if len(out) > most:
                raise Torn("a chunk's compressed bytes hold more than a chunk")
    except IndexError:
        raise Torn("a chunk's compressed bytes are cut off") from None
    return bytes(out)


def _lz4(stored: bytes | memoryview, most: int) -> bytes:
    """Decompress what HDF5's registered filter 32004 makes: a head, and LZ4 blocks, each after its stored
    size.

    A block that LZ4 would not make smaller is as it is.
    """
    import pyarrow as pa

    try:
        total, block = struct.unpack_from(">QI", stored)
        if total > most or not (block or not total):
            raise Torn("a chunk's compressed bytes hold more than a chunk")
        codec = pa.Codec("lz4_raw")
        out = bytearray()
        at = 12
        while len(out) < total:
            (size,) = struct.unpack_from(">I", stored, at)
            part = stored[at + 4 : at + 4 + size]
            expected = min(block, total - len(out))
            if len(part) != size or not size:
                raise Torn("a chunk's compressed bytes are cut off")
            out += part if size == expected else codec.decompress(part, expected, asbytes=True)
            at += 4 + size
    except (struct.error, pa.ArrowException, OSError):
        raise Torn("a chunk's compressed bytes are damaged") from None
    return bytes(out)
