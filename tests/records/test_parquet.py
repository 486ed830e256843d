from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from btlm_data.records import parquet_pages
from btlm_data.records.parquet_pages import UNKNOWN, column_bounds
from tests.records.helpers import assert_resumes, batches, reasons, rejects, sources, texts


def write(folder: Path, table: pa.Table, **options: Any) -> Path:
    path = folder / "a.parquet"
    pq.write_table(table, path, **options)
    return path


VALUES = ["one", None, "drei 🙂"]
KINDS = {
    "string": pa.array(VALUES),
    "large": pa.array(VALUES, pa.large_string()),
    "view": pa.array(VALUES, pa.string_view()),
    "dictionary": pa.array(VALUES).dictionary_encode(),
    "binary": pa.array([v and v.encode() for v in VALUES], pa.binary()),
    "large binary": pa.array([v and v.encode() for v in VALUES], pa.large_binary()),
    "dictionary of binary": pa.array([v and v.encode() for v in VALUES], pa.binary()).dictionary_encode(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_text_columns_of_every_kind(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, pa.table({"text": KINDS[kind], "n": range(3)}))
    assert texts(path) == ["one", "drei 🙂"]
    assert reasons(path) == ["null_text"]
    path = write(tmp_path, pa.table({"doc": pa.StructArray.from_arrays([KINDS[kind]], ["body"])}))
    assert texts(path, "doc.body") == ["one", "drei 🙂"]


def test_columns_without_text(tmp_path: Path) -> None:
    assert reasons(write(tmp_path, pa.table({"text": pa.nulls(2)}))) == ["null_text"] * 2
    path = write(tmp_path, pa.table({"text": [["a", "b"], ["c"]]}))
    assert reasons(path) == ["text_not_a_string"] * 2
    assert "source.text_join" in rejects(path)[0].detail
    assert texts(path, text_join=" | ") == ["a | b", "c"]
    raw = pa.array([b"\xff\xfe", b"good"], pa.binary())
    path = write(tmp_path, pa.table({"text": raw}))
    assert texts(path) == ["good"]
    assert reasons(path) == ["invalid_utf8"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    columns = [pa.array(["a", "b"]), pa.array(["c", "d"]), pa.array(["Books", "Web"])]
    path = write(tmp_path, pa.Table.from_arrays(columns, names=["text", "text", "origin"]))
    assert texts(path, "text", "origin") == []
    assert reasons(path, "text", "origin") == ["duplicate_column"] * 2
    assert "2 columns are called 'text'" in rejects(path)[0].detail
    path = write(tmp_path, pa.Table.from_arrays(columns, names=["text", "other", "other"]))
    assert texts(path) == ["a", "b"]


def test_a_column_whose_name_holds_dots(tmp_path: Path) -> None:
    path = write(tmp_path, pa.table({"raw.content": ["a", "b"], "meta.redpajama_set_name": ["A", "B"]}))
    assert texts(path, "raw.content") == ["a", "b"]
    assert sources(path, "raw.content") == ["A", "B"]
    both = pa.table({"raw": [{"content": "nested"}, {"content": None}], "raw.content": ["flat", "flat"]})
    assert texts(write(tmp_path, both), "raw.content") == ["nested", "flat"]


@pytest.mark.parametrize(
    "make",
    [
        lambda names: pa.array([{"redpajama_set_name": name} for name in names]),
        lambda names: pa.array([json.dumps({"redpajama_set_name": name}) for name in names]),
        lambda names: pa.array([json.dumps({"redpajama_set_name": name}).encode() for name in names]),
        lambda names: pa.array([[("redpajama_set_name", name)] for name in names], pa.map_(pa.string(), pa.string())),
    ],
    ids=["struct", "JSON string", "JSON bytes", "map"],
)  # fmt: skip
def test_source_names_in_every_shape(tmp_path: Path, make: Any) -> None:
    path = write(tmp_path, pa.table({"text": ["a", "b"], "meta": make(["RedPajamaC4", "RedPajamaBook"])}))
    assert sources(path) == ["RedPajamaC4", "RedPajamaBook"]


def test_a_damaged_row_group_costs_its_own_rows_only(tmp_path: Path) -> None:
    table = pa.table({"text": [f"document {i} " + "x" * (i % 100) for i in range(1000)]})
    path = write(
        tmp_path,
        table,
        row_group_size=200,
        compression="none",
        use_dictionary=False,
        write_page_checksum=False,
    )
    stored = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(2).column(0)
    start = column.data_page_offset
    stored[start : start + 40] = b"\xff" * 40
    path.write_bytes(stored)
    assert [text.split()[1] for text in texts(path)] == [str(i) for i in [*range(400), *range(600, 1000)]]
    (reject,) = rejects(path)
    assert reject.reason == "corrupt_file"
    assert "row group 2" in reject.detail
    assert "200 of its 200 rows were not read" in reject.detail
    assert reject.num_bytes == column.total_compressed_size
    (batch,) = batches(path)
    assert batch.offsets[400] == 600
    assert_resumes(path, 5000)


def test_the_rows_before_a_damaged_page_are_used(tmp_path: Path) -> None:
    table = pa.table({"text": [f"document {i} " * 20 for i in range(2000)]})
    path = write(tmp_path, table, compression="none", use_dictionary=False, data_page_size=20_000)
    stored = bytearray(path.read_bytes())
    page = stored.index(b"\x15\x00\x15", 100_000)  # the next page header
    stored[page : page + 20] = b"\xff" * 20
    path.write_bytes(stored)
    found = texts(path)
    assert 500 < len(found) < 1600
    assert found == [f"document {i} " * 20 for i in range(len(found))]
    assert f"{2000 - len(found)} of its 2,000 rows" in rejects(path)[0].detail.replace(
        f"{2000 - len(found):,}", f"{2000 - len(found)}"
    )


def test_page_headers_tell_pages_and_dictionaries(tmp_path: Path) -> None:
    long = ["x" * 100_000, "y" * 50_000]
    path = write(tmp_path, pa.table({"text": [long[i % 2] for i in range(100)]}), data_page_size=1000)
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    with path.open("rb") as file:
        bounds = column_bounds(file, column)
        assert bounds.value == 150_008  # both values and their lengths
        assert bounds.page == 150_008
    path = write(
        tmp_path, pa.table({"text": long}), use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"}
    )
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    with path.open("rb") as file:
        assert column_bounds(file, column).value > 100_000
    path.write_bytes(b"\xff" * 1000)
    with path.open("rb") as file:
        assert column_bounds(file, column) == UNKNOWN
    assert parquet_pages.ColumnBounds(1, 0).value == 0


_PEAK = """
import resource, sys
from pathlib import Path
from tests.records.helpers import batches
import pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
documents = 0
for batch in batches(Path(sys.argv[1])):
    documents += len(batch.texts)
    if documents > 2000: break
print(documents, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def peak(path: Path) -> tuple[int, int]:
    """Documents read, MB of memory they took."""
    done = subprocess.run([sys.executable, "-c", _PEAK, str(path)], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).resolve().parents[2])  # fmt: skip
    documents, megabytes = map(int, done.stdout.split())
    return documents, megabytes


@pytest.mark.parametrize("how", ["dictionary", "dictionary type", "prefixes", "one huge page"])
def test_a_small_file_that_stands_for_gigabytes_is_read_in_slices(tmp_path: Path, how: str) -> None:
    draw = np.random.default_rng(1)
    long = ["".join(map(chr, draw.integers(97, 123, 200_000))) for _ in range(3)]
    indices = pa.array(np.arange(10_000) % 3, pa.int32())
    array = pa.DictionaryArray.from_arrays(indices, pa.array(long))
    path = tmp_path / "a.parquet"
    if how == "prefixes":
        with pq.ParquetWriter(path, pa.schema([("text", pa.string())]), use_dictionary=False,
                              column_encoding={"text": "DELTA_BYTE_ARRAY"}) as writer:  # fmt: skip
            writer.write_table(pa.table({"text": [long[0] + str(i) for i in range(300)]}))
    elif how == "dictionary":
        with pq.ParquetWriter(path, pa.schema([("text", pa.string())]), store_schema=False) as writer:
            for _ in range(4):
                writer.write_table(pa.table({"text": array.slice(0, 600).dictionary_decode()}))
    elif how == "dictionary type":
        pq.write_table(pa.table({"text": array}), path)
    else:
        pq.write_table(pa.table({"text": ["z" * 30_000_000, "z" * 10]}), path, use_dictionary=False)
    assert path.stat().st_size < 3_000_000
    documents, megabytes = peak(path)
    assert documents == {"prefixes": 300, "one huge page": 2}.get(how, documents)
    assert documents > 1
    assert megabytes < 400


def test_many_null_rows_come_in_batches(tmp_path: Path) -> None:
    path = write(tmp_path, pa.table({"text": pa.nulls(150_000, pa.string())}))
    assert [batch.num_records for batch in batches(path)] == [65536, 65536, 150_000 - 2 * 65536]
