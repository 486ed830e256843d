from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from btlm_data.errors import DataError
from btlm_data.formats import columns

_dtypes = st.sampled_from(["<u8", "<u4", "<u2", "|u1", "<i8", "<f8", ">u4", "|b1"])
_arrays = _dtypes.flatmap(
    lambda dtype: arrays_of.arrays(
        np.dtype(dtype), arrays_of.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)
    )
)
_names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
_meta = st.dictionaries(_names, st.one_of(st.integers(), _names, st.lists(_names, max_size=3)), max_size=4)


def independent(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A reader made from the layout's description alone."""
    data = path.read_bytes()
    magic, length, _ = struct.unpack_from("<8sQQ", data)
    assert magic == b"BTLMCOL1"
    header = json.loads(data[24 : 24 + length])
    found = {}
    for name, entry in header["arrays"].items():
        assert entry["offset"] % 64 == 0
        count = int(np.prod(entry["shape"]))
        found[name] = np.frombuffer(data, entry["dtype"], count, entry["offset"]).reshape(entry["shape"])
    assert len(data) % 64 == 0
    return found, header["meta"]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables=st.dictionaries(_names, _arrays, max_size=5), meta=_meta)
def test_what_is_written_is_read_back(tmp_path: Path, tables: dict[str, Any], meta: dict[str, Any]) -> None:
    path = tmp_path / "a.cols"
    assert columns.write(path, tables, meta) == path.stat().st_size
    for found in (columns.read(path, verify=True), columns.Columns(*independent(path))):
        assert found.meta == meta
        assert list(found.arrays) == list(tables)
        for name, array in tables.items():
            assert found[name].dtype == array.dtype.newbyteorder("<")
            np.testing.assert_array_equal(found[name], array)
    assert columns.read(path, []).arrays == {}


def test_arrays_that_are_not_contiguous(tmp_path: Path) -> None:
    whole = np.arange(60, dtype=np.uint32).reshape(6, 10)
    columns.write(tmp_path / "a", {"t": whole.T, "s": whole[::2, ::3]})
    found = columns.read(tmp_path / "a", verify=True)
    np.testing.assert_array_equal(found["t"], whole.T)
    np.testing.assert_array_equal(found["s"], whole[::2, ::3])


@pytest.fixture
def written(tmp_path: Path) -> Path:
    columns.write(
        tmp_path / "a",
        {"x": np.arange(100, dtype=np.uint64), "y": np.arange(50, dtype=np.uint8)},
        {"digest": "d"},
    )
    return tmp_path / "a"


def test_no_flipped_bit_in_header_or_arrays_goes_unseen(written: Path) -> None:
    stored = written.read_bytes()
    header = json.loads(stored[24 : 24 + struct.unpack_from("<8sQQ", stored)[1]])
    used = [*range(24), *range(24, 24 + 40)]
    for entry, size in ((header["arrays"]["x"], 800), (header["arrays"]["y"], 50)):
        used += range(entry["offset"], entry["offset"] + size, 7)
    for position in used:
        written.write_bytes(stored[:position] + bytes([stored[position] ^ 4]) + stored[position + 1 :])
        with pytest.raises(DataError, match="run the same command again"):
            columns.read(written, verify=True)


def test_a_torn_file_is_refused_even_where_no_array_is_asked_for(written: Path) -> None:
    stored = written.read_bytes()
    for size in (0, 7, 23, 100, len(stored) - 100):
        written.write_bytes(stored[:size])
        with pytest.raises(DataError):
            columns.read(written, [])


def test_what_is_missing_or_unknown_is_named(written: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'z' \(it has \['x', 'y'\]\)"):
        columns.read(written, ["z"])
    with pytest.raises(DataError, match="is missing"):
        columns.read(written.with_name("b"))
