"""A file that is written some at a time has the bytes that were written, and no write is large."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from btlm_data.storage import cached, open_store

AT_ONCE = cached._AT_ONCE


@pytest.mark.parametrize("sizes", [[], [0, 1], [AT_ONCE], [5, AT_ONCE + 1, 3], [3 * AT_ONCE + 7, 9000, 1]])
def test_the_file_is_what_was_written(
    tmp_path: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces, written = [os.urandom(size) for size in sizes], []
    write = cached._File.write

    def note(self: cached._File, data: bytes) -> int:
        written.append(count := write(self, data))
        return count

    monkeypatch.setattr(cached._File, "write", note)
    with open_store(tmp_path).create("file") as creating:
        assert [creating.file.write(piece) for piece in pieces] == sizes
        assert creating.file.tell() == sum(sizes)
        creating.file.seek(0)
        assert creating.file.read() == b"".join(pieces)
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)
    assert sum(written) == sum(sizes)
    assert max(written, default=0) <= AT_ONCE


def test_arrays_of_wider_numbers_are_bytes(tmp_path: Path) -> None:
    """A memoryview of an array counts elements, not bytes."""
    numbers = np.arange(AT_ONCE, dtype=np.int64)
    with cached.create(tmp_path / "file") as file:
        assert file.write(numbers.data) == numbers.nbytes
    assert (tmp_path / "file").read_bytes() == numbers.tobytes()


def test_a_file_that_is_there_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        cached.create(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"
