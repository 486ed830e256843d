"""Read the head of an HDF5 file: where `data` is stored, of which type and shape, through which filters.

The HDF5 library is not used for reading. It takes locks, inflates under one lock of the whole process,
follows a file's links to other files, and has been shown to write out of bounds for crafted files; and a
shard needs a small part of it. That part is read here, from files of any HDF5 release since 1.6.3, with every
address and size checked against the file's. The rest is refused: external storage and links, virtual
datasets, soft links, shared types, old layouts.

Source: "HDF5 File Format Specification Version 3.0", sections III.A.1 (group B-tree), III.B, III.C (symbol
table), III.D (local heap), IV.A.2 (messages).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import msgspec
import numpy as np

from btlm_data.formats.shard_formats.byte_source import ByteSource
from btlm_data.formats.shard_formats.hdf5_file import (
    MAX_HEADER_BYTES,
    UNDEFINED,
    Damaged,
    Head,
    Message,
    NotPlain,
    read_messages,
    read_superblock,
)

MAX_GROUP_NODES = 1024  # of the root group: a shard's has one
MAX_RANK = 8
MAX_CHUNK_BYTES = 1 << 29
MAX_ROW_BYTES = 1 << 28
MAX_UNWRITTEN = (
    1 << 20
)  # chunks that a file may leave out; a chunk that is there takes 8 bytes of its index or more
MAX_INFLATION = 1040  # deflate makes at most 1,032 bytes of one

DEFLATE, SHUFFLE, FLETCHER32, LZF, LZ4 = 1, 2, 3, 32000, 32004
_FILTERS = {DEFLATE, SHUFFLE, FLETCHER32, LZF}
_FLOATS = {  # size -> exponent location and size, mantissa location and size, bias: IEEE 754
    2: (10, 5, 0, 10, 15),
    4: (23, 8, 0, 23, 127),
    8: (52, 11, 0, 52, 1023),
}


class ChunkIndex(msgspec.Struct, frozen=True):
    """Where the list of chunks is. kind: "btree", or the index types of layout version 4 by name.

    address: of its root (UNDEFINED: no chunk was ever written). single: stored bytes and skipped filters of
    the one chunk of kind "single", where it went through filters.
    """

    kind: str
    address: int
    single: tuple[int, int] | None = None


class Stored(msgspec.Struct, frozen=True):
    """`data`, as the head describes it.

    base: file offset that addresses count from. chunks: shape of a chunk (None: one stretch of bytes).
    filters: in the order in which they were applied when writing. Of a stretch: address, or the bytes
    themselves where they are in the head (inline). fill: bytes of the value that chunks never written hold.
    n_examples: the attribute, None where absent.
    """

    base: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    chunks: tuple[int, ...] | None
    filters: tuple[int, ...]
    index: ChunkIndex | None
    address: int
    inline: bytes | None
    fill: bytes
    n_examples: int | None

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk before any filter."""
        assert self.chunks is not None
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def chunks_a_row(self) -> int:
        """Chunks side by side that one row goes through."""
        return math.prod(self.grid[1:])

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks along each axis."""
        assert self.chunks is not None
        return tuple(-(-size // step) for size, step in zip(self.shape, self.chunks, strict=True))


def read_head(source: ByteSource) -> Stored:
    """Find `data` in an HDF5 file. Raises Damaged or NotPlain."""
    try:
        head, root = read_superblock(source)
        messages = list(read_messages(head, root, "root group"))
        n_examples = whole_numbers(messages).get("n_examples")
        return read_dataset(head, _find_data(head, messages), n_examples)
    except (struct.error, IndexError):  # a field is after the end of its structure
        raise Damaged("a description in its head is cut off") from None


# The root group ---------------------------------------------------------------------------------------------


def _find_data(head: Head, messages: list[Message]) -> int:
    """Address of the header of the member `data`. Raises NotPlain where it is not there or elsewhere."""
    for message in messages:
        if message.kind == 0x0011 and len(message.data) >= 16:
            return _find_symbol(head, *struct.unpack_from("<QQ", message.data))
    for message in messages:
        if message.kind == 0x0006 and (address := _link(message.data)) is not None:
            return address
    for message in messages:
        if message.kind == 0x0002 and len(message.data) >= 18:
            heap = struct.unpack_from("<Q", message.data, 10 if message.data[1] & 1 else 2)[0]
            if heap != UNDEFINED:
                raise NotPlain("its root group has more members than a shard needs")
    raise NotPlain('it has no dataset "data"')


def _link(data: bytes) -> int | None:
    """Where a link message named `data` leads; None for another name."""
    try:
        version, flags = data[0], data[1]
        at = 2
        kind = 0
        if flags & 8:
            kind, at = data[at], at + 1
        at += (8 if flags & 4 else 0) + (1 if flags & 16 else 0)
        width = 1 << (flags & 3)
        size = int.from_bytes(data[at : at + width], "little")
        at += width
        if data[at : at + size] != b"data":
            return None
        if version != 1:
            raise NotPlain(f"the link to its `data` is of version {version}")
        if kind != 0:
            where = "in another file" if kind == 64 else "elsewhere"
            raise NotPlain(f"its `data` is a link to something {where}, which is not followed")
        return int(struct.unpack_from("<Q", data, at + size)[0])
    except (IndexError, struct.error):
        raise Damaged("a link in its root group is cut off") from None


def _find_symbol(head: Head, tree: int, heap: int) -> int:
    """Address of `data` in a group of the older kind."""
    for name, target, kind in symbols(head, tree, heap):
        if name == b"data":
            if kind == 2:
                raise NotPlain("its `data` is a link to something elsewhere, which is not followed")
            return target
    raise NotPlain('it has no dataset "data"')


def symbols(head: Head, tree: int, heap: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, address and kind (2: a soft link) of each member of a group of the older kind: a B-tree over
    nodes of symbols, names in a heap.
    """
    start = head.bytes_at(heap, 32, "root group's heap of names")
    if start[:4] != b"HEAP":
        raise Damaged("its root group has no heap of names")
    size, _, names_address = struct.unpack_from("<QQQ", start, 8)
    if size > MAX_HEADER_BYTES:
        raise NotPlain("its root group has more members than a shard needs")
    names = head.bytes_at(names_address, size, "root group's heap of names")
    todo = [tree]
    seen: set[int] = set()
    while todo:
        address = todo.pop()
        if address in seen or len(seen) > MAX_GROUP_NODES:
            raise NotPlain("its root group has more members than a shard needs, or goes in circles")
        seen.add(address)
        start = head.bytes_at(address, 8, "root group's index")
        if start[:4] == b"TREE":
            if start[4] != 0:
                raise Damaged("its root group's index is of another kind")
            (used,) = struct.unpack_from("<H", start, 6)
            entries = head.bytes_at(address + 24, 16 * used, "root group's index")
            todo += [struct.unpack_from("<Q", entries, 16 * i + 8)[0] for i in range(used)]
        elif start[:4] == b"SNOD":
            (used,) = struct.unpack_from("<H", start, 6)
            entries = head.bytes_at(address + 8, 40 * used, "root group's symbols")
            for i in range(used):
                at, target, kind = struct.unpack_from("<QQI", entries, 40 * i)
                end = names.find(b"\0", at)
                if at >= len(names) or end < 0:
                    raise Damaged("a name in its root group is cut off")
                yield names[at:end], int(target), int(kind)
        else:
            raise Damaged("its root group's index is damaged")


def whole_numbers(messages: list[Message]) -> dict[str, int]:
    """An object's attributes that are one whole number (or an array of one) or truth value, by name; others are left
    out.
    """
    numbers: dict[str, int] = {}
    for message in messages:
        if message.kind != 0x000C or message.flags & 2 or len(message.data) < 8:
            continue
        version, flags, name_size, type_size, space_size = struct.unpack_from("<BBHHH", message.data)
        if version not in (1, 2, 3) or (version > 1 and flags):
            continue
        at = 9 if version == 3 else 8
        parts = []
        for size in (name_size, type_size, space_size):
            parts.append(message.data[at : at + size])
            at += -(-size // 8) * 8 if version == 1 else size
        name = parts[0].rstrip(b"\0").decode("utf-8", "replace")
        is_enumeration = (
            parts[1][:1] and parts[1][0] & 15 == 8
        )  # h5py's bool: an enumeration, followed by its base type
        try:
            dtype = _datatype(parts[1][8:] if is_enumeration else parts[1])
        except (NotPlain, struct.error, IndexError):
            continue
        value = message.data[at : at + dtype.itemsize]
        if dtype.kind in "iu" and _is_one(parts[2]) and len(value) == dtype.itemsize:
            numbers.setdefault(name, int(np.frombuffer(value, dtype)[0]))
    return numbers


def _is_one(space: bytes) -> bool:
    """Whether a dataspace is that of one value, or of an array of one."""
    try:
        return len(space) > 1 and (space[1] == 0 or _dataspace(space) == (1,))
    except (NotPlain, struct.error):
        return False


# The dataset ------------------------------------------------------------------------------------------------


def read_dataset(
    head: Head, address: int, n_examples: int | None = None, more_filters: frozenset[int] = frozenset()
) -> Stored:
    """The dataset whose header is at `address`. more_filters: allowed beside those of shards. Raises Damaged
    or NotPlain, calling it `data`.
    """
    messages: dict[int, bytes] = {}
    for message in read_messages(head, address, "dataset"):
        if message.kind == 0x0007:
            raise NotPlain(
                "its `data` is stored in other files (HDF5's external storage), which are not read"
            )
        if message.kind in (0x0001, 0x0003, 0x0004, 0x0005, 0x0008, 0x000B):
            if message.flags & 2:
                raise NotPlain("the description of its `data` is shared with other objects of the file")
            messages.setdefault(message.kind, message.data)
        elif message.kind in (0x0002, 0x0006, 0x0011):
            raise NotPlain("its `data` is a group, not a dataset")
    for kind, property_name in ((0x0001, "shape"), (0x0003, "type"), (0x0008, "layout")):
        if kind not in messages:
            raise Damaged(f"its `data` has no {property_name}")
    try:
        shape, dtype = _dataspace(messages[0x0001]), _datatype(messages[0x0003])
        filters = _filters(messages[0x000B], more_filters) if 0x000B in messages else ()
        fill = _fill_value(messages, dtype.itemsize)
        layout = messages[0x0008]
        if layout[0] not in (3, 4, 5):
            raise NotPlain(f"the layout of its `data` is of version {layout[0]}; 3 to 5 are known")
        if layout[1] == 3:
            raise NotPlain(
                "its `data` is a virtual dataset, whose missing sources would be read as zeros. Give the "
                "folder of the source files"
            )
        chunks: tuple[int, ...] | None = None
        index: ChunkIndex | None = None
        stretch, inline, size = UNDEFINED, None, 0
        if layout[1] == 0:
            (size,) = struct.unpack_from("<H", layout, 2)
            inline = layout[4 : 4 + size]
        elif layout[1] == 1:
            stretch, size = struct.unpack_from("<QQ", layout, 2)
        elif layout[1] == 2:
            chunks, index = (_chunked_3 if layout[0] == 3 else _chunked_4)(
                layout, len(shape), dtype, bool(filters)
            )
        else:
            raise Damaged(f"its `data` has a layout of class {layout[1]}")
    except (struct.error, IndexError):
        raise Damaged("the description of its `data` is cut off") from None
    stored = Stored(head.base, shape, dtype, chunks, filters, index, stretch, inline, fill, n_examples)
    _check_sizes(head, stored, size)
    return stored


def _check_sizes(head: Head, stored: Stored, size: int) -> None:
    """Refuse what the file cannot hold or no memory should."""
    num_bytes = math.prod(stored.shape) * stored.dtype.itemsize
    row_bytes = math.prod(stored.shape[1:]) * stored.dtype.itemsize
    file_size = head.source.size
    words = f"its shape {stored.shape} of {stored.dtype}"
    if not row_bytes:
        raise NotPlain(f"{words} has rows of nothing")
    if row_bytes > MAX_ROW_BYTES:
        raise NotPlain(f"{words} has rows of {row_bytes:,} bytes; {MAX_ROW_BYTES:,} are the limit")
    if stored.chunks is None:
        if stored.filters:
            raise Damaged("its `data` has filters but no chunks")
        if num_bytes > size or (stored.inline is not None and len(stored.inline) < num_bytes):
            raise Damaged(f"{words} needs {num_bytes:,} bytes, and {size:,} are stored")
        if stored.inline is None and num_bytes:
            if stored.address == UNDEFINED:
                raise NotPlain("its `data` was never written")
            if stored.base + stored.address + num_bytes > file_size:
                raise Damaged(f"{words} needs {num_bytes:,} bytes, more than the file's {file_size:,}")
        return
    if stored.chunk_bytes > MAX_CHUNK_BYTES:
        raise NotPlain(
            f"its chunks {stored.chunks} are of {stored.chunk_bytes:,} bytes; "
            f"{MAX_CHUNK_BYTES:,} are the limit"
        )
    most_chunks = max(file_size // 8, MAX_UNWRITTEN)
    if (
        num_bytes > MAX_INFLATION * file_size
        or max(math.prod(stored.grid), stored.chunks_a_row) > most_chunks
    ):
        raise Damaged(f"{words} is more than a file of {file_size:,} bytes can hold")


def _dataspace(data: bytes) -> tuple[int, ...]:
    version, rank = data[0], data[1]
    if version not in (1, 2):
        raise NotPlain(f"the shape of its `data` is of version {version}")
    if rank == 0:
        raise NotPlain("its `data` is a single value")
    if rank > MAX_RANK:
        raise NotPlain(f"its `data` has {rank} axes; {MAX_RANK} are the limit")
    return struct.unpack_from(f"<{rank}Q", data, 8 if version == 1 else 4)


def _datatype(data: bytes) -> np.dtype[np.generic]:
    """The numpy type of whole numbers of 1 to 8 bytes or IEEE floats. Raises NotPlain for any other."""
    kind = data[0] & 15
    bits = int.from_bytes(data[1:4], "little")
    (size,) = struct.unpack_from("<I", data, 4)
    order = ">" if bits & 1 else "<"
    if kind == 0 and size in (1, 2, 4, 8):
        if struct.unpack_from("<HH", data, 8) == (0, 8 * size):
            return np.dtype(f"{order}{'i' if bits & 8 else 'u'}{size}")
    elif kind == 1 and size in _FLOATS and not bits & 0x40:
        offset, precision, *parts = struct.unpack_from("<HHBBBBI", data, 8)
        if (offset, precision) == (0, 8 * size) and tuple(parts) == _FLOATS[size]:
            return np.dtype(f"{order}f{size}")
    raise NotPlain("its `data` is not an array of whole or floating-point numbers of a usual size")


def _filters(data: bytes, more: frozenset[int]) -> tuple[int, ...]:
    """Filter numbers in the order in which they are applied when writing."""
    version, count = data[0], data[1]
    if version not in (1, 2):
        raise NotPlain(f"the filters of its `data` are of version {version}")
    at = 8 if version == 1 else 2
    numbers = []
    for _ in range(count):
        (number,) = struct.unpack_from("<H", data, at)
        at += 2
        name_size = 0
        if version == 1 or number >= 256:
            (name_size,) = struct.unpack_from("<H", data, at)
            at += 2
        values = struct.unpack_from("<HH", data, at)[1]
        at += 4 + name_size + 4 * values + (4 if version == 1 and values % 2 else 0)
        if number not in _FILTERS | more:
            raise NotPlain(
                f"its `data` went through HDF5 filter {number}; gzip, shuffle, fletcher32 and lzf can be "
                "read. Write it again with gzip"
            )
        numbers.append(number)
    return tuple(numbers)


def _fill_value(messages: dict[int, bytes], itemsize: int) -> bytes:
    """Bytes of one element that was never written."""
    value = b""
    if 0x0005 in messages:
        data = messages[0x0005]
        if data[0] in (1, 2) and (data[0] == 1 or data[3]):
            (size,) = struct.unpack_from("<I", data, 4)
            value = data[8 : 8 + size]
        elif data[0] == 3 and data[1] & 0x20:
            (size,) = struct.unpack_from("<I", data, 2)
            value = data[6 : 6 + size]
    elif 0x0004 in messages:
        (size,) = struct.unpack_from("<I", messages[0x0004])
        value = messages[0x0004][4 : 4 + size]
    return value if len(value) == itemsize else bytes(itemsize)


def _chunked_3(
    layout: bytes, rank: int, dtype: np.dtype[np.generic], filtered: bool
) -> tuple[tuple[int, ...], ChunkIndex]:
    (address,) = struct.unpack_from("<Q", layout, 3)
    sizes = struct.unpack_from(f"<{layout[2]}I", layout, 11)
    return _chunk_shape(sizes, rank, dtype), ChunkIndex("btree", address)


def _chunked_4(
    layout: bytes, rank: int, dtype: np.dtype[np.generic], filtered: bool
) -> tuple[tuple[int, ...], ChunkIndex]:
    flags, count, width = layout[2], layout[3], layout[4]
    if not 1 <= width <= 8:
        raise Damaged("its chunks' sizes have no size")
    at = 5 + count * width
    if at > len(layout):
        raise Damaged("the description of its `data` is cut off")
    sizes = tuple(int.from_bytes(layout[5 + i * width : 5 + (i + 1) * width], "little") for i in range(count))
    chunks = _chunk_shape(sizes, rank, dtype)
    kind, at = layout[at], at + 1
    single = None
    if kind == 1 and flags & 2:
        single = struct.unpack_from("<QI", layout, at)
        at += 12
    at += {1: 0, 2: 0, 3: 1, 4: 5, 5: 6}.get(kind, 0)
    names = {1: "single", 2: "implicit", 3: "fixed array", 4: "extensible array"}
    if kind not in names:
        raise NotPlain("its chunks may grow along several axes, which no shard needs (a B-tree of version 2)")
    (address,) = struct.unpack_from("<Q", layout, at)
    if flags & 1 and filtered:
        raise NotPlain("its chunks at the edges are stored without filters, which no shard needs")
    return chunks, ChunkIndex(names[kind], address, single)


def _chunk_shape(sizes: tuple[int, ...], rank: int, dtype: np.dtype[np.generic]) -> tuple[int, ...]:
    if len(sizes) != rank + 1 or 0 in sizes or sizes[-1] != dtype.itemsize:
        raise Damaged(f"its chunks {sizes[:-1]} do not fit its {rank} axes and its type {dtype}")
    return sizes[:-1]
