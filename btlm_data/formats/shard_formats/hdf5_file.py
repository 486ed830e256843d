"""Read the frame of an HDF5 file: its superblock and the messages in the headers of its objects.

Every address and size is checked against the file's, every checksum against its bytes. What the messages mean
to a shard is in hdf5_head.py.

Source: "HDF5 File Format Specification Version 3.0", sections II.A (superblock), IV.A.1 (object headers), A
(checksum).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from btlm_data.formats.shard_formats.byte_source import ByteSource

UNDEFINED = 2**64 - 1
SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_HEADER_BYTES = 1 << 20  # of one object's header: a shard's has some hundreds
MAX_HEADER_BLOCKS = 64


class Damaged(Exception):
    """The bytes contradict the format, in words that complete "FILE ...: "."""


class NotPlain(Exception):
    """A valid HDF5 file that is no plain shard, in words that complete "FILE is not a shard: "."""


class Message(msgspec.Struct, frozen=True):
    """One message in the header of an object. kind, flags and data as the specification has them."""

    kind: int
    flags: int
    data: bytes


class Head:
    """Reads structures at addresses of one file, none outside of it."""

    def __init__(self, source: ByteSource, base: int = 0) -> None:
        self.source = source
        self.base = base

    def bytes_at(self, address: int, count: int, structure: str) -> bytes:
        """`count` bytes at `address`. Raises Damaged where the file does not have them."""
        offset = self.base + address
        if address == UNDEFINED or count < 0 or offset + count > self.source.size:
            raise Damaged(
                f"its {structure} would be outside the file, at byte {offset} of {self.source.size}"
            )
        data = self.source.read_at(offset, count)
        if len(data) != count:
            raise Damaged(f"its {structure} at byte {offset} cannot be read whole")
        return data

    def checked(self, address: int, count: int, signature: bytes, structure: str) -> bytes:
        """A structure of the newer kind, without its signature and checksum (4 bytes each), both of which
        must be right.
        """
        data = self.bytes_at(address, count, structure)
        if data[:4] != signature:
            raise Damaged(f"there is no {structure} at byte {self.base + address}")
        if lookup3(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise Damaged(f"the checksum of its {structure} at byte {self.base + address} is wrong")
        return data[4:-4]


def read_superblock(source: ByteSource) -> tuple[Head, int]:
    """The file's base address and the address of the root group's header."""
    base = 0
    while source.read_at(base, 8) != SIGNATURE:
        base = 512 if base == 0 else 2 * base
        if base + 8 > min(source.size, 1 << 24):
            raise Damaged("it does not begin as HDF5 files do")
    head = Head(source, base)
    version = head.bytes_at(8, 1, "superblock")[0]
    if version <= 1:
        rest = head.bytes_at(0, 96 + 4 * version, "superblock")
        sizes, at = rest[13:15], 24 + 4 * version
        own_base, _, end, driver = struct.unpack_from("<4Q", rest, at)
        (root,) = struct.unpack_from("<Q", rest, at + 40)
        if driver != UNDEFINED:
            raise NotPlain("it is one file of several (HDF5's family or multi driver)")
    elif version <= 3:
        rest = head.checked(0, 48, SIGNATURE[:4], "superblock")
        sizes = rest[5:7]
        own_base, _, end, root = struct.unpack_from("<4Q", rest, 8)
    else:
        raise NotPlain(f"its superblock is of version {version}; versions 0 to 3 are known")
    if sizes != b"\x08\x08":
        raise NotPlain("its addresses or lengths are not of 8 bytes")
    if own_base != base:
        raise Damaged(f"its superblock says that it begins at byte {own_base}, but it begins at byte {base}")
    if end > source.size:  # counted from the beginning of the file, unlike all other addresses
        raise Damaged(f"it is cut off: {source.size} of {end} bytes")
    return head, root


# Object headers ---------------------------------------------------------------------------------------------


def read_messages(head: Head, address: int, object_name: str) -> Iterator[Message]:
    """The messages of an object header of either version, continuation blocks included."""
    start = head.bytes_at(address, 6, f"header of the {object_name}")
    newer = start[:4] == b"OHDR"
    if newer:
        if start[4] != 2:
            raise NotPlain(f"the header of its {object_name} is of version {start[4]}")
        flags = start[5]
        width = 1 << (flags & 3)
        prefix = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0) + width
        sized = head.bytes_at(address, prefix, f"header of the {object_name}")
        size = int.from_bytes(sized[-width:], "little")
        blocks = [(address, prefix + size + 4, prefix)]
    else:
        if start[0] != 1:
            raise Damaged(f"there is no header of its {object_name} at byte {head.base + address}")
        flags = 0
        (size,) = struct.unpack_from("<I", head.bytes_at(address, 16, f"header of the {object_name}"), 8)
        blocks = [(address + 16, size, 0)]
    total, number = 0, 0
    while number < len(blocks):
        block_address, block_size, skipped = blocks[number]
        total += block_size
        if total > MAX_HEADER_BYTES or len(blocks) > MAX_HEADER_BLOCKS:
            raise NotPlain(f"the header of its {object_name} is larger than any shard's")
        if newer:
            signature = b"OHDR" if number == 0 else b"OCHK"
            body = head.checked(block_address, block_size, signature, f"header of the {object_name}")[
                max(0, skipped - 4) :
            ]
        else:
            body = head.bytes_at(block_address, block_size, f"header of the {object_name}")
        for message in _split(body, newer, bool(flags & 4), object_name):
            if message.kind == 0x0010:
                if len(message.data) < 16:
                    raise Damaged(f"the header of its {object_name} continues nowhere")
                blocks.append((*struct.unpack_from("<QQ", message.data), 4 if newer else 0))
            elif message.kind != 0:
                yield message
        number += 1


def _split(body: bytes, newer: bool, ordered: bool, object_name: str) -> Iterator[Message]:
    """The messages in one block of an object header."""
    at, prefix = 0, (4 + 2 * ordered if newer else 8)
    while at + prefix <= len(body):
        if newer:
            kind, size, flags = struct.unpack_from("<BHB", body, at)
        else:
            kind, size, flags = struct.unpack_from("<HHB", body, at)
        if at + prefix + size > len(body):
            raise Damaged(f"a message in the header of its {object_name} is longer than the header")
        yield Message(kind, flags, body[at + prefix : at + prefix + size])
        at += prefix + size


def lookup3(data: bytes) -> int:
    """Bob Jenkins' lookup3 hash (`hashlittle`, initial value 0): the checksum of HDF5's newer structures."""
    mask = 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + len(data)) & mask

    def turned(value: int, count: int) -> int:
        return (value << count | value >> 32 - count) & mask

    whole = max(0, (len(data) - 1) // 12) * 12
    for x, y, z in struct.iter_unpack("<III", data[:whole]):
        a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
        a, c = (a - c ^ turned(c, 4)) & mask, (c + b) & mask
        b, a = (b - a ^ turned(a, 6)) & mask, (a + c) & mask
        c, b = (c - b ^ turned(b, 8)) & mask, (b + a) & mask
        a, c = (a - c ^ turned(c, 16)) & mask, (c + b) & mask
        b, a = (b - a ^ turned(a, 19)) & mask, (a + c) & mask
        c, b = (c - b ^ turned(b, 4)) & mask, (b + a) & mask
    if not data:
        return c
    x, y, z = struct.unpack("<III", data[whole:].ljust(12, b"\0"))
    a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
    c = ((c ^ b) - turned(b, 14)) & mask
    a = ((a ^ c) - turned(c, 11)) & mask
    b = ((b ^ a) - turned(a, 25)) & mask
    c = ((c ^ b) - turned(b, 16)) & mask
    a = ((a ^ c) - turned(c, 4)) & mask
    b = ((b ^ a) - turned(a, 14)) & mask
    return int(((c ^ b) - turned(b, 24)) & mask)
