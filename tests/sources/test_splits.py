from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btlm_data.sources.splits import assign_splits, split_of, words_inside


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train/a.jsonl", "train"),
        ("data/validation-00000-of-1.parquet", "validation"),
        ("data/train-00000-of-00001-a09b74b3ef9c3b56.parquet", "train"),
        ("data/wiki_test-00000-of-00001-a09b74b3ef9c3b56.parquet", "test"),
        ("en/c4-validation.00000-of-00008.json.gz", "validation"),
        ("dev.jsonl", "validation"),
        ("val.jsonl", "validation"),
        ("VAL/x.jsonl", "validation"),
        ("eval-set/e.jsonl", "validation"),
        ("evalset/e.jsonl", "validation"),
        ("corpus_val.jsonl", "validation"),
        ("held-out/x.jsonl", "validation"),
        ("holdout_3.jsonl", "validation"),
        ("my heldout.jsonl.zst", "validation"),
        ("dev2.jsonl.zst", "validation"),
        ("dev-tools.jsonl", "validation"),
        ("test/x/a.jsonl", "test"),
        ("testset.jsonl", "test"),
        ("shard_3_of_4_test.jsonl", "test"),
        ("train/test-1.jsonl", "train"),
        ("test/chunk1/example_holdout_1.jsonl.zst", "test"),
        ("validation/chunk1/example_holdout_1.jsonl.zst", "validation"),
        ("a/b.jsonl", "train"),
        ("contest/a.jsonl", "train"),
        ("latest.jsonl", "train"),
        ("value.jsonl", "train"),
        ("validity.jsonl", "train"),
        ("développement.jsonl", "train"),
        ("Test cricket.txt", "train"),  # a title
        ("test.txt", "test"),
        ("test-00.txt", "test"),
        ("c4-validation.00000-of-00002.txt.gz", "validation"),
    ],
)
def test_a_name_says_the_split(name: str, split: str) -> None:
    placed = split_of(name)
    assert placed.split == split
    assert ("`" in placed.rule) == ("no name of a split" not in placed.rule)


def test_the_users_patterns_win() -> None:
    names = ["a.jsonl", "dev-tools.jsonl", "heldout/b.jsonl"]
    placed = assign_splits(names, {"validation": ["heldout/*"], "train": ["dev-*"]})
    assert {name: one.split for name, one in placed.items()} == {
        "a.jsonl": "train",
        "dev-tools.jsonl": "train",
        "heldout/b.jsonl": "validation",
    }
    assert [one.rule for one in placed.values()] == [
        "matches no pattern of source.splits",
        "source.splits: dev-*",
        "source.splits: heldout/*",
    ]


def test_what_is_named_alone_is_train() -> None:
    assert assign_splits(["test.jsonl"], {})["test.jsonl"].split == "train"
    assert {one.split for one in assign_splits(["val-0.jsonl", "val-1.jsonl"], {}).values()} == {"train"}
    assert {n: one.split for n, one in assign_splits(["val.jsonl", "test.jsonl"], {}).items()} == {
        "val.jsonl": "validation",
        "test.jsonl": "test",
    }


@given(st.lists(st.text("abdeilnorstuv-_./0", min_size=1, max_size=20), unique=True, max_size=8))
def test_the_split_depends_on_names_only(names: list[str]) -> None:
    assert assign_splits(names, {}) == assign_splits(list(reversed(names)), {})


def test_a_word_within_a_name_decides_beside_its_train() -> None:
    names = [
        "en-train-00/corpus.0",
        "x.train.en-1.jsonl.gz",
        "x.test.en-07.jsonl",
        "y.test.en.jsonl",
        "a/x.valid.en-1.txt",
    ]
    placed = assign_splits(names, {})
    assert [placed[name].split for name in names] == ["train", "train", "test", "train", "train"]
    assert placed["x.test.en-07.jsonl"].rule == "has `test` where another name has `train`"
    assert [words_inside(name) for name in names] == [False, False, True, True, True]
    assert not words_inside("a test of time.txt")
