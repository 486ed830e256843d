from __future__ import annotations

import os
from itertools import pairwise

import pytest
import zstandard

from btlm_data.records.compression.zstd_frames import Frame, Garbage, blocks, walk

SKIPPABLE = b"\x57\x2a\x4d\x18\x05\0\0\0hello"


def frame(data: bytes, *, level: int = 3, checksum: bool = False, size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_checksum=checksum, write_content_size=size).compress(
        data
    )


def streamed(data: bytes) -> bytes:
    """A frame without its content size, with a window descriptor."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    return compressor.compress(data) + compressor.flush()


FRAMES = {
    "empty": frame(b""),
    "short": frame(b"abc"),
    "one of each header": frame(b"x" * 300),
    "64 KiB and more": frame(os.urandom(70_000)),
    "repeated bytes": frame(b"\0" * 1_000_000),
    "checksum": frame(b"abc" * 1000, checksum=True),
    "no size": streamed(os.urandom(300_000) + b"z" * 500_000),
    "no size, checksum": frame(b"q" * 9000, size=False, checksum=True),
}


def shape(data: bytes) -> list[tuple[int, int, bool] | tuple[int, int]]:
    """(start, end, is_cut) of each frame, (start, end) of garbage."""
    return [
        (part.start, part.end, part.is_cut) if isinstance(part, Frame) else (part.start, part.end)
        for part in walk(data)
    ]


@pytest.mark.parametrize("name", FRAMES)
def test_every_cut_is_seen_and_the_whole_is_whole(name: str) -> None:
    data = FRAMES[name]
    assert shape(data) == [(0, len(data), False)]
    for size in {1, 2, 3, 4, 5, 6, 7, 8, 9, len(data) // 2, len(data) - 5, len(data) - 1} & set(
        range(1, len(data))
    ):
        assert shape(data[:size]) == [(0, size, True)]


@pytest.mark.parametrize("name", FRAMES)
def test_blocks_cover_a_frame_and_bound_its_content(name: str) -> None:
    data = FRAMES[name]
    (frame,) = walk(data)
    assert isinstance(frame, Frame)
    parts = list(blocks(data, frame))
    assert parts[0].start == 0
    assert parts[-1].end == len(data)
    assert all(a.end == b.start for a, b in pairwise(parts))
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    sizes = [len(decompressor.decompress(data[part.start : part.end])) for part in parts]
    assert all(size <= part.content for size, part in zip(sizes, parts, strict=True))
    assert frame.window <= max(2**20 * 8, sum(sizes) + 2**17)


def test_several_frames_skippable_ones_and_garbage() -> None:
    first, second = FRAMES["short"], FRAMES["no size"]
    place = len(SKIPPABLE)
    assert shape(SKIPPABLE + first + SKIPPABLE + second + SKIPPABLE) == [
        (place, place + len(first), False),
        (2 * place + len(first), 2 * place + len(first) + len(second), False),
    ]
    cut = first + SKIPPABLE[:-1]
    assert shape(cut) == [(0, len(first), False), (len(first), len(cut), True)]
    start = len(first)
    assert shape(first + b"garbage" + first) == [
        (0, start, False),
        (start, start + 7),
        (start + 7, 2 * start + 7, False),
    ]
    assert list(walk(b"garbage")) == [Garbage(0, 7)]
    assert list(walk(b"")) == []


def test_the_window_is_what_the_header_says_or_the_content_if_that_is_less() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    for content, most in ((b"short", 5), (os.urandom(600_000), 600_000 + 2**17)):
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        (frame,) = walk(compressor.compress(content) + compressor.flush())
        assert isinstance(frame, Frame)
        assert len(content) <= frame.window <= most
