from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btlm_data.redact import redact, without_secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h/x.jsonl?X-Amz-Signature=SECRET&b=1", "https://h/x.jsonl"),
        ("https://user:SECRET@h:81/x.jsonl#SECRET", "https://h:81/x.jsonl"),
        ("s3://KEY:SECRET@bucket/x", "s3://bucket/x"),
        ("abfs://c@acc.dfs.core.windows.net/x?sig=SECRET", "abfs://acc.dfs.core.windows.net/x"),
        ("filecache::https://u:SECRET@h/x?token=SECRET", "filecache::https://h/x"),
        ("s3://bucket/part-?.jsonl", "s3://bucket/part-?.jsonl"),
        ("hf://datasets/o/n@refs/convert/parquet/x", "hf://datasets/o/n@refs/convert/parquet/x"),
        ("/a/folder@home", "/a/folder@home"),
        ("corpus/*.jsonl", "corpus/*.jsonl"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


@given(st.text("abcXYZ019-_.~%", min_size=8, max_size=40))
def test_no_text_shows_a_key(key: str) -> None:
    key = f"k{key}k"
    for text in (
        f"GET https://h/p/x.jsonl?X-Amz-Signature={key} failed",
        f"Client error '403' for url 'https://u:{key}@h/x?a={key}'\nmore",
        f"could not open <s3://id:{key}@bucket/x>",
        f"refused: signature={key}",
        f"x-amz-security-token={key}&b=1",
    ):
        assert key not in redact(text)
    assert "hf_" + "a" * 34 not in redact(f"token hf_{'a' * 34} is wrong")


def test_plain_text_stays() -> None:
    assert redact("no secret here: a=b, 3 files (x.jsonl)") == "no secret here: a=b, 3 files (x.jsonl)"
