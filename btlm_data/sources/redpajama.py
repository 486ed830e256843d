"""RedPajama-Data-1T's layout: the folder a file is in is the corpus it comes from (the names are
SlimPajama's).

arxiv/*.jsonl  book/book.jsonl  c4/*.jsonl  common_crawl/DUMP/*.jsonl.zst  github/*.jsonl
stackexchange/stackexchange.jsonl  wikipedia/wiki.jsonl
"""

from __future__ import annotations

from btlm_data.sources.corpora import REDPAJAMA_NAMES

_BY_FOLDER = {pattern.split("/")[0]: name for pattern, name in REDPAJAMA_NAMES.items()}


def layout_source(name: str) -> str | None:
    """The source name of a file by its place below a RedPajama folder, or None if it is in none of the
    seven.

    name: relative, '/'-separated. Only the first folder counts, so that a corpus of another layout is not
    caught by a folder that happens to be called `book` somewhere inside.
    """
    folder, slash, _ = name.partition("/")
    return _BY_FOLDER.get(folder) if slash else None


def is_layout(names: list[str]) -> bool:
    """Whether files named so are a RedPajama folder: each is in one of the seven, and at least two are
    there (or the one is unmistakable).
    """
    folders = {name.partition("/")[0] for name in names if "/" in name}
    return (
        bool(names)
        and all(layout_source(name) for name in names)
        and (len(folders) > 1 or bool(folders & {"common_crawl", "stackexchange"}))
    )
