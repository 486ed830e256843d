"""Shards against the stock HDF5 library: what it reads is what went in, whatever the options; damage is
named; nothing is half-written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError, OutputError
from btlm_data.formats.shard_formats import reader, writer
from btlm_data.formats.shard_formats.writer import ShardOptions
from btlm_data.storage import local
from tests import shard_files

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "shards"

OPTIONS = st.builds(
    ShardOptions,
    compression=st.sampled_from(["gzip", "none"]),
    level=st.sampled_from([1, 1, 1, 4, 9]),
    hdf5_shuffle=st.booleans(),
    dtype=st.sampled_from(["int32", "int32", "uint16"]),
)
HYPOTHESIS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is most of a small shard's time, and nothing here pulls the plug."""
    monkeypatch.setattr(local, "_fsync", lambda descriptor: None)


def bare_read(path: Path) -> npt.NDArray[Any]:
    """All of `data`, with nothing but h5py."""
    with h5py.File(path, "r") as file:
        assert list(file) == ["data"]
        assert file.attrs["n_examples"] == len(file["data"])
        values: npt.NDArray[Any] = file["data"][:]
        return values


def sample_planes(rows: npt.NDArray[Any], num_real: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
    """The rule of the format, position by position."""
    n, length = rows.shape[0], rows.shape[1] - 1
    planes = np.zeros((n, 3, length), np.int64)
    for i in range(n):
        for t in range(length if num_real is None else int(num_real[i])):
            planes[i, :, t] = rows[i, t], 1, rows[i, t + 1]
    return planes


# What goes in comes out -------------------------------------------------------------------------------------


@HYPOTHESIS
@given(st.integers(0, 9), st.integers(1, 90), st.integers(0, 2**32), st.booleans(), OPTIONS)
def test_samples_read_back(
    tmp_path: Path, n: int, length: int, seed: int, padded: bool, options: ShardOptions
) -> None:
    rng = np.random.default_rng(seed)
    top = 60000 if options.dtype == "uint16" else int(rng.choice([60000, 200_000]))
    rows = (rng.integers(0, top, (n, length + 1)) % int(rng.integers(2, top))).astype(np.uint32)
    num_real = rng.integers(0, length + 1, n) if padded else None
    info = shard_files.write_samples(tmp_path / "a.h5", rows, num_real, options)
    read = bare_read(tmp_path / "a.h5")
    assert read.dtype == options.dtype
    assert np.array_equal(read, sample_planes(rows, num_real))
    assert info.n_examples == n
    assert info.num_tokens == read[:, 1].sum(dtype=int)
    content = (tmp_path / "a.h5").read_bytes()
    assert (info.num_bytes, info.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@HYPOTHESIS
@given(st.integers(0, 7), st.integers(1, 70), st.integers(0, 2**32), OPTIONS)
def test_vsl_reads_back(tmp_path: Path, n: int, length: int, seed: int, options: ShardOptions) -> None:
    planes = np.random.default_rng(seed).integers(0, 300, (n, 5, length)).astype(np.int32)
    planes[:, 1] &= 1
    info = shard_files.write_vsl(tmp_path / "a.h5", planes, options)
    assert np.array_equal(bare_read(tmp_path / "a.h5"), planes)
    assert info.num_tokens == planes[:, 1].sum()


@HYPOTHESIS
@given(st.lists(st.integers(0, 9000), max_size=6), st.integers(0, 2**32), OPTIONS)
def test_a_corpus_reads_back_however_it_is_handed_over(
    tmp_path: Path, sizes: list[int], seed: int, options: ShardOptions
) -> None:
    stream = np.random.default_rng(seed).integers(0, 60000, sum(sizes)).astype(np.uint32)
    pieces = np.split(stream, np.cumsum(sizes)[:-1]) if sizes else []
    one = shard_files.write_corpus(tmp_path / "a.h5", stream, None, options)
    two = shard_files.write_corpus(tmp_path / "b.h5", iter(pieces), len(stream), options)
    assert one == two
    assert np.array_equal(bare_read(tmp_path / "a.h5"), stream)
    assert one.n_examples == one.num_tokens == len(stream)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 128, 4095, 4096, 4097, 5000])
def test_the_chunk_index_at_every_depth(tmp_path: Path, n: int) -> None:
    """A node holds 64 children: 64 and 4,096 chunks are where the tree grows a level."""
    rows = np.arange(n * 3, dtype=np.uint16).reshape(n, 3)
    shard_files.write_samples(tmp_path / "a.h5", rows)
    assert np.array_equal(bare_read(tmp_path / "a.h5"), sample_planes(rows, None))
    with h5py.File(tmp_path / "a.h5", "r") as file:
        data = file["data"]
        assert data.id.get_num_chunks() == n
        for row in {0, n // 2, n - 1}:  # the index is also right for a jump, not only in order
            assert np.array_equal(data[row], sample_planes(rows[row : row + 1], None)[0])


def test_what_the_library_sees(tmp_path: Path) -> None:
    rows = np.zeros((5, 9), np.uint16)
    shard_files.write_samples(tmp_path / "a.h5", rows)
    with h5py.File(tmp_path / "a.h5", "r") as file:
        data = file["data"]
        assert (data.chunks, data.compression, data.compression_opts, data.shuffle) == (
            (1, 3, 8),
            "gzip",
            1,
            False,
        )
        assert data.dtype == np.dtype("<i4")
        assert dict(file.attrs) == {"n_examples": 5}
    layout = reader.read_shard_info(tmp_path / "a.h5")
    assert (layout.format_name, layout.shape, layout.dtype, layout.n_examples) == (
        "sample",
        (5, 3, 8),
        "int32",
        5,
    )
    assert layout.num_bytes == (tmp_path / "a.h5").stat().st_size
    shard_files.write_samples(tmp_path / "b.h5", rows, None, ShardOptions(level=9, hdf5_shuffle=True))
    with h5py.File(tmp_path / "b.h5", "r") as file:
        assert (file["data"].compression_opts, file["data"].shuffle) == (9, True)
    shard_files.write_samples(tmp_path / "c.h5", rows, None, ShardOptions(compression="none"))
    with h5py.File(tmp_path / "c.h5", "r") as file:
        assert (file["data"].chunks, file["data"].compression) == (None, None)


def test_the_library_can_go_on_writing(tmp_path: Path) -> None:
    """The hand-laid metadata is whole enough for the library to change the file: add an attribute and
    overwrite a row.
    """
    shard_files.write_samples(tmp_path / "a.h5", np.zeros((70, 9), np.uint16))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["note"] = "hello"
        file["more"] = np.arange(1000)
        file["data"][69] = 5
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert file.attrs["note"] == "hello"
        assert (file["more"][-1], file["data"][69].min(), file["data"][68, 0].max()) == (999, 5, 0)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 5000, (50, 200)).astype(np.uint16)
    one = shard_files.write_samples(tmp_path / "a.h5", rows)
    assert shard_files.write_samples(tmp_path / "b.h5", rows.astype(np.uint32)) == one
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


# Golden files -----------------------------------------------------------------------------------------------


def golden_rows() -> npt.NDArray[np.uint32]:
    """(6, 33) token rows by arithmetic alone, with repeats; all below 65,536."""
    i = np.arange(6 * 33, dtype=np.uint32)
    rows = (i * i % 97 * 523 + i // 40).reshape(6, 33)
    rows[3, 5:20] = rows[2, 5:20]
    return rows


def golden_vsl() -> npt.NDArray[np.int32]:
    planes = np.zeros((2, 5, 16), np.int32)
    planes[:, 0], planes[:, 1], planes[:, 2] = np.arange(16) % 7, 1, (np.arange(16) + 1) % 7
    planes[:, 3], planes[:, 4] = 15 - np.arange(16), np.arange(16)
    planes[1, :, 12:] = 0
    planes[1, 3, :12] -= 4
    return planes


def write_golden(folder: Path) -> list[writer.ShardInfo]:
    rows = golden_rows()
    return [
        shard_files.write_samples(folder / "sample.h5", rows, np.array([32, 32, 32, 32, 32, 11])),
        shard_files.write_vsl(folder / "vsl.h5", golden_vsl()),
        shard_files.write_corpus(folder / "corpus.h5", rows.reshape(-1)),
        shard_files.write_samples(folder / "large_vocabulary.h5", rows * 3),
    ]


def test_todays_writer_gives_the_golden_bytes(tmp_path: Path) -> None:
    infos = write_golden(tmp_path)
    sums = json.loads((GOLDEN / "sha256.json").read_text())
    for info, name in zip(infos, ["sample.h5", "vsl.h5", "corpus.h5", "large_vocabulary.h5"], strict=True):
        assert hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest() == sums[name], (
            "the golden file itself was changed"
        )
        assert info.sha256 == sums[name]


def test_todays_reader_reads_the_golden_files() -> None:
    rows = golden_rows()
    assert np.array_equal(
        reader.read_rows(GOLDEN / "sample.h5", 0, 6), sample_planes(rows, np.array([32, 32, 32, 32, 32, 11]))
    )
    assert np.array_equal(reader.read_rows(GOLDEN / "vsl.h5", 0, 2), golden_vsl())
    assert np.array_equal(reader.read_rows(GOLDEN / "corpus.h5", 0, 198), rows.reshape(-1))
    assert np.array_equal(
        reader.read_rows(GOLDEN / "large_vocabulary.h5", 0, 6), sample_planes(rows * 3, None)
    )
    assert [
        reader.read_shard_info(GOLDEN / name).format_name for name in ("sample.h5", "vsl.h5", "corpus.h5")
    ] == ["sample", "vsl", "corpus"]


# Other writers' files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"chunks": (1, 3, 16), "compression": "gzip"},
        {"chunks": (4, 3, 8), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": (2, 3, 16), "maxshape": (None, 3, 16)},
        {"chunks": (1, 3, 16), "compression": "lzf"},
    ],
)
@pytest.mark.parametrize("dtype", ["i4", "u2", "i8", ">i4"])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_shards_of_other_writers(tmp_path: Path, how: dict[str, Any], dtype: str, libver: str) -> None:
    planes = np.random.default_rng(0).integers(0, 30000, (11, 3, 16))
    with h5py.File(tmp_path / "a.h5", "w", libver=libver) as file:
        file.create_dataset("data", data=planes.astype(dtype), **how)
    info = reader.read_shard_info(tmp_path / "a.h5")
    assert (info.format_name, info.shape, info.n_examples) == ("sample", (11, 3, 16), None)
    assert np.array_equal(reader.read_rows(tmp_path / "a.h5", 2, 9), planes[2:9])
    seen = list(
        reader.iter_chunks(tmp_path / "a.h5", max_bytes=3 * planes[0].size * np.dtype(dtype).itemsize)
    )
    assert next(start for start, _ in seen) == 0
    assert np.array_equal(np.concatenate([rows for _, rows in seen]), planes)


def test_pieces_are_bounded_and_follow_chunks(tmp_path: Path) -> None:
    shard_files.write_corpus(tmp_path / "a.h5", np.arange(50_000, dtype=np.uint16))
    starts = [start for start, _ in reader.iter_chunks(tmp_path / "a.h5", max_bytes=50_000)]
    assert starts == [0, 24576, 49152]  # 25,000 tokens would fit; three whole chunks are read


# Damage -----------------------------------------------------------------------------------------------------


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "data-00000.h5"
    shard_files.write_samples(path, np.random.default_rng(0).integers(0, 9000, (20, 257)).astype(np.uint16))
    return path


def test_a_flipped_bit_is_named_with_its_row(shard: Path) -> None:
    with h5py.File(shard, "r") as file:
        chunk = file["data"].id.get_chunk_info(13)
    content = bytearray(shard.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 4
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"data-00000\.h5 is damaged: row 13 of 20"):
        list(reader.iter_chunks(shard))
    with pytest.raises(DataError, match="row 13"):
        reader.read_rows(shard, 10, 15)
    assert len(reader.read_rows(shard, 0, 13)) == 13


def test_every_flipped_byte_of_the_head_and_index_is_an_error_or_harmless(shard: Path) -> None:
    """No flip may crash or raise anything but DataError; where none is raised, sha256 in dataset.json is what
    tells.
    """
    whole = shard.read_bytes()
    with h5py.File(shard, "r") as file:
        chunks = [file["data"].id.get_chunk_info(i) for i in range(20)]
    end = chunks[-1].byte_offset + chunks[-1].size
    errors = harmless = 0
    positions = [*range(0, chunks[0].byte_offset, 5), *range(end, len(whole), 31)]
    for position in positions:
        content = bytearray(whole)
        content[position] ^= 0xFF
        shard.write_bytes(content)
        try:
            reader.read_shard_info(shard)
            list(reader.iter_chunks(shard, max_bytes=1 << 16))
        except DataError as error:
            errors += str(shard) in str(error)
        else:
            harmless += 1
    assert errors > 20
    assert errors + harmless == len(positions)  # every error names the file


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_torn_file_is_named(shard: Path, share: float) -> None:
    content = shard.read_bytes()
    shard.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=r"data-00000\.h5 is not a readable HDF5 file"):
        reader.read_shard_info(shard)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.h5 is missing"):
        reader.read_shard_info(tmp_path / "gone.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(DataError, match=r"text\.h5 is not a readable HDF5 file"):
        reader.read_shard_info(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["tokens"] = np.arange(3)
    with pytest.raises(DataError, match=r"other\.h5 is not a shard: it has no dataset .data."):
        reader.read_rows(tmp_path / "other.h5", 0, 1)
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("data")
    with pytest.raises(DataError, match=r"group\.h5 is not a shard: its `data` is a group"):
        reader.read_shard_info(tmp_path / "group.h5")
    with h5py.File(tmp_path / "words.h5", "w") as file:
        file["data"] = [b"a", b"b"]
    with pytest.raises(DataError, match=r"words\.h5 is not a shard"):
        reader.read_shard_info(tmp_path / "words.h5")


# Nothing half-written ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 100, 5000, 100_000])
def test_a_write_the_system_refuses_leaves_nothing(tmp_path: Path, limit: int) -> None:
    """A real refusal in mid-write: the process may not write files beyond `limit` bytes."""
    rows = np.random.default_rng(0).integers(0, 50000, (100, 1025)).astype(np.uint16)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OutputError, match=r"a\.h5"):
            shard_files.write_samples(tmp_path / "a.h5", rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = shard_files.write_samples(tmp_path / "a.h5", np.zeros((2, 9), np.uint16))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer.ShardWriter, "_finish", full)
    with pytest.raises(OutputError, match=r"The disk is full: .*a\.h5"):
        shard_files.write_samples(tmp_path / "a.h5", np.ones((5, 9), np.uint16))
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    assert hashlib.sha256((tmp_path / "a.h5").read_bytes()).hexdigest() == old.sha256


def test_the_name_appears_only_when_the_shard_is_whole(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def pieces() -> Iterator[npt.NDArray[np.uint16]]:
        for _ in range(3):
            seen.append([path.name for path in tmp_path.iterdir() if path.name.endswith(".h5")])
            yield np.zeros(4000, np.uint16)

    shard_files.write_corpus(tmp_path / "a.h5", pieces(), 12_000)
    assert seen == [[], [], []]
    assert (tmp_path / "a.h5").exists()


def test_pieces_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="12000"):
        shard_files.write_corpus(tmp_path / "a.h5", iter([np.zeros(4000, np.uint16)]), 12_000)
    assert list(tmp_path.iterdir()) == []
