"""Components put into groups of about GROUP_BYTES of text, so that a task can hold all that it compares.

A group is a run of whole components in the order of their first documents; only documents in components of
two or more are in one. What a group is follows from the documents alone, never from memory or workers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from btlm_data.kernels.compiling import jit

GROUP_BYTES = 128 * 2**20
ROW_BYTES = 256  # what is kept of a document besides its text: its place, its band keys
_UNIT = 256  # bytes: sizes are summed in 32 bits
UInt32Array = npt.NDArray[np.uint32]


def assign(clusters: UInt32Array, sizes: UInt32Array) -> tuple[UInt32Array, int]:
    """Group of each document, from 1, (N,) uint32, 0 where it has none; and the number of groups.

    clusters: (N,) uint32, the first document of each one's component. sizes: (N,) uint32, of each document in
    units of 256 bytes (`units`), 0 where it is alone; overwritten.
    """
    most = GROUP_BYTES // _UNIT
    num_groups = _assign(clusters, sizes, most)
    return sizes, num_groups


def units(num_bytes: npt.NDArray[np.int64]) -> UInt32Array:
    """Bytes in the units of `assign`, rounded up, with what every document takes. num_bytes: (n,) int64;
    returns (n,) uint32.
    """
    return (-(-(num_bytes + ROW_BYTES) // _UNIT)).astype(np.uint32)


@jit
def _assign(clusters: UInt32Array, sizes: UInt32Array, most: int) -> int:
    """Sizes become groups. A root comes before the documents of its component, so one pass sums and one
    assigns.
    """
    for i in range(len(clusters)):
        root = clusters[i]
        if root != i:
            sizes[root] = min(np.int64(sizes[root]) + np.int64(sizes[i]), np.int64(2**32 - 1))
    group = held = 0
    for i in range(len(clusters)):
        if clusters[i] != i:
            sizes[i] = sizes[clusters[i]] if sizes[i] > 0 else 0
        elif sizes[i] > 0:
            if group == 0 or held + sizes[i] > most:
                group += 1
                held = 0
            held += int(sizes[i])
            sizes[i] = group
    return group
