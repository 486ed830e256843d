"""verify --source and --deep on datasets as `prepare` makes them: the corpus is read again, and any change is
named.
"""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import h5py
import pytest

from btlm_data import pipeline
from btlm_data.formats import dataset
from btlm_data.inspection.check import Check
from btlm_data.inspection.verify import Again, passed, verify
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from tests.reference.dataset import edit_manifest

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
]


def text(chance: random.Random, number: int) -> str:
    accents = "cafe\u0301 " if number % 3 == 0 else ""  # normalisation changes it
    return f"document {number} {accents}" + " ".join(chance.choices(WORDS, k=chance.randint(60, 300)))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    chance = random.Random(5)
    lines = [json.dumps({"text": text(chance, number)}) + "\n" for number in range(120)]
    (folder / "a.jsonl").write_text("".join(lines[:60]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[60:]).encode()))
    return folder


def prepare(source: Path, out: Path, **options: Any) -> Path:
    settings = {"source.name": str(source), "run.out": str(out), "run.workers": 1, "seq_len": [128]}
    settings |= {key.replace("__", "."): value for key, value in options.items()}
    pipeline.prepare(load(None, {key: (value, "test") for key, value in settings.items()}), Lines())
    return out


def checks(out: Path, source: Path, num_documents: int = 1000) -> dict[str, Check]:
    return {c.name: c for c in verify(out, lambda check: None, source, None, Again(num_documents))}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"format": "corpus", "shuffle": "documents"},
        {"format": "vsl"},
        {"clean__normalize": "none", "tail": "drop", "seq_len": [100]},
    ],
    ids=["samples", "corpus", "vsl", "none"],
)
def test_every_document_is_found_again(tmp_path: Path, corpus: Path, options: dict[str, Any]) -> None:
    out = prepare(corpus, tmp_path / "out", **options)
    found = checks(out, corpus)
    assert {name: c.place for name, c in found.items() if c.ok is False} == {}
    count = sum(split.documents for split in dataset.read_set(out).splits.values())
    assert found["documents again"].detail.startswith(f"{count} documents read from the source")


@pytest.mark.parametrize("place", ["ids", "labels", "borders"])
def test_tokens_of_another_document_in_a_vsl_shard_are_named(
    tmp_path: Path, corpus: Path, place: str
) -> None:
    """Two tokens exchanged keep every count; a stranger makes the checksums right again."""
    out = prepare(corpus, tmp_path / "out", format="vsl", seq_len=[64], shards__samples_per_file=20)
    assert checks(out, corpus)["documents again"].ok
    path = out / "train/data-00001.h5"
    with h5py.File(path, "r+") as file:
        rows = file["data"][:]
        if place == "borders":  # a piece of three positions becomes pieces of one and two
            row, start = next(
                (r, c)
                for r in range(len(rows))
                for c in range(62)
                if rows[r, 3, c] >= 2 and rows[r, 4, c] == 0
            )
            rows[row, 3, start] = 0
            rows[row, 4, start + 1 :][rows[row, 4, start + 1 :] > 0] -= 1
        else:
            plane = 2 if place == "labels" else 0
            ids = rows[0, plane]
            at = next(c for c in range(5, 50) if ids[c] != ids[c + 1])
            ids[[at, at + 1]] = ids[[at + 1, at]]
        file["data"][...] = rows
    found = checks(out, corpus)["documents again"]
    assert found.ok is False
    assert "are in no row" in (found.place or "")


def test_a_changed_source_is_named(tmp_path: Path, corpus: Path) -> None:
    out = prepare(corpus, tmp_path / "out")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in corpus.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    original = (corpus / "a.jsonl").read_text()
    (copy / "a.jsonl").write_text(
        original.replace("document 7 alpha", "document 7 omega").replace("beta", "atbe")
    )
    found = checks(out, copy)["documents again"]
    assert found.ok is False
    assert "documents.parquet row" in (found.place or "")
    (copy / "a.jsonl").write_text(original[: len(original) // 2])
    found = checks(out, copy)["documents again"]
    assert "has no record at byte" in (found.place or "")
    (copy / "a.jsonl").unlink()
    assert checks(out, copy)["documents again"].ok is False
    assert checks(out, copy)["source"].ok is False


def test_code_that_a_dataset_names_is_not_run(tmp_path: Path, corpus: Path) -> None:
    out = prepare(corpus, tmp_path / "out")
    trap = tmp_path / "trap"

    def name_code(manifest: Any) -> None:
        manifest["configuration"]["clean"]["filters"] = [{"function": "pathlib:Path.touch"}]

    edit_manifest(out, name_code)
    found = checks(out, corpus)["documents again"]
    assert found.ok is None
    assert "Python function" in found.detail
    assert not trap.exists()


def test_a_copy_of_the_corpus_elsewhere_gives_the_same_dataset_json(tmp_path: Path, corpus: Path) -> None:
    copy = tmp_path / "elsewhere" / "with another name"
    copy.mkdir(parents=True)
    for path in corpus.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
        os.utime(copy / path.name, (1, 1))
    first = prepare(corpus, tmp_path / "first", seq_len=["128:0.5", "64:0.5"])
    second = prepare(copy, tmp_path / "second", seq_len=["128:0.5", "64:0.5"], run__workers=2)
    for name in ("dataset.json", "msl128/dataset.json", "msl64/dataset.json", "msl64/rejects.jsonl"):
        data = (first / name).read_bytes()
        assert data == (second / name).read_bytes()
        assert str(tmp_path).encode() not in data
    assert (first / "provenance.json").read_bytes() != (second / "provenance.json").read_bytes()
    detail = checks(first / "msl64", copy)["source"].detail
    assert detail == "2 input files with the recorded digest"
    (copy / "a.jsonl").write_text((corpus / "a.jsonl").read_text().replace("alpha", "omega"))
    changed = prepare(copy, tmp_path / "third", seq_len=["128:0.5", "64:0.5"])
    fingerprints = {dataset.read(out).fingerprint for out in (first, second, changed)}
    assert len(fingerprints) == 2


def test_a_part_of_a_file_has_no_digest(tmp_path: Path, corpus: Path) -> None:
    out = prepare(corpus, tmp_path / "out", source__limit=70)
    digests = [file.digest for file in dataset.read_set(out).inputs]
    assert digests[0] is not None
    assert digests[1] is None
    assert passed(checks(out, corpus, 0).values())
