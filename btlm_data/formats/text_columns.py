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

    def rows(self, name: str, first: int, last: int) -> npt.NDArray[Any]: ...


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


def arrays_of_packed(name: str, values: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """A column whose values are records of one dtype, byte for byte, as arrays by name. values: (n,) of a
    structured dtype.
    """
    size = values.dtype.itemsize
    return {
        f"{name}/data": np.frombuffer(values.tobytes(), np.uint8),
        f"{name}/ends": np.arange(1, len(values) + 1, dtype=np.int64) * size,
        f"{name}/present": np.ones(len(values), np.bool_),
    }


def packed(name: str, column: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Inverse of `arrays_of_packed`, (n,) of that dtype. column: what `to_arrow` gave, or a part of it. Raises DataError
    if its values have another size.
    """
    _, offsets_buffer, data = column.buffers()
    if not len(column) or not dtype.itemsize:
        return np.zeros(len(column), dtype)
    offsets = np.frombuffer(offsets_buffer, np.int64)[column.offset : column.offset + len(column) + 1]
    if data is None or (np.diff(offsets) != dtype.itemsize).any():
        raise _unfit(name)
    return np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]].view(dtype)


def to_arrow(columns: _Columns, name: str) -> Any:
    """A column as an Arrow array of large strings. Raises DataError if its values do not fit together."""
    data, ends, present = (columns[f"{name}/{part}"] for part in ("data", "ends", "present"))
    return _arrow(name, data, np.concatenate([np.zeros(1, np.int64), ends]), present)


def rows(columns: _Columns, name: str, first: int, last: int) -> Any:
    """Values [first, last) of a column as an Arrow array of large strings; nothing else is read. Raises
    DataError as `to_arrow`.
    """
    ends = columns.rows(f"{name}/ends", max(0, first - 1), last)
    offsets = ends if first else np.concatenate([np.zeros(1, np.int64), ends])
    present = columns.rows(f"{name}/present", first, last)
    if (np.diff(offsets) < 0).any():
        raise _unfit(name)
    data = columns.rows(f"{name}/data", int(offsets[0]), int(offsets[-1]))
    return _arrow(name, data, offsets - offsets[0], present)


def from_arrow(name: str, column: Any) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an Arrow array of large strings, by name: inverse of `to_arrow`. Of the dtypes and shapes of
    `arrays_of`: (bytes,) uint8, (n,) int64, (n,) bool.
    """
    import pyarrow.compute as pc

    present = pc.is_valid(column).to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
    filled = pc.fill_null(column, "")
    data = np.empty(0, np.uint8)
    if len(filled):
        _, offsets_buffer, bytes_buffer = filled.buffers()
        offsets = np.frombuffer(offsets_buffer, np.int64)[filled.offset : filled.offset + len(filled) + 1]
        if bytes_buffer is not None:
            data = np.frombuffer(bytes_buffer, np.uint8)[offsets[0] : offsets[-1]]
    return {
        f"{name}/data": data,
        f"{name}/ends": np.cumsum(lengths, dtype=np.int64),
        f"{name}/present": present,
    }


def _arrow(name: str, data: npt.NDArray[Any], offsets: npt.NDArray[Any], present: npt.NDArray[Any]) -> Any:
    import pyarrow as pa

    if len(offsets) != len(present) + 1 or int(offsets[-1]) != len(data) or (np.diff(offsets) < 0).any():
        raise _unfit(name)
    array = pa.Array.from_buffers(
        pa.large_string(),
        len(present),
        [None, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(np.ascontiguousarray(data))],
    )
    if present.all():
        return array
    import pyarrow.compute as pc

    return pc.if_else(pa.array(present), array, pa.scalar(None, pa.large_string()))


def _unfit(name: str) -> DataError:
    return DataError(f"The values of column {name!r} do not fit together. Rerun the same command.")
