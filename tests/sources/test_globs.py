from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btlm_data.errors import ConfigError
from btlm_data.sources.globs import fixed_folder, matcher
from btlm_data.sources.names import is_safe_name


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*.jsonl", "a.jsonl", True),
        ("*.jsonl", "a/b.jsonl", False),
        ("**", "a/b/c.jsonl", True),
        ("**/*.jsonl", "c.jsonl", True),
        ("a/**/*.jsonl", "a/x/y/c.jsonl", True),
        ("a/**/*.jsonl", "b/c.jsonl", False),
        ("train-[0-9].parquet", "train-7.parquet", True),
        ("train-[!0-9].parquet", "train-7.parquet", False),
        ("a?c", "abc", True),
        ("a.c", "abc", False),
        ("*", "a\nb", True),
        ("a/**", "a", False),
        ("a/**", "a/b/c", True),
        ("**/x/**/*.jsonl", "a/x/b/c.jsonl", True),
        ("**/x/**/*.jsonl", "x/c.jsonl", True),
        ("a**", "a/b", False),
        ("{a,bc}*.jsonl", "bc-1.jsonl", True),
        ("{a,bc}*.jsonl", "b-1.jsonl", False),
        ("x{,y}/p{08..10}", "x/p09", True),
        ("x{,y}/p{08..10}", "xy/p10", True),
        ("x{,y}/p{08..10}", "xy/p9", False),
        ("p{8..10}", "p9", True),
        ("{a}{}{b,", "{a}{}{b,", True),
    ],
)
def test_globs(pattern: str, name: str, matches: bool) -> None:
    assert matcher(pattern)(name) is matches


@pytest.mark.parametrize("part", ["{0..99999}", "{a,b}" * 20, "{2..1}"])
def test_braces_for_too_many_names_are_refused(part: str) -> None:
    with pytest.raises(ConfigError, match="for no name, or for too many"):
        matcher(part)


def test_fixed_folder() -> None:
    assert fixed_folder("train/chunk1/*.jsonl") == "train/chunk1"
    assert fixed_folder("**/x") == ""
    assert fixed_folder("a/b*/c/d") == "a"


@given(st.text(max_size=30))
def test_a_safe_name_stays_below_its_folder(name: str) -> None:
    from pathlib import PurePosixPath

    if is_safe_name(name):
        parts = PurePosixPath("/cache", name).parts
        assert parts[:2] == ("/", "cache")
        assert ".." not in parts
        assert name.isprintable() or not any(ord(c) < 32 for c in name)


def test_no_pattern_takes_long() -> None:
    begin = time.monotonic()
    for pattern in ("*a" * 200 + "b", "**/a/" * 100 + "b", "/".join(["**"] * 100)):
        matcher(pattern)("a" * 1000)
        matcher(pattern)("/".join(["a"] * 400))
    assert time.monotonic() - begin < 2
