"""Connected components of documents: a union-find whose root is always the smallest ordinal, so that the
order of edges never shows.

Tarjan & van Leeuwen, "Worst-case analysis of set union algorithms" (JACM 1984): linking by index with path
halving, which costs O(log n) amortised an edge and needs nothing but the parents: 4 bytes a document. Plain
twins are in tests/reference/union_find.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.kernels.buckets import readonly
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_same_length

UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]


def unite(parent: UInt32Array, first: UInt32Array, other: UInt32Array) -> None:
    """Merge the components of first[k] and other[k], both (n,) uint32, for every k.

    parent: (N,) uint32 with parent[i] <= i; at first parent[i] = i. Raises DataError for an ordinal of N or
    more, and for a parent after its child; parent is of no use then.
    """
    check_same_length("Pairs of documents", first, other)
    if (k := _unite(parent, readonly(first), readonly(other))) >= 0:
        raise DataError(
            f"The pair of documents {first[k]} and {other[k]} does not fit {len(parent)} documents, or "
            "their components "
            "are damaged. Delete the work folder and rerun the same command."
        )


@jit
def _unite(parent: UInt32Array, first: UInt32Array, other: UInt32Array) -> int:
    """-1, or the first pair that cannot be united.

    A parent is never after its child, so every walk ends inside the array.
    """
    for k in range(len(first)):
        a, b = first[k], other[k]
        if a >= len(parent) or b >= len(parent):
            return k
        while parent[a] != a:
            if parent[a] > a or parent[parent[a]] > a:
                return k
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            if parent[b] > b or parent[parent[b]] > b:
                return k
            parent[b] = parent[parent[b]]
            b = parent[b]
        if a < b:
            parent[b] = a
        elif b < a:
            parent[a] = b
    return -1


def flatten(parent: UInt32Array) -> None:
    """Make every parent its component's root. parent: (N,) uint32. Raises DataError for a parent after its
    child.
    """
    if (i := _flatten(parent)) >= 0:
        raise DataError(
            f"The components of documents are damaged: document {i} hangs on {parent[i]}. "
            "Delete the work folder and rerun the same command."
        )


@jit
def _flatten(parent: UInt32Array) -> int:
    """-1, or the first document with a parent after it. One pass is enough: parents come before children."""
    for i in range(len(parent)):
        if parent[i] > i:
            return i
        parent[i] = parent[parent[i]]
    return -1
