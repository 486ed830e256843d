"""Read where the chunks of an HDF5 dataset are: every kind of chunk index but the B-tree of version 2.

    btree                              the one kind of files that any release reads (our own shards are such
                                       files)
    single, implicit, fixed array,
    extensible array                   of layout versions 4 and 5, which h5py's `libver="latest"` writes

Every address, size and position is checked: a chunk is inside the file, in the grid of its shape, and is
listed once.

Source: "HDF5 File Format Specification Version 3.0", sections III.A.1 (B-tree), VII.A to VII.D (the other
indexes).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.formats.shard_formats.hdf5_file import UNDEFINED, Damaged, Head, lookup3
from btlm_data.formats.shard_formats.hdf5_head import ChunkIndex, Stored

MAX_LEVELS = 16
# The beginning of a node of the B-tree.
_NODE = np.dtype(
    [("signature", "S4"), ("type", "u1"), ("level", "u1"), ("used", "<u2"), ("siblings", "<u8", (2,))]
)
_MAX_STRIDE = 1 << 16  # bytes from a node to the next that are read at once with it
_READ_BYTES = 1 << 22  # of nodes at once
_NODE_ENTRIES = 64  # read of a node at first: all of those of our own shards
_MOST_INNER = 64  # nodes above the leaves that are kept of a file


class ChunkTable(msgspec.Struct, frozen=True):
    """Where each chunk is, by its number in the grid (row-major).

    offsets: (n,) int64 file offsets, -1 where a chunk was never written. sizes: (n,) uint32 stored bytes.
    skipped: (n,) uint32, bit i set where filter i was left out; None where none ever was.
    """

    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.uint32]
    skipped: npt.NDArray[np.uint32] | None


class ChunkNode(msgspec.Struct, frozen=True):
    """A part of a ChunkTable. first: number of its first chunk."""

    first: int
    table: ChunkTable


class _Table:
    """A ChunkTable under construction."""

    def __init__(self, head: Head, stored: Stored, count: int | None = None) -> None:
        """count: of chunks, where these are not all."""
        self.head = head
        self.stored = stored
        self.grid = stored.grid
        count = math.prod(self.grid) if count is None else count  # bounded by the file's size (hdf5_head)
        self.offsets = np.full(count, -1, np.int64)
        self.sizes = np.zeros(count, np.uint32)
        self.skipped = np.zeros(count, np.uint32)

    def add(
        self,
        numbers: npt.NDArray[np.int64],
        addresses: npt.NDArray[np.uint64],
        sizes: npt.NDArray[np.uint64],
        skipped: npt.NDArray[np.uint32] | int,
    ) -> None:
        """Enter chunks by their numbers, all of which are in the grid. Raises Damaged where one cannot be
        right.
        """
        room = np.uint64(max(0, self.head.source.size - self.stored.base))
        if (sizes > room).any() or (addresses > room - np.minimum(sizes, room)).any():
            raise Damaged("a chunk of its `data` would be outside the file")
        if not sizes.all() or (sizes >= 2**32).any():
            raise Damaged("a chunk of its `data` has an impossible size")
        if (self.offsets[numbers] >= 0).any() or (len(numbers) and np.bincount(numbers).max() > 1):
            raise Damaged("a chunk of its `data` is listed twice")
        self.offsets[numbers] = addresses.astype(np.int64) + self.stored.base
        self.sizes[numbers] = sizes
        self.skipped[numbers] = skipped

    def add_in_order(self, first: int, elements: bytes, width: int) -> None:
        """Enter the elements of an array index: addresses, with size and skipped filters where there are
        filters.
        """
        limit = len(self.offsets)
        if width == 8:
            entry = np.dtype([("address", "<u8")])
        else:
            entry = np.dtype([("address", "<u8"), ("size", "u1", (width - 12,)), ("mask", "<u4")])
        values = np.frombuffer(elements, entry)
        numbers = np.arange(first, first + len(values))
        chosen = (values["address"] != UNDEFINED) & (numbers < limit)
        values, numbers = values[chosen], numbers[chosen]
        if width == 8:
            sizes = np.full(len(values), self.stored.chunk_bytes, np.uint64)
            self.add(numbers, values["address"], sizes, 0)
        else:
            sizes = np.zeros((len(values), 8), np.uint8)
            sizes[:, : width - 12] = values["size"]
            self.add(numbers, values["address"], sizes.view("<u8").reshape(-1), values["mask"])

    def done(self) -> ChunkTable:
        return ChunkTable(self.offsets, self.sizes, self.skipped if self.skipped.any() else None)


def read_chunk_table(head: Head, stored: Stored) -> ChunkTable:
    """Where all chunks of `stored` are. Raises Damaged."""
    index = stored.index
    assert index is not None
    table = _Table(head, stored)
    if index.address != UNDEFINED and len(table.offsets):
        try:
            _READERS[index.kind](table, index)
        except struct.error:
            raise Damaged("its index of chunks is cut off") from None
    return table.done()


# Address of a node above the leaves -> its level and entries.
Inner = dict[int, tuple[int, npt.NDArray[np.uint64]]]


def find_chunk(head: Head, stored: Stored, number: int, inner: Inner) -> ChunkNode | None:
    """The part of an index that has one chunk, of a dataset with a row in each: nothing else of the index is read. None where
    that cannot be had, for whatever reason; reading it all says why. inner: nodes above the leaves that were read before.
    """
    index, rank = stored.index, len(stored.shape)
    if index is None or index.kind != "btree" or index.address == UNDEFINED:
        return None
    address, above = index.address, MAX_LEVELS + 1
    try:
        while True:
            level, entries = inner.get(address) or _read_node(head, address, rank)
            if level >= above or not len(entries):
                return None
            if level == 0:
                return _checked_node(head, stored, number, entries)
            if len(inner) < _MOST_INNER:
                inner[address] = level, entries
            k = int(np.searchsorted(entries[:, 1], number, side="right")) - 1
            if k < 0:
                return None
            address, above = int(entries[k, -1]), level
    except Damaged:
        return None


def _read_node(head: Head, address: int, rank: int) -> tuple[int, npt.NDArray[np.uint64]]:
    """Level and entries, (n, rank + 3), of a node of the B-tree; no entries where it is none. Raises Damaged."""
    most = _NODE.itemsize + 8 * (rank + 3) * _NODE_ENTRIES
    behind = head.source.size - head.base - address
    data = head.bytes_at(address, max(_NODE.itemsize, min(most, behind)), "index of chunks")
    node = np.frombuffer(data, _NODE, 1)[0]
    size = 8 * (rank + 3) * int(node["used"]) if node["signature"] == b"TREE" and node["type"] == 1 else 0
    if _NODE.itemsize + size > len(data):
        own = head.bytes_at(address + _NODE.itemsize, size, "index of chunks")
    else:
        own = data[_NODE.itemsize : _NODE.itemsize + size]
    return int(node["level"]), np.frombuffer(own, "<u8").reshape(-1, rank + 3)


def _checked_node(
    head: Head, stored: Stored, number: int, entries: npt.NDArray[np.uint64]
) -> ChunkNode | None:
    first, count = int(entries[0, 1]), len(entries)
    if not first <= number < first + count <= stored.shape[0] or entries[:, 2:-1].any():
        return None
    table = _Table(head, stored, count)
    numbers = entries[:, 1] - np.uint64(first)
    if (numbers != np.arange(count, dtype=np.uint64)).any():
        return None
    sizes, skipped = entries[:, 0] & np.uint64(2**32 - 1), entries[:, 0] >> np.uint64(32)
    table.add(numbers.astype(np.int64), entries[:, -1], sizes, skipped.astype(np.uint32))
    return ChunkNode(first, table.done())


def _btree(table: _Table, index: ChunkIndex) -> None:
    rank = len(table.stored.shape)
    # An entry is a key (size, filters that were skipped, corner of the chunk and a 0) and the address of a child.
    entries, level, seen = np.empty((0, rank + 3), np.uint64), -1, 0
    addresses = np.array([index.address], np.uint64)
    while level:  # a level at a time, from the root to the leaves
        parts, levels = [entries[:0]], set[int]()
        for own_level, part in _nodes(table, addresses, rank + 3):
            seen += len(part)
            if (
                seen > 2 * len(table.offsets) + 2
            ):  # a node has two children or more, but for the last of each level
                raise Damaged("its index of chunks lists more chunks than its shape has")
            parts.append(part)
            levels.add(own_level)
        if len(levels) > 1 or (level > 0 and levels - {level - 1}):
            raise Damaged("its index of chunks is damaged: its levels do not follow each other")
        entries, level = np.concatenate(parts), next(iter(levels), 0)
        addresses = entries[:, -1]
    if entries[:, -2].any():
        raise Damaged("a chunk of its `data` does not begin where chunks begin")
    numbers = np.zeros(len(entries), np.uint64)
    inside = np.ones(len(entries), bool)  # a dataset that was made smaller may have chunks beyond its end
    for axis, (chunk, count) in enumerate(zip(table.stored.chunks or (), table.grid, strict=True), 1):
        corners = entries[:, axis]
        if not corners.any():  # all of one row of chunks, as on the other axes of our own shards
            numbers *= np.uint64(count)
            continue
        cells = corners // np.uint64(chunk) if chunk > 1 else corners
        if chunk > 1 and (cells * np.uint64(chunk) != corners).any():
            raise Damaged("a chunk of its `data` does not begin where chunks begin")
        inside &= cells < np.uint64(count)
        numbers = numbers * np.uint64(count) + cells
    entries = entries[inside]
    sizes, skipped = entries[:, 0] & np.uint64(2**32 - 1), entries[:, 0] >> np.uint64(32)
    table.add(numbers[inside].astype(np.int64), entries[:, -1], sizes, skipped.astype(np.uint32))


def _nodes(
    table: _Table, addresses: npt.NDArray[np.uint64], width: int
) -> Iterator[tuple[int, npt.NDArray[np.uint64]]]:
    """(level, entries) of the nodes of a B-tree, in order, of one or several at a time; entries are (n, width) uint64.

    addresses: (n,) uint64; width: 64-bit numbers of an entry. Nodes that follow each other evenly, as in our own shards,
    are read at once.
    """
    for address, stride, count in _even_runs(table, addresses):
        size = stride * count if count > 1 else _NODE.itemsize
        data = table.head.bytes_at(address, size, "index of chunks")
        nodes: npt.NDArray[Any] = np.ndarray(count, _NODE, data, 0, stride)
        level = int(nodes["level"][0])
        room = (stride - _NODE.itemsize) // (8 * width) if count > 1 else 2**16
        used = nodes["used"]
        wrong = (nodes["signature"] != b"TREE") | (nodes["type"] != 1) | (nodes["level"] != level)
        wrong |= used > room
        if wrong.any() or level > MAX_LEVELS:
            where = address + stride * int(wrong.argmax())
            raise Damaged(f"its index of chunks is damaged at byte {table.stored.base + where}")
        if count == 1:
            own = table.head.bytes_at(address + _NODE.itemsize, 8 * width * int(used[0]), "index of chunks")
            yield level, np.frombuffer(own, "<u8").reshape(-1, width)
            continue
        whole = np.ndarray((count, room, width), "<u8", data, _NODE.itemsize, (stride, 8 * width, 8))
        if (most := int(used.max())) < room:
            whole = whole[:, :most]
        if (used == most).all():
            yield level, whole.reshape(-1, width)
        else:
            yield level, whole[np.arange(most) < used[:, None]]


def _even_runs(table: _Table, addresses: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int, int]]:
    """(address of the first, bytes from one to the next, how many) of nodes that are evenly behind each other, in order; of
    one alone, where the next is elsewhere. addresses: (n,) uint64.
    """
    end = table.head.source.size - table.stored.base
    places = np.minimum(addresses, np.uint64(max(0, end))).astype(np.int64)  # beyond: `bytes_at` refuses it
    gaps = np.diff(places)
    changes = np.flatnonzero(np.diff(gaps)) + 1
    at = 0
    while at < len(places):
        gap, count = int(gaps[at]) if at < len(gaps) else 0, 1
        if _NODE.itemsize < gap <= _MAX_STRIDE:
            behind = changes[np.searchsorted(changes, at, side="right") :][:1]
            same = (int(behind[0]) if len(behind) else len(gaps)) - at
            whole = (end - int(places[at])) // gap  # the last may be shorter than the way to the next
            count = max(1, min(same + 1, whole, _READ_BYTES // gap))
        yield int(addresses[at]), gap, count
        at += count


def _single(table: _Table, index: ChunkIndex) -> None:
    size, mask = index.single or (table.stored.chunk_bytes, 0)
    if len(table.offsets) != 1:
        raise Damaged("its `data` has several chunks, and an index for one")
    table.add(np.zeros(1, np.int64), np.array([index.address], np.uint64), np.array([size], np.uint64), mask)


def _implicit(table: _Table, index: ChunkIndex) -> None:
    count, size = len(table.offsets), table.stored.chunk_bytes
    if index.address + count * size > table.head.source.size:
        raise Damaged("a chunk of its `data` would be outside the file")
    addresses = np.arange(count, dtype=np.uint64) * np.uint64(size) + np.uint64(index.address)
    table.add(np.arange(count), addresses, np.full(count, size, np.uint64), 0)


def _element_width(table: _Table, client: int, width: int) -> int:
    """Bytes of an element of an array index, where they make sense."""
    if (client, bool(table.stored.filters)) not in ((0, False), (1, True)):
        raise Damaged("its index of chunks is of another kind than its filters")
    if (client == 0 and width != 8) or (client == 1 and not 13 <= width <= 20):
        raise Damaged("its index of chunks has elements of an impossible size")
    return width


def _fixed_array(table: _Table, index: ChunkIndex) -> None:
    structure = "index of chunks"
    data = table.head.checked(index.address, 28, b"FAHD", structure)
    _, client, width, page_bits, count, address = struct.unpack("<4B2Q", data)
    width = _element_width(table, client, width)
    if count != len(table.offsets):
        raise Damaged(f"its index of chunks lists {count} of {len(table.offsets)} chunks")
    page = 1 << page_bits if page_bits < 32 else 2**32
    if address == UNDEFINED:
        return
    if count <= page:
        data = table.head.checked(address, 14 + width * count + 4, b"FADB", structure)
        table.add_in_order(0, data[10:], width)
        return
    num_pages = -(-count // page)
    bitmap_bytes = -(-num_pages // 8)
    data = table.head.checked(address, 14 + bitmap_bytes + 4, b"FADB", structure)
    written = np.unpackbits(np.frombuffer(data[10:], np.uint8))
    at = address + 14 + bitmap_bytes + 4
    for number in range(num_pages):
        size = min(page, count - number * page)
        if written[number]:
            table.add_in_order(number * page, _page(table, at, width * size), width)
        at += width * size + 4


def _page(table: _Table, address: int, size: int) -> bytes:
    """A page of elements, whose checksum is after it."""
    data = table.head.bytes_at(address, size + 4, "index of chunks")
    if lookup3(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise Damaged("the checksum of its index of chunks is wrong")
    return data[:-4]


class _Extensible(msgspec.Struct, frozen=True):
    """The header of an extensible array: sizes of its blocks.

    Elements come first from the index block, then from data blocks. Super block u stands for 2^(u//2) data
    blocks of min_elements * 2^((u+1)//2) elements each; the index block itself lists those of the first super
    blocks.
    """

    width: int
    offset_bytes: int
    in_index: int
    min_elements: int
    min_pointers: int
    page: int
    num_super: int

    def blocks(self, number: int) -> tuple[int, int]:
        """Data blocks of a super block, and elements of each."""
        return 1 << number // 2, self.min_elements << (number + 1) // 2


def _extensible_array(table: _Table, index: ChunkIndex) -> None:
    structure = "index of chunks"
    data = table.head.checked(index.address, 72, b"EAHD", structure)
    _, client, width, bits, in_index, min_elements, min_pointers, page_bits = struct.unpack_from("<8B", data)
    (block,) = struct.unpack_from("<Q", data, 56)
    if block == UNDEFINED:
        return
    powers = min_elements & (min_elements - 1) == 0 and min_pointers & (min_pointers - 1) == 0
    if not powers or not min_elements or min_pointers < 2 or bits > 64 or page_bits > 32:
        raise Damaged("its index of chunks has an impossible header")
    array = _Extensible(
        _element_width(table, client, width),
        -(-bits // 8),
        in_index,
        min_elements,
        min_pointers,
        1 << page_bits,
        1 + bits - (min_elements.bit_length() - 1),
    )
    direct_super = 2 * (min_pointers.bit_length() - 1)
    num_direct = 2 * (min_pointers - 1)
    num_super = max(0, array.num_super - direct_super)
    size = 14 + array.width * in_index + 8 * (num_direct + num_super)
    data = table.head.checked(block, size + 4, b"EAIB", structure)[10:]
    table.add_in_order(0, data[: array.width * in_index], array.width)
    pointers = struct.unpack_from(f"<{num_direct + num_super}Q", data, array.width * in_index)
    first, direct = in_index, list(pointers[:num_direct])
    for number in range(array.num_super):
        if first >= len(table.offsets):
            return
        count, elements = array.blocks(number)
        if number < direct_super:
            addresses, direct = direct[:count], direct[count:]
            bitmap = None
        else:
            addresses, bitmap = _super_block(
                table, array, pointers[num_direct + number - direct_super], count, elements
            )
        for address in addresses:
            if first >= len(table.offsets):
                return
            if address != UNDEFINED:
                _data_block(table, array, address, first, elements, bitmap)
            if bitmap is not None:
                bitmap = bitmap[elements // array.page :]  # bits of one block after another, without gaps
            first += elements
        if not addresses:
            first += count * elements


def _super_block(
    table: _Table, array: _Extensible, address: int, count: int, elements: int
) -> tuple[list[int], npt.NDArray[np.uint8] | None]:
    """Addresses of a super block's data blocks, and which pages were written where the blocks have pages."""
    if address == UNDEFINED:
        return [], None
    if count > len(
        table.offsets
    ):  # far more than there are chunks: 2^(u//2) blocks of more elements than that
        raise Damaged("its index of chunks lists more chunks than its shape has")
    bitmap_bytes = count * -(-(elements // array.page) // 8) if elements > array.page else 0
    size = 14 + array.offset_bytes + bitmap_bytes + 8 * count
    data = table.head.checked(address, size + 4, b"EASB", "index of chunks")[10 + array.offset_bytes :]
    bitmap = np.unpackbits(np.frombuffer(data[:bitmap_bytes], np.uint8)) if bitmap_bytes else None
    return list(struct.unpack_from(f"<{count}Q", data, bitmap_bytes)), bitmap


def _data_block(
    table: _Table,
    array: _Extensible,
    address: int,
    first: int,
    elements: int,
    bitmap: npt.NDArray[np.uint8] | None,
) -> None:
    prefix = 14 + array.offset_bytes
    if elements <= array.page:
        data = table.head.checked(address, prefix + array.width * elements + 4, b"EADB", "index of chunks")
        table.add_in_order(first, data[10 + array.offset_bytes :], array.width)
        return
    table.head.checked(address, prefix + 4, b"EADB", "index of chunks")
    at = address + prefix + 4
    for number in range(elements // array.page):
        if first >= len(table.offsets):
            return
        if bitmap is None or bitmap[number]:
            table.add_in_order(first, _page(table, at, array.width * array.page), array.width)
        at += array.width * array.page + 4
        first += array.page


_READERS = {
    "btree": _btree,
    "single": _single,
    "implicit": _implicit,
    "fixed array": _fixed_array,
    "extensible array": _extensible_array,
}
