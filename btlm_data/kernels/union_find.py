"""Connected components of documents: a union-find whose root is always the smallest ordinal, so that the order of edges never shows.

Tarjan & van Leeuwen, "Worst-case analysis of set union algorithms" (JACM 1984): linking by index with path halving, which costs
O(log n) amortised an edge and needs nothing but the parents: 4 bytes a document. Plain twins are in tests/reference/union_find.py.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]
_jit = numba.njit(cache=True, nogil=True)


@_jit
def unite(parent: UInt32Array, first: UInt32Array, other: UInt32Array) -> None:
    """Merge the components of first[k] and other[k] for every k. parent: (N,) uint32 with parent[i] <= i; at first parent[i] = i."""
    for k in range(len(first)):
        a, b = first[k], other[k]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        if a < b:
            parent[b] = a
        elif b < a:
            parent[a] = b


@_jit
def flatten(parent: UInt32Array) -> None:
    """Make every parent its component's root. One pass does: a parent is never behind its child."""
    for i in range(len(parent)):
        parent[i] = parent[parent[i]]
