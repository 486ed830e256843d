"""Walk the frames of a zstd file without decompressing it: is the file whole, and where does each frame begin?

Source: RFC 8878, section 3.1.1 (frames) and 3.1.2 (skippable frames). A streaming decompressor that meets the end of
the input in mid-frame simply gives no more data, so whether a file was cut can only be learned from its structure.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class Walk:
    """What the walk found.

    frames: offset of each frame in bytes. cut_at: offset where the file ends in mid-frame, or None. garbage_at: offset
    of bytes that are no frame, or None.
    """

    frames: tuple[int, ...]
    cut_at: int | None
    garbage_at: int | None


def walk(path: Path) -> Walk:
    """Follow frame and block headers (one per at most 128 KiB of content) to the end of the file."""
    with path.open("rb") as file:
        file.seek(0, 2)
        size = file.tell()
        if size == 0:
            return Walk((), None, None)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            frames: list[int] = []
            position = 0
            while position < size:
                magic = data[position : position + 4]
                if magic[1:] == b"\x2a\x4d\x18" and 0x50 <= magic[0] <= 0x5F:
                    end = position + 8 + int.from_bytes(data[position + 4 : position + 8], "little")
                elif magic == _MAGIC:
                    frames.append(position)
                    end = _frame_end(data, position + 4, size)
                elif size - position < 4 and _MAGIC.startswith(magic):
                    return Walk(tuple(frames), size, None)
                else:
                    return Walk(tuple(frames), None, position)
                if end > size:
                    return Walk(tuple(frames), size, None)
                position = end
            return Walk(tuple(frames), None, None)


def _frame_end(data: mmap.mmap, position: int, size: int) -> int:
    """Offset after the frame whose descriptor is at `position`; more than `size` if the file ends before it."""
    if position >= size:
        return size + 1
    descriptor = data[position]
    single_segment = bool(descriptor & 0x20)
    size_flag = descriptor >> 6
    position += (
        1
        + (0 if single_segment else 1)
        + (0, 1, 2, 4)[descriptor & 3]
        + ((1 if single_segment else 0), 2, 4, 8)[size_flag]
    )
    while position + 3 <= size:
        header = int.from_bytes(data[position : position + 3], "little")
        kind, length = (header >> 1) & 3, header >> 3
        position += 3 + (1 if kind == 1 else length)  # an RLE block stores one byte
        if header & 1:
            return position + (4 if descriptor & 4 else 0)
    return size + 1
