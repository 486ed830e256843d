"""Walk the frames of a zstd file without decompressing it: is it whole, where does each frame begin, what
does it need?

Source: RFC 8878, section 3.1.1 (frames) and 3.1.2 (skippable frames). A streaming decompressor that meets the
end of the input in mid-frame simply gives no more data, so whether a file was cut can only be learned from
its structure.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import msgspec

MAGIC = b"\x28\xb5\x2f\xfd"
MAX_BLOCK_BYTES = 2**17  # of content


class Frame(msgspec.Struct, frozen=True):
    """A stretch [start, end) of the file that has a frame's structure.

    window: bytes of memory that decompressing it takes: what its header asks for, or its content if that is
    less. is_cut: whether the file ends before the frame does.
    """

    start: int
    end: int
    window: int
    is_cut: bool = False


class Garbage(msgspec.Struct, frozen=True):
    """A stretch [start, end) of the file that is no frame."""

    start: int
    end: int


class Block(msgspec.Struct, frozen=True):
    """A block of a frame: bytes [start, end) of the file, header included. content: at most that many
    bytes.
    """

    start: int
    end: int
    content: int


def walk(data: mmap.mmap | bytes, position: int = 0) -> Iterator[Frame | Garbage]:
    """Follow frame and block headers (one per at most 128 KiB of content) from `position` to the end of the
    file.

    Skippable frames are passed over. Behind garbage the next frame is looked for by its magic number.
    """
    size = len(data)
    while position < size:
        magic = data[position : position + 4]
        if is_skippable(magic):
            end = position + 8 + int.from_bytes(data[position + 4 : position + 8], "little")
            if end > size:
                yield Frame(position, size, 0, is_cut=True)
                return
        elif magic == MAGIC:
            frame = read_frame(data, position)
            yield frame
            end = frame.end
        elif size - position < 4 and MAGIC.startswith(magic):
            yield Frame(position, size, 0, is_cut=True)
            return
        else:
            end = data.find(MAGIC, position + 1)
            end = size if end < 0 else end
            yield Garbage(position, end)
        position = end


def is_skippable(magic: bytes) -> bool:
    """Whether a skippable frame begins with these four bytes."""
    return magic[1:] == b"\x2a\x4d\x18" and 0x50 <= magic[0] <= 0x5F


def read_frame(data: mmap.mmap | bytes, start: int) -> Frame:
    """The frame whose magic number is at `start`."""
    size = len(data)
    header = _header(data, start)
    if header is None:
        return Frame(start, size, 0, is_cut=True)
    end, window, checksum_bytes = header
    content, is_last = 0, False
    for block_end, block_content, is_last_block in _blocks(data, end, size):
        end, is_last = block_end, is_last_block
        content += block_content
    end += checksum_bytes
    is_cut = not is_last or end > size
    return Frame(start, size if is_cut else end, min(window, content), is_cut)


def blocks(data: mmap.mmap | bytes, frame: Frame) -> Iterator[Block]:
    """The frame's header (as a block without content), its blocks, and its checksum (likewise); the last may
    be cut.
    """
    header = _header(data, frame.start)
    if header is None:
        yield Block(frame.start, frame.end, 0)
        return
    position = header[0]
    yield Block(frame.start, position, 0)
    for end, content, _ in _blocks(data, position, frame.end):
        yield Block(position, min(end, frame.end), content)
        position = end
    if position < frame.end:
        yield Block(position, frame.end, 0)


def _header(data: mmap.mmap | bytes, start: int) -> tuple[int, int, int] | None:
    """Offset of the first block, window in bytes, bytes of checksum at the end; None if the file ends
    before.
    """
    position = start + 4
    if position >= len(data):
        return None
    descriptor = data[position]
    single_segment = bool(descriptor & 0x20)
    size_flag = descriptor >> 6
    position += 1
    window = 0
    if not single_segment:
        if position >= len(data):
            return None
        exponent, mantissa = data[position] >> 3, data[position] & 7
        window = (1 << (10 + exponent)) * (8 + mantissa) // 8
        position += 1
    position += (0, 1, 2, 4)[descriptor & 3]
    size_bytes = ((1 if single_segment else 0), 2, 4, 8)[size_flag]
    if position + size_bytes > len(data):
        return None
    if single_segment:
        window = int.from_bytes(data[position : position + size_bytes], "little") + (
            256 if size_bytes == 2 else 0
        )
    return position + size_bytes, window, 4 if descriptor & 4 else 0


def _blocks(data: mmap.mmap | bytes, position: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """(end, most bytes of content, whether it is the last) of each block; an end behind `size` where it is
    cut.
    """
    while position + 3 <= size:
        header = int.from_bytes(data[position : position + 3], "little")
        kind, length = (header >> 1) & 3, header >> 3
        position += 3 + (1 if kind == 1 else length)  # an RLE block stores one byte
        is_last = bool(header & 1) and position <= size
        yield position, min(length, MAX_BLOCK_BYTES) if kind < 2 else MAX_BLOCK_BYTES, is_last
        if header & 1 or position > size:
            return
