"""Zstandard: the library's stream decompressor for what is whole; block by block for what is not.

A frame says how much memory (its "window") decompressing takes; `zstd --long=31` makes frames that ask for 2
GiB. More than `max_window` is refused, unless the frame's content is smaller than that, whatever the header
asks for.
"""

from __future__ import annotations

import mmap
from collections.abc import Generator, Iterator
from typing import BinaryIO

import zstandard

from btlm_data.records.base import Compression, Damage
from btlm_data.records.compression import zstd_frames
from btlm_data.records.compression.members import MAX_DAMAGES
from btlm_data.records.compression.zstd_frames import Frame, Garbage

_LARGEST_WINDOW = 2**31  # the format's tools go no further
_READ_BYTES = 2**18


def _decompress(file: BinaryIO, piece_bytes: int, max_window: int) -> Iterator[bytes | Damage]:
    size = file.seek(0, 2)
    if not size:
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        produced = 0
        if all(_is_good(part, max_window) for part in zstd_frames.walk(data)):
            file.seek(0)
            reader = _new_decompressor().stream_reader(
                file, read_size=_READ_BYTES, read_across_frames=True, closefd=False
            )
            try:
                while piece := reader.read(piece_bytes):
                    produced += len(piece)
                    yield piece
            except zstandard.ZstdError:
                pass
            else:
                return
        yield from _salvage(data, produced, max_window)


def _is_good(part: Frame | Garbage, max_window: int) -> bool:
    return isinstance(part, Frame) and not part.is_cut and part.window <= max_window


def _new_decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)


def _salvage(data: mmap.mmap, skip: int, max_window: int) -> Iterator[bytes | Damage]:
    """All bytes that can be decompressed, after the first `skip`, and a Damage wherever some are missing."""
    position, damages = 0, 0
    while position < len(data) and damages < MAX_DAMAGES:
        part = next(zstd_frames.walk(data, position), None)
        if part is None:
            return
        position = part.end
        if isinstance(part, Garbage):
            where = "the file begins with" if part.start == 0 else f"after byte {part.start} as stored come"
            lost = part.end - part.start
            detail = f"{where} {lost:,} bytes that are not zstd ({data[part.start : part.start + 8]!r})"
            damage: Damage | None = Damage("corrupt_file", detail, lost)
        elif part.window > max_window:
            damage = Damage("window_too_large", _window_words(part, max_window), part.end - part.start)
        else:
            skip, damage, position = yield from _frame(data, part, skip)
        if damage is not None:
            damages += 1
            yield damage


def _window_words(frame: Frame, max_window: int) -> str:
    needed = f"{frame.window / 2**20:,.0f} MiB"
    if frame.window > _LARGEST_WINDOW:
        return f"the zstd frame at byte {frame.start} asks for a window of {needed}; 2,048 MiB are the most"
    log = max(10, (frame.window - 1).bit_length())
    return (
        f"decompressing the zstd frame at byte {frame.start} takes a window of {needed} "
        f"(made with --long={log}?), "
        f"more than source.max_window = {max_window:,}; set source.max_window to {2 ** (log - 20)}MiB "
        "(each worker takes that much more memory)"
    )


def _frame(
    data: mmap.mmap, frame: Frame, skip: int
) -> Generator[bytes, None, tuple[int, Damage | None, int]]:
    """One frame, block by block. Returns what is left to skip, the damage, and where to look for the next
    frame.
    """
    decompressor = _new_decompressor().decompressobj()
    last_start = frame.start
    for block in zstd_frames.blocks(data, frame):
        last_start = block.start
        try:
            piece = decompressor.decompress(data[block.start : block.end])
        except zstandard.ZstdError as error:
            reason = str(error).split(": ")[-1]
            if "ictionary" in reason:
                detail = (
                    f"the zstd frame at byte {frame.start} was compressed with a dictionary, which is not in the file; "
                    "decompress it with `zstd -d -D DICTIONARY`"
                )
                return skip, Damage("corrupt_file", detail, frame.end - frame.start), frame.end
            if "memory" in reason or "window" in reason:
                detail = f"the zstd frame at byte {frame.start} asks for a window above 2 GiB"
                return skip, Damage("window_too_large", detail, frame.end - frame.start), frame.end
            if block.content == 0 and block.start > frame.start:
                detail = (
                    f"the checksum of the zstd frame at byte {frame.start} does not match: "
                    "what was decompressed from it was used, and some of it may be wrong"
                )
                return skip, Damage("corrupt_file", detail), frame.end
            end = _next_frame(data, frame, block.start + 1)
            return skip, _damaged(block.start, end, reason), end
        if skip < len(piece):
            yield piece[skip:] if skip else piece
        skip = max(0, skip - len(piece))
    if frame.is_cut:
        end = _next_frame(data, frame, last_start + 1)
        if end < len(data):
            return skip, _damaged(last_start, end, "a block extends past the end of the file"), end
        detail = f"the file ends in the middle of a zstd frame, at byte {frame.end} as stored"
        return skip, Damage("truncated_file", detail, frame.end - last_start), frame.end
    return skip, None, frame.end


def _damaged(start: int, end: int, reason: str) -> Damage:
    detail = (
        f"damaged zstd data at byte {start} as stored ({reason}); "
        f"{end - start:,} bytes as stored could not be decompressed"
    )
    return Damage("corrupt_file", detail, end - start)


def _next_frame(data: mmap.mmap, frame: Frame, position: int) -> int:
    """Where the next frame begins: after this one if one begins there, else wherever the next magic number
    is.
    """
    follows = data[frame.end : frame.end + 4]
    if frame.end == len(data) and not frame.is_cut:
        return frame.end
    if follows == zstd_frames.MAGIC or (len(follows) == 4 and follows[1:] == b"\x2a\x4d\x18"):
        return frame.end
    start = data.find(zstd_frames.MAGIC, position)
    return len(data) if start < 0 else start


def _is_start(data: bytes) -> bool:
    return data[:4] == zstd_frames.MAGIC or zstd_frames.is_skippable(data[:4])


ZSTD = Compression("zstd", (".zst", ".zstd"), _is_start, _decompress)
