"""Columns of text in a columns file (formats/columns.py): values that may be missing, as three arrays each.

NAME/data     uint8    the UTF-8 bytes of all values, end to end
NAME/ends     (n,) int64   where each value ends in them
NAME/present  (n,) bool    False: there is no value (it takes no bytes)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError


class _Columns(Protocol):
    def __getitem__(self, name: str) -> npt.NDArray[Any]: ...


def arrays_of(columns: Mapping[str, Sequence[str | None]]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of some columns, by name. Of each: NAME/data (bytes,) uint8, NAME/ends (n,) int64,
    NAME/present (n,) bool.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, values in columns.items():
        encoded = [b"" if value is None else value.encode() for value in values]
        arrays[f"{name}/data"] = np.frombuffer(b"".join(encoded), np.uint8)
        arrays[f"{name}/ends"] = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        arrays[f"{name}/present"] = np.fromiter(
            (value is not None for value in values), np.bool_, len(values)
        )
    return arrays


def to_arrow(columns: _Columns, name: str) -> Any:
    """A column as an Arrow array of large strings. Raises DataError if its values do not fit together."""
    import pyarrow as pa

    data, ends, present = (columns[f"{name}/{part}"] for part in ("data", "ends", "present"))
    offsets = np.concatenate([np.zeros(1, np.int64), ends])
    if len(ends) != len(present) or int(offsets[-1]) != len(data) or (np.diff(offsets) < 0).any():
        raise DataError(f"The values of column {name!r} do not fit together. Rerun the same command.")
    array = pa.Array.from_buffers(
        pa.large_string(),
        len(ends),
        [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data))],
    )
    if present.all():
        return array
    import pyarrow.compute as pc

    return pc.if_else(pa.array(present), array, pa.scalar(None, pa.large_string()))
