"""Who each document is: its own id, kept fields and text hash in documents.parquet and dropped.parquet, and whole records in
emitted text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from btlm_data.formats import dataset, text_columns
from btlm_data.formats.columns import Columns
from btlm_data.formats.columns import write as write_columns
from btlm_data.formats.documents_table import write_options
from btlm_data.records.fields import to_json, without
from btlm_data.stages.documents import hashes
from btlm_data.stages.emit_text import encode
from btlm_data.storage import open_store
from tests.stages.runs import prepare


def words(seed: int, count: int = 60) -> str:
    drawn = random.Random(seed)
    return " ".join(f"word{drawn.randrange(10_000)}" for _ in range(count))


RECORDS: list[dict[str, Any]] = [
    {
        "text": words(0),
        "doc": "a-0",
        "url": "https://one.example/0",
        "meta": {"when": 2020, "tags": ["x", "y"]},
    },
    {"text": words(1), "doc": 17, "url": None, "meta": {"when": None}},
    {"text": "short", "doc": "a-2", "url": "https://two.example/short"},
    {"text": words(0), "url": "https://one.example/again", "extra": {"deep": {"ä": 1.5}}},
    {"text": words(4), "doc": "", "meta": {"redpajama_set_name": "Web", "when": "yesterday"}},
]


def prepared(folder: Path, records: list[dict[str, Any]], **settings: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "docs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    prepare(folder / "docs.jsonl", folder / "out", **{"seq_len": 32, "dedupe__max_removed": 1, **settings})
    return folder / "out"


def test_ids_fields_and_hashes_are_kept_with_each_document(tmp_path: Path) -> None:
    out = prepared(
        tmp_path / "one", RECORDS, source__id_field="doc", source__keep_fields=["url", "meta.when", "extra"]
    )
    table = pq.read_table(out / "train" / dataset.DOCUMENTS).to_pylist()
    gone = pq.read_table(out / "dropped.parquet").to_pylist()
    found = {row["line"]: row for row in table + gone}
    assert sorted(found) == list(range(5))
    for number, record in enumerate(RECORDS):
        row = found[number]
        assert row["hash"] == xxhash.xxh3_128_digest(record["text"].encode())
        doc = record.get("doc")
        assert row["id"] == (None if doc is None else str(doc))
        assert row["fields.url"] == record.get("url")
        when = record.get("meta", {}).get("when")
        assert row["fields.meta.when"] == (None if when is None else str(when))
        extra = row["fields.extra"]
        assert (None if extra is None else json.loads(extra)) == record.get("extra")
    assert {(row["line"], row["stage"], row["reason"]) for row in gone} == {
        (2, "clean", "too_short"),
        (3, "dedupe", "exact_duplicate"),
    }


def test_without_the_settings_the_columns_are_not_there(tmp_path: Path) -> None:
    out = prepared(tmp_path / "one", RECORDS)
    names = pq.read_schema(out / "train" / dataset.DOCUMENTS).names
    assert "hash" in names
    assert not [name for name in names if name == "id" or name.startswith("fields.")]


def test_a_document_takes_less_than_30_bytes(tmp_path: Path) -> None:
    drawn, rows = np.random.default_rng(5), 60_000
    chars = np.minimum(np.exp(drawn.normal(7.5, 1.4, rows)), 1e6).astype(np.uint32)
    order = drawn.permutation(rows)  # as shuffled
    table: dict[str, npt.NDArray[Any]] = {
        "tokens": chars // 4,
        "copies": np.where(drawn.random(rows) < 0.03, 2, 1).astype(np.uint32),
        "line": (np.arange(rows) % 4000).astype(np.uint64)[order],
        "offset": (np.cumsum(chars) % 30_000_000).astype(np.uint64)[order],
        "bytes": chars + (chars // 1000).astype(np.uint32),
        "chars": chars,
    }
    names = {
        "file": [f"train/part-{number // 4000}.jsonl" for number in order],
        "source": [f"source-{number}" for number in drawn.integers(0, 7, rows)],
    }
    columns = {
        "stream_offset": np.cumsum(table["tokens"] + 1, dtype=np.uint64),
        **table,
        **{name: pa.array(values).dictionary_encode() for name, values in names.items()},
        "hash": hashes(drawn.integers(0, 256, (rows, 16), np.uint8)),
    }
    made = pa.table(columns)
    pq.write_table(made, tmp_path / "table", **write_options(made.schema))
    assert (tmp_path / "table").stat().st_size < 30 * rows
    assert pq.read_table(tmp_path / "table").equals(made)


def test_sizes_of_documents_are_stored_byte_by_byte(tmp_path: Path) -> None:
    out = prepared(tmp_path / "one", RECORDS)
    for name in ("train/documents.parquet", "dropped.parquet"):
        group = pq.ParquetFile(out / name).metadata.row_group(0)
        encodings = {
            (chunk := group.column(k)).path_in_schema: chunk.encodings for k in range(group.num_columns)
        }
        assert "BYTE_STREAM_SPLIT" in encodings["bytes"]
        assert "DELTA_BINARY_PACKED" in encodings["offset"]


@pytest.mark.parametrize("workers", [1, 2])
def test_parquet_and_small_blocks_give_the_same_fields(tmp_path: Path, workers: int) -> None:
    records = [{"text": words(i), "url": f"https://x.example/{i}", "n": i} for i in range(50)]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "docs.parquet", row_group_size=7)
    prepare(
        tmp_path / "docs.parquet",
        tmp_path / "out",
        seq_len=32,
        source__id_field="n",
        source__keep_fields=["url"],
        run__workers=workers,
    )
    table = pq.read_table(tmp_path / "out" / "train" / dataset.DOCUMENTS).to_pylist()
    assert sorted((int(row["id"]), row["fields.url"]) for row in table) == [
        (r["n"], r["url"]) for r in records
    ]
    assert all(int(row["id"]) == row["line"] for row in table)


def test_every_drop_of_the_ledger_is_a_row_of_dropped(tmp_path: Path) -> None:
    records = [
        {"text": words(i % 37), "meta": {"redpajama_set_name": "Web" if i % 3 else "Books"}}
        for i in range(80)
    ]
    out = prepared(
        tmp_path / "one",
        records,
        mix={"Web": 0.5, "Books": 2.0},
    )
    manifest = dataset.read(out)
    assert isinstance(manifest, dataset.Dataset)
    counted: dict[tuple[str, str], int] = {}
    for entry in manifest.ledger:
        if entry.stage in ("clean", "dedupe", "holdout", "shuffle"):
            for reason, amount in entry.dropped.items():
                if amount.documents:
                    key = (entry.stage, reason)
                    counted[key] = counted.get(key, 0) + amount.documents
    listed: dict[tuple[str, str], int] = {}
    for row in pq.read_table(out / "dropped.parquet").to_pylist():
        key = (row["stage"], row["reason"])
        listed[key] = listed.get(key, 0) + 1
    assert listed == counted
    assert set(counted) == {("dedupe", "exact_duplicate"), ("shuffle", "left_out_by_mix")}


def test_emitted_text_keeps_the_whole_record(tmp_path: Path) -> None:
    out = prepared(tmp_path / "one", RECORDS, run__emit_text=str(tmp_path / "text"))
    assert (out / "dataset.json").exists()
    [path] = (tmp_path / "text" / "train").rglob("*.zst")
    lines = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes()).splitlines()
    expected = []
    for record in (RECORDS[0], RECORDS[1], RECORDS[4]):
        meta = {"redpajama_set_name": "unnamed", **record["meta"]}
        expected.append({**record, "meta": meta})
    assert [json.loads(line) for line in lines] == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["meta", "text", "content", "a", "b"]), JSON, max_size=5),
    st.text(max_size=20),
)
def test_encode_keeps_every_field(fields: dict[str, Any], text: str) -> None:
    record = {**fields, "content": "raw"}
    written = json.loads(encode(text, "Web", record, "content"))
    assert written["text"] == text
    assert written["meta"]["redpajama_set_name"] == "Web"
    for name, value in fields.items():
        if name in ("a", "b"):
            assert written[name] == value
    if "text" in fields:
        assert written["meta"]["text"] == fields["text"]
    if isinstance(fields.get("meta"), dict):
        rest = {
            key: value for key, value in fields["meta"].items() if key not in ("text", "redpajama_set_name")
        }
        assert rest.items() <= written["meta"].items()


def test_values_that_json_does_not_know_become_strings() -> None:
    assert to_json({"a": "\ud800", "b": float("nan")}).decode() == '{"a": "?", "b": NaN}'
    assert json.loads(to_json({"big": 2**80})) == {"big": 2**80}
    assert without({"a": {"b": {"c": 1}}, "a.b.c": 2}, "a.b.c") == {"a.b.c": 2}
    assert without({"a.b": 1, "x": 2}, "a.b") == {"x": 2}


@given(st.lists(st.none() | st.text(max_size=30), max_size=40))
def test_text_columns_come_back(tmp_path_factory: pytest.TempPathFactory, values: list[str | None]) -> None:
    store = open_store(tmp_path_factory.getbasetemp() / "columns")
    artifact = write_columns(store, "x.cols", text_columns.arrays_of({"id": values}))
    assert text_columns.to_arrow(Columns(store, artifact), "id").to_pylist() == values
