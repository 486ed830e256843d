"""Many stretches of bytes copied at once: from where they stand in one buffer to where they are wanted in another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from btlm_data.kernels.buckets import readonly
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_same_length, check_stretches

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]


def copy(
    source: UInt8Array, starts: Int64Array, lengths: Int64Array, out: UInt8Array, out_starts: Int64Array
) -> None:
    """Copy source[starts[i] : starts[i] + lengths[i]] to out[out_starts[i] : ...], in order.

    source, out: (bytes,) uint8, not overlapping; starts, lengths, out_starts: (n,) int64. Raises DataError for a stretch
    that is not inside of either.
    """
    check_same_length("Stretches of bytes", starts, lengths, out_starts)
    check_stretches(starts, starts + lengths, len(source), "A stretch of bytes")
    check_stretches(out_starts, out_starts + lengths, len(out), "A copied stretch of bytes")
    _copy(readonly(source), starts, lengths, out, out_starts)


@jit
def _copy(
    source: UInt8Array, starts: Int64Array, lengths: Int64Array, out: UInt8Array, out_starts: Int64Array
) -> None:
    for i in range(len(starts)):
        begin, to = (
            np.uint64(starts[i]),
            np.uint64(out_starts[i]),
        )  # without a sign, so that many bytes move at once
        for k in range(np.uint64(lengths[i])):
            out[to + k] = source[begin + k]
