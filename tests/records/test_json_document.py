from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btlm_data.records import json_document, stream
from tests.records.helpers import assert_resumes, batches, reasons, rejects, texts

RECORDS: list[dict[str, Any]] = [
    {"text": 'one "quoted" \\ and [brackets] {too}, with commas', "meta": {"a": [1, {"b": "]}"}]}},
    {"meta": {"redpajama_set_name": "RedPajamaC4"}, "text": "two\nlines"},
    {"text": "drei 🙂"},
]
WANTED = [record["text"] for record in RECORDS]


def write(folder: Path, text: str, name: str = "a.json") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=2),
        json.dumps(RECORDS, indent=0),
        "\ufeff" + json.dumps(RECORDS, ensure_ascii=False),
        "\n\n  " + json.dumps(RECORDS) + "\n\n",
        "".join(json.dumps(record) + "\n" for record in RECORDS),
        "".join(json.dumps(record, indent=2) + "\n" for record in RECORDS),
        "".join(json.dumps(record, indent=2) for record in RECORDS),
        json.dumps(RECORDS[:2]) + "\n" + json.dumps(RECORDS[2:]),
        "[\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]\n",
    ],
    ids=["array", "pretty", "indent 0", "BOM", "blank lines", "lines", "objects", "run together", "two arrays", "a line each"],
)  # fmt: skip
def test_every_shape_of_json_is_read(tmp_path: Path, name: str, text: str) -> None:
    path = write(tmp_path, text, name)
    assert texts(path) == WANTED
    assert reasons(path) == []
    (batch,) = batches(path)
    assert batch.sources == ["unnamed", "RedPajamaC4", "unnamed"]
    assert batch.lines == sorted(batch.lines)
    plain = text.encode()
    assert [plain[offset : offset + 1] for offset in batch.offsets if offset] == [b"{"] * sum(
        offset > 0 for offset in batch.offsets
    )


def test_one_pretty_printed_object_is_one_document(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(RECORDS[0], indent=4))
    assert texts(path) == WANTED[:1]
    assert texts(write(tmp_path, json.dumps(RECORDS[0]))) == WANTED[:1]


def test_empty_documents(tmp_path: Path) -> None:
    for text in ("", "[]", "\n", "[ ]\n", "[\n]"):
        assert sum(batch.num_records for batch in batches(write(tmp_path, text))) == 0


def test_a_bad_element_costs_itself_only(tmp_path: Path) -> None:
    elements = [
        '{"text": "a"}',
        '{"text": 01}',
        "7",
        '"text"',
        "null",
        "[1, 2]",
        '{"body": "x"}',
        '{"text": "b"}',
    ]
    path = write(tmp_path, "[" + ", ".join(elements) + "]")
    assert texts(path) == ["a", "b"]
    wanted = ["invalid_json", *["not_an_object"] * 4, "missing_text"]
    assert reasons(path) == wanted
    assert [reject.line for reject in rejects(path)] == [1, 2, 3, 4, 5, 6]
    assert [reject.num_bytes for reject in rejects(path)] == [len(element) for element in elements[1:7]]


@pytest.mark.parametrize("cut", [-1, -2, -5, -30])
def test_a_cut_document_keeps_what_is_whole_and_says_what_is_lost(tmp_path: Path, cut: int) -> None:
    text = json.dumps(RECORDS)[:cut]
    path = write(tmp_path, text)
    kept = texts(path)
    assert kept == WANTED[: len(kept)]
    assert len(kept) >= 2
    (reject,) = rejects(path)
    assert reject.reason == "truncated_file"
    assert "ends before it is closed" in reject.detail


def test_damaged_json_lines_stay_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path, '{"text": "cut off\n{"text": "a"}\n{"text": "b"}\n')
    assert texts(path) == ["a", "b"]
    assert reasons(path) == ["invalid_json"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(
        st.fixed_dictionaries(
            {"text": st.text(max_size=30)},
            optional={"x": st.recursive(st.none() | st.text('\\"[]{},:a', max_size=6), lambda s: st.lists(s, max_size=3), max_leaves=6)},
        ),
        max_size=8,
    ),
    indent=st.sampled_from([None, 0, 2]),
    piece_bytes=st.integers(1, 40),
    max_bytes=st.sampled_from([25, 10**6]),
    ascii_only=st.booleans(),
)  # fmt: skip
def test_any_array_in_any_pieces(
    tmp_path: Path,
    records: list[dict[str, Any]],
    indent: int | None,
    piece_bytes: int,
    max_bytes: int,
    ascii_only: bool,
) -> None:
    records = [{k: v for k, v in record.items() if json.dumps(v).isascii()} for record in records]
    path = write(tmp_path, json.dumps(records, indent=indent, ensure_ascii=ascii_only))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "PIECE_BYTES", piece_bytes)
        patch.setattr(json_document, "_LOOK_BYTES", 100)
        found = list(batches(path, max_record_bytes=max_bytes))
        read = [text for batch in found for text in batch.texts]
        lost = [reject for batch in found for reject in batch.rejects]
        assert {reject.reason for reject in lost} <= {"record_too_large"}
        assert len(read) + len(lost) == len(records)
        if max_bytes > 1000:
            assert read == [record["text"] for record in records]
        assert_resumes(path, 30, max_record_bytes=max_bytes)


def test_a_large_array_comes_in_batches_and_resumes(tmp_path: Path) -> None:
    records = [{"text": f"document {i} " * (i % 50)} for i in range(2000)]
    path = write(tmp_path, json.dumps(records, indent=1))
    assert assert_resumes(path, 50_000) > 5
    assert texts(path, batch_bytes=50_000) == [record["text"] for record in records]
