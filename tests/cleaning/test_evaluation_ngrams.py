"""Decontamination finds exactly the documents that share 13 words in a row with an evaluation text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.cleaning.evaluation_ngrams import EvalNgrams, prepare_ngrams
from btlm_data.errors import ConfigError, InputError
from btlm_data.kernels import word_ngrams
from tests.reference.word_ngrams import word_ngrams as reference

WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
]
QUESTION = " ".join(WORDS)


def buffers(texts: list[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    encoded = [t.encode() for t in texts]
    offsets = np.concatenate([[0], np.cumsum([len(e) for e in encoded])]).astype(np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), offsets, np.arange(len(texts))


def hits(ngrams: EvalNgrams, texts: list[str]) -> list[int]:
    return [int(count) for count in ngrams.hits(*buffers(texts))["hits"]]


def prepared(folder: Path, *records: object) -> EvalNgrams:
    path = folder / "eval.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return EvalNgrams.read(folder / prepare_ngrams([str(path)], folder)[0])


# Few words, so that long overlaps are common; punctuation and case that must not matter.
few_words = st.lists(st.sampled_from(["a", "b", "a", "A.", "ÉTÉ", "été", "--", "σ"]), max_size=40).map(
    " ".join
)


@settings(deadline=None)
@given(
    evaluation=st.lists(few_words, min_size=1, max_size=4),
    documents=st.lists(few_words, min_size=1, max_size=6),
)
def test_hits_are_the_ngrams_both_have(
    tmp_path_factory: pytest.TempPathFactory, evaluation: list[str], documents: list[str]
) -> None:
    ngrams = prepared(tmp_path_factory.mktemp("work"), *({"text": text} for text in evaluation))
    wanted = {gram for text in evaluation for gram in reference(text)}
    assert hits(ngrams, documents) == [sum(gram in wanted for gram in reference(text)) for text in documents]


def test_twelve_words_are_no_hit_and_thirteen_are(tmp_path: Path) -> None:
    ngrams = prepared(tmp_path, {"question": QUESTION})
    inside = [" ".join(["x", *WORDS[k : k + n], "y"]) for k, n in ((0, 12), (3, 12), (0, 13), (2, 13))]
    assert hits(ngrams, [*inside, QUESTION.upper().replace(" ", ",\n "), ""]) == [0, 0, 1, 1, 3, 0]


def test_every_nested_string_counts_and_texts_do_not_run_together(tmp_path: Path) -> None:
    half = len(WORDS) // 2
    ngrams = prepared(
        tmp_path, {"a": [{"b": QUESTION}], "n": 3}, {"a": " ".join(WORDS[:half]), "b": " ".join(WORDS[half:])}
    )
    assert hits(ngrams, [QUESTION]) == [3]
    apart = tmp_path / "apart"
    apart.mkdir()
    assert hits(prepared(apart, {"a": " ".join(WORDS[:half]), "b": " ".join(WORDS[half:])}), [QUESTION]) == [
        0
    ]


def test_colliding_hashes_are_told_apart_by_their_bytes() -> None:
    utf8, offsets, chosen = buffers([" ".join("abcdefghijklm"), " ".join("nopqrstuvwxyz")])
    hashes, starts, stops, _ = word_ngrams.word_ngrams(utf8, offsets)
    hashes[0] = hashes[1]  # as if both were equal
    table = word_ngrams.build_table(utf8, hashes, starts, stops)
    found, first = word_ngrams.find(utf8, offsets, chosen, (utf8, hashes, starts, stops, *table))
    assert found.tolist() == [0, 1]
    assert first.tolist() == [word_ngrams.NONE, 1]


def test_formats_and_globs(tmp_path: Path) -> None:
    line = (json.dumps({"text": QUESTION}) + "\n").encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(line))
    (tmp_path / "c.jsonl").write_bytes(line + b"\n")
    pq.write_table(pa.table({"text": [QUESTION], "n": [1]}), tmp_path / "d.parquet")
    for number, pattern in enumerate(["a*", "b*", "c.*", "d.parquet"]):
        work_dir = tmp_path / "work" / str(number)
        ngrams = EvalNgrams.read(work_dir / prepare_ngrams([str(tmp_path / pattern)], work_dir)[0])
        assert hits(ngrams, [QUESTION]) == [3]
    path, _ = prepare_ngrams([str(tmp_path / "*.*")], tmp_path)
    assert [Path(f).name for f in EvalNgrams.read(tmp_path / path).files] == [
        "a.jsonl.gz",
        "b.jsonl.zst",
        "c.jsonl",
        "d.parquet",
    ]


def test_digest_follows_the_content_and_an_unchanged_table_is_left(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text(json.dumps({"text": QUESTION}))
    name, digest = prepare_ngrams([str(path)], tmp_path)
    before = (tmp_path / name).stat().st_mtime_ns
    assert prepare_ngrams([str(path)], tmp_path) == (name, digest)
    assert (tmp_path / name).stat().st_mtime_ns == before
    path.write_text(json.dumps({"text": QUESTION + " more"}))
    assert prepare_ngrams([str(path)], tmp_path)[1] != digest


def test_errors_name_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing-\*\.jsonl matches no file"):
        prepare_ngrams([str(tmp_path / "missing-*.jsonl")], tmp_path)
    broken = {
        "bad.jsonl": (b'{"a": 1}\n{', "line 2 is no JSON"),
        "bad.jsonl.gz": (b"no", "cannot be read"),
        "bad.jsonl.zst": (b"no", "cannot be read"),
    }
    broken["bad.parquet"] = (b"no", "no parquet file")
    for name, (data, message) in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=rf"{name} .*{message}"):
            prepare_ngrams([str(tmp_path / name)], tmp_path)
