"""Formats of shards on streams in memory: rows hold the stream as the format says, and counts balance."""

from __future__ import annotations

import io
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from btlm_data.errors import DataError
from btlm_data.formats.shard_formats import FORMATS, format_of_rows, get_format
from btlm_data.formats.shard_formats.base import (
    PIECE,
    Packing,
    RowContext,
    Shard,
    ShardFormat,
    StreamSize,
    row_shape,
)
from btlm_data.formats.shard_formats.writer import ShardInfo, ShardOptions
from btlm_data.kernels.checks import Prints, Vocabulary

EOS, VOCABULARY = 0, 60


class MemoryStream:
    """Documents as blocks of tokens."""

    def __init__(self, documents: list[list[int]], per_block: int = 3) -> None:
        self.documents_ = documents
        self.tokens = np.array([t for d in documents for t in [*d, EOS]], np.uint16)
        self.size = StreamSize(len(self.tokens), len(documents))
        self.blocks = [
            np.array([t for d in documents[i : i + per_block] for t in d], np.uint16)
            for i in range(0, len(documents), per_block)
        ]
        lengths = np.array([len(d) for d in documents], np.int64)
        self.lengths = lengths
        self.offsets = np.cumsum(lengths + 1) - lengths - 1
        self.block = np.arange(len(documents)) // per_block
        starts = np.cumsum(lengths) - lengths
        self.starts = starts - starts[self.block * per_block]

    def stretch(self, start: int, stop: int) -> npt.NDArray[Any]:
        assert 0 <= start <= stop <= len(self.tokens)
        return self.tokens[start:stop]

    def samples(self, samples: npt.NDArray[np.int64], length: int, total: int) -> npt.NDArray[Any]:
        padded = np.concatenate([self.tokens, np.zeros(length + 1, np.uint16)])
        return np.stack([padded[i * length : (i + 1) * length + 1] for i in samples])

    def documents(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        chosen = (self.offsets >= start) & (self.offsets < stop)
        return self.block[chosen], self.starts[chosen], self.lengths[chosen]

    def tokens_of_block(self, block: int, starts: Any, lengths: Any) -> npt.NDArray[Any]:
        tokens = np.full(len(self.blocks[block]), 59, np.uint16)  # what is not asked for is not looked at
        for start, length in zip(starts, lengths, strict=True):
            tokens[start : start + length] = self.blocks[block][start : start + length]
        return tokens


class MemoryFile:
    """Packed columns."""

    def __init__(self, columns: Any) -> None:
        self.columns = columns

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = self.columns[name]
        return values

    def rows(self, name: str, first: int, last: int) -> npt.NDArray[Any]:
        assert last <= len(self.columns[name])
        return self[name][first:last]


def packing(**changes: Any) -> Packing:
    base = Packing(
        seq_len=8,
        split="train",
        samples_per_file=3,
        tail="pad",
        is_shuffled=False,
        seed=1,
        max_documents=0,
        eos_id=EOS,
        dtype="uint16",
    )
    return replace(base, **changes)


def write_all(
    shard_format: ShardFormat, stream: MemoryStream, how: Packing, memory: int = 1 << 20
) -> tuple[list[npt.NDArray[Any]], list[ShardInfo]]:
    """Every shard, as h5py reads it."""
    assert Packing.from_json(how.to_json()) == how
    packed = [
        shard_format.pack(stretch, stream.size, how, stream)
        for stretch in shard_format.stretches(stream.size, how, memory)
    ]
    rows = tuple(part.rows for part in packed) if shard_format.plans_by_packing else ()
    plan = shard_format.plan(stream.size, how, rows)
    shards, infos = [], []
    for number in range(plan.num_files):
        file = io.BytesIO()
        shard = Shard(number, plan, stream.size, how, rows)
        infos.append(shard_format.write(file, shard, stream, [MemoryFile(part.columns) for part in packed]))
        file.seek(0)
        with h5py.File(file) as opened:
            shards.append(opened["data"][:])
    return shards, infos


DOCUMENTS = st.lists(st.lists(st.integers(1, VOCABULARY - 1), max_size=30), min_size=1, max_size=12).filter(
    lambda documents: sum(map(len, documents)) + len(documents) > 1
)
PACKINGS = st.builds(
    packing,
    seq_len=st.integers(1, 9),
    samples_per_file=st.integers(1, 5),
    tail=st.sampled_from(["pad", "drop"]),
    is_shuffled=st.booleans(),
    seed=st.integers(0, 3),
    max_documents=st.sampled_from([0, 0, 1, 2]),
    storage=st.sampled_from([ShardOptions(), ShardOptions("none"), ShardOptions(level=6)]),
)


@settings(deadline=None, max_examples=150)
@given(DOCUMENTS, PACKINGS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_row_passes_the_formats_own_checks_and_counts_balance(
    name: str, documents: list[list[int]], how: Packing
) -> None:
    stream, shard_format = MemoryStream(documents), get_format(name)
    storage = replace(how.storage, dtype=shard_format.element_type("int32", "uint16"))
    shards, infos = write_all(shard_format, stream, replace(how, storage=storage))
    balance = shard_format.balance(stream.size, how)
    assert balance.kept == sum(info.num_tokens for info in infos)
    assert balance.kept + sum(balance.dropped.values()) == stream.size.tokens
    assert sum(len(rows) for rows in shards) == sum(info.n_examples for info in infos)
    ends, borders = np.zeros(8, np.uint64), np.zeros(8, np.uint64)
    labels = 0
    for rows in shards:
        assert rows.shape[1:] == row_shape(shard_format, how.seq_len)
        place = RowContext(0, False, None, 0, 0, True)
        checked = shard_format.check(rows, place, Vocabulary(VOCABULARY, EOS), Prints(ends, borders, 1))
        assert not checked.faults
        labels += checked.num_labels
    assert labels == balance.kept


@settings(deadline=None, max_examples=100)
@given(DOCUMENTS, PACKINGS)
def test_samples_are_the_stream(documents: list[list[int]], how: Packing) -> None:
    stream = MemoryStream(documents)
    shards, _ = write_all(get_format("sample"), stream, how)
    samples = np.concatenate([np.zeros((0, 3, how.seq_len), np.int32), *shards])
    wanted = np.zeros_like(samples)
    for i in range(len(samples)):
        piece = stream.tokens[i * how.seq_len : (i + 1) * how.seq_len + 1]
        real = slice(len(piece) - 1)
        wanted[i, 0, real], wanted[i, 1, real], wanted[i, 2, real] = piece[:-1], 1, piece[1:]
    one, two = ([row.tobytes() for row in rows] for rows in (samples, wanted))
    assert (sorted(one) == sorted(two)) if how.is_shuffled else (one == two)


def sent(shard_format: ShardFormat, stream: MemoryStream, how: Packing, parts: int) -> list[str]:
    """Every shard, put together of pieces that come from so many groups of documents."""
    plan, found = shard_format.plan(stream.size, how, ()), []
    files: list[list[MemoryFile]] = [[] for _ in range(plan.num_files)]
    for chosen in np.array_split(np.arange(len(stream.offsets)), parts):
        offsets, lengths = stream.offsets[chosen], stream.lengths[chosen]
        cut = shard_format.pieces(offsets, lengths, stream.size, how)
        for number in range(plan.num_files):
            here = np.flatnonzero(cut.row // plan.rows_per_file == number)
            table = np.empty(len(here), PIECE)
            table["row"], table["column"], table["length"] = (
                part[here] for part in (cut.row, cut.column, cut.length)
            )
            begins = offsets[cut.document[here]] + cut.start[here]
            tokens = [stream.tokens[b : b + n] for b, n in zip(begins, cut.length[here], strict=True)]
            joined = np.concatenate([np.empty(0, np.uint16), *tokens])
            files[number].append(
                MemoryFile({"pieces": table.view(np.uint8), "tokens": joined.view(np.uint8)})
            )
    for number in range(plan.num_files):
        file = io.BytesIO()
        shard = Shard(number, plan, stream.size, how, ())
        found.append(shard_format.write(file, shard, MemoryStream([[0]]), [], files[number]).sha256)
    return found


@settings(deadline=None, max_examples=60)
@given(DOCUMENTS, PACKINGS, st.integers(1, 3))
@example([[]], packing(tail="drop", is_shuffled=True), 1)  # too short for one sample
@pytest.mark.parametrize("name", ["sample", "corpus"])
def test_shards_put_together_of_pieces_are_the_same_bytes(
    name: str, documents: list[list[int]], how: Packing, parts: int
) -> None:
    stream, shard_format = MemoryStream(documents), get_format(name)
    storage = replace(how.storage, dtype=shard_format.element_type("int32", "uint16"))
    how = replace(how, storage=storage)
    _, direct = write_all(shard_format, stream, how)
    assert sent(shard_format, stream, how, parts) == [info.sha256 for info in direct]


@pytest.mark.parametrize("fault", ["missing", "twice", "elsewhere", "cut short"])
def test_pieces_that_do_not_fill_a_shard_are_refused(fault: str) -> None:
    stream, how = MemoryStream([[1, 2, 3], [4, 5], [6, 7, 8, 9, 1, 2]]), packing()
    sample, plan = get_format("sample"), get_format("sample").plan(stream.size, packing(), ())
    cut = sample.pieces(stream.offsets, stream.lengths, stream.size, how)
    table = np.empty(len(cut.row), PIECE)
    table["row"], table["column"], table["length"] = cut.row, cut.column, cut.length
    tokens = np.concatenate(
        [
            stream.tokens[b : b + n]
            for b, n in zip(stream.offsets[cut.document] + cut.start, cut.length, strict=True)
        ]
    )
    if fault == "missing":
        table, tokens = table[1:], tokens[cut.length[0] :]
    elif fault == "twice":
        table["row"][1], table["column"][1] = table["row"][0], table["column"][0]
    elif fault == "elsewhere":
        table["row"][0] += 1000
    else:
        tokens = tokens[:-1]
    file = MemoryFile({"pieces": table.view(np.uint8), "tokens": tokens.view(np.uint8)})
    with pytest.raises(DataError):
        sample.write(io.BytesIO(), Shard(0, plan, stream.size, how, ()), stream, [], [file])


@settings(deadline=None, max_examples=60)
@given(DOCUMENTS, PACKINGS)
def test_a_corpus_is_the_stream(documents: list[list[int]], how: Packing) -> None:
    stream = MemoryStream(documents)
    shards, _ = write_all(get_format("corpus"), stream, how)
    assert np.array_equal(np.concatenate(shards), stream.tokens)
    assert all(len(tokens) == how.samples_per_file * how.seq_len for tokens in shards[:-1])


@settings(deadline=None, max_examples=100)
@given(DOCUMENTS, PACKINGS)
def test_vsl_holds_every_document_whole(documents: list[list[int]], how: Packing) -> None:
    """Labels of all pieces, put together by document, are the document after its first token, and EOS."""
    stream = MemoryStream(documents)
    shards, _ = write_all(get_format("vsl"), stream, how)
    found = []
    for row in np.concatenate([np.zeros((0, 5, how.seq_len), np.int32), *shards]):
        ends = np.flatnonzero((row[3] == 0) & (row[1] == 1))
        for first, last in zip([0, *(ends[:-1] + 1)], ends, strict=True):
            found.append((tuple(row[0, first : last + 1]), tuple(row[2, first : last + 1])))
        if how.max_documents:
            assert len(ends) <= how.max_documents
    wanted = []
    for document in documents:
        for start in range(0, len(document), how.seq_len):
            inputs = document[start : start + how.seq_len]
            wanted.append(
                (tuple(inputs), tuple([*document[start + 1 : start + 1 + len(inputs)], EOS][: len(inputs)]))
            )
    assert sorted(found) == sorted(wanted)


def test_formats_are_recognised_by_their_rows() -> None:
    for name in FORMATS:
        shape = row_shape(get_format(name), 16)
        assert format_of_rows(shape) is get_format(name)
    assert format_of_rows((4, 16)) is None
    assert format_of_rows((3,)) is None


def test_names_of_formats_load_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from btlm_data.formats.shard_formats import FORMATS; "
        "print(sorted({'numba', 'numpy', 'h5py', 'isal'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
