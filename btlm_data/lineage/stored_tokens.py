"""Tokens of consecutive documents out of the shards, many at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.formats.shard_formats.reader import ShardReader
from btlm_data.lineage.split_view import Extent, SplitView

Int64Array = npt.NDArray[np.int64]
ROWS_TOKENS = 1 << 22  # read at once


def tokens_of(
    view: SplitView, first: int, begins: Int64Array, lengths: Int64Array
) -> tuple[npt.NDArray[np.uint32], Int64Array]:
    """Tokens of consecutive documents, without EOS, one after the other, and n + 1 offsets.

    first: the row in the table of the first; begins, lengths: (n,) int64, their first stream positions and
    their tokens. Returns (t,) uint32 and (n + 1,) int64. Of what is not in the shards (an unpadded tail) the
    tokens are 0. Raises DataError where shards are damaged.
    """
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    if not len(lengths):
        return np.empty(0, np.uint32), offsets
    if view.format == "vsl":
        out = np.zeros(int(offsets[-1]), np.uint32)
        _fill_packed(view, first, begins, lengths, out, offsets)
        return out, offsets
    start, stop = int(begins[0]), int(begins[-1] + lengths[-1])
    change = np.zeros(stop - start + 1, np.int8)
    change[begins - start] += 1
    change[begins + lengths - start] -= 1
    return _stretch(view, start, stop)[np.cumsum(change, dtype=np.int8)[:-1].view(np.bool_)], offsets


def _stretch(view: SplitView, start: int, stop: int) -> npt.NDArray[np.uint32]:
    """Stream positions [start, stop), which are inputs of samples, or tokens of a corpus."""
    out = np.zeros(stop - start, np.uint32)
    if view.is_corpus:
        for number, file in enumerate(view.entry.files):
            base = view.first_row(number)
            low, high = max(start, base), min(stop, base + file.n_examples)
            if low < high:
                with ShardReader(view.path(number)) as shard:
                    out[low - start : high - start] = shard.read(low - base, high - base)
        return out
    stop = min(stop, view.num_labels)
    if start >= stop:
        return out
    samples = np.arange(start // view.length, (stop - 1) // view.length + 1)
    rows = view.rows_of(samples)
    order = np.argsort(rows)
    for numbers, ids in _inputs(view, rows[order]):
        for number, sample_ids in zip(order[numbers].tolist(), ids, strict=True):
            base = int(samples[number]) * view.length
            low, high = max(start, base), min(stop, base + view.length)
            out[low - start : high - start] = sample_ids[low - base : high - base]
    return out


def _inputs(view: SplitView, rows: Int64Array) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """(which of `rows`, their input ids) of rows of the split, which ascend; each shard is opened once."""
    at_once = max(1, ROWS_TOKENS // view.length)
    firsts = np.array([view.first_row(number) for number in range(len(view.entry.files))])
    shards = np.searchsorted(firsts, rows, side="right") - 1
    edges = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(rows)]
    for low, high in pairwise(edges):
        number = int(shards[low])
        with ShardReader(view.path(number)) as shard:
            for begin in range(low, high, at_once):
                chosen = slice(begin, min(begin + at_once, high))
                yield chosen, shard.first_planes_at(rows[chosen] - firsts[number])


def _fill_packed(
    view: SplitView,
    first: int,
    begins: Int64Array,
    lengths: Int64Array,
    out: npt.NDArray[np.uint32],
    offsets: Int64Array,
) -> None:
    """Fill `out` with documents that are packed into samples; each row is read once."""
    spans = [
        (offset, span)
        for number, (begin, length, offset) in enumerate(
            zip(begins.tolist(), lengths.tolist(), offsets.tolist(), strict=False)
        )
        for span in view.spans(Extent(first + number, begin, length))
    ]
    rows = np.unique(np.array([span.row for _, span in spans], np.int64))
    inputs = {
        row: row_ids
        for numbers, ids in _inputs(view, rows)
        for row, row_ids in zip(rows[numbers].tolist(), ids, strict=True)
    }
    for offset, span in spans:
        (low, high), (column, _) = span.tokens, span.positions
        out[offset + low : offset + high] = inputs[span.row][column : column + high - low]
