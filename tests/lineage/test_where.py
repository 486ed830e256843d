"""`--where`: what is evaluated is what SQL says, and nothing but the table can be reached."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btlm_data.errors import ConfigError
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.lineage.where import MAX_CHARACTERS, Where, rows_where

TABLE = pa.table(
    {
        "tokens": pa.array([10, 200, None], pa.uint32()),
        "source": pa.array(["Web", "Books", "Web"]).dictionary_encode(),
        "fields.url": ["https://a.example/x", None, "https://b.example/y"],
        "fields.meta.score": ["0.5", "2", "high"],
        "hash": pa.array([b"a" * 16, b"b" * 16, None], pa.binary(16)),
    }
)


def mask(expression: str, table: Any = TABLE) -> list[bool]:
    values: list[bool] = Where(expression, table.column_names).mask(table).tolist()
    return values


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("tokens > 10", [1]),
        ("NOT tokens > 10", [0]),  # unknown stays unknown
        ("tokens IS NULL OR source = 'Books'", [1, 2]),
        ("source == 'Web' AND fields.url LIKE '%b.example%'", [2]),
        ("fields.url NOT ILIKE 'HTTPS://A%'", [2]),
        ("TRY_CAST(fields.meta.score AS DOUBLE) BETWEEN 0.4 AND 1", [0]),
        ("source IN ('Books', 'Code')", [1]),
        ("source NOT IN ('Books', 'Code')", [0, 2]),
        ("hash = '61616161616161616161616161616161'", [0]),
        ("source = 'of no document'", []),
        ("regexp_matches(fields.url, '[ab][.]example/y')", [2]),
        ("CASE WHEN tokens > 100 THEN true ELSE source = 'Web' END", [0, 1, 2]),
        ("lower(source) = 'web' AND length(source) + tokens % 7 >= 6", [0]),
        ("true", [0, 1, 2]),
        ("NULL", []),
        ("tokens = 10 -- and no more", [0]),
        ("coalesce(tokens, 0) = 0", [2]),
    ],
)
def test_rows_that_satisfy_an_expression(expression: str, rows: list[int]) -> None:
    assert [row for row, is_in in enumerate(mask(expression)) if is_in] == rows


HOSTILE = [
    "EXISTS (SELECT * FROM read_csv('/etc/passwd'))",
    "(SELECT count(*) FROM glob('/*')) > 0",
    "tokens = ANY(SELECT 1)",
    "tokens IN (SELECT 1)",
    "1=1); DROP TABLE documents; --",
    "true; COPY (SELECT 1) TO '/tmp/x'",
    "true; SET enable_external_access = true",
    "true; ATTACH 'x.db'; SELECT true",
    "true FROM read_text('/etc/passwd')",
    "true FROM documents",
    "true WHERE tokens = 1",
    "true LIMIT 1",
    "true ORDER BY tokens",
    "true UNION SELECT false",
    "true, false",
    "true USING SAMPLE 1",
    "DISTINCT true",
    "*",
    "COLUMNS('t.*') > 1",
    "getvariable('x') = 1",
    "current_setting('home_directory') = ''",
    "current_database() = 'x'",
    "random() < 0.5",
    "now() > DATE '2020-01-01'",
    "sleep_ms(100000) IS NULL",
    "repeat('x', 1000000000) = ''",
    "len(range(1000000000)) > 1",
    "list_transform([1], lambda x: x) = [1]",
    "count(*) > 1",
    "sum(tokens) OVER () > 1",
    "main.lower(source) = 'web'",
    "source.lower() = 'web'",
    "$1 = 1",
    "? = 1",
    "tokens::INTEGER[] = 3",
    "'{}'::JSON IS NULL",
    "source COLLATE nocase = 'WEB'",
    "write_log('x') IS NULL",
    "query('SELECT 1') = 1",
    "",
    "   ",
    "--",
    "'",
    "(",
    "\x00",
    "tokens",
    "1",
    "source = ",
    "tokens = 'a word'",
    "regexp_matches(source, '(')",
    "(" * 5000 + "true" + ")" * 5000,
    "NOT " * 5000 + "true",
    "x" * (MAX_CHARACTERS + 1),
]


@pytest.mark.parametrize("expression", HOSTILE, ids=lambda text: text[:30].encode("ascii", "replace").hex())
def test_anything_else_is_refused_in_words(expression: str) -> None:
    with pytest.raises(ConfigError, match="--where") as caught:
        mask(expression)
    assert len(str(caught.value)) < 1500


def test_a_misspelt_column_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'token' that there is not\. Did you mean tokens\?"):
        mask("token > 1")
    with pytest.raises(ConfigError, match=r"'fields\.uri'"):
        mask("fields.uri = ''")


def test_a_fault_is_where_the_message_says() -> None:
    with pytest.raises(ConfigError, match=r'syntax error at or near "\)", at character 11'):
        mask("tokens = 1) OR true")


def test_the_connection_itself_can_reach_nothing(tmp_path: Path) -> None:
    import duckdb

    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    connection = Where("true", [])._connection
    for statement in (
        f"SELECT * FROM read_csv('{secret}')",
        f"SELECT * FROM read_text('{secret}')",
        f"SELECT * FROM '{secret}'",
        f"COPY (SELECT 1) TO '{tmp_path}/out.csv'",
        f"ATTACH '{tmp_path}/x.db'",
        f"EXPORT DATABASE '{tmp_path}/x'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET memory_limit = '100GB'",
        "RESET lock_configuration",
        "SELECT * FROM read_csv('https://localhost:1/x')",
        "SELECT * FROM TABLE",  # a variable of this module is no table
    ):
        with pytest.raises(duckdb.Error):
            connection.execute(statement).fetchall()
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_without_duckdb_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[where\]'"):
        Where("true", [])


# A plain evaluation, three-valued: (text, function of a row).
NUMBERS = st.integers(-3, 3)
LEAVES = st.one_of(
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["<", "<=", "=", "<>", ">", ">="]), NUMBERS).map(
        lambda leaf: (f"{leaf[0]} {leaf[1]} {leaf[2]}", leaf)
    ),
    st.sampled_from(["a", "b"]).map(lambda name: (f"{name} IS NULL", (name, "null", 0))),
)


def together(inner: Any) -> Any:
    return st.one_of(
        st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(
            lambda parts: (
                f"({parts[0][0]}) {parts[1]} ({parts[2][0]})",
                (parts[1], parts[0][1], parts[2][1]),
            )
        ),
        inner.map(lambda part: (f"NOT ({part[0]})", ("NOT", part[1]))),
    )


def plain(tree: Any, row: dict[str, Any]) -> Any:
    if tree[0] == "NOT":
        value = plain(tree[1], row)
        return None if value is None else not value
    if tree[0] in ("AND", "OR"):
        decisive = tree[0] == "OR"
        values = [plain(part, row) for part in tree[1:]]
        return decisive if decisive in values else (None if None in values else not decisive)
    name, comparison, number = tree
    value = row[name]
    if comparison == "null":
        return value is None
    if value is None:
        return None
    return {
        "<": value < number,
        "<=": value <= number,
        "=": value == number,
        "<>": value != number,
        ">": value > number,
        ">=": value >= number,
    }[comparison]


@given(
    st.recursive(LEAVES, together, max_leaves=5),
    st.lists(st.tuples(st.none() | NUMBERS, st.none() | NUMBERS), min_size=1, max_size=20),
)
def test_expressions_mean_what_a_plain_evaluation_says(expression: Any, rows: list[Any]) -> None:
    text, tree = expression
    table = pa.table(
        {"a": pa.array([a for a, _ in rows], pa.int64()), "b": pa.array([b for _, b in rows], pa.int64())}
    )
    expected = [plain(tree, {"a": a, "b": b}) is True for a, b in rows]
    assert mask(text, table) == expected


def test_rows_of_a_table_in_several_row_groups(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    count = 1000
    table = pa.table(
        {
            name: pa.array(range(count), pa.uint32())
            for name in ("stream_offset", "tokens", "line", "offset", "bytes", "chars")
        }
        | {
            name: pa.array([f"{i % 7}" for i in range(count)]).dictionary_encode()
            for name in ("file", "source")
        }
    )
    pq.write_table(table, tmp_path / "documents.parquet", row_group_size=64)
    documents = DocumentTable(tmp_path / "documents.parquet")
    assert rows_where(documents, "source = '3' AND tokens >= 500") == [
        i for i in range(500, count) if i % 7 == 3
    ]
    assert rows_where(documents, "true") == list(range(count))
