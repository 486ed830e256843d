"""documents.parquet and dropped.parquet as they are read: a row group at a time, and only the columns
requested.

stages/documents.py and stages/dropped.py say what the columns are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np

from btlm_data.errors import DataError
from btlm_data.formats.guarded import reading, require_regular
from btlm_data.formats.parquet_footer import check_footer

ROW_GROUP = 131_072  # rows in a group of a table that is written
DOCUMENT_COLUMNS = ("stream_offset", "tokens", "file", "line", "offset", "source", "bytes", "chars")
_NAMES = ("file", "source")
# Numbers that ascend, or nearly; and sizes, whose high bytes are mostly 0.
_ENCODINGS = {
    "DELTA_BINARY_PACKED": ("stream_offset", "line", "offset"),
    "BYTE_STREAM_SPLIT": ("tokens", "copies", "bytes", "chars"),
}


def write_options(schema: Any) -> dict[str, Any]:
    """How a table of documents is written by pyarrow.parquet, for its Arrow schema."""
    import pyarrow as pa

    names = [
        field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_dictionary(field.type)
    ]
    encodings = {name: encoding for encoding, columns in _ENCODINGS.items() for name in columns}
    return {
        "compression": "zstd",
        "use_dictionary": names,
        "column_encoding": {name: encodings[name] for name in schema.names if name in encodings},
    }


class DocumentTable:
    """documents.parquet, read a row group at a time. Raises DataError, naming the file, for anything that is
    not one.
    """

    def __init__(self, path: Path, needed: Sequence[str] = DOCUMENT_COLUMNS) -> None:
        """needed: columns that must be there."""
        import pyarrow.parquet as pq

        self.path = path
        if not path.exists():
            raise DataError(f"There is no {path}. Restore it, or prepare the dataset again.")
        require_regular(path)
        with reading(path):
            self._file = pq.ParquetFile(path)
            with path.open("rb") as opened:
                check_footer(opened, self._file)
            self.num_rows: int = self._file.metadata.num_rows
            self.columns: list[str] = self._file.schema_arrow.names
            missing = [name for name in needed if name not in self.columns]
            self._group_rows = [
                self._file.metadata.row_group(g).num_rows for g in range(self._file.metadata.num_row_groups)
            ]
        if missing:
            raise DataError(
                f"{path} has no column {missing[0]!r}. It is no table of documents; restore it or prepare "
                "the dataset again."
            )
        self._first_rows = [0, *accumulate(self._group_rows)][:-1]
        self._starts: list[int] | None = None

    @property
    def num_groups(self) -> int:
        """Row groups."""
        return len(self._group_rows)

    def group_rows(self, group: int) -> tuple[int, int]:
        """First row of a row group, and one past its last."""
        return self._first_rows[group], self._first_rows[group] + self._group_rows[group]

    def read(self, group: int, columns: Sequence[str] = DOCUMENT_COLUMNS) -> dict[str, Any]:
        """Columns of one row group: numpy arrays; `file` and `source` are (codes int64, names)."""
        with reading(self.path):
            table = self._file.read_row_group(group, columns=list(columns))
            return {name: _column(table.column(name), name) for name in columns}

    def batches(self, columns: Sequence[str] = DOCUMENT_COLUMNS) -> Iterator[tuple[int, dict[str, Any]]]:
        """(first row, columns) of every row group in order."""
        first = 0
        for group, rows in enumerate(self._group_rows):
            yield first, self.read(group, columns)
            first += rows

    def between(
        self, start: int, stop: int, columns: Sequence[str] = DOCUMENT_COLUMNS
    ) -> Iterator[dict[str, Any]]:
        """The documents with a token or their EOS at stream positions [start, stop), one dictionary each,
        with their `row`. columns: `stream_offset` and `tokens` at least.
        """
        group = max(0, bisect_right(self._group_starts(), start) - 1)
        while group < self.num_groups:
            columns_read = self.read(group, columns)
            offset = columns_read["stream_offset"].astype(np.int64)
            first = max(0, int(np.searchsorted(offset, start, side="right")) - 1)
            last = int(np.searchsorted(offset, stop, side="left"))
            base = self.group_rows(group)[0]
            for k in range(first, last):
                if offset[k] + int(columns_read["tokens"][k]) >= start:
                    yield {"row": base + k, **_values(columns_read, k)}
            group += 1
            if group < self.num_groups and self._group_starts()[group] >= stop:
                return

    def _group_starts(self) -> list[int]:
        """First stream position of each row group, from the file's statistics where it has them."""
        if self._starts is None:
            self._starts = []
            with reading(self.path):
                column = self._file.schema_arrow.names.index("stream_offset")
                for group in range(self.num_groups):
                    statistics = self._file.metadata.row_group(group).column(column).statistics
                    if not self._group_rows[group]:
                        self._starts.append(self._starts[-1] if self._starts else 0)
                    elif statistics is not None and statistics.has_min_max:
                        self._starts.append(int(statistics.min))
                    else:
                        self._starts.append(int(self.read(group, ["stream_offset"])["stream_offset"][0]))
        return self._starts

    def at(self, row: int) -> dict[str, Any]:
        """One document, by its row."""
        return next(self.rows([row]))

    def rows(
        self, rows: Sequence[int], columns: Sequence[str] = DOCUMENT_COLUMNS
    ) -> Iterator[dict[str, Any]]:
        """Documents by their rows, which must be sorted; each row group is read once."""
        current, group_columns, first = -1, dict[str, Any](), 0
        for row in rows:
            group = bisect_right(self._first_rows, row) - 1
            if group != current:
                current, group_columns, first = group, self.read(group, columns), self._first_rows[group]
            yield {"row": row, **_values(group_columns, row - first)}

    def described(
        self, rows: Sequence[int], columns: Collection[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Every column of some rows, which must be sorted, as plain values; None where there is no value. columns: those
        alone, as far as the table has them.
        """
        names = None if columns is None else [name for name in self.columns if name in columns]
        for group, chosen in groupby(rows, lambda row: bisect_right(self._first_rows, row) - 1):
            numbers = list(chosen)
            with reading(self.path):
                table = self._file.read_row_group(group, columns=names)
                table.validate(full=True)
                taken = table.take([row - self._first_rows[group] for row in numbers]).to_pylist()
            for row, values in zip(numbers, taken, strict=True):
                yield {"row": row, **values}

    def arrow(self, group: int, columns: Sequence[str] | None = None) -> Any:
        """One row group as an Arrow table, checked; every column, or those named."""
        with reading(self.path):
            table = self._file.read_row_group(group, columns=None if columns is None else list(columns))
            table.validate(full=True)
            return table

    def matching(
        self, wanted: Mapping[str, Collection[Any]], groups: Sequence[int] | None = None
    ) -> list[int]:
        """Rows whose value in every named column is one of those wanted, in order. groups: only of these row groups, which
        ascend.

        Row groups whose statistics rule that out are not read. Raises DataError if a column is of another
        type.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        rows: list[int] = []
        for group in range(self.num_groups) if groups is None else groups:
            if not all(self._may_hold(group, name, values) for name, values in wanted.items()):
                continue
            with reading(self.path):
                mask: Any = None
                for name, values in wanted.items():
                    column = self._file.read_row_group(group, columns=[name]).column(name)
                    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
                    is_match = pc.is_in(column, value_set=pa.array(sorted(values), kind))
                    mask = is_match if mask is None else pc.and_(mask, is_match)
                    if not pc.any(mask).as_py():
                        break
                else:
                    first = self._first_rows[group]
                    rows += (first + np.flatnonzero(mask.to_numpy())).tolist()
        return rows

    def _may_hold(self, group: int, name: str, values: Collection[Any]) -> bool:
        """Whether a row group can hold one of some values in a column, as far as its statistics tell."""
        if not values:
            return False
        with reading(self.path):
            statistics = self._file.metadata.row_group(group).column(self.columns.index(name)).statistics
        if (
            statistics is None
            or not statistics.has_min_max
            or not isinstance(statistics.min, type(min(values)))
        ):
            return True
        return any(statistics.min <= value <= statistics.max for value in values)


def _values(columns: Mapping[str, Any], k: int) -> dict[str, Any]:
    """One row of what `DocumentTable.read` gives."""
    return {
        name: column[1][column[0][k]] if name in _NAMES else int(column[k])
        for name, column in columns.items()
    }


def _column(column: Any, name: str) -> Any:
    """Numpy values of an Arrow column; raises ValueError for nulls and foreign types."""
    import pyarrow as pa

    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.chunk(0) if whole.num_chunks else pa.array([], whole.type)
    whole.validate(full=True)  # a damaged file can hold numbers of names that are not there
    if whole.null_count:
        raise ValueError(f"column {name!r} has {whole.null_count} empty values")
    if name in _NAMES:
        if not pa.types.is_dictionary(whole.type):
            whole = whole.dictionary_encode()
        return whole.indices.to_numpy(zero_copy_only=False).astype(np.int64), [
            str(value) for value in whole.dictionary.to_pylist()
        ]
    if not pa.types.is_integer(whole.type):
        raise ValueError(f"column {name!r} is of type {whole.type}, expected integers")
    return whole.to_numpy(zero_copy_only=False)
