"""Rows put together of pieces of documents, which were sent to their shard from wherever the documents are (stages/pieces.py)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.formats.shard_formats.base import PIECE, Int64Array, PackedFile, Pieces


def cut(
    offsets: Int64Array, lengths: Int64Array, step: int, more: int, num_rows: int
) -> tuple[Pieces, Int64Array]:
    """Documents cut where row r takes positions [r * step, r * step + step + more) of the stream. offsets: of each document;
    lengths: of each without its EOS, which stands behind it; (n,) int64. more: positions that a row has in common with the next,
    0 or 1. num_rows: rows there are; what is behind them is left out.

    Returns pieces with `row` the row of the stream, and where in the stream each begins, (p,) int64.
    """
    ends = offsets + lengths
    first = np.maximum(offsets - more, 0) // step
    counts = np.maximum(np.minimum(ends // step, num_rows - 1) - first + 1, 0)
    document = np.repeat(np.arange(len(offsets)), counts)
    row = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    begin = np.maximum(offsets[document], row * step)
    stop = np.minimum(ends[document] + 1, row * step + step + more)
    return Pieces(document, begin - offsets[document], stop - begin, row, begin - row * step), begin


def put_together(
    packed: Iterable[PackedFile], rows: tuple[int, int], row_tokens: int, num_tokens: int, dtype: str
) -> npt.NDArray[Any]:
    """The rows [first, last) of a shard, one after the other: (n, ) of dtype `dtype`, n = (last - first) * row_tokens; 0 where no
    piece is.

    num_tokens: that all pieces have together. Raises DataError if pieces stand outside of the shard or on each other, or if
    they have more or less.
    """
    from btlm_data.kernels import stretches

    first, last = rows
    out = np.zeros((last - first) * row_tokens, dtype)
    item = out.itemsize
    places, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for file in packed:
        table = np.ascontiguousarray(file["pieces"]).view(PIECE)
        length = table["length"].astype(np.int64)
        place = (table["row"].astype(np.int64) - first) * row_tokens + table["column"]
        stretches.copy(
            file["tokens"],
            (np.cumsum(length) - length) * item,
            length * item,
            out.view(np.uint8),
            place * item,
        )
        places.append(place)
        lengths.append(length)
    length = np.concatenate(lengths)
    check_apart(np.concatenate(places), length, first)
    if int(length.sum()) != num_tokens:
        raise DataError(
            f"The pieces of rows {first:,} to {last:,} have {int(length.sum()):,} tokens; {num_tokens:,} are needed. "
            "Rerun the same command."
        )
    return out


def check_apart(places: Int64Array, lengths: Int64Array, first: int) -> None:
    """Raise DataError if pieces stand on each other. places: position of each in a shard that begins with row `first`; lengths: its
    positions; (p,) int64.
    """
    order = np.argsort(places)
    if (places[order][1:] < (places + lengths)[order][:-1]).any():
        raise DataError(
            f"Pieces of the shard from row {first:,} on stand on each other. Rerun the same command."
        )
