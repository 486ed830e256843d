from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from btlm_data.formats import columns
from btlm_data.formats.columns import Columns, DamagedError
from btlm_data.storage import Store, open_store
from btlm_data.task import Artifact

_dtypes = st.sampled_from(["<u8", "<u4", "<u2", "|u1", "<i8", "<f8", ">u4", "|b1"])
_arrays = _dtypes.flatmap(
    lambda dtype: arrays_of.arrays(
        np.dtype(dtype), arrays_of.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)
    )
)
_names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
_meta = st.dictionaries(_names, st.one_of(st.integers(), _names, st.lists(_names, max_size=3)), max_size=4)


def independent(data: bytes) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Arrays, meta data and checksum by a reader made from the layout's description alone."""
    magic, length, checksum = struct.unpack_from("<8sQ16s", data)
    assert magic == b"BTLMCOL2"
    head = data[32 : 32 + length]
    assert xxhash.xxh3_128(head).digest() == checksum
    header = json.loads(head)
    sums = np.frombuffer(data, "<u8", header["num_sums"], header["sums"])
    assert xxhash.xxh3_128(sums.tobytes()).hexdigest() == header["sums_xxh3"]
    arrays = {}
    for name, entry in header["arrays"].items():
        assert entry["offset"] % 64 == 0
        count = int(np.prod(entry["shape"]))
        arrays[name] = np.frombuffer(data, entry["dtype"], count, entry["offset"]).reshape(entry["shape"])
        stored = arrays[name].tobytes()
        for number, begin in enumerate(range(0, len(stored), header["chunk"])):
            chunk = stored[begin : begin + header["chunk"]]
            assert xxhash.xxh3_64(chunk).intdigest() == sums[entry["sums"] + number]
    return arrays, header["meta"], checksum.hex()


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = open_store(tmp_path if request.param == "folder" else f"memory://columns-{tmp_path.name}")
    yield made
    made.delete([entry.name for entry in made.list()])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables=st.dictionaries(_names, _arrays, max_size=5), meta=_meta)
def test_what_is_written_is_read_back(store: Store, tables: dict[str, Any], meta: dict[str, Any]) -> None:
    artifact = columns.write(store, "a.cols", tables, meta)
    assert artifact.size == store.size("a.cols")
    assert columns.find(store, "a.cols") == artifact
    opened = Columns(store, artifact)
    arrays, plain_meta, checksum = independent(store.read("a.cols"))
    assert opened.meta == plain_meta == meta
    assert artifact.checksum == checksum
    assert opened.names == list(arrays) == list(tables)
    for name, array in tables.items():
        for read in (opened[name], arrays[name]):
            assert read.dtype == array.dtype.newbyteorder("<")
            np.testing.assert_array_equal(read, array)
        for first in range(len(array) + 1):
            np.testing.assert_array_equal(opened.rows(name, first, len(array)), array[first:])
    assert Columns(store, artifact).hold(*tables).names == list(tables)
    for name, array in tables.items():
        held = Columns(store, artifact).hold(*sorted(tables))
        np.testing.assert_array_equal(held[name], array)
        np.testing.assert_array_equal(held.rows(name, len(array) // 2, len(array)), array[len(array) // 2 :])


def test_arrays_that_are_not_contiguous(store: Store) -> None:
    whole = np.arange(60, dtype=np.uint32).reshape(6, 10)
    opened = Columns(store, columns.write(store, "a", {"t": whole.T, "s": whole[::2, ::3]}))
    np.testing.assert_array_equal(opened["t"], whole.T)
    np.testing.assert_array_equal(opened["s"], whole[::2, ::3])


def test_parts_of_a_large_array(store: Store) -> None:
    large = np.random.default_rng(0).integers(0, 2**32, (50_000, 3)).astype(np.uint32)
    opened = Columns(store, columns.write(store, "a", {"large": large}))
    for first, last in ((0, 1), (1364, 1367), (20_000, 45_000), (49_999, 50_000), (7, 7)):
        np.testing.assert_array_equal(opened.rows("large", first, last), large[first:last])
    starts, counts = np.array([40_000, 3, 3, 49_990]), np.array([100, 5, 0, 10])
    scattered = opened.scattered("large", starts, counts)
    for start, count in zip(starts, counts, strict=True):
        np.testing.assert_array_equal(scattered[start : start + count], large[start : start + count])
    for first, last in ((-1, 2), (5, 50_001), (3, 2)):
        with pytest.raises(DamagedError, match="rows"):
            opened.rows("large", first, last)
    for start, count in ((-1, 2), (49_999, 2), (0, -1)):
        with pytest.raises(DamagedError, match="beyond"):
            opened.scattered("large", np.array([start]), np.array([count]))


def test_arrays_near_each_other_are_read_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those at the beginning of the file with its header."""
    sizes = {"first": 2000, "large": 60_000, "near": 30_000, "far": 200_000, "last": 10_000}
    arrays = {name: np.arange(size, dtype=np.uint64) for name, size in sizes.items()}
    opened = Columns(store, columns.write(store, "a", arrays))
    reads: list[int] = []
    plain = Columns._read

    def counted(self: Columns, begin: int, end: int) -> memoryview:
        reads.append(end - begin)
        return plain(self, begin, end)

    monkeypatch.setattr(Columns, "_read", counted)
    np.testing.assert_array_equal(opened.rows("first", 5, 2000), arrays["first"][5:])
    assert reads == [], "it was read with the header"
    assert opened.hold("last", "near", "large") is opened
    assert reads == [8 * 90_000, 8 * 10_000], "what is far away is not read between them"
    for name in ("large", "near", "last"):
        np.testing.assert_array_equal(opened[name], arrays[name])
        np.testing.assert_array_equal(opened.rows(name, 7, 9), arrays[name][7:9])
    assert len(reads) == 2
    with pytest.raises(DamagedError, match="rows"):
        opened.rows("near", 3, 30_001)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Store, Artifact, Path]:
    store = open_store(tmp_path)
    arrays: dict[str, npt.NDArray[Any]] = {
        "x": np.arange(9000, dtype=np.uint64),
        "y": np.arange(50, dtype=np.uint8),
    }
    return store, columns.write(store, "a", arrays, {"digest": "d"}), tmp_path / "a"


def read_all(store: Store, artifact: Artifact) -> None:
    opened = Columns(store, artifact)
    for name in opened.names:
        opened[name]


def test_no_flipped_bit_goes_unseen(written: tuple[Store, Artifact, Path]) -> None:
    store, artifact, path = written
    stored = path.read_bytes()
    arrays, _, _ = independent(stored)
    header = json.loads(stored[32 : 32 + struct.unpack_from("<8sQ16s", stored)[1]])
    padding = set(range(len(stored)))
    for begin, size in (
        (0, 32 + struct.unpack_from("<8sQ16s", stored)[1]),
        *((header["arrays"][name]["offset"], array.nbytes) for name, array in arrays.items()),
        (header["sums"], header["num_sums"] * 8),
    ):
        padding -= set(range(begin, begin + size))
    assert len(padding) < 200
    for position in sorted(
        {*range(0, len(stored), 97), *range(700), *range(len(stored) - 60, len(stored))} - padding
    ):
        path.write_bytes(stored[:position] + bytes([stored[position] ^ 4]) + stored[position + 1 :])
        with pytest.raises(DamagedError, match="Rerun the same command"):
            read_all(store, artifact)


def test_a_flip_is_seen_by_every_way_of_reading_its_place_and_no_other_place_is_refused(
    written: tuple[Store, Artifact, Path],
) -> None:
    store, artifact, path = written
    stored = path.read_bytes()
    header = json.loads(stored[32 : 32 + struct.unpack_from("<8sQ16s", stored)[1]])
    position = header["arrays"]["x"]["offset"] + 8 * 5000
    path.write_bytes(stored[:position] + bytes([stored[position] ^ 1]) + stored[position + 1 :])
    opened = Columns(store, artifact)
    np.testing.assert_array_equal(opened.rows("x", 0, 2048), np.arange(2048))
    opened.scattered("x", np.array([8000]), np.array([10]))
    with pytest.raises(DamagedError, match="column 'x'"):
        opened.rows("x", 4999, 5001)
    with pytest.raises(DamagedError, match="column 'x'"):
        Columns(store, artifact).hold("y", "x")
    with pytest.raises(DamagedError, match="column 'x'"):
        opened.scattered("x", np.array([10, 5000]), np.array([1, 1]))


def test_a_torn_file_is_refused(written: tuple[Store, Artifact, Path]) -> None:
    store, artifact, path = written
    stored = path.read_bytes()
    for size in (0, 7, 23, 100, len(stored) - 100, len(stored) - 1):
        path.write_bytes(stored[:size])
        with pytest.raises(DamagedError):
            Columns(store, artifact)
        assert columns.find(store, "a") is None


def test_another_file_of_the_same_name_is_refused(written: tuple[Store, Artifact, Path]) -> None:
    store, artifact, _ = written
    other = columns.write(
        store, "a", {"x": np.arange(9000, dtype=np.uint64), "y": np.arange(50, dtype=np.uint8)}
    )
    assert other.checksum != artifact.checksum
    with pytest.raises(DamagedError, match="another file"):
        Columns(store, artifact)


def test_what_is_missing_or_unknown_is_named(written: tuple[Store, Artifact, Path]) -> None:
    store, artifact, _ = written
    with pytest.raises(DamagedError, match=r"no column 'z' \(it has \['x', 'y'\]\)"):
        Columns(store, artifact)["z"]
    with pytest.raises(DamagedError, match="missing"):
        Columns(store, artifact._replace(name="b"))
    assert columns.find(store, "b") is None
