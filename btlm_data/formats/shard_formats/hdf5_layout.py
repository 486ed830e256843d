"""An HDF5 file with one dataset, laid out byte by byte: what any HDF5 library since 1.0 of the format's
version 0 reads.

The library itself is not used for writing, for three reasons: its bytes depend on its version, where ours
must be the same everywhere; a call per chunk costs more than compressing the chunk; and a failed write in it
does not name the cause. The tests read every kind of file with the stock library.

    0        superblock, version 0 (96 bytes)
    ...      root group: object header with the attributes, symbol table (B-tree, local heap, one node)
    ...      object header of `data`: dataspace, datatype, fill value, layout, filters
    ...      the chunks, one after another, or the contiguous data
    end      B-tree of the chunks, full nodes, leaves first

Source: "HDF5 File Format Specification Version 3.0", sections II.A, III.A.1, III.B to III.D, IV.A.1 and
IV.A.2.
"""

from __future__ import annotations

import struct
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

NAME = b"data"
_UNDEFINED = 2**64 - 1
_LEAF_K, _INTERNAL_K = 4, 16  # symbols and children of a group node: half of how many fit
_CHILDREN = 64  # children of a chunk B-tree node: twice the format's default of 32, which version 0 implies


class Dataset(msgspec.Struct, frozen=True):
    """What the file holds: shape, element type, chunk shape (None: contiguous), and the filters each chunk
    went through.

    gzip is the level to note in the file (None: not compressed); attributes are the root group's, 64-bit
    integers.
    """

    shape: tuple[int, ...]
    dtype: Literal["<i4", "<u2"]
    chunks: tuple[int, ...] | None
    gzip: int | None
    shuffle: bool
    attributes: dict[str, int]


def head_size(dataset: Dataset) -> int:
    """Where the data starts."""
    return len(head(dataset, 0, 0))


def head(dataset: Dataset, data_address: int | None, end_of_file: int) -> bytes:
    """Everything before the data. data_address: of the chunks' B-tree root or the contiguous data; None if
    there is none.
    """
    root_messages = [(0x0011, struct.pack("<QQ", 0, 0))] + [
        (0x000C, _attribute(n, v)) for n, v in sorted(dataset.attributes.items())
    ]
    root = 96
    tree = root + len(_object_header(root_messages))
    heap = tree + 24 + (2 * _INTERNAL_K) * 8 + (2 * _INTERNAL_K + 1) * 8
    heap_data = heap + 32
    node = heap_data + 16
    header = node + 8 + 2 * _LEAF_K * 40
    root_messages[0] = (0x0011, struct.pack("<QQ", tree, heap))
    superblock = struct.pack(
        "<8s8B2HI4Q", b"\x89HDF\r\n\x1a\n", 0, 0, 0, 0, 0, 8, 8, 0, _LEAF_K, _INTERNAL_K, 0, 0, _UNDEFINED, end_of_file, _UNDEFINED
    ) + struct.pack("<QQIIQQ", 0, root, 1, 0, tree, heap)  # fmt: skip
    group_tree = struct.pack("<4sBBHQQQQQ", b"TREE", 0, 0, 1, _UNDEFINED, _UNDEFINED, 0, node, 8)
    local_heap = struct.pack("<4sB3xQQQ", b"HEAP", 0, 16, 1, heap_data) + bytes(8) + NAME.ljust(8, b"\0")
    symbols = struct.pack("<4sBxH", b"SNOD", 1, 1) + struct.pack("<QQII16x", 8, header, 0, 0)
    return b"".join(
        [
            superblock,
            _object_header(root_messages),
            group_tree.ljust(heap - tree, b"\0"),
            local_heap,
            symbols.ljust(header - node, b"\0"),
            _object_header(_dataset_messages(dataset, _UNDEFINED if data_address is None else data_address)),
        ]
    )


def chunk_index(
    dataset: Dataset, addresses: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], start: int
) -> tuple[bytes, int | None]:
    """The B-tree over chunks along axis 0, to be written at `start`; and its root's address (None without
    chunks).

    addresses and sizes: of each chunk's bytes in the file, in order of axis 0. addresses, sizes: (chunks,)
    int64.
    """
    assert dataset.chunks is not None
    if not len(addresses):
        return b"", None
    rank = len(dataset.shape)
    key = [("size", "<u4"), ("mask", "<u4"), ("offset", "<u8", (rank + 1,))]
    entry = np.dtype([*key, ("child", "<u8")])
    node = np.dtype(
        [
            *[
                ("signature", "S4"),
                ("type", "u1"),
                ("level", "u1"),
                ("used", "<u2"),
                ("left", "<u8"),
                ("right", "<u8"),
            ],
            *[("entries", entry, (_CHILDREN,)), ("last", key)],
        ]
    )
    entries = np.zeros(len(addresses), entry)
    entries["size"], entries["child"] = sizes, addresses
    entries["offset"][:, 0] = np.arange(len(addresses)) * dataset.chunks[0]
    beyond = np.zeros((), np.dtype(key))
    beyond["offset"][0] = len(addresses) * dataset.chunks[0]
    out, level = b"", 0
    while True:
        count = -(-len(entries) // _CHILDREN)
        nodes = np.zeros(count, node)
        nodes["signature"], nodes["type"], nodes["level"] = b"TREE", 1, level
        padded = np.zeros(count * _CHILDREN, entry)
        padded[: len(entries)] = entries
        nodes["entries"] = padded.reshape(count, _CHILDREN)
        nodes["used"] = np.minimum(_CHILDREN, len(entries) - _CHILDREN * np.arange(count))
        own = start + len(out) + node.itemsize * np.arange(count)
        nodes["left"] = np.concatenate([[_UNDEFINED], own[:-1].astype(np.uint64)])
        nodes["right"] = np.concatenate([own[1:].astype(np.uint64), [_UNDEFINED]])
        # A node's keys are around its children: the key after its last child is the next node's first, or
        # is beyond all chunks.
        firsts = nodes["entries"][:, 0]
        for name in ("size", "mask", "offset"):
            nodes["last"][name][:-1] = firsts[name][1:]
            nodes["last"][name][-1] = beyond[name]
            if nodes["used"][-1] < _CHILDREN:
                nodes["entries"][name][-1, nodes["used"][-1]] = beyond[name]
        out += nodes.tobytes()
        if count == 1:
            return out, int(own[0])
        entries = np.zeros(count, entry)
        for name in ("size", "mask", "offset"):
            entries[name] = firsts[name]
        entries["child"] = own
        level += 1


def _dataset_messages(dataset: Dataset, address: int) -> list[tuple[int, bytes]]:
    item = np.dtype(dataset.dtype).itemsize
    rank = len(dataset.shape)
    if dataset.chunks is None:
        nbytes = int(np.prod(dataset.shape, dtype=np.int64)) * item
        layout, allocation = struct.pack("<BBQQ", 3, 1, address, nbytes), 2
    else:
        layout, allocation = (
            struct.pack(f"<BBBQ{rank + 1}I", 3, 2, rank + 1, address, *dataset.chunks, item),
            3,
        )
    messages = [
        (0x0001, _dataspace(dataset.shape, chunked=dataset.chunks is not None)),
        (0x0003, _integer_type(item, signed=dataset.dtype == "<i4")),
        (
            0x0005,
            struct.pack("<BBBBI", 2, allocation, 2, 1, 0),
        ),  # the default fill value, written only if it were set
        (0x0008, layout),
    ]
    filters = [_filter(2, b"shuffle", item)] if dataset.shuffle else []
    filters += [_filter(1, b"deflate", dataset.gzip)] if dataset.gzip is not None else []
    if filters:
        messages.append((0x000B, struct.pack("<BB6x", 1, len(filters)) + b"".join(filters)))
    return messages


def _filter(number: int, name: bytes, value: int) -> bytes:
    """One filter with one parameter, marked optional as the library does (a filter may leave out what it
    cannot shrink).
    """
    return struct.pack("<HHHH8sII", number, 8, 1, 1, name, value, 0)


def _dataspace(shape: tuple[int, ...], *, chunked: bool = False) -> bytes:
    """Fixed size, but for axis 0 of an empty chunked dataset: no chunk may be larger than a fixed one."""
    limits = (_UNDEFINED, *shape[1:]) if chunked and not shape[0] else shape
    return struct.pack(f"<BBB5x{len(shape)}Q{len(shape)}Q", 1, len(shape), 1 if shape else 0, *shape, *limits)


def _integer_type(item: int, *, signed: bool) -> bytes:
    return struct.pack("<BBBBIHH", 0x10, 0x08 if signed else 0, 0, 0, item, 0, 8 * item)


def _attribute(name: str, value: int) -> bytes:
    encoded = name.encode() + b"\0"
    parts = (encoded, _integer_type(8, signed=True), _dataspace(()))
    return struct.pack("<BxHHH", 1, *map(len, parts)) + b"".join(map(_pad, parts)) + struct.pack("<q", value)


def _object_header(messages: list[tuple[int, bytes]]) -> bytes:
    body = b"".join(struct.pack("<HHB3x", kind, len(_pad(data)), 0) + _pad(data) for kind, data in messages)
    return struct.pack("<BxHIIxxxx", 1, len(messages), 1, len(body)) + body


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)
