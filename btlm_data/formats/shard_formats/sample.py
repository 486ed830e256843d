"""The format `sample`: (n, 3, L) input_ids, attention_mask, labels; sample i takes stream[i*L : (i+1)*L + 1].

The attention mask is 1 on real positions and serves as the loss mask. Only the stream's last sample can be
padded: 0 in all planes. Shuffled samples come from one of two places, with the same bytes: where the stream's
tokens fit in memory (the page cache), each shard takes its samples from the stream, wherever they stand; else
`pack` cuts stretches of the stream into rows, sorts them by destination, and each shard reads its own part of
every stretch.

    rows (m, L+1) tokens sorted by destination, place (m,) uint64 destinations, first (1,) uint64 the first
    shard that the file has rows of, edges (shards + 1,) uint64 the rows of each from there on

Ledger: tokens in = label positions + 1 (a stream's first token is never a label) + the dropped tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.formats.shard_formats.base import (
    Balance,
    Checked,
    Int64Array,
    Packed,
    PackedFile,
    Packing,
    RowContext,
    RowFaults,
    RowPlan,
    Shard,
    StreamAccess,
    StreamSize,
    Stretch,
    faults_of,
)
from btlm_data.formats.shard_formats.order import SampleOrder
from btlm_data.formats.shard_formats.writer import (
    BATCH_UNITS,
    ElementType,
    ShardInfo,
    ShardOptions,
    ShardWriter,
    sample_planes,
)
from btlm_data.storage import page_cache

if TYPE_CHECKING:
    from btlm_data.kernels.checks import Prints, Vocabulary

_OURS = frozenset({"mask order", "padding"})  # rules that other writers need not keep
_STRETCH_BYTES = 64 * 2**20  # of tokens in a stretch, where memory has room for it
_MOST_STRETCHES = 2048  # so that a shard's part of each is not too short


class SampleFormat:
    """See the module."""

    name = "sample"
    planes = ("input_ids", "attention_mask", "labels")
    rules = ("mask value", "mask order", "padding", "shift", "token")
    follows_stream = True
    plans_by_packing = False

    def element_type(self, chosen: ElementType, token_dtype: str) -> ElementType:
        """The recipe's choice."""
        return chosen

    def stretches(self, size: StreamSize, packing: Packing, memory: int) -> list[Stretch]:
        """None where samples are not shuffled or the stream fits in memory; else as long as memory allows, from some tens of MB on."""
        token_bytes = np.dtype(packing.dtype).itemsize
        if not packing.is_shuffled or page_cache.fits(size.tokens * token_bytes):
            return []
        length, count = packing.seq_len, _num_samples(size, packing)
        stretch_bytes = self.stretch_bytes(size.tokens * token_bytes, memory, is_shuffled=True)
        assert stretch_bytes is not None
        step = max(1, stretch_bytes // (token_bytes * (length + 1)))
        bounds = [(first, min(first + step, count)) for first in range(0, count, step)]
        return [Stretch(rows, _tokens_of(rows, size, length)) for rows in bounds]

    def stretch_bytes(self, stream_bytes: int, memory: int, *, is_shuffled: bool) -> int | None:
        """A fifth of the memory at most: a task holds a stretch and its rows, and reads their tokens."""
        return min(memory // 5, max(_STRETCH_BYTES, stream_bytes // _MOST_STRETCHES)) if is_shuffled else None

    def packed_bytes(self, size: StreamSize, packing: Packing) -> int:
        """The rows and their destinations."""
        row_bytes = np.dtype(packing.dtype).itemsize * (packing.seq_len + 1) + 8
        return _num_samples(size, packing) * row_bytes

    def pack(self, stretch: Stretch, size: StreamSize, packing: Packing, stream: StreamAccess) -> Packed:
        """Cut one stretch into rows and sort them by destination."""
        first, last = stretch.rows
        plan = self.plan(size, packing, ())
        rows_to = self._order(size, packing).rows_of(np.arange(first, last))
        order = np.argsort(rows_to)
        rows = cut_rows(stream.stretch(*stretch.tokens), last - first, packing.seq_len)[order]
        rows_to = rows_to[order]
        borders = np.arange(plan.num_files + 1, dtype=np.uint64) * np.uint64(plan.rows_per_file)
        edges = np.searchsorted(rows_to, borders).astype(np.uint64)
        return Packed(
            {"rows": rows, "place": rows_to, "edges": edges, "first": np.zeros(1, np.uint64)}, last - first
        )

    def merge(self, packed: Sequence[PackedFile], shards: tuple[int, int]) -> Packed:
        """The rows of some shards, from all the files, by destination; held once, and of one file beside it."""
        edges, bounds = np.zeros(shards[1] - shards[0] + 1, np.uint64), list[tuple[int, int]]()
        for file in packed:
            base = int(file.rows("first", 0, 1)[0])
            edges_of_file = file.rows("edges", shards[0] - base, shards[1] - base + 1)
            edges += edges_of_file - edges_of_file[0]
            bounds.append((int(edges_of_file[0]), int(edges_of_file[-1])))
        rows_to = np.concatenate(
            [file.rows("place", *of_file) for file, of_file in zip(packed, bounds, strict=True)]
        )
        order = np.argsort(rows_to)
        position = np.empty(len(order), np.int64)
        position[order] = np.arange(len(order))
        rows: npt.NDArray[Any] | None = None
        done = 0
        for file, of_file in zip(packed, bounds, strict=True):
            part = file.rows("rows", *of_file)
            if rows is None:
                rows = np.empty((len(order), part.shape[1]), part.dtype)
            rows[position[done : done + len(part)]] = part
            done += len(part)
        assert rows is not None, "a task of a merge names files"
        first = np.array(shards[:1], np.uint64)
        return Packed({"rows": rows, "place": rows_to[order], "edges": edges, "first": first}, len(rows))

    def plan(self, size: StreamSize, packing: Packing, packed_rows: Sequence[int]) -> RowPlan:
        """One row a sample, the padded one included."""
        return RowPlan(_num_samples(size, packing), packing.samples_per_file)

    def phase_rows(self, size: StreamSize, packing: Packing, packed_rows: Sequence[int]) -> tuple[int, ...]:
        """The sample that a border is in belongs to the phase before it."""
        count = _num_samples(size, packing)
        ends = [min(-(-border // packing.seq_len), count) for border in packing.borders]
        return (*ends[:-1], count) if ends else ()

    def _order(self, size: StreamSize, packing: Packing) -> SampleOrder:
        return packing.order(_num_samples(size, packing), self.phase_rows(size, packing, ()))

    def tokens_needed(self, rows: tuple[int, int], size: StreamSize, packing: Packing) -> tuple[int, int]:
        """Of shuffled samples: any."""
        return (0, size.tokens) if packing.is_shuffled else _tokens_of(rows, size, packing.seq_len)

    def write(
        self, file: BinaryIO, shard: Shard, stream: StreamAccess, packed: Sequence[PackedFile]
    ) -> ShardInfo:
        """Write one shard of samples."""
        (first, last), packing = shard.rows, shard.packing
        length, labels = packing.seq_len, shard.size.tokens - 1
        real: Int64Array | None = None
        if packing.is_shuffled:
            if packed:
                rows = _from_stretches(packed, shard.number, first, last)
            else:
                samples = self._order(shard.size, packing).samples_at(np.arange(first, last))
                rows = stream.samples(samples.astype(np.int64), length, shard.size.tokens)
            # Only the stream's last sample can be short, so only its row is looked up.
            last_sample = shard.plan.rows - 1
            short = labels - last_sample * length
            if short < length:
                row = int(self._order(shard.size, packing).rows_of(np.array([last_sample]))[0])
                if first <= row < last:
                    real = np.full(last - first, length, np.int64)
                    real[row - first] = short
        else:
            start, stop = _tokens_of(shard.rows, shard.size, length)
            rows = cut_rows(stream.stretch(start, stop), last - first, length)
            if last * length > labels:
                real = np.clip(labels - np.arange(first, last, dtype=np.int64) * length, 0, length)
        return write_samples(file, rows, real, packing.storage)

    def balance(self, size: StreamSize, packing: Packing) -> Balance:
        """All tokens but the first are labels; a tail may be dropped."""
        kept = min(size.tokens - 1, _num_samples(size, packing) * packing.seq_len)
        return Balance(kept, {"first_token_is_no_label": 1, "unfilled_tail": size.tokens - 1 - kept})

    def check(
        self, rows: npt.NDArray[Any], context: RowContext, vocabulary: Vocabulary, prints: Prints
    ) -> Checked:
        """Masks, padding, label shift, ids; the prints gain ends of documents and borders of samples. rows:
        (n, 3, L) of any integer dtype.
        """
        from btlm_data.kernels.checks import scan_samples

        length = rows.shape[2]
        order = np.full(len(rows), -1, np.int64)
        if context.is_known:
            order = (
                np.arange(context.first, context.first + len(rows))
                if context.order is None
                else context.order
            )
        result = scan_samples(rows, order, max(1, context.num_samples), vocabulary, prints)
        faults = faults_of(result, self.rules, frozenset() if context.is_ours else _OURS)
        if context.is_known:
            expected = np.clip(context.num_labels - order * length, 0, length)
            wrong = np.flatnonzero(result.real != expected)
            if len(wrong):
                codes = length + np.minimum(result.real, expected)[wrong]
                faults.append(RowFaults("real", wrong, codes))
        return Checked(faults, int(result.real.sum()), int(result.eos.sum()))


def write_samples(
    file: BinaryIO,
    rows: npt.NDArray[Any],
    num_real: npt.NDArray[np.int64] | None = None,
    options: ShardOptions | None = None,
) -> ShardInfo:
    """Write a sample shard into an empty file, open for reading and writing.

    rows: (n, L+1) uint16 or uint32, any strides: the L inputs of a sample and the label of its last position,
    L >= 1. num_real: (n,) how many label positions of each row are real; from there on all three planes are 0
    (all L by default; rows' values there do not matter).
    """
    options = options or ShardOptions()
    n, length = rows.shape[0], rows.shape[1] - 1
    full = np.ones(n, bool) if num_real is None else num_real >= length
    with ShardWriter(file, (n, 3, length), (1, 3, length), options) as writer:
        if writer.plain and options.dtype == "int32":
            step = max(1, BATCH_UNITS // (length + 1))
            for start in range(0, n, step):
                writer.add_samples(rows[start : start + step], full[start : start + step], num_real, start)
        else:
            step = max(1, BATCH_UNITS // (3 * length))
            for start in range(0, n, step):
                writer.add(
                    sample_planes(
                        rows[start : start + step],
                        None if num_real is None else num_real[start : start + step],
                    )
                )
    return writer.info(n * length if num_real is None else int(num_real.sum()))


def cut_rows(stream: npt.NDArray[Any], num_rows: int, length: int) -> npt.NDArray[Any]:
    """Row i is stream[i*L : (i+1)*L + 1], (num_rows, L+1), a view where the stream is long enough, else
    padded with 0. The dtype is that of `stream`, (t,).
    """
    needed = num_rows * length + 1
    if len(stream) < needed:
        stream = np.concatenate([stream, np.zeros(needed - len(stream), stream.dtype)])
    return np.lib.stride_tricks.as_strided(
        stream, (num_rows, length + 1), (length * stream.itemsize, stream.itemsize), writeable=False
    )


def _num_samples(size: StreamSize, packing: Packing) -> int:
    labels = max(0, size.tokens - 1)
    return -(-labels // packing.seq_len) if packing.tail == "pad" else labels // packing.seq_len


def _tokens_of(rows: tuple[int, int], size: StreamSize, length: int) -> tuple[int, int]:
    return rows[0] * length, min(rows[1] * length + 1, size.tokens)


def _from_stretches(packed: Sequence[PackedFile], number: int, first: int, last: int) -> npt.NDArray[Any]:
    """Rows [first, last), those of shard `number`, in their final order, (last - first, L+1), from every
    packed stretch.

    Nothing else of those files is read. Raises DataError if they do not hold each row once.
    """
    rows: npt.NDArray[Any] | None = None
    is_filled = np.zeros(last - first, np.bool_)
    for stretch in packed:
        base = int(stretch.rows("first", 0, 1)[0])
        begin, end = (int(edge) for edge in stretch.rows("edges", number - base, number - base + 2))
        if begin == end:
            continue
        part = stretch.rows("rows", begin, end)
        rows_to = stretch.rows("place", begin, end).astype(np.int64) - first
        if rows is None:
            rows = np.empty((last - first, part.shape[1]), part.dtype)
        if int(rows_to.min()) < 0 or int(rows_to.max()) >= last - first:
            raise DataError(f"A packed stretch holds samples that do not belong to shard {number}.")
        rows[rows_to] = part
        is_filled[rows_to] = True
    if rows is None or not is_filled.all():
        raise DataError(f"The packed samples of shard {number} are incomplete. Rerun the same command.")
    return rows


FORMAT = SampleFormat()
