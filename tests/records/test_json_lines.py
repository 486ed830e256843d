from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btlm_data.records import base, json_decoder, lines
from btlm_data.records.base import ReadOptions, Stretch
from btlm_data.records.reader import read_batches
from tests.records.helpers import assert_resumes, batches, reasons, rejects, sources, texts
from tests.strategies import compress, json_lines, source_file

BOM = b"\xef\xbb\xbf"


def write(folder: Path, *records: Any, name: str = "a.jsonl") -> Path:
    path = folder / name
    parts = [
        record if isinstance(record, bytes) else json.dumps(record).encode() + b"\n" for record in records
    ]
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonlines", "a.ndjson", "a.json", "A.JSONL"])
def test_every_ending(tmp_path: Path, name: str) -> None:
    assert texts(write(tmp_path, {"text": "a"}, {"text": "b"}, name=name)) == ["a", "b"]


def test_a_byte_order_mark_before_any_line(tmp_path: Path) -> None:
    body = [{"text": f"document {i}"} for i in range(200)]
    path = write(tmp_path, BOM, *body, BOM, *body, BOM)
    assert texts(path) == [record["text"] for record in body] * 2
    assert reasons(path) == []
    assert_resumes(path, 500)


def test_a_field_whose_name_holds_dots(tmp_path: Path) -> None:
    flat = [{"raw.content": f"flat {i}", "meta.redpajama_set_name": "A"} for i in range(100)]
    nested = [{"raw": {"content": f"nested {i}"}, "meta": {"redpajama_set_name": "B"}} for i in range(100)]
    both = [
        {
            "raw": {"content": "nested"},
            "raw.content": "flat",
            "meta": {"redpajama_set_name": "B"},
            "meta.redpajama_set_name": "A",
        }
    ]
    path = write(tmp_path, *flat)
    assert texts(path, "raw.content") == [record["raw.content"] for record in flat]
    assert set(sources(path, "raw.content")) == {"A"}
    path = write(tmp_path, *nested, *both)
    assert texts(path, "raw.content")[-2:] == ["nested 99", "nested"]
    assert set(sources(path, "raw.content")) == {"B"}
    path = write(tmp_path, *flat, *nested, *both)
    assert len(texts(path, "raw.content")) == 201


@pytest.mark.parametrize("flawed", [False, True], ids=["fast path", "one by one"])
def test_source_names_in_every_shape(tmp_path: Path, flawed: bool) -> None:
    name = {"redpajama_set_name": "A"}
    shapes: list[Any] = [{"meta": name}, {"meta": json.dumps(name)}, {"meta.redpajama_set_name": "A"},
                         {"meta": None, "meta.redpajama_set_name": "A"}, {"meta": "{}", "meta.redpajama_set_name": "A"}]  # fmt: skip
    others: list[Any] = [
        {"meta": "A"},
        {"meta": "[1]"},
        {"meta": '{"redpajama_set_name": 5}'},
        {"meta": "{bad"},
        {},
    ]
    end = [b"nonsense\n"] if flawed else []
    path = write(tmp_path, *({"text": "t", **shape} for shape in [*shapes, *others]), *end)
    assert sources(path) == ["A"] * 5 + ["unnamed"] * 5


def test_a_list_of_strings_is_joined_where_that_is_asked_for(tmp_path: Path) -> None:
    records = [{"text": ["a", "b"]}, {"text": "c"}, {"text": []}, {"text": [1]}]
    path = write(tmp_path, *records)
    assert texts(path) == ["c"]
    assert reasons(path) == ["text_not_a_string"] * 3
    assert "source.text_join" in rejects(path)[0].detail
    assert texts(path, text_join="\n\n") == ["a\n\nb", "c", ""]
    assert texts(write(tmp_path, *records[:3]), text_join="") == ["ab", "c", ""]


def test_other_encodings_are_named_and_read_when_told(tmp_path: Path) -> None:
    content = "".join(json.dumps({"text": f"Grüße {i} 🙂"}, ensure_ascii=False) + "\n" for i in range(500))
    for encoding, name in (
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
        ("utf-32", "utf-32"),
    ):
        path = write(tmp_path, content.encode(encoding))
        (reject,) = rejects(path)
        assert reject.reason == "wrong_encoding"
        assert f"set source.encoding to {name}" in reject.detail
        assert len(texts(path, encoding=name)) == 500
        assert_resumes(path, 4000, encoding=name)
    path = write(tmp_path, content.replace("🙂", "!").encode("latin-1"))
    assert reasons(path) == ["invalid_utf8"] * 500
    assert texts(path, encoding="latin-1")[0] == "Grüße 0 !"
    path = write(tmp_path, b'{"text": "\x81"}\n{"text": "ok"}\n')
    assert texts(path, encoding="cp1252") == ["ok"]
    assert reasons(path, encoding="cp1252") == ["invalid_utf8"]


def test_whole_records_come_with_the_texts_when_asked(tmp_path: Path) -> None:
    records = [{"text": f"t{i}", "url": f"u{i}", "n": i, "meta": {"a": [i]}} for i in range(150)]
    path = write(
        tmp_path, *records[:100], {"body": "no text", "n": 10**30}, b"nonsense\n", BOM, *records[100:]
    )
    found = list(batches(path, batch_bytes=1000, with_records=True))
    assert [record.fields() for batch in found for record in batch.records or []] == records
    assert [batch.texts for batch in found] == [batch.texts for batch in batches(path, batch_bytes=1000)]
    rejected = [record for batch in found for record in batch.rejected_records or []]
    assert [record and record.fields() for record in rejected] == [{"body": "no text", "n": 10**30}, {}]
    assert all(batch.records is None for batch in batches(path))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), body=json_lines(), batch_bytes=st.sampled_from([40, 300, 2**24]))
def test_only_records_that_are_needed_are_read_as_among_all(
    tmp_path: Path, data: st.DataObject, body: bytes, batch_bytes: int
) -> None:
    """Whole lines are parsed only where one of the offsets is; what is found there is the same, to its line number."""
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(compress(body, "zstd"))
    everything = {
        offset: (batch.texts[k], batch.sources[k], batch.lines[k])
        for batch in batches(path, batch_bytes=batch_bytes)
        for k, offset in enumerate(batch.offsets)
    }
    wanted = sorted(data.draw(st.sets(st.sampled_from(sorted(everything)))) if everything else [])
    given_ = read_batches(path, source_file(path), ReadOptions(), Stretch(), batch_bytes, offsets=wanted)
    found = {
        offset: (batch.texts[k], batch.sources[k], batch.lines[k])
        for batch in given_
        for k, offset in enumerate(batch.offsets)
    }
    assert {offset: found[offset] for offset in wanted} == {offset: everything[offset] for offset in wanted}
    # A record over several lines is parsed, wanted or not: only so is its end known.
    of_one_line = {offset for offset, (text, _, _) in found.items() if text != "spread"}
    assert len(of_one_line) <= len({everything[offset][2] for offset in wanted}) * 2
    assert wanted or not of_one_line


def test_a_batch_has_no_more_records_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_BATCH_RECORDS", 10)
    path = write(tmp_path, *({"text": str(i)} for i in range(95)))
    assert [len(batch.texts) for batch in batches(path)] == [10] * 9 + [5]
    assert assert_resumes(path, 16 * 2**20) == 10
    assert assert_resumes(path, 60) > 10
    assert base.MAX_BATCH_RECORDS == 65536


def test_a_large_record_is_parsed_without_making_an_object_of_every_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_decoder, "_MAX_PYTHON_BYTES", 50)
    filler = b"[" + b"1," * 100 + b"1]"
    good = b'{"text": "a", "x": ' + filler + b', "meta": {"redpajama_set_name": "A"}}\n'
    bad = [b'{"text": 5, "x": ' + filler + b"}\n", b'{"body": "b", "x": ' + filler + b"}\n", b'{"text": "c", "x": ' + filler + b"\n",
           b'{"text": "\xff", "x": ' + filler + b"}\n"]  # fmt: skip
    path = write(tmp_path, *bad, b"\n", good)
    assert texts(path) == ["a"]
    assert sources(path) == ["A"]
    assert reasons(path) == ["text_not_a_string", "missing_text", "invalid_json", "invalid_utf8"]
    path = write(tmp_path, good.replace(b'"text"', b'"raw.text"'), b"nonsense\n")
    assert texts(path, "raw.text") == ["a"]


values: st.SearchStrategy[Any] = (
    st.none()
    | st.integers()
    | st.text(max_size=3)
    | st.just({})
    | st.just({"b": "nested"})
    | st.just('{"b": "in a string"}')
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(st.dictionaries(st.sampled_from(["a", "a.b", "c", "c.d", "text"]), values, max_size=4), min_size=1, max_size=6),
    text=st.sampled_from(["text", "a.b", "a", "c.d"]),
    source=st.sampled_from(["c.d", "c", "a.b", "a", ""]),
    join=st.sampled_from([None, " "]),
)  # fmt: skip
def test_a_record_fares_the_same_in_company_and_alone(
    tmp_path: Path, records: list[dict[str, Any]], text: str, source: str, join: str | None
) -> None:
    together = list(batches(write(tmp_path, *records), text, source, text_join=join))
    alone: list[Any] = []
    for record in records:  # a bad line beside it sends it down the slow path
        alone += batches(write(tmp_path, record, b"nonsense\n"), text, source, text_join=join)
    assert [t for b in together for t in b.texts] == [t for b in alone for t in b.texts]
    assert [s for b in together for s in b.sources] == [s for b in alone for s in b.sources]
    assert [r.reason for b in together for r in b.rejects] == [
        r.reason for b in alone for r in b.rejects if r.line == 0
    ]


@pytest.mark.parametrize("flawed", [False, True], ids=["at once", "line by line"])
def test_a_whole_text_is_no_source_name(tmp_path: Path, flawed: bool) -> None:
    """Every name stands in dataset.json: one record must not make that unreadable."""
    names = ["x" * 1000, "x" * 1001, "x" * 100_000]
    records = [{"text": "a", "meta": {"redpajama_set_name": name}} for name in names]
    path = write(tmp_path, *records, *([b"{broken\n"] if flawed else []))
    assert sources(path) == [names[0], "unnamed", "unnamed"]
