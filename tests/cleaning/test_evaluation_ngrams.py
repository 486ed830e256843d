"""Decontamination finds exactly the documents that share 13 words in a row with an evaluation text."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.cleaning.evaluation_ngrams import EvalNgrams, evaluation_digest
from btlm_data.cleaning.evaluation_sets import evaluation_files
from btlm_data.errors import ConfigError, DataError, InputError
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


def read(*patterns: Path) -> EvalNgrams:
    return EvalNgrams.read(evaluation_files([str(pattern) for pattern in patterns]))


def prepared(folder: Path, *records: object) -> EvalNgrams:
    path = folder / "eval.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read(path)


# Few words, so that long overlaps are common; punctuation and case that must not matter.
few_words = st.lists(st.sampled_from(["a", "b", "a", "A.", "ÉTÉ", "été", "--", "σ"]), max_size=40).map(
    " ".join
)


@settings(deadline=None)
@given(
    evaluation=st.lists(few_words, min_size=1, max_size=4),
    documents=st.lists(few_words, min_size=1, max_size=6),
)
def test_hits_are_the_ngrams_both_have(evaluation: list[str], documents: list[str]) -> None:
    n = len(evaluation)
    ngrams = EvalNgrams.of_texts(evaluation, range(n), [0] * n, range(n), ["f"])
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
    halves = {"a": " ".join(WORDS[:half]), "b": " ".join(WORDS[half:]), "c": "x " * 13}
    assert hits(prepared(tmp_path, halves), [QUESTION]) == [0]


def test_colliding_hashes_are_told_apart_by_their_bytes() -> None:
    utf8, offsets, chosen = buffers([" ".join("abcdefghijklm"), " ".join("nopqrstuvwxyz")])
    hashes, starts, stops, _ = word_ngrams.word_ngrams(utf8, offsets)
    hashes[0] = hashes[1]  # as if both were equal
    table = word_ngrams.build_table(utf8, hashes, starts, stops)
    found, first = word_ngrams.find(utf8, offsets, chosen, table)
    assert found.tolist() == [0, 1]
    assert first.tolist() == [word_ngrams.NONE, 1]


LINE = (json.dumps({"text": QUESTION}) + "\n").encode()
BROKEN_LINES = json.dumps({"text": QUESTION, "more": "a\u2028b\x85c"}, ensure_ascii=False).encode() + b"\n"
FORMATS = {
    "a.jsonl.gz": gzip.compress(LINE),
    "b.jsonl.zst": zstandard.compress(LINE) + zstandard.compress(b"\n"),
    "c.jsonl": LINE + b"\n",
    "d.jsonl.bz2": bz2.compress(LINE),
    "e.jsonl.xz": lzma.compress(LINE),
    "f.json": json.dumps([{"text": QUESTION}], indent=1).encode(),
    "g.json": json.dumps({"data": [{"text": QUESTION}]}, indent=1).encode(),
    "h.json": json.dumps([{"text": QUESTION}]).encode(),
    "i.jsonl": b"\xef\xbb\xbf" + LINE,
    "j.jsonl": BROKEN_LINES,
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FORMATS[name])
    assert hits(read(tmp_path / name), [QUESTION]) == [3]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.string_view()])
def test_parquet(kind: pa.DataType, tmp_path: Path) -> None:
    value: Any = QUESTION.encode() if pa.types.is_binary(kind) else QUESTION
    column = pa.array([value, None], kind)
    pq.write_table(
        pa.table({"text": column, "n": [1, 2], "image": [b"\xff\xfe", None]}), tmp_path / "d.parquet"
    )
    assert hits(read(tmp_path / "d.parquet"), [QUESTION]) == [3]


def test_globs_are_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.jsonl"):
        (tmp_path / name).write_bytes(LINE)
    (tmp_path / "folder.jsonl").mkdir()
    assert [Path(f).name for f in read(tmp_path / "*.jsonl").files] == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_a_folder_is_all_its_sets(tmp_path: Path) -> None:
    for name in ("b/x.jsonl.gz", "a.parquet", "README.md", "c.json", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    names = [file.name for file in evaluation_files([str(tmp_path)])]
    assert names == [str(tmp_path / name) for name in ("a.parquet", "b/x.jsonl.gz", "c.json")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="matches no file"):
        evaluation_files([str(tmp_path / "empty")])


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"

    def digest(text: str) -> str:
        path.write_text(json.dumps({"text": text}))
        return evaluation_digest(evaluation_files([str(path)]))

    assert digest(QUESTION) == digest(QUESTION) != digest(QUESTION + " more")


NOTHING = {
    "empty.jsonl": b"",
    "short.jsonl": b'{"q": "too short to match"}\n',
    "numbers.json": b"[1, 2, 3]",
    "blank.jsonl": b"\n\n",
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_file_that_could_match_nothing_stops(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(NOTHING[name])
    (tmp_path / "good.jsonl").write_bytes(LINE)
    with pytest.raises(
        InputError, match=rf"nothing could ever match .*{name} \(\d+ records?\): no text in it has 13 words"
    ):
        read(tmp_path / "good.jsonl", tmp_path / name)


def test_a_file_that_is_damaged_or_cut_short_stops(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing-\*\.jsonl matches no file"):
        read(tmp_path / "missing-*.jsonl")
    zst, many = zstandard.compress(LINE * 3), zstandard.compress(b"{}\n")
    broken = {
        "bad.jsonl": (b'{"a": 1}\n{', "line 2 is not JSON"),
        "deep.jsonl": (b"[" * 100_000, "line 1 is not JSON"),
        "bad.jsonl.gz": (b"no", "line 1 is not JSON"),
        "cut.jsonl.gz": (gzip.compress(LINE * 3)[:-9], "cannot be read whole"),
        "cut.jsonl.bz2": (bz2.compress(LINE * 3)[:-9], "cannot be read whole"),
        "cut.jsonl.xz": (lzma.compress(LINE * 3)[:-9], "cannot be read whole"),
        "cut.jsonl.zst": (zst[:-10], "cannot be read whole"),
        "cut-later.jsonl.zst": (many + zst[:-3], "cannot be read whole"),
        "flipped.jsonl.gz": (gzip.compress(LINE)[:-8] + b"\0" * 8, "cannot be read whole"),
        "latin.jsonl": ('{"a": "é"}'.encode("latin-1"), "cannot be read whole"),
        "bad.parquet": (b"no", "not a parquet file"),
    }
    for name, (data, message) in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=rf"{name} .*{message}"):
            read(tmp_path / name)


def test_damaged_arrays_are_refused_and_never_looked_up() -> None:
    good = EvalNgrams.of_texts([QUESTION], [0], [0], [0], ["f"])
    far = 2**40

    def changed(name: str, value: Any) -> EvalNgrams:
        array = good.arrays[name].copy()
        array[-1] = value
        return EvalNgrams({**good.arrays, name: array}, good.files)

    for name, value in (
        ("start", -1),
        ("start", far),
        ("stop", far),
        ("stop", -far),
        ("slots", 5),
        ("record", 9),
        ("record_file", 1),
    ):
        with pytest.raises(DataError, match=r"outside the range|stops before"):
            changed(name, value)
    for name in ("start", "hash", "record", "record_number", "slots"):
        with pytest.raises(DataError):
            EvalNgrams({**good.arrays, name: good.arrays[name][:-1]}, good.files)
    for name, array in good.arrays.items():
        with pytest.raises(DataError, match="of dtype"):
            EvalNgrams({**good.arrays, name: array.astype(np.int16)}, good.files)
    full = {**good.arrays, "slots": np.zeros(16, np.uint32)}
    with pytest.raises(DataError, match="no empty slot"):
        EvalNgrams(full, good.files)
    with pytest.raises(DataError, match="outside the range"):
        good.describe(3)
