"""Signals by a classifier in fastText's format and by a function of the user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from btlm_data.cleaning import signals_of_users
from btlm_data.cleaning.document import Documents
from btlm_data.cleaning.rules import user_function
from btlm_data.cleaning.signals import plan_signals
from btlm_data.errors import BtlmError, ConfigError, DataError, InputError
from btlm_data.inspection import verify
from btlm_data.lineage.reselect import reselect
from btlm_data.recipe.load import load
from tests.cleaning import fasttext_model
from tests.stages.runs import prepare

WORDS = {"</s>": [0.0, 0.0], "good": [1.0, 0.0], "bad": [-1.0, 0.5], "river": [0.3, 0.3]}
LABELS = {"__label__hq": [2.0, 0.0], "__label__lq": [-2.0, 1.0]}
OWN = """
def length(document):
    return len(document["text"])

def described(document):
    text = document["text"]
    return {"share": text.count("good") / len(text), "words": len(text.split()), "is_long": len(text) > 80,
            "topic": document["metadata"]["topic"]}

def wrong(document):
    return {"share": "high"} if "river" in document["text"] else {"share": 0.5}
"""
COLUMNS = {"share": "number", "words": "count", "is_long": "boolean", "topic": "text"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a corpus, a model and functions."""
    monkeypatch.chdir(tmp_path)
    fasttext_model.write(tmp_path / "model.bin", WORDS, LABELS)
    (tmp_path / "own_signals.py").write_text(OWN)
    lines = []
    for number in range(40):
        words = [list(WORDS)[1 + number * k % 3] for k in range(number % 20 + 6)]
        text = f"{number} " + "\n".join(words)
        lines.append(
            json.dumps({"text": text, "topic": None if number % 5 == 0 else f"t{number % 3}"}) + "\n"
        )
    (tmp_path / "docs.jsonl").write_text("".join(lines))
    return tmp_path


def made(folder: Path, name: str, **options: Any) -> Path:
    given = {"clean__min_chars": 0, "dedupe__method": "none", "seq_len": 16, **options}
    prepare(folder / "docs.jsonl", folder / name, **given)
    return folder / name


def test_a_run_keeps_them_and_reselect_uses_them(folder: Path) -> None:
    annotate: list[Any] = [
        {"fasttext": {"model": "model.bin", "name": "quality", "label": "__label__hq"}},
        {"fasttext": "model.bin"},
        "own_signals:length",
        {"function": "own_signals:described", "columns": COLUMNS, "metadata": True},
    ]
    out, plain = made(folder, "out", annotate=annotate), made(folder, "plain")
    for shard in plain.glob("train/*.h5"):
        assert (out / "train" / shard.name).read_bytes() == shard.read_bytes()
    table = pq.read_table(out / "train/documents.parquet").to_pylist()
    records = [json.loads(line) for line in (folder / "docs.jsonl").read_text().splitlines()]
    assert len(table) == 40
    for row in table:
        record = records[row["line"]]
        text = record["text"]
        shares = fasttext_model.shares(text, WORDS, LABELS)
        assert row["quality"] == pytest.approx(shares[0], abs=1e-4)
        assert row["fasttext"] == list(LABELS)[int(np.argmax(shares))]
        assert row["fasttext_probability"] == pytest.approx(shares.max(), abs=1e-4)
        assert row["length"] == len(text)
        assert row["words"] == len(text.split())
        assert row["is_long"] == (len(text) > 80)
        assert row["topic"] == record["topic"]
        assert row["share"] == text.count("good") / len(text)
    assert [check for check in verify.verify(out, lambda _: None) if check.ok is False] == []
    outcome = reselect(out, "quality > 0.6 AND topic = 't1' AND NOT is_long", folder / "chosen")
    expected = [row for row in table if row["quality"] > 0.6 and row["topic"] == "t1" and not row["is_long"]]
    assert outcome.documents == len(expected) > 0


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"fasttext": "missing.bin"}, "missing.bin cannot be read"),
        ({"fasttext": "own_signals.py"}, "is no model in fastText's format"),
        ({"fasttext": {"model": "model.bin", "label": "hq"}}, "has no label 'hq'. It has __label__"),
        ({"fasttext": {"model": "model.bin", "name": "tokens"}}, "has a column 'tokens' already"),
        ({"fasttext": {"model": "model.bin", "name": "a b"}}, "is no name of a column"),
        ({"fasttext": "."}, "is not a regular file"),
        ("own_signals:nothing", "annotate: own_signals:nothing cannot be imported"),
        ("nowhere:length", "annotate: nowhere:length cannot be imported"),
        ({"function": "own_signals:length", "columns": {"a": "list"}}, "number"),
    ],
)
def test_what_cannot_be_is_refused_before_the_run(folder: Path, entry: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        plan_signals([entry])


def test_two_signals_may_not_have_one_column(folder: Path) -> None:
    with pytest.raises(ConfigError, match="another signal has a column 'fasttext'"):
        plan_signals([{"fasttext": "model.bin"}, {"fasttext": "model.bin"}])


def documents(texts: list[str]) -> Documents:
    count = len(texts)
    return Documents(texts, ["a"] * count, ["docs.jsonl"] * count, list(range(count)))


def test_a_function_that_fails_names_the_document(folder: Path) -> None:
    signals = plan_signals([{"name": "x", "function": "own_signals:wrong", "columns": {"share": "number"}}])
    assert signals.measure(documents(["good", "bad"]))["share"] == pytest.approx([0.5, 0.5])
    with pytest.raises(
        InputError,
        match=r"own_signals:wrong failed on the document at byte or row 1 of docs.jsonl: TypeError",
    ):
        signals.measure(documents(["good", "river"]))


def test_what_has_changed_since_the_plan_is_not_used(folder: Path) -> None:
    signals = plan_signals([{"fasttext": "model.bin"}, "own_signals:length"])
    before = signals.fingerprint
    fasttext_model.write(folder / "model.bin", WORDS, {"__label__a": [1.0, 0.0], "__label__b": [0.0, 1.0]})
    (folder / "own_signals.py").write_text(OWN + "\n")
    signals_of_users._load.cache_clear()  # as another process, which has read neither
    user_function._FILE_MODULES.clear()
    with pytest.raises(DataError, match=r"the model .* has changed since the run was planned"):
        signals.measure(documents(["good"]))
    assert plan_signals([{"fasttext": "model.bin"}, "own_signals:length"]).fingerprint != before
    with pytest.raises(BtlmError, match=r"annotate: the module own_signals .* has changed"):
        plan_signals(["own_signals:length"]).entries[0][0].measure(documents(["good"]), signals.entries[1][1])


def test_a_received_dataset_may_name_no_function(folder: Path) -> None:
    received = folder / "dataset.json"
    for entry in ("own_signals:length", {"function": "own_signals:length", "metadata": True}):
        received.write_text(json.dumps({"configuration": {"annotate": [entry]}}))
        with pytest.raises(ConfigError, match="annotate names a Python function"):
            load(received, {})


def test_without_the_package_the_message_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"fasttext needs the package fasttext-predict.*\[fasttext\]"):
        plan_signals([{"fasttext": "model.bin"}])
