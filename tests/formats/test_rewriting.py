"""A shard written once more with some of its chunks replaced is the one that is written with them at once."""

from __future__ import annotations

import os
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.formats.shard_formats.reader import ShardReader
from btlm_data.formats.shard_formats.rewriting import Rewriting
from btlm_data.formats.shard_formats.writer import ShardOptions, ShardWriter, compressed, layout
from btlm_data.storage.direct import DirectFile

# Above level 1 a chunk's bytes follow from it alone.
KINDS = (ShardOptions("gzip", 6), ShardOptions("gzip", 6, hdf5_shuffle=True), ShardOptions("none"))


def chunks_of(rows: npt.NDArray[Any], size: int, options: ShardOptions) -> list[npt.NDArray[Any]]:
    """Rows as ShardWriter.add takes them: a chunk each; the last one filled up where it is compressed."""
    parts = [rows[low : low + size] for low in range(0, len(rows), size)]
    if options.compression == "none":
        return parts
    missing = [size - len(part) for part in parts]
    return [
        np.pad(part, [(0, n), *[(0, 0)] * (rows.ndim - 1)]).reshape(1, -1)
        for part, n in zip(parts, missing, strict=True)
    ]


def written(rows: npt.NDArray[Any], size: int, options: ShardOptions) -> bytes:
    file = BytesIO()
    with ShardWriter(file, rows.shape, (size, *rows.shape[1:]), options) as writer:
        for part in chunks_of(rows, size, options):
            writer.add(part)
    return file.getvalue()


def replaced(
    path: Path, rows: npt.NDArray[Any], size: int, options: ShardOptions, touched: list[int]
) -> tuple[bytes, bytes, tuple[str, str]]:
    """The file with the touched chunks of these rows: its bytes, the pieces that it was written in, joined, and the checksums."""
    stored, sizes = BytesIO(), dict[int, int]()
    dataset = layout(rows.shape, (size, *rows.shape[1:]), options)
    for number in touched:
        part = chunks_of(rows, size, options)[number]
        data = part.tobytes() if options.compression == "none" else compressed(part, dataset)[0].tobytes()
        sizes[number] = stored.write(data)
    stored.seek(0)
    target = path.with_name("new.h5")
    with ShardReader(path) as shard, path.open("rb", buffering=0) as old, DirectFile(target) as new:
        rewriting = Rewriting(old, shard.stretches(size), dataset, new, sizes, stored)
        pieces = b"".join(bytes(piece) for piece in rewriting.pieces())
    return target.read_bytes(), pieces, rewriting.xxh3()


@given(
    st.data(), st.sampled_from(KINDS), st.integers(1, 300), st.sampled_from([(), (3, 8)]), st.integers(1, 5)
)
def test_what_stays_is_copied_and_both_files_are_summed(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    options: ShardOptions,
    count: int,
    row: tuple[int, ...],
    size: int,
) -> None:
    path = tmp_path_factory.mktemp("rewriting") / "data.h5"
    drawn = np.random.default_rng(count)
    rows = drawn.integers(0, 50, (count, *row), np.int32)
    path.write_bytes(written(rows, size, options))
    touched = sorted(data.draw(st.sets(st.integers(0, -(-count // size) - 1), max_size=9)))
    for number in touched:
        rows[number * size : (number + 1) * size] = drawn.integers(0, 2)
    new, pieces, sums = replaced(path, rows, size, options, touched)
    assert new == pieces == written(rows, size, options)
    assert sums == (xxhash.xxh3_128_hexdigest(path.read_bytes()), xxhash.xxh3_128_hexdigest(new))


def test_what_is_behind_the_data_is_summed_and_not_taken_over(tmp_path: Path) -> None:
    rows, options = np.arange(40, dtype=np.int32).reshape(10, 4), ShardOptions("gzip", 6)
    path = tmp_path / "data.h5"
    path.write_bytes(written(rows, 1, options) + b"appended")
    new, pieces, (before, _) = replaced(path, rows, 1, options, [])
    assert before == xxhash.xxh3_128_hexdigest(path.read_bytes())
    assert new == pieces == written(rows, 1, options)


def test_another_layout_is_refused(tmp_path: Path) -> None:
    rows, options = np.arange(40, dtype=np.int32).reshape(10, 4), ShardOptions("gzip", 6)
    path = tmp_path / "data.h5"
    path.write_bytes(written(rows, 1, options))
    dataset = layout((10, 4), (1, 4), options)
    with (
        ShardReader(path) as shard,
        path.open("rb", buffering=0) as old,
        DirectFile(tmp_path / "new.h5") as new,
        pytest.raises(DataError, match="is not laid out as this program writes shards"),
    ):
        Rewriting(old, shard.stretches(1)[::-1], dataset, new, {}, BytesIO())


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux, which says that pages cannot be read")
def test_a_file_that_is_cut_short_while_it_is_read_is_an_error_and_no_crash(tmp_path: Path) -> None:
    rows, options = np.zeros((3000, 3, 512), np.int32), ShardOptions("none")
    path = tmp_path / "data.h5"
    path.write_bytes(written(rows, 100, options))
    with (
        ShardReader(path) as shard,
        path.open("rb", buffering=0) as old,
        DirectFile(tmp_path / "new.h5") as new,
    ):
        dataset = layout(rows.shape, (100, *rows.shape[1:]), options)
        rewriting = Rewriting(old, shard.stretches(100), dataset, new, {}, BytesIO())
        os.truncate(path, 6 << 20)
        with pytest.raises(OSError, match="Input/output error"):
            for _ in rewriting.pieces():
                pass
