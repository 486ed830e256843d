"""Records of documents in the order of their keys, in files that are cut by bucket.

per stream s `s/records` (n, 32) uint8: RECORD each (of other files, another type), in the order of their keys; meta: `edges`, per
stream the rows at which each bucket from `first` on begins, and the end
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.formats.columns import Columns
from btlm_data.task_files import TaskFiles

# A document in a stream. start: of its tokens in the block that `block` numbers.
RECORD = np.dtype([("key", "<u8"), ("start", "<u8"), ("ordinal", "<u8"), ("block", "<u4"), ("length", "<u4")])
Records = npt.NDArray[Any]


def write(
    files: TaskFiles,
    name: str,
    streams: Mapping[str, tuple[Records, npt.NDArray[Any]]],
    first: int,
    more: Mapping[str, npt.NDArray[Any]] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write the records of some streams. streams: name -> records in order, rows at which each bucket begins,
    and the end. Records are (n,) of one structured dtype, bounds (buckets + 1,) int64. more, meta: what else
    the file has.
    """
    arrays = {
        f"{stream}/records": records.view(np.uint8).reshape(-1, records.dtype.itemsize)
        for stream, (records, _) in streams.items()
    }
    edges = {stream: bounds.tolist() for stream, (_, bounds) in streams.items()}
    files.write_columns(name, arrays | dict(more or {}), {"first": first, "edges": edges, **(meta or {})})


def read(opened: Columns, stream: str, first: int, last: int, dtype: np.dtype[Any] = RECORD) -> Records:
    """Records of a stream in the buckets [first, last), (n,) of dtype. Raises DataError for buckets that the
    file has not.
    """
    edges, base = opened.meta["edges"][stream], int(opened.meta["first"])
    if not base <= first <= last < base + len(edges):
        raise DataError(
            f"A file of stream {stream} has no buckets {first} to {last}. Rerun the same command."
        )
    rows = opened.rows(f"{stream}/records", int(edges[first - base]), int(edges[last - base]))
    return np.ascontiguousarray(rows).reshape(-1).view(dtype)


def ordered(parts: Sequence[Records], dtype: np.dtype[Any]) -> tuple[Records, npt.NDArray[np.int64]]:
    """Records of all parts by key (equal keys in the order of the parts), and the position of each among
    them all. Returns (n,) of dtype and (n,) int64.
    """
    joined = np.concatenate([np.empty(0, dtype), *parts])
    order = np.argsort(joined["key"], kind="stable")
    return joined[order], order
