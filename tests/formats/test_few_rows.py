"""Rows here and there are read by looking chunks up in their index, and are what reading all of the index gives."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.formats.shard_formats import hdf5_chunks, reader
from btlm_data.formats.shard_formats.byte_source import LocalFile
from btlm_data.formats.shard_formats.reader import ShardReader
from btlm_data.formats.shard_formats.writer import ShardOptions, ShardWriter


def written(rows: npt.NDArray[np.int32], size: int = 1) -> bytes:
    file = BytesIO()
    with ShardWriter(file, rows.shape, (size, *rows.shape[1:]), ShardOptions("gzip", 6)) as writer:
        for low in range(0, len(rows), size):
            part = rows[low : low + size]
            writer.add(np.pad(part, [(0, size - len(part)), (0, 0), (0, 0)]).reshape(1, -1))
    return file.getvalue()


def rows_of(count: int) -> npt.NDArray[np.int32]:
    return np.random.default_rng(count).integers(0, 50, (count, 3, 4), np.int32)


class Counted(LocalFile):
    """A file, and the bytes that were read of it."""

    num_bytes = 0

    def read_at(self, offset: int, count: int) -> bytes:
        self.num_bytes += count
        return super().read_at(offset, count)


@given(st.integers(1, 5000), st.sampled_from([1, 3]), st.lists(st.integers(0, 4999), max_size=60))
@example(1, 1, [0])
@example(64, 1, [63, 0, 63])
@example(65, 1, [64, 0])
@example(64 * 64 + 1, 1, list(range(0, 4097, 64)))  # three levels, and more lookups than are made
def test_rows_are_those_of_the_whole_index(
    tmp_path_factory: pytest.TempPathFactory, count: int, size: int, numbers: list[int]
) -> None:
    path, rows = tmp_path_factory.mktemp("few") / "data.h5", rows_of(count)
    path.write_bytes(written(rows, size))
    with ShardReader(path, reads_few=True) as shard:
        for number in numbers:
            row = number % count
            assert (shard.read(row, row + 1) == rows[row : row + 1]).all()
            assert (shard.read(row, min(row + 2, count)) == rows[row : row + 2]).all()


def test_a_row_costs_a_node_of_each_level(tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    path.write_bytes(written(rows_of(9000)))
    costs = []
    for reads_few in (True, False):
        file = Counted(path)
        with ShardReader(file, reads_few=reads_few) as shard:
            file.num_bytes = 0
            shard.read(4321, 4323)
            costs.append(file.num_bytes)
    node = 24 + 64 * 48 + 40
    assert costs[0] < 3 * node + 200
    assert costs[1] > 9000 * 40


def test_many_rows_read_the_index_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rows, found = tmp_path / "data.h5", rows_of(9000), []
    path.write_bytes(written(rows))
    find = hdf5_chunks.find_chunk
    monkeypatch.setattr(reader, "find_chunk", lambda *given: found.append(1) or find(*given))
    with ShardReader(path, reads_few=True) as shard:
        for row in range(0, 9000, 70):
            assert (shard.read(row, row + 1) == rows[row]).all()
    assert len(found) == reader._MOST_LOOKUPS


def test_files_of_others_are_read_as_before(tmp_path: Path) -> None:
    """h5py writes chunks in whatever order they come, and other indexes."""
    rows = rows_of(300)
    for version in ("earliest", "latest"):
        path = tmp_path / f"{version}.h5"
        with h5py.File(path, "w", libver=version) as file:
            data = file.create_dataset("data", rows.shape, np.int32, chunks=(1, 3, 4), compression="gzip")
            for row in np.random.default_rng(0).permutation(300)[:250]:
                data[row] = rows[row]
            expected = data[:]
        with ShardReader(path, reads_few=True) as shard:
            for row in range(300):
                assert (shard.read(row, row + 1) == expected[row]).all()


@pytest.mark.parametrize("byte", [0, 4, 5, 6, 24, 32, 48, 56])  # of a leaf: its head, and its first entry
def test_a_damaged_node_is_found_as_by_reading_all(tmp_path: Path, byte: int) -> None:
    path, rows = tmp_path / "data.h5", rows_of(200)
    data = bytearray(written(rows))
    leaf = data.index(struct.pack("<4sBB", b"TREE", 1, 0))
    data[leaf + byte] ^= 0xFF
    path.write_bytes(data)
    outcomes = []
    for reads_few in (True, False):
        try:
            with ShardReader(path, reads_few=reads_few) as shard:
                outcomes.append(shard.read(1, 2).tolist())
        except DataError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1] or outcomes[0] == rows[1:2].tolist()
