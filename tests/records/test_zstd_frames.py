from __future__ import annotations

import os
from pathlib import Path

import pytest
import zstandard

from btlm_data.records.zstd_frames import Walk, walk

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


@pytest.mark.parametrize("name", FRAMES)
def test_every_cut_is_seen_and_the_whole_is_whole(tmp_path: Path, name: str) -> None:
    data, path = FRAMES[name], tmp_path / "a.zst"
    path.write_bytes(data)
    assert walk(path) == Walk((0,), None, None)
    for size in {1, 2, 3, 4, 5, 6, 7, 8, 9, len(data) // 2, len(data) - 5, len(data) - 1} & set(
        range(1, len(data))
    ):
        path.write_bytes(data[:size])
        assert walk(path) == Walk((0,) if size >= 4 else (), size, None)


def test_several_frames_and_skippable_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    first, second = FRAMES["short"], FRAMES["no size"]
    path.write_bytes(SKIPPABLE + first + SKIPPABLE + second + SKIPPABLE)
    place = len(SKIPPABLE)
    assert walk(path) == Walk((place, 2 * place + len(first)), None, None)
    path.write_bytes(first + SKIPPABLE[:-1])
    assert walk(path).cut_at == len(first) + len(SKIPPABLE) - 1
    path.write_bytes(first + b"garbage")
    assert walk(path) == Walk((0,), None, len(first))
    path.write_bytes(b"")
    assert walk(path) == Walk((), None, None)
