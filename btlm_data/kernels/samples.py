"""Samples out of a stream of tokens, and back into it: row r of a block is a stretch of the stream.

Plain twin: slices, one row at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_below, check_same_length, check_stretches

Int64Array = npt.NDArray[np.int64]


def cut_samples(stream: npt.NDArray[Any], starts: Int64Array, out: npt.NDArray[Any]) -> None:
    """Fill row r of `out` (n, W) with stream[starts[r] : starts[r] + W], and with 0 behind the stream's end.

    stream: (t,) of the dtype of `out`; starts: (n,) int64. Raises DataError for a start outside the stream.
    """
    check_same_length("Samples", starts, out)
    check_below(starts, len(stream) + 1, "Start of sample")
    _cut(stream, starts, out)


@jit
def _cut(stream: npt.NDArray[Any], starts: Int64Array, out: npt.NDArray[Any]) -> None:
    width = out.shape[1]
    for r in range(len(starts)):
        start = starts[r]
        count = min(width, len(stream) - start)
        row = out[r]
        for k in range(count):
            row[k] = stream[start + k]
        for k in range(count, width):
            row[k] = 0


def place_samples(
    rows: npt.NDArray[Any], starts: Int64Array, counts: Int64Array, stream: npt.NDArray[Any]
) -> None:
    """Put the first counts[r] values of row r of `rows` (n, L) at stream[starts[r]] and on.

    rows: any integer dtype, whose values the stream (t,) can hold. starts, counts: (n,) int64. Raises DataError for a
    row that would be outside the stream, or that is shorter than its count.
    """
    check_same_length("Samples", rows, starts, counts)
    check_below(counts, rows.shape[1] + 1, "Length of sample")
    check_stretches(starts, starts + counts, len(stream), "Sample")
    _place_rows(rows, starts, counts, stream)


@jit
def _place_rows(
    rows: npt.NDArray[Any], starts: Int64Array, counts: Int64Array, stream: npt.NDArray[Any]
) -> None:
    for r in range(len(starts)):
        row = rows[r]
        start = starts[r]
        for k in range(counts[r]):
            stream[start + k] = row[k]
