from __future__ import annotations

from pathlib import Path

import pytest

from btlm_data.errors import ConfigError
from btlm_data.sources.corpora import corpora
from btlm_data.sources.redpajama import is_layout, layout_source


def test_built_in_names() -> None:
    assert set(corpora()) == {"slimpajama", "slimpajama-6b", "redpajama"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mine: {splits: {train: [x]}}", "at is missing"),
        ("mine: {at: x, splits: {train: [x]}, txet_field: y}", "Did you mean text_field"),
        ("mine: {at: x, splits: {train: ['a{chunk}']}}", "chunks.train"),
        ("mine: {at: x, splits: {trian: [x]}}", "trian"),
        ("mine: {at: x, splits: {train: [x]}, url_lists: [u]}", "url_base"),
        ("- a\n- b", "list"),
        ("a: [", "line"),
    ],
)
def test_mistakes_in_a_sources_file_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "sources.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"sources\.yaml( line 1|:)") as caught:
        corpora(path)
    assert words in str(caught.value)
    with pytest.raises(ConfigError, match=r"sources file .* cannot be read"):
        corpora(tmp_path / "none.yaml")


def test_redpajama_layout() -> None:
    assert layout_source("arxiv/x.jsonl") == "RedPajamaArXiv"
    assert layout_source("common_crawl/2019-30/x.jsonl.zst") == "RedPajamaCommonCrawl"
    assert layout_source("arxiv.jsonl") is None
    assert layout_source("data/arxiv/x.jsonl") is None
    assert is_layout(["arxiv/a.jsonl", "book/book.jsonl"])
    assert not is_layout(["arxiv/a.jsonl", "other/b.jsonl"])
    assert not is_layout(["book/a.jsonl"])
    assert not is_layout([])
