from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pytest

from btlm_data.records.formats import classify
from tests.records.helpers import assert_resumes, batches, reasons, rejects, sources, texts

TEXTS = [f"document {i} " * (i % 9) for i in range(500)]


def write(
    folder: Path, table: pa.Table, stream: bool = False, rows: int = 100, compression: str | None = None
) -> Path:
    path = folder / "data-00000-of-00001.arrow"
    options = ipc.IpcWriteOptions(compression=compression)
    make = ipc.new_stream if stream else ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "file"])
@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_files_and_streams(tmp_path: Path, stream: bool, compression: str | None) -> None:
    table = pa.table(
        {"id": range(500), "text": TEXTS, "meta": [{"redpajama_set_name": f"S{i % 3}"} for i in range(500)]}
    )
    path = write(tmp_path, table, stream, compression=compression)
    assert texts(path) == TEXTS
    assert sources(path)[:4] == ["S0", "S1", "S2", "S0"]
    assert assert_resumes(path, 3000) > 3
    (batch,) = batches(path, with_records=True)
    assert batch.records is not None
    assert batch.records[7].fields() == {"id": 7, "text": TEXTS[7], "meta": {"redpajama_set_name": "S1"}}
    assert batch.offsets == list(range(500))


def test_columns_of_every_kind_of_text(tmp_path: Path) -> None:
    values = ["one", None, "drei 🙂"]
    for kind in (
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
    ):
        array = pa.array([v if v is None or "str" in str(kind) else v.encode() for v in values], kind)
        path = write(tmp_path, pa.table({"text": array}))
        assert texts(path) == ["one", "drei 🙂"], kind
        assert reasons(path) == ["null_text"]
    path = write(tmp_path, pa.table({"text": pa.array(values).dictionary_encode()}))
    assert texts(path) == ["one", "drei 🙂"]


def test_what_lies_beside_the_data_is_not_data() -> None:
    for name in ("dataset_info.json", "train/state.json", "dataset_dict.json", "train/cache-5f0b.arrow"):
        assert classify(name) is None
    assert classify("train/data-00000-of-00002.arrow") == ("arrow", "none")


def test_a_damaged_batch_of_a_file_costs_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    schema = pa.schema([("text", pa.string())])
    with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, schema) as writer:
        for begin in range(0, 500, 100):
            writer.write_batch(pa.record_batch([pa.array(TEXTS[begin : begin + 100])], schema=schema))
    stored = bytearray(path.read_bytes())
    place = stored.index(b"document 100 ") - 448 + 200  # among the offsets of the second batch
    stored[place : place + 4] = b"\xff\xff\xff\x7f"
    path.write_bytes(stored)
    found = texts(path)
    assert len(found) == 400
    (reject,) = rejects(path)
    assert reject.reason == "corrupt_file"
    assert "100 rows were not read" in reject.detail


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "file"])
def test_cuts_and_flips_never_raise(tmp_path: Path, stream: bool) -> None:
    path = write(tmp_path, pa.table({"text": TEXTS[:200], "meta": ["x"] * 200}), stream, rows=50)
    stored = path.read_bytes()
    for position in range(0, len(stored), max(1, len(stored) // 80)):
        path.write_bytes(stored[:position])
        list(batches(path))
        path.write_bytes(stored[:position] + bytes([stored[position] ^ 0x55]) + stored[position + 1 :])
        list(batches(path))


def test_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(b"FEA1" + os.urandom(100))
    assert "Feather file of version 1" in rejects(path)[0].detail
    path.write_bytes(b'{"text": "a"}\n')
    assert reasons(path) == ["corrupt_file"]
    path.write_bytes(b"")
    assert list(batches(path)) == []
