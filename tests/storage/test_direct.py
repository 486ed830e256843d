"""A file that is written past the page cache has the bytes that were written, whatever their number and the pieces."""

from __future__ import annotations

import errno
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from btlm_data.storage import direct

BUFFER = direct._BUFFER
PIECES: tuple[list[int], ...] = (
    [],
    [1],
    [direct.BLOCK],
    [direct.BLOCK - 1, 2],
    [BUFFER],
    [BUFFER - 1, 1, 5],
    [3, 2 * BUFFER, direct.BLOCK],
)


def pieces_of(sizes: list[int]) -> list[bytes]:
    data = os.urandom(sum(sizes))
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    return [data[end - size : end] for size, end in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize("sizes", PIECES)
def test_the_file_is_what_was_written(tmp_path: Path, sizes: list[int]) -> None:
    pieces, path = pieces_of(sizes), tmp_path / "file"
    path.write_bytes(b"of another, longer file" * BUFFER)
    with direct.DirectFile(path) as file:
        assert [file.write(piece) for piece in pieces] == sizes
        assert file.tell() == sum(sizes)
    assert path.read_bytes() == b"".join(pieces)


def test_buffers_of_closed_files_serve_others(tmp_path: Path) -> None:
    def write(number: int) -> None:
        drawn = random.Random(number)
        for turn in range(12):
            pieces = pieces_of([drawn.randrange(1, 2 * BUFFER) for _ in range(drawn.randrange(1, 4))])
            path = tmp_path / f"{number}-{turn}"
            with direct.DirectFile(path) as file:
                for piece in pieces:
                    file.write(piece)
            assert path.read_bytes() == b"".join(pieces)
            path.unlink()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(8)))
    assert 1 <= len(direct._FREE) <= direct._MOST_FREE
    assert len({id(buffer) for buffer in direct._FREE}) == len(direct._FREE)


def test_what_is_flushed_is_there_and_more_can_follow(tmp_path: Path) -> None:
    path, written = tmp_path / "file", b""
    with direct.DirectFile(path) as file:
        for piece in pieces_of([100, BUFFER, direct.BLOCK, 7]):
            file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            written += piece
            assert path.read_bytes() == written


def test_a_file_system_that_refuses_direct_writes_gets_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some do when the file is opened, others when it is written."""
    fcntl, refused = pytest.importorskip("fcntl"), []
    really_open, really_write = os.open, os.pwrite

    def open_(path: Any, flags: int, *mode: int) -> int:
        refused.append("opened")
        if flags & direct._DIRECT and "opened" not in refused[:-1]:
            raise OSError(errno.EINVAL, "Invalid argument")
        return really_open(path, flags, *mode)

    def write(descriptor: int, data: bytes, offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & direct._DIRECT:
            refused.append("written")
            raise OSError(errno.EINVAL, "Invalid argument")
        return really_write(descriptor, data, offset)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "pwrite", write)
    for name in ("refused when opened", "refused when written"):
        with direct.DirectFile(tmp_path / name) as file:
            file.write(b"text")
        assert (tmp_path / name).read_bytes() == b"text"
    assert refused == ["opened"] * 3 + ["written"] * bool(direct._DIRECT)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = direct.DirectFile(tmp_path / "file")
    file.write(b"text")
    monkeypatch.setattr(os, "pwrite", write)
    with pytest.raises(OSError, match="No space left"):
        file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.fileno())
