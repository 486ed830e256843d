"""Tables put together without decoding are the bytes that one writer makes of the same row groups."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.formats.parquet_splice import splice

OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["name", "code"],
    "column_encoding": {"number": "DELTA_BINARY_PACKED"},
}
SCHEMA = pa.schema(
    {
        "number": pa.uint64(),
        "name": pa.string(),
        "code": pa.dictionary(pa.int32(), pa.string()),
        "hash": pa.binary(16),
        "share": pa.float64(),
    }
)


def table(rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    names = [f"{'é' * int(k)}{k}" if k else None for k in rng.integers(0, 5, rows)]
    codes = pa.DictionaryArray.from_arrays(
        pa.array(rng.integers(0, 3, rows), pa.int32(), mask=rng.random(rows) < 0.2),
        pa.array(["b", "a", "unused" * seed]),
    )
    columns = [
        pa.array(rng.integers(0, 2**60, rows), pa.uint64()),
        pa.array(names, pa.string()),
        codes,
        pa.array([rng.bytes(16) for _ in range(rows)], pa.binary(16)),
        pa.array(rng.random(rows), mask=rng.random(rows) < 0.1),
    ]
    return pa.table(columns, schema=SCHEMA)


def written(tables: list[pa.Table], row_group: int) -> bytes:
    out = io.BytesIO()
    with pq.ParquetWriter(out, SCHEMA, **OPTIONS) as writer:
        for one in tables:
            writer.write_table(one, row_group_size=row_group)
    return out.getvalue()


def spliced(parts: list[bytes]) -> bytes:
    out = io.BytesIO()
    splice(out, iter(parts))
    return out.getvalue()


@settings(deadline=None, max_examples=30)
@given(
    parts=st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=1, max_size=6),
    row_group=st.sampled_from([2, 7, 1000]),
)
def test_a_spliced_table_is_the_one_that_one_writer_makes(parts: list[list[int]], row_group: int) -> None:
    tables = [[table(rows, i * 10 + j) for j, rows in enumerate(sizes)] for i, sizes in enumerate(parts)]
    made = spliced([written(part, row_group) for part in tables])
    assert made == written([one for part in tables for one in part], row_group)
    assert pq.read_table(io.BytesIO(made)).num_rows == sum(map(sum, parts))


def test_parts_of_another_schema_or_damaged_are_refused() -> None:
    part = written([table(10, 1)], 5)
    other = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), other)
    with pytest.raises(DataError, match="different columns"):
        spliced([part, other.getvalue()])
    with pytest.raises(DataError, match="no parquet file"):
        spliced([part, part[:-1]])
    with pytest.raises(DataError, match="damaged"):
        spliced([part[: -8 - 200] + bytes([255]) * 200 + part[-8:]])
    indexed = io.BytesIO()
    pq.write_table(table(10, 1), indexed, write_page_index=True)
    with pytest.raises(DataError, match="page index"):
        spliced([indexed.getvalue()])
