"""The token stream of a split out of its shards, and shards made of a stream again: no text is read, and the
bytes are those that `prepare` makes of such a stream.

The stream takes 2 or 4 bytes a token while the shards are written: in memory where it is small, else in one file, which the
system maps.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError, OutputError
from btlm_data.formats.dataset import Dataset, ShardFile
from btlm_data.formats.shard_formats import get_format
from btlm_data.formats.shard_formats.base import Packed, Packing, RowPlan, Shard, ShardFormat, StreamSize
from btlm_data.formats.shard_formats.reader import ShardReader
from btlm_data.lineage.masking import check_unchanged
from btlm_data.lineage.split_view import SplitView
from btlm_data.recipe.recorded import settings_of
from btlm_data.stages.pack import packing_of
from btlm_data.storage import cached, page_cache
from btlm_data.threads import in_threads

Int64Array = npt.NDArray[np.int64]
MAX_SHARDS_AT_ONCE = 8  # read or written: some 100 MB each
_PIECE_BYTES = 16 << 20
_IN_MEMORY_BYTES = 1 << 30  # of a stream


class StoredStream(msgspec.Struct, frozen=True):
    """A stream that is held whole, as formats read it (StreamAccess); all of it is one block.

    tokens: (t,) of the stream's dtype; begin, length: (n,) first token of each document, and its tokens
    without EOS.
    """

    tokens: npt.NDArray[Any]
    begin: Int64Array
    length: Int64Array

    @property
    def size(self) -> StreamSize:
        """The stream in numbers."""
        return StreamSize(len(self.tokens), len(self.begin))

    def stretch(self, start: int, stop: int) -> npt.NDArray[Any]:
        """See StreamAccess."""
        return self.tokens[start:stop]

    def samples(self, samples: Int64Array, length: int, total: int) -> npt.NDArray[Any]:
        """See StreamAccess. samples: (m,) int64; returns (m, length + 1) in the dtype of the tokens."""
        from btlm_data.kernels.samples import cut_samples

        out = np.empty((len(samples), length + 1), self.tokens.dtype)
        cut_samples(self.tokens[:total], samples * length, out)
        return out

    def documents(self, start: int, stop: int) -> tuple[Int64Array, Int64Array, Int64Array]:
        """See StreamAccess. Each is (n,) int64."""
        first, last = np.searchsorted(self.begin, [start, stop]).tolist()
        return np.zeros(last - first, np.int64), self.begin[first:last], self.length[first:last]

    def tokens_of_block(self, block: int, starts: Int64Array, lengths: Int64Array) -> npt.NDArray[Any]:
        """See StreamAccess. starts, lengths: (n,) int64; returns (t,) in the dtype of the tokens."""
        return self.tokens


def read_stream(view: SplitView, path: Path, begin: Int64Array, end: Int64Array) -> npt.NDArray[Any]:
    """The stream of a split, in memory or in a file that must not exist. That is mapped, and has no name any more when
    this returns. Returns (t,) uint16 or uint32.

    begin, end: (n,) int64, stretches [begin, end) of the stream that are needed; what is elsewhere may be missing,
    where it costs time to read it. Raises DataError if a shard is not the one that dataset.json names, or the
    shards do not hold the whole stream; OutputError if the disk has no room for it.
    """
    total = view.entry.stream_tokens
    tokens, filled = stream_of(view, path, begin, end)
    if filled != total:
        raise DataError(
            f"The shards of {view.root / view.name} hold {filled:,} of the stream's {total:,} tokens: the rest was left out "
            "as the unfilled tail (tail: drop), or files are missing. Such a stream cannot be packed again."
        )
    return tokens


def stream_of(
    view: SplitView, path: Path, begin: Int64Array | None = None, end: Int64Array | None = None
) -> tuple[npt.NDArray[Any], int]:
    """As `read_stream`, of which all is needed by default: (t,) uint16 or uint32, and how many tokens the shards hold; the
    tokens that they do not hold are at the end, and are 0. begin, end: (n,) int64.
    """
    total = view.entry.stream_tokens
    tokens = _mapped(path, total, np.dtype(view.manifest.dtype))
    if view.is_corpus:
        return tokens, _read_corpus(view, tokens)
    if view.format == "vsl":
        return tokens, _read_packed(view, tokens)
    whole = np.zeros(1, np.int64), np.array([total], np.int64)
    return tokens, _read_samples(view, tokens, *(whole if begin is None or end is None else (begin, end)))


def without(tokens: npt.NDArray[Any], gone: Sequence[tuple[int, int]]) -> npt.NDArray[Any]:
    """The stream without some ranges [begin, end) of positions, which ascend; moved together in place.
    tokens: (t,) of any dtype; returns a view of it.
    """
    target = source = 0
    for begin, end in gone:
        tokens[target : target + begin - source] = tokens[source:begin]
        target, source = target + begin - source, end
    tokens[target : target + len(tokens) - source] = tokens[source:]
    return tokens[: target + len(tokens) - source]


def placed(
    tokens: npt.NDArray[Any], begin: Int64Array, length: Int64Array, path: Path, eos_id: int
) -> npt.NDArray[Any]:
    """The stream of some documents of another, in memory or in a file that must not exist and has no name any more when this
    returns. tokens: (t,) of any dtype; begin, length: (n,) of each document there, in the new order. Returns
    (sum of length + n,) of the same dtype.
    """
    from btlm_data.kernels.packing import place_documents

    ends = np.cumsum(length + 1)
    out = _mapped(path, int(ends[-1]) if len(ends) else 0, tokens.dtype)
    place_documents(tokens, begin, length, ends - length - 1, out, eos_id)
    return out


class Repacking(msgspec.Struct, frozen=True):
    """What a stream becomes: how, and which rows are in which shard."""

    stream: StoredStream
    shard_format: ShardFormat
    packing: Packing
    plan: RowPlan
    packed: tuple[Packed, ...]

    @staticmethod
    def of(stream: StoredStream, manifest: Dataset, split: str, borders: Sequence[int] = ()) -> Repacking:
        """As the settings that a dataset records pack it. borders: between phases of its mix, in tokens. Raises
        DataError if the settings are not valid.
        """
        settings = settings_of(manifest.configuration)
        if isinstance(settings, str):
            raise DataError(f"The configuration in dataset.json cannot be used: {settings}.")
        shard_format, size = get_format(manifest.format), stream.size
        eos = manifest.tokenizer.eos_id
        packing = packing_of(settings, manifest.seq_len, split, manifest.dtype, eos, borders)
        packed = []
        if shard_format.plans_by_packing:
            stretches = shard_format.stretches(size, packing, 0)
            packed = [shard_format.pack(stretch, size, packing, stream) for stretch in stretches]
        plan = shard_format.plan(size, packing, [part.rows for part in packed])
        return Repacking(stream, shard_format, packing, plan, tuple(packed))

    @property
    def phase_rows(self) -> list[int]:
        """Rows of each phase; all of them where there is one."""
        rows = [part.rows for part in self.packed]
        ends = self.shard_format.phase_rows(self.stream.size, self.packing, rows) or (self.plan.rows,)
        return [end - before for before, end in pairwise((0, *ends))]

    def is_before(self, number: int, position: int) -> bool:
        """Whether a shard holds nothing from a stream position on, and knows nothing of it."""
        if self.shard_format.plans_by_packing or (self.shard_format.planes and self.packing.is_shuffled):
            return False
        rows = self.plan.rows_of(number)
        return self.shard_format.tokens_needed(rows, self.stream.size, self.packing)[1] <= position

    def write(self, number: int, path: Path) -> ShardFile:
        """One shard, to a file that must not exist."""
        rows = tuple(part.rows for part in self.packed)
        shard = Shard(number, self.plan, self.stream.size, self.packing, rows)
        with cached.create(path) as file:
            packed = [_Columns(part.columns) for part in self.packed]
            info = self.shard_format.write(file, shard, self.stream, packed)
            file.flush()
            os.fsync(file.fileno())
        return ShardFile(
            name=path.name,
            bytes=info.num_bytes,
            sha256=info.sha256,
            n_examples=info.n_examples,
            tokens=info.num_tokens,
            xxh3=info.xxh3,
        )


class _Columns(msgspec.Struct, frozen=True):
    """A packed stretch that is in memory."""

    columns: Any

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        column: npt.NDArray[Any] = self.columns[name]
        return column

    def rows(self, name: str, first: int, last: int) -> npt.NDArray[Any]:
        return self[name][first:last]


def _mapped(path: Path, count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Room for a stream: memory where it is small, else a file that the system maps. (count,)"""
    size = max(1, count * dtype.itemsize)
    if size <= _IN_MEMORY_BYTES and page_cache.fits(size):
        with contextlib.suppress(OSError):  # less memory is allowed than there is
            memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError, AttributeError):  # a system without large pages
                memory.madvise(mmap.MADV_HUGEPAGE)
            return np.frombuffer(memory, dtype, count)
    with path.open("x+b") as file:
        path.unlink()  # the mapping holds it
        try:
            file.truncate(size)
            if hasattr(
                os, "posix_fallocate"
            ):  # a disk that is full is found now, not by a write to the mapping
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise OutputError(
                f"{size:,} bytes for the stream of tokens cannot be had beside the dataset ({error.strerror or error}). "
                "Free that much there, and run the same command again; nothing was changed."
            ) from None
        return np.frombuffer(mmap.mmap(file.fileno(), 0), dtype, count)


def _each_shard(view: SplitView, fill: Callable[[int, ShardReader], int]) -> int:
    """What `fill` returns of every shard (its number, and it opened), together; several shards at once."""

    def checked(number: int) -> int:
        check_unchanged(view.path(number), view.entry.files[number])
        with ShardReader(view.path(number)) as shard:
            return fill(number, shard)

    return sum(in_threads(checked, range(len(view.entry.files)), MAX_SHARDS_AT_ONCE))


def _pieces(view: SplitView, shard: ShardReader) -> Iterator[tuple[int, int]]:
    """Rows [start, stop) of a shard, some at a time."""
    step = max(1, _PIECE_BYTES // (4 * (1 if view.is_corpus else view.length)))
    for start in range(0, shard.shape[0], step):
        yield start, min(start + step, shard.shape[0])


def _read_corpus(view: SplitView, tokens: npt.NDArray[Any]) -> int:
    """Fill the stream from its shards; returns how many tokens they hold."""

    def fill(number: int, shard: ShardReader) -> int:
        first = view.first_row(number)
        for start, stop in _pieces(view, shard):
            tokens[first + start : first + stop] = shard.read(start, stop)
        return shard.shape[0]

    return _each_shard(view, fill)


def _read_samples(view: SplitView, tokens: npt.NDArray[Any], begin: Int64Array, end: Int64Array) -> int:
    """Fill the stream from the samples that have a part of it; returns how many tokens all of them hold."""
    from btlm_data.kernels.samples import place_samples

    length, labels = view.length, view.num_labels
    if not view.num_rows:
        return 0
    is_needed = _touched(begin, end, length, view.num_rows)

    def fill(number: int, shard: ShardReader) -> int:
        first = view.first_row(number)
        for start, stop in _pieces(view, shard):
            samples = view.samples_of(np.arange(first + start, first + stop))
            chosen = is_needed[samples]
            rows = shard.first_planes(start, stop, chosen)
            starts = samples[chosen] * length
            place_samples(rows, starts, np.clip(labels - starts, 0, length), tokens)
        return 0

    _each_shard(view, fill)
    last = int(view.rows_of(np.array([(labels - 1) // length]))[0])
    number, row = view.shard_of(last)
    with ShardReader(view.path(number)) as shard:  # the stream's last token is a label only
        tokens[labels] = shard.read(row, row + 1)[0][2][(labels - 1) % length]
    return labels + 1


def _touched(begin: Int64Array, end: Int64Array, length: int, count: int) -> npt.NDArray[np.bool_]:
    """Which of `count` samples have a position of the stretches [begin, end), (count,) bool."""
    edges = np.zeros(count + 1, np.int64)
    np.add.at(edges, np.minimum(begin // length, count), 1)
    np.add.at(edges, np.minimum(-(-end // length), count), -1)
    return np.cumsum(edges)[:-1] > 0


def _read_packed(view: SplitView, tokens: npt.NDArray[Any]) -> int:
    """Fill the stream from documents that are packed into samples; returns how many tokens they hold."""
    tokens[:] = view.manifest.tokenizer.eos_id  # it ends each document, and is no row's input
    begins = np.concatenate(
        [np.empty(0, np.int64)]
        + [columns["stream_offset"].astype(np.int64) for _, columns in view.table.batches(["stream_offset"])]
    )
    pieces = view.pieces()
    order = np.argsort(pieces.row, kind="stable")
    in_order = pieces.row[order]

    def fill(number: int, shard: ShardReader) -> int:
        filled = 0
        for start, stop in _pieces(view, shard):
            first = view.first_row(number) + start
            rows = shard.first_planes(start, stop)
            low, high = np.searchsorted(in_order, [first, first + len(rows)]).tolist()
            chosen = order[low:high]
            lengths = pieces.length[chosen]
            steps = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            sources = (pieces.row[chosen] - first) * view.length + pieces.column[chosen]
            targets = begins[pieces.document[chosen]] + pieces.start[chosen]
            tokens[np.repeat(targets, lengths) + steps] = rows.reshape(-1)[
                np.repeat(sources, lengths) + steps
            ]
            filled += int(lengths.sum())
        return filled

    return len(begins) + _each_shard(view, fill)
