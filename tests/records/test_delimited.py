from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from btlm_data.records import delimited_rows
from tests.records.helpers import assert_resumes, batches, reasons, rejects, sources, texts


def write(folder: Path, data: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    raw = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


def test_a_text_column_among_others(tmp_path: Path) -> None:
    data = 'id,text,meta.redpajama_set_name\n1,plain,A\n2,"quoted, with\nnewline and ""quotes""",B\n3,"",C\n'
    for name in ("a.csv", "a.csv.gz"):
        path = write(tmp_path, data, name)
        assert texts(path) == ["plain", 'quoted, with\nnewline and "quotes"', ""]
        assert sources(path) == ["A", "B", "C"]
    (batch,) = batches(path, with_records=True)
    assert batch.offsets == [data.index("1,"), data.index("2,"), data.index("3,")]
    assert batch.records is not None
    assert batch.records[0].fields() == {"id": "1", "text": "plain", "meta.redpajama_set_name": "A"}


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_the_separator_is_the_one_that_finds_the_column(tmp_path: Path, separator: str) -> None:
    rows = [["id", "text"], ["1", "a, b; c"], ["2", "d"]]
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows(rows)
    for name in ("a.csv", "a.tsv"):
        assert texts(write(tmp_path, "\ufeff" + out.getvalue(), name)) == ["a, b; c", "d"]


def test_bad_rows_are_named_and_cost_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, b"id,text\n1,good\n2,a,b\n3\n4,caf\xe9\n\n5,good too\n")
    assert texts(path) == ["good", "good too"]
    assert reasons(path) == ["malformed_row", "malformed_row", "invalid_utf8"]
    assert "3 fields where the header has 2" in rejects(path)[0].detail
    assert [reject.line for reject in rejects(path)] == [2, 3, 4]


def test_headers_that_do_not_serve(tmp_path: Path) -> None:
    path = write(tmp_path, "id,body\n1,a\n2,b\n")
    assert reasons(path) == ["missing_text"] * 2
    assert "found 'id', 'body'" in rejects(path)[0].detail
    assert texts(path, "body") == ["a", "b"]
    path = write(tmp_path, "text,text\na,b\n")
    assert reasons(path) == ["duplicate_column"]
    assert list(batches(write(tmp_path, ""))) == []
    assert list(batches(write(tmp_path, "text\n"))) == []


def test_an_unbalanced_quote_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited_rows, "MAX_FIELD_CHARS", 1000)
    path = write(tmp_path, 'id,text\n1,good\n2,"never closed\n' + "3,more text\n" * 500)
    assert texts(path) == ["good", '"never closed', *["more text"] * 500]
    assert reasons(path) == []


def test_damage_ends_the_row_that_has_begun(tmp_path: Path) -> None:
    rows = "id,text\n" + "".join(f'{i},"document {i}, {"x" * (i % 37)}"\n' for i in range(3000))
    stored = gzip.compress(rows.encode())
    path = tmp_path / "a.csv.gz"
    path.write_bytes(stored[: len(stored) * 2 // 3])
    found = texts(path)
    assert 1000 < len(found) < 3000
    assert found == [f"document {i}, {'x' * (i % 37)}" for i in range(len(found))]
    (reject,) = rejects(path)
    assert reject.reason == "truncated_file"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0")), st.text("ab,\"\n\t;", max_size=9)), max_size=12),
    tab=st.booleans(),
)  # fmt: skip
def test_what_the_csv_module_writes_is_read(tmp_path: Path, rows: list[tuple[str, str]], tab: bool) -> None:
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t" if tab else ",", lineterminator="\n")
    writer.writerows([("text", "other"), *rows])
    path = write(tmp_path, out.getvalue(), "a.tsv" if tab else "a.csv")
    assert texts(path) == [text for text, _ in rows]
    assert_resumes(path, 20)
