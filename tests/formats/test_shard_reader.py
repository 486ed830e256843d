"""The reader of shards against the HDF5 library, and against files that are damaged or made to do harm."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.formats.shard_formats import hdf5_chunks, hdf5_file, writer
from btlm_data.formats.shard_formats.hdf5_head import LZ4
from btlm_data.formats.shard_formats.reader import ShardReader, iter_chunks, read_rows, read_shard_info
from btlm_data.formats.shard_formats.unpack import Torn, unpack
from tests import shard_files

LATEST = [("earliest", "latest"), ("v108", "v108"), ("v110", "v110"), ("latest", "latest")]


def written(path: Path, data: Any, libver: Any = None, **how: Any) -> Path:
    """`data` as the HDF5 library writes it."""
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset("data", data=data, **how)
    return path


# As the library reads it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("libver", LATEST, ids="-".join)
@pytest.mark.parametrize("rows", [1, 3, 64, 65, 1024, 1025, 9000])
@pytest.mark.parametrize("how", [{}, {"compression": "gzip"}], ids=["plain", "gzip"])
@pytest.mark.parametrize("grows", [False, True])
def test_every_index_of_chunks_is_read_as_the_library_does(
    tmp_path: Path, libver: Any, rows: int, how: dict[str, Any], grows: bool
) -> None:
    """One chunk, implicit, fixed array (paged above 1,024), extensible array (with blocks of blocks), and the
    B-tree.
    """
    data = np.random.default_rng(rows).integers(0, 1000, (rows, 3)).astype("<i2")
    path = written(
        tmp_path / "a.h5", data, libver, chunks=(1, 2), maxshape=(None, 3) if grows else None, **how
    )
    with ShardReader(path) as shard:
        assert np.array_equal(shard.read(0, rows), data)
        for row in {0, rows // 2, rows - 1}:
            assert np.array_equal(shard.read(row, row + 1), data[row : row + 1])


@pytest.mark.parametrize("libver", LATEST, ids="-".join)
def test_paged_blocks_of_an_extensible_array(tmp_path: Path, libver: Any) -> None:
    data = np.arange(70_000, dtype="<u2")
    path = written(tmp_path / "a.h5", data, libver, chunks=(1,), maxshape=(None,))
    with ShardReader(path) as shard:
        assert np.array_equal(shard.read(0, len(data)), data)


@pytest.mark.parametrize("libver", LATEST, ids="-".join)
def test_chunks_never_written_hold_the_fill_value(tmp_path: Path, libver: Any) -> None:
    with h5py.File(tmp_path / "a.h5", "w", libver=libver) as file:
        data = file.create_dataset("data", (3000, 3), "<i4", chunks=(1, 3), fillvalue=7)
        data[100:200] = 1
        data[2900] = 2
        expected = data[:]
    assert np.array_equal(read_rows(tmp_path / "a.h5", 0, 3000), expected)


@pytest.mark.parametrize("libver", LATEST, ids="-".join)
def test_a_user_block_and_other_members_do_not_matter(tmp_path: Path, libver: Any) -> None:
    data = np.arange(48).reshape(4, 3, 4)
    with h5py.File(tmp_path / "a.h5", "w", libver=libver, userblock_size=1024) as file:
        for name in ("a", "z", "dat", "data2"):
            file[name] = 1
        file.create_dataset("data", data=data, chunks=(1, 3, 4), compression="gzip")
        file.attrs["n_examples"] = 4
        file.attrs["made by"] = "é"
    assert np.array_equal(read_rows(tmp_path / "a.h5", 0, 4), data)
    assert read_shard_info(tmp_path / "a.h5").n_examples == 4


def test_a_group_with_many_members(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number in range(300):
            file[f"other{number}"] = 1
        file["data"] = np.arange(5)
    assert read_rows(tmp_path / "a.h5", 0, 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("rows", [5, 64, 400])
def test_a_chunk_that_is_listed_twice_is_damage(tmp_path: Path, rows: int) -> None:
    path = written(tmp_path / "a.h5", np.arange(rows), chunks=(1,), compression="gzip")
    content = bytearray(path.read_bytes())
    leaf = content.index(b"TREE\x01\x00")  # a node of chunks, of level 0
    first, second = (
        leaf + 24 + 8,
        leaf + 24 + 32 + 8,
    )  # where the corners of its chunks are: 32 bytes each entry
    content[first : first + 8] = content[second : second + 8]
    path.write_bytes(content)
    with pytest.raises(DataError, match="listed twice"):
        read_rows(path, 0, rows)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8", "|i1", "|u1", ">u8"])
def test_every_type_of_number(tmp_path: Path, dtype: str) -> None:
    data = (np.arange(30).reshape(5, 6) * 3).astype(dtype)
    path = written(tmp_path / "a.h5", data, chunks=(2, 4), shuffle=True, fletcher32=True, compression="lzf")
    assert np.array_equal(read_rows(path, 0, 5), data)
    assert read_shard_info(path).dtype == str(np.dtype(dtype))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 255), st.integers(1, 300)), max_size=60))
def test_lzf_as_its_library_packs_it(tmp_path_factory: pytest.TempPathFactory, runs: Any) -> None:
    data = np.array([value for value, count in runs for _ in range(count)] or [0], np.uint8)
    path = written(tmp_path_factory.mktemp("lzf") / "a.h5", data, chunks=(len(data),), compression="lzf")
    assert np.array_equal(read_rows(path, 0, len(data)), data)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 255), st.integers(1, 300)), max_size=60), st.integers(1, 5000))
def test_lz4_blocks_are_unpacked_and_never_beyond_a_chunk(runs: Any, block_bytes: int) -> None:
    data = bytes(value for value, count in runs for _ in range(count))
    stored = shard_files.lz4_chunk(data, block_bytes)
    assert unpack(stored, [LZ4], 0, len(data), 1) == data
    if data:
        for cut in (stored[:-1], stored[:5], stored[:12] + bytes(4) + stored[16:]):
            with pytest.raises(Torn):
                unpack(cut, [LZ4], 0, len(data), 1)
        with pytest.raises(Torn, match="more than a chunk"):
            unpack(stored, [LZ4], 0, len(data) - 5, 1)


@pytest.mark.parametrize("size", [1, 2, 3, 4000, 4001, 2_100_000, 4_194_306])
@pytest.mark.parametrize("fill", [0, 255, None])
def test_fletcher32_as_the_library_sums_it(tmp_path: Path, size: int, fill: int | None) -> None:
    """Long chunks of the largest words are where sums could overflow."""
    random = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
    data = random if fill is None else np.full(size, fill, np.uint8)
    path = written(tmp_path / "a.h5", data, chunks=(size,), fletcher32=True)
    assert np.array_equal(read_rows(path, 0, size), data)
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        content[file["data"].id.get_chunk_info(0).byte_offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"row 0 of .*checksum"):
        read_rows(path, 0, size)


def test_a_shard_that_another_process_locks_is_read(tmp_path: Path) -> None:
    shard_files.write_samples(tmp_path / "a.h5", np.zeros((3, 9), np.uint16))
    with (tmp_path / "a.h5").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert read_rows(tmp_path / "a.h5", 0, 3).shape == (3, 3, 8)


def test_reading_loads_neither_numba_nor_the_hdf5_library() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from btlm_data.formats.shard_formats import reader; "
        "print(sorted({'numba', 'h5py', 'torch', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What is no plain shard -------------------------------------------------------------------------------------


def external_storage(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (4, 3, 8), "<i4", external=[(str(secret), 0, 400)])


def external_link(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = h5py.ExternalLink(str(secret), "/data")


def external_link_latest(path: Path, secret: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        file["data"] = h5py.ExternalLink(str(secret), "/data")


def soft_link(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file["elsewhere"] = np.zeros((4, 3, 8), np.int32)
        file["data"] = h5py.SoftLink("/elsewhere")


def soft_link_latest(path: Path, secret: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        file["data"] = h5py.SoftLink("/elsewhere")


def virtual(path: Path, secret: Path) -> None:
    layout = h5py.VirtualLayout((4, 3, 8), "<i4")
    layout[:] = h5py.VirtualSource(str(secret), "data", (4, 3, 8))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout)


def unknown_filter(path: Path, secret: Path) -> None:
    written(path, np.zeros((4, 3, 8), np.int32), chunks=(1, 3, 8), compression="lzf")
    content = path.read_bytes()
    assert content.count(b"lzf") == 1
    at = content.index((32000).to_bytes(2, "little"))
    path.write_bytes(content[:at] + (32015).to_bytes(2, "little") + content[at + 2 :])


def scale_offset(path: Path, secret: Path) -> None:
    written(path, np.zeros((4, 3, 8), np.int32), chunks=(1, 3, 8), scaleoffset=4)


def enormous_chunk(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (2**20, 3, 256), "<i4", chunks=(2**20, 3, 256), compression="gzip")


def enormous_shape(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", (2**40, 3, 8), "<i4", chunks=(1, 3, 8), compression="gzip")
        data[0] = 1


def enormous_shape_latest(path: Path, secret: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("data", (2**40, 3, 8), "<i4", chunks=(1, 3, 8), maxshape=(None, 3, 8))


def enormous_stretch(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (2**40, 3, 8), "<i4")


def enormous_row(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (1, 3, 2**40), "<i4", chunks=(1, 1, 2**10), compression="gzip")


def enormous_row_of_no_rows(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (0, 3, 2**40), "<i4", chunks=(1, 1, 2**10), maxshape=(None, 3, 2**40))


def rows_of_nothing(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (4, 0, 2**40), "<i4", chunks=(1, 1, 1), maxshape=(4, 3, 2**40))


def text(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = ["a", "b"]


def compound(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros(3, [("a", "<i4"), ("b", "<f4")])


def single_value(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = 5


def pipe(path: Path, secret: Path) -> None:
    os.mkfifo(path)


def device(path: Path, secret: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path, secret: Path) -> None:
    path.mkdir()


HOSTILE: dict[Callable[[Path, Path], None], str] = {
    external_storage: "stored in other files",
    external_link: "link to something in another file",
    external_link_latest: "link to something in another file",
    soft_link: "link to something elsewhere",
    soft_link_latest: "link to something elsewhere",
    virtual: "virtual dataset",
    unknown_filter: "HDF5 filter 32015",
    scale_offset: "HDF5 filter 6",
    enormous_chunk: "its chunks .* are of 3,221,225,472 bytes; 536,870,912 are the limit",
    enormous_shape: "more than a file of .* bytes can hold",
    enormous_shape_latest: "more than a file of .* bytes can hold",
    enormous_stretch: "was never written",
    enormous_row: "rows of .* bytes",
    enormous_row_of_no_rows: "rows of .* bytes",
    rows_of_nothing: "rows of nothing",
    text: "not an array of whole or floating-point numbers",
    compound: "not an array of whole or floating-point numbers",
    single_value: "a single value",
    pipe: "not a regular file but a pipe",
    device: "not a regular file but a device",
    folder: "not a regular file but a folder",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_what_no_shard_needs_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, Path], None]
) -> None:
    secret, path = tmp_path / "secret.h5", tmp_path / "sent.h5"
    written(secret, np.full((4, 3, 8), 42))
    make(path, secret)
    opened: list[str] = []
    real = os.open

    def watched(name: Any, *arguments: Any, **options: Any) -> int:
        opened.append(os.fspath(name))
        return real(name, *arguments, **options)

    monkeypatch.setattr(os, "open", watched)
    with pytest.raises(DataError, match=HOSTILE[make]) as caught:
        list(iter_chunks(path))
    assert str(path) in str(caught.value)
    assert opened == [str(path)]


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", (4, 3, 8), "<i4", chunks=(1, 3, 8), compression="gzip")
        data[:] = 1
        data.id.write_direct_chunk((2, 0, 0), zlib.compress(bytes(1 << 28)))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"row 2 of 4 .*more than a chunk"):
        read_rows(tmp_path / "a.h5", 0, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    with pytest.raises(Torn, match="more than a chunk"):
        unpack(b"\x00a" + b"\xe0\xff\x00" * 100_000, [32000], 0, 1000, 1)


@pytest.mark.parametrize("where", ["a chunk behind the end", "a chunk twice", "a node that leads to itself"])
def test_an_index_that_contradicts_itself_is_damage(tmp_path: Path, where: str) -> None:
    path = tmp_path / "a.h5"
    shard_files.write_samples(path, np.zeros((70, 9), np.uint16))  # 70 chunks: two leaves and a root
    content = bytearray(path.read_bytes())
    nodes = [i for i in range(len(content)) if content[i : i + 4] == b"TREE"][1:]  # the first is the group's
    key = 8 + 8 * 4
    first_child = nodes[0] + 24 + key
    if where == "a chunk behind the end":
        content[first_child : first_child + 8] = (len(content) - 3).to_bytes(8, "little")
    elif where == "a chunk twice":
        content[first_child + 8 : first_child + 8 + key] = content[nodes[0] + 24 : nodes[0] + 24 + key]
    else:
        root_child = nodes[-1] + 24 + key
        content[root_child : root_child + 8] = nodes[-1].to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.h5 is damaged: "):
        read_rows(path, 0, 70)


# Damage at random -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Small shards of every kind of head and index."""
    path = tmp_path_factory.mktemp("seeds") / "a.h5"
    rows = np.random.default_rng(0).integers(0, 9000, (70, 17)).astype(np.uint16)
    contents = []
    writers: list[Callable[[], object]] = [
        lambda: shard_files.write_samples(path, rows),
        lambda: shard_files.write_corpus(path, rows.reshape(-1)),
        lambda: shard_files.write_samples(path, rows, None, writer.ShardOptions(compression="none")),
    ]
    for write in writers:
        write()
        contents.append(path.read_bytes())
    hows: list[dict[str, Any]] = [
        {"chunks": (1, 3, 8), "compression": "gzip"},
        {"chunks": (2, 3, 5), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": (1, 3, 8), "maxshape": (None, 3, 8), "compression": "lzf"},
        {"chunks": (70, 3, 8)},
        {},
    ]
    data = np.random.default_rng(0).integers(0, 50, (70, 3, 8)).astype("<i4")
    for libver, how in itertools.product([("earliest", "latest"), ("latest", "latest")], hows):
        contents.append(written(path, data, libver, **how).read_bytes())
    return contents


def survive(path: Path) -> None:
    """Read all there is of a file: it ends in DataError or in rows, within little memory."""
    tracemalloc.start()
    try:
        with ShardReader(path) as shard:
            total = 0
            for start, rows in shard.pieces(1 << 16):
                assert start == total
                total += len(rows)
                if total * max(1, rows[0].nbytes) > 1 << 22:
                    break
            assert shard.layout.num_bytes == path.stat().st_size
    except DataError as error:
        message = str(error)
    else:
        message = str(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert str(path) in message
    assert len(message) < 1000
    assert peak < 64 << 20


def damaged(path: Path, seeds: list[bytes], data: st.DataObject | None) -> None:
    """Read one of the seeds with some bytes, bits and words changed, cut somewhere."""
    if data is None:  # the seeds themselves
        for seed in seeds:
            path.write_bytes(seed)
            survive(path)
        return
    content = bytearray(seeds[data.draw(st.integers(0, len(seeds) - 1), label="seed")])
    head = st.integers(0, min(2200, len(content) - 1))
    anywhere = st.integers(0, len(content) - 1)
    for position, value in data.draw(
        st.lists(
            st.tuples(st.one_of(head, anywhere), st.sampled_from([0, 1, 2, 8, 127, 128, 255])), max_size=6
        ),
        label="bytes",
    ):
        content[position] = value
    for position, bit in data.draw(st.lists(st.tuples(head, st.integers(0, 7)), max_size=3), label="bits"):
        content[position] ^= 1 << bit
    if data.draw(st.booleans(), label="a word"):
        position = data.draw(head, label="at")
        word = data.draw(st.sampled_from([0, 1, 2**31, 2**32, 2**40, 2**63, 2**64 - 1]), label="is")
        content[position : position + 8] = word.to_bytes(8, "little")
    cut = data.draw(st.one_of(st.just(len(content)), anywhere), label="length")
    path.write_bytes(content[:cut])
    if data.draw(st.booleans(), label="checksums believed"):
        # An attacker can make checksums right; flips then reach what lies behind them.
        with (
            mock.patch.object(hdf5_file, "lookup3", return_value=mock.ANY),
            mock.patch.object(hdf5_chunks, "lookup3", return_value=mock.ANY),
        ):
            survive(path)
    else:
        survive(path)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
@example(None)
def test_cut_and_flipped_files_do_no_harm(
    tmp_path: Path, seeds: list[bytes], data: st.DataObject | None
) -> None:
    damaged(tmp_path / "a.h5", seeds, data)


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(20))
def test_cut_and_flipped_files_do_no_harm_for_long(tmp_path: Path, seeds: list[bytes], part: int) -> None:
    """By a plain generator: 2,000 files a part, another seed each."""
    generator = np.random.default_rng(part)
    for _ in range(2000):
        content = bytearray(seeds[generator.integers(len(seeds))])
        head = min(2200, len(content))
        for position in generator.integers(0, head, generator.integers(0, 4)):
            content[position] ^= 1 << generator.integers(8)
        for position in generator.integers(0, len(content), generator.integers(0, 3)):
            content[position] = generator.choice([0, 1, 2, 8, 127, 128, 255])
        if generator.random() < 0.5:
            position = generator.integers(head)
            word = [0, 1, 2, 2**31, 2**32, 2**40, 2**63, 2**64 - 1][generator.integers(8)]
            content[position : position + 8] = word.to_bytes(8, "little")
        if generator.random() < 0.2:
            content = content[: generator.integers(len(content))]
        (tmp_path / "a.h5").write_bytes(content)
        with contextlib.ExitStack() as stack:
            if generator.random() < 0.5:
                for module in (hdf5_file, hdf5_chunks):
                    stack.enter_context(mock.patch.object(module, "lookup3", return_value=mock.ANY))
            survive(tmp_path / "a.h5")
