"""Components put into groups of about GROUP_BYTES of text, so that a task can hold all that it compares.

A group is a run of whole components in the order of their first documents; only documents in components of
two or more are in one. What a group is follows from the documents alone, never from memory or workers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from btlm_data.dedupe.parts import Parts
from btlm_data.kernels.compiling import jit

GROUP_BYTES = 128 * 2**20
ROW_BYTES = 256  # what is kept of a document besides its text: its place, its band keys
_UNIT = 256  # bytes: sizes are summed in 32 bits
UInt32Array = npt.NDArray[np.uint32]


def assign(clusters: UInt32Array, sizes: UInt32Array, parts: Parts) -> tuple[UInt32Array, int]:
    """Group of each document, from 1, (N,) uint32, 0 where it has none; and the number of groups.

    clusters: (N,) uint32, the first document of each one's component. sizes: (N,) uint32, of each document in
    units of 256 bytes (`units`), 0 where it is alone; overwritten.
    """
    add_up(clusters, sizes, parts)
    num_groups, _ = _number(clusters, sizes, GROUP_BYTES // _UNIT, 0, 0)
    parts.run(_spread, clusters, sizes)
    return sizes, num_groups


def add_up(clusters: UInt32Array, sizes: UInt32Array, parts: Parts) -> None:
    """Let the size at the first document of each component be that of the whole. clusters, sizes: (n,) uint32, as `assign` takes
    them.
    """
    parts.run(_sum, clusters, sizes)


def number(sizes: UInt32Array, before: tuple[int, int]) -> tuple[int, int]:
    """Put the group of each component where its size is. sizes: (c,) uint32, of components in order. before: what this returned for
    the components before them, at first (0, 0): groups, and what the last one holds.
    """
    firsts = np.arange(len(sizes), dtype=np.uint32)
    num_groups, held = _number(firsts, sizes, GROUP_BYTES // _UNIT, *before)
    return int(num_groups), int(held)


@jit
def units(num_bytes: int) -> int:
    """Bytes of a document in the units of `assign`, rounded up, with what every document takes."""
    return (num_bytes + ROW_BYTES + _UNIT - 1) // _UNIT


@jit
def _sum(first: int, last: int, clusters: UInt32Array, sizes: UInt32Array) -> None:
    """The size of each component whose first document is one of [first, last), at that document."""
    for i in range(first, len(clusters)):
        root = clusters[i]
        if root != i and first <= root < last:
            sizes[root] = min(np.int64(sizes[root]) + np.int64(sizes[i]), np.int64(2**32 - 1))


@jit
def _number(clusters: UInt32Array, sizes: UInt32Array, most: int, group: int, held: int) -> tuple[int, int]:
    """Sizes at first documents become groups; returns how many there are, and what the last one holds."""
    for i in range(len(clusters)):
        if clusters[i] == i and sizes[i] > 0:
            if group == 0 or held + sizes[i] > most:
                group += 1
                held = 0
            held += int(sizes[i])
            sizes[i] = group
    return group, held


@jit
def _spread(first: int, last: int, clusters: UInt32Array, sizes: UInt32Array) -> None:
    """The group of the documents [first, last) is that of the first one of their component."""
    for i in range(first, last):
        if clusters[i] != i and sizes[i] > 0:
            sizes[i] = sizes[clusters[i]]
