from __future__ import annotations

import pytest

from btlm_data.sources.globs import enclosing_folders, select
from btlm_data.sources.selection import choose


def chosen(*names: str, glob: str | None = None) -> list[str]:
    return choose(names, glob, None)[0]


def reasons(*names: str) -> dict[str, str]:
    return {name: reason for reason, name in choose(names, None, None)[1]}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("README.md", "description of the data"),
        ("README.de.md", "description of the data"),
        ("LICENSE", "description of the data"),
        ("LICENSE.txt", "description of the data"),
        ("data/requirements.txt", "description of the data"),
        ("stats.json", "description of the data"),
        ("licenses.json", "description of the data"),
        ("metadata.csv", "description of the data"),
        ("dataset_infos.json", "description of the data"),
        ("SHA256SUMS.txt", "description of the data"),
        (".gitattributes", "hidden (name begins with a dot)"),
        (".git/x.jsonl", "hidden (name begins with a dot)"),
        (".ipynb_checkpoints/a-checkpoint.jsonl", "hidden (name begins with a dot)"),
        (".part-0.parquet.crc", "hidden (name begins with a dot)"),
        ("_SUCCESS", "bookkeeping files, such as Spark's (name begins with _)"),
        ("_temporary/0/part-0.jsonl", "bookkeeping files, such as Spark's (name begins with _)"),
        ("_delta_log/00000.json", "bookkeeping files, such as Spark's (name begins with _)"),
        ("a.jsonl.part", "unfinished download"),
        ("a.lz4", "unknown ending .lz4"),
        ("picture", "unknown ending (none)"),
    ],
)
def test_what_is_no_document_is_left_out_and_named(name: str, reason: str) -> None:
    assert chosen("data/train.parquet", name) == ["data/train.parquet"]
    assert reasons("data/train.parquet", name) == {name: reason}


def test_documents_are_kept() -> None:
    for names in (
        ["a.jsonl", "b.json", "c.txt", "d.parquet", "e.csv", "f.tsv"],
        ["poems/one.txt", "poems/summary.txt", "poems/version.txt"],
        ["records/1.json", "records/2.json"],
        ["readme.txt"],  # nothing else is there: it is meant
        ["a/x.jsonl", "b/y.txt"],
    ):
        assert chosen(*names) == sorted(names)


def test_bare_files_above_all_data_describe_it() -> None:
    assert chosen("facts.json", "data/a.parquet", "data/b.parquet") == ["data/a.parquet", "data/b.parquet"]
    assert chosen("about-us.json", "train/a.json") == ["train/a.json"]
    assert chosen("extra.json", "a.jsonl", "data/b.jsonl") == ["a.jsonl", "data/b.jsonl", "extra.json"]


def test_a_glob_that_matches_folders() -> None:
    names = ["en.parquet/part-0.parquet", "en.parquet/_SUCCESS", "fr.parquet", "de/x.parquet"]
    assert select(names, "*.parquet") == (set(names[:3]), [])
    assert select(names, "*") == ({"fr.parquet", *names[:2]}, ["de"])
    assert select(["part-0/a.jsonl", "part-1/b.jsonl"], "part-*")[0] == {"part-0/a.jsonl", "part-1/b.jsonl"}
    assert choose(names, "*.parquet", None)[0] == ["en.parquet/part-0.parquet", "fr.parquet"]


def test_enclosing_folders() -> None:
    assert enclosing_folders(["a/b/*.jsonl", "a/*.jsonl", "c/d.jsonl"]) == ["a", "c"]
    assert enclosing_folders(["*", "a/*"]) == [""]
