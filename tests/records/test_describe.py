from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from btlm_data.records.base import Fields, ReadOptions
from btlm_data.records.describe import Description, describe_fields
from tests.strategies import source_file


def describe(path: Path, text: str = "text", limit: int = 100) -> Description:
    return describe_fields(path, source_file(path), ReadOptions(Fields(text)), limit)


RECORDS = [
    {
        "id": i,
        "title": f"t{i}",
        "body": {"content": "long " * (50 + i), "lang": "en"},
        "tags": ["a"],
        "url": None,
    }
    for i in range(30)
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.arrow", "a.csv"])
def test_the_field_that_holds_the_text_is_found(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    records = RECORDS
    if name == "a.jsonl":
        path.write_text("nonsense\n[1]\n" + "".join(json.dumps(record) + "\n" for record in records))
    elif name == "a.json":
        path.write_text(json.dumps(records, indent=1))
    elif name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif name == "a.arrow":
        table = pa.Table.from_pylist(records)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_text("id,body.content\n" + "".join(f"{r['id']},{r['body']['content']}\n" for r in records))  # type: ignore[index, call-overload]
    found = describe(path)
    assert found.num_records == 30
    assert found.fields[0].name == "body.content"
    assert found.fields[0].kinds == ("a string",)
    assert found.fields[0].median_chars > 200
    assert found.text_candidates("text")[0] == "body.content"
    assert describe(path, "body.content").text_candidates("body.content")[:1] != ("body.content",)
    if name == "a.jsonl":
        assert {field.name: field.kinds for field in found.fields}["tags"] == ("an array",)


def test_only_the_first_records_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    assert describe(path, limit=7).num_records == 7
    path.write_text(json.dumps({f"k{i}": i for i in range(10_000)}) + "\n")
    assert len(describe(path).fields) == 200
    path.write_text("")
    assert describe(path) == Description(0, ())
