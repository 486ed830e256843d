"""The ids of rows that stand far from each other in a shard, against the whole rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.formats.shard_formats.reader import ShardReader

ROWS, LENGTH = 41, 96


@pytest.fixture(scope="module", params=["stream", "shuffled", "plain", "several"])
def shard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A shard as ours are, with another filter, without any, and with several rows in a chunk."""
    data = np.random.default_rng(7).integers(0, 200, (ROWS, 3, LENGTH)).astype("<i4")
    ways: dict[str, dict[str, Any]] = {
        "stream": {"chunks": (1, 3, LENGTH), "compression": "gzip"},
        "shuffled": {"chunks": (1, 3, LENGTH), "compression": "gzip", "shuffle": True},
        "plain": {},
        "several": {"chunks": (4, 3, LENGTH), "compression": "gzip"},
    }
    path = tmp_path_factory.mktemp("shard") / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=data, **ways[request.param])
    return path, data


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, ROWS - 1)))
def test_they_are_those_of_the_whole_rows(shard: tuple[Path, Any], chosen: set[int]) -> None:
    path, data = shard
    rows = np.array(sorted(chosen), np.int64)
    with ShardReader(path) as reader:
        planes = reader.first_planes_at(rows)
        assert planes.dtype == data.dtype
        assert np.array_equal(planes, data[rows, 0])
        is_chosen = np.isin(np.arange(ROWS), rows)
        assert np.array_equal(reader.first_planes(0, ROWS, is_chosen), data[rows, 0])


def test_what_is_outside_or_damaged_is_said(shard: tuple[Path, Any], tmp_path: Path) -> None:
    path, data = shard
    with ShardReader(path) as reader:
        for rows in ([-1, 3], [3, ROWS]):
            with pytest.raises(ValueError, match=rf"rows {rows[0]} to {rows[1]} of {ROWS}"):
                reader.first_planes_at(np.array(rows))
        [(offset, size), *_] = reader.stored_ranges(20, 21)
        is_packed = reader.layout.compression is not None
    content = bytearray(path.read_bytes())
    content[offset : offset + size // 2] = bytes(size // 2)
    (tmp_path / "a.h5").write_bytes(content)
    with ShardReader(tmp_path / "a.h5") as reader:
        if is_packed:
            with pytest.raises(DataError, match=r"row 20 of 41 cannot be read"):
                reader.first_planes_at(np.array([1, 20, 40]))
        assert np.array_equal(reader.first_planes_at(np.array([1, 40])), data[[1, 40], 0])
