"""The YAML that is read: exactly YAML 1.2's core schema, with lines, bounded, and every refusal in words."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from btlm_data.errors import ConfigError
from btlm_data.recipe import yaml_file
from btlm_data.recipe.yaml_file import YamlError, parse, parse_value, read

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=80), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=80), JSON_VALUES, max_size=5))
def test_json_is_read_as_json(tree: dict[str, Any]) -> None:
    """A key may have 1,024 characters as written, by the standard."""
    assert parse(json.dumps(tree, ensure_ascii=True), "x").tree == tree


@settings(deadline=None)
@given(st.text() | st.text(alphabet="ab:-[]{},&*!|>'\"#%@?<\n \t~0.e_"))
@example("[" * 20_000)
@example("{a: " * 3000)
@example("- " * 500)
@example("? " * 500)
@example("a: &x {b: *x}")
@example("<<: [1]")
@example("a: !!python/object/apply:os.system [id]")
@example("\ud800")
def test_any_text_is_read_or_refused(text: str) -> None:
    for aliases in (False, True):
        try:
            file = parse(text, "x", aliases=aliases)
        except YamlError:
            continue
        assert all(1 <= line <= text.count("\n") + text.count("\r") + 2 for line in file.lines.values())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("6e-4", 6e-4),
        ("1e-3", 1e-3),
        ("12e-3", 12e-3),
        (".5", 0.5),
        ("-1.", -1.0),
        ("+3", 3),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("2048:0.75", "2048:0.75"),
        ("no", "no"),
        ("On", "On"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("2020-01-01", "2020-01-01"),
        ("1_000", "1_000"),
        ("-.inf", -math.inf),
        ("'6e-4'", "6e-4"),
        ('"a: b"', "a: b"),
        ("[a, 1, {b: c}]", ["a", 1, {"b": "c"}]),
        ("|\n  two\n  lines\n", "two\nlines\n"),
        ("٣", "٣"),
    ],
)
def test_plain_values_follow_yaml_1_2(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "given twice, first in line 1"),
        ("a:\n  b: 1\n  'b': 2\n", 3, "given twice, first in line 2"),
        ("a: 1\nb: !!str 2\n", 2, "tags (!!str)"),
        ("a: !x 1\n", 1, "tags (!x)"),
        ("a: &x 1\n", 1, "(&x)"),
        ("\na: *x\n", 2, "(*x)"),
        ("<<: {a: 1}\n", 1, "merge key"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("? [a]\n: 1\n", 1, "a key must be plain text"),
        ("a: [1\n", 2, "not valid YAML"),
        ("a: \0\n", 1, "U+0000"),
        ('a: "\\ud800"\n', 1, "half a character"),
        ("- 1\n", 1, "holds a list"),
        ("just text\n", 1, "holds a single value"),
        ("a: " + "7" * 41, 1, "41 digits"),
        ("[" * 41 + "]" * 41, 1, "40 levels"),
    ],
)
def test_what_is_refused_names_line_and_reason(text: str, line: int, said: str) -> None:
    with pytest.raises(YamlError) as caught:
        parse(text, "x")
    assert said in str(caught.value)
    assert caught.value.line == line


def test_aliases_are_followed_where_allowed_and_never_multiply_without_bound() -> None:
    text = "base: &b {x: 1, y: 2}\nsame: *b\nmore: {<<: *b, y: 3}\nlist: {<<: [{x: 5}, *b]}\n"
    tree = parse(text, "x", aliases=True).tree
    assert tree["same"] == {"x": 1, "y": 2}
    assert tree["more"] == {"x": 1, "y": 3}
    assert tree["list"] == {"x": 5, "y": 2}
    laughs = "a0: &a0 [1]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
    )
    start = time.monotonic()
    with pytest.raises(YamlError, match="more than 100,000 values"):
        parse(laughs, "x", aliases=True)
    assert time.monotonic() - start < 20
    with pytest.raises(YamlError, match="no complete value"):
        parse("a: &a {b: *a}\n", "x", aliases=True)


def test_lines_and_texts_are_those_of_the_file() -> None:
    file = parse("a: 1\nb:\n  c: 1e3\n  d:\n    - x\n    - 0x10\n", "f.yaml")
    assert file.lines == {
        ("a",): 1,
        ("b",): 2,
        ("b", "c"): 3,
        ("b", "d"): 4,
        ("b", "d", "0"): 5,
        ("b", "d", "1"): 6,
    }
    assert file.texts == {("a",): "1", ("b", "c"): "1e3", ("b", "d", "1"): "0x10"}
    assert file.where(("b", "d", "1", "deeper")) == "f.yaml line 6"
    assert file.where(("nothing",)) == "f.yaml"


def test_files_that_cannot_be_read_are_errors_in_words(tmp_path: Path) -> None:
    for content, said in (
        (b"a: \xff\n", "not UTF-8 text (byte 3)"),
        (b"#" * (yaml_file.MAX_BYTES + 1), "larger than"),
        (b"a: [1\n", "line 2, column 1: not valid YAML"),
    ):
        path = tmp_path / "file.yaml"
        path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            read(path, "sources file")
        assert said in str(caught.value)
        assert str(path) in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read(Path("a\0b"))
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read(path).tree == {"a": 1}
