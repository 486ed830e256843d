"""Filters and evaluation sets in whole runs: the same documents whatever the workers, the files and their
formats.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from btlm_data import pipeline
from btlm_data.errors import BtlmError, DataError, InputError
from btlm_data.recipe.load import load
from tests.sources.test_end_to_end import Quiet, shards

FILTER = """
def by_url(document):
    record = document["metadata"]
    assert record["text"].startswith(document["text"][:20]), record
    assert record["meta"]["source"] == document["source"], record
    assert document["file"].rpartition("/")[2].split(".")[0] == record["meta"]["file"], document
    return not record["url"].endswith("/spam")
"""
QUESTION = "which of the cities is the capital of the small country that lies between the two large ones"


def record(file: str, number: int) -> dict[str, Any]:
    text = f"Document {number} of {file}. " + " ".join(f"word{number}x{k}" for k in range(60))
    url = f"http://host/{number}/{'spam' if number % 3 == 0 else 'page'}"
    return {"url": url, "text": text, "meta": {"source": f"S{number % 2}", "file": file}}


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Several small files in three formats, and a filter beside them that reads whole records."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("a", "b", "c"):
        lines = "".join(json.dumps(record(name, n)) + "\n" for n in range(30)).encode()
        if name == "b":
            (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines))
        else:
            (folder / f"{name}.jsonl").write_bytes(lines)
    pq.write_table(pa.Table.from_pylist([record("d", n) for n in range(30)]), folder / "d.parquet")
    (tmp_path / "filters_of_this_run.py").write_text(FILTER)
    monkeypatch.chdir(tmp_path)
    return folder


def prepare(corpus: Path, out: Path, **settings: Any) -> dict[str, Any]:
    overrides: dict[str, Any] = {
        "source.name": str(corpus),
        "source.source_field": "meta.source",
        "seq_len": [64],
        "run.out": str(out),
        "run.workers": 1,
        "dedupe.method": "exact",
        **settings,
    }
    pipeline.prepare(load(None, {key: (value, "--set") for key, value in overrides.items()}), Quiet())
    manifest: dict[str, Any] = json.loads((out / "dataset.json").read_text())
    return manifest


def dropped(manifest: dict[str, Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in manifest["ledger"]:
        for reason, amount in entry["dropped"].items():
            counts[reason] = counts.get(reason, 0) + amount["documents"]
    return {reason: count for reason, count in counts.items() if count}


def test_a_filter_sees_whole_records_of_every_format(corpus: Path, tmp_path: Path) -> None:
    spec = {"name": "by_url", "function": "filters_of_this_run:by_url", "metadata": True, "max_errors": 0}
    manifest = prepare(corpus, tmp_path / "one", **{"clean.filters": [{"max_chars": 10_000}, spec]})
    assert dropped(manifest) == {"by_url": 40}
    two = {"clean.filters": [{"max_chars": 10_000}, spec], "run.workers": 2}
    assert dropped(prepare(corpus, tmp_path / "two", **two)) == {"by_url": 40}
    assert shards(tmp_path / "one") == shards(tmp_path / "two") != {}


def test_a_changed_filter_redoes_the_work_in_the_same_process(corpus: Path, tmp_path: Path) -> None:
    spec = {"name": "mine", "function": "filters_of_this_run:by_url", "metadata": True}
    settings = {"clean.filters": [spec], "run.overwrite": True, "run.work_dir": str(tmp_path / "work")}
    assert dropped(prepare(corpus, tmp_path / "out", **settings)) == {"mine": 40}
    (tmp_path / "filters_of_this_run.py").write_text("def by_url(document):\n    return True\n")
    assert dropped(prepare(corpus, tmp_path / "out", **settings)) == {}


def test_a_filter_that_changes_between_planning_and_working_stops(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from btlm_data.cleaning import filters

    spec = {"name": "mine", "function": "filters_of_this_run:by_url", "metadata": True}
    planned = filters.plan_filters([spec])
    (tmp_path / "filters_of_this_run.py").write_text("def by_url(document):\n    return False\n")
    filters._RULES.clear()
    monkeypatch.setattr("btlm_data.cleaning.rules.user_function._FILE_MODULES", {})
    with pytest.raises(DataError, match="has changed since the run was planned"):
        planned.prepare()


def test_a_document_with_an_evaluation_text_is_removed_and_an_unreadable_set_stops(
    corpus: Path, tmp_path: Path
) -> None:
    contaminated = record("a", 1) | {"text": record("a", 1)["text"] + " " + QUESTION.upper() + "!"}
    (corpus / "e.jsonl").write_text(json.dumps(contaminated) + "\n")
    good, cut = tmp_path / "good.jsonl", tmp_path / "cut.jsonl.gz"
    good.write_bytes(b"\xef\xbb\xbf" + json.dumps({"q": QUESTION, "more": "a\u2028b"}).encode())
    cut.write_bytes(gzip.compress(good.read_bytes())[:-9])
    manifest = prepare(corpus, tmp_path / "out", **{"holdout.decontaminate": [str(good)]})
    assert dropped(manifest) == {"contaminated": 1}
    for method in ("none", "exact"):  # no text is compared with a holdout, or there is none to compare with
        for holdout in ({}, {"holdout.fraction": 0.1}):
            out = tmp_path / f"{method}-{len(holdout)}"
            given = {"holdout.decontaminate": [str(good)], "dedupe.method": method, **holdout}
            assert dropped(prepare(corpus, out, **given))["contaminated"] == 1
    with pytest.raises(InputError, match=r"cut\.jsonl\.gz cannot be read whole"):
        prepare(corpus, tmp_path / "other", **{"holdout.decontaminate": [str(good), str(cut)]})
    assert not os.path.exists(tmp_path / "other" / "dataset.json")


def test_a_function_that_reads_metadata_unasked_is_told_how_to_ask(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(BtlmError, match="Add `metadata: true`"):
        prepare(corpus, tmp_path / "out", **{"clean.filters": ["filters_of_this_run:by_url"]})
