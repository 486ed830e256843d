"""Datasets as `prepare` makes them: every check passes, and every sample's text is that of the documents it
names.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from btlm_data import pipeline
from btlm_data.cli import cli
from btlm_data.formats.shard_formats import vsl
from btlm_data.inspection import render, summary
from btlm_data.inspection.check import Check
from btlm_data.inspection.verify import verify
from btlm_data.progress import Lines
from btlm_data.recipe.load import load

ROOT = Path(__file__).resolve().parents[2]
WORDS = [word for word in (ROOT / "LICENSE").read_text().split() if word.isalpha()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of documents that tell their file and line; some are duplicates."""
    folder = tmp_path_factory.mktemp("corpus")
    chance = random.Random(1)
    for name in ("a", "b"):
        lines = []
        for number in range(1, 81):
            text = f"file {name} line {number} " + " ".join(chance.choices(WORDS, k=chance.randint(50, 400)))
            lines.append(
                json.dumps({"text": text, "meta": {"redpajama_set_name": chance.choice(["Web", "Books"])}})
            )
        lines[10] = lines[9]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def prepare(source: Path | str, out: Path, *options: str) -> None:
    command = [
        sys.executable,
        "-m",
        "btlm_data.cli",
        "prepare",
        "--source",
        str(source),
        "--out",
        str(out),
        "--workers",
        "1",
        *options,
    ]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def inspect(path: Path, **options: Any) -> dict[str, Any]:
    """The report as programs get it."""
    return json.loads(msgspec.json.encode(summary.inspect(path, **options)))  # type: ignore[no-any-return]


def faults(path: Path) -> list[Check]:
    return [check for check in verify(path, lambda check: None) if check.ok is False]


def texts(corpus: Path) -> dict[tuple[str, int], str]:
    return {
        (path.name, number): json.loads(line)["text"]
        for path in corpus.glob("*.jsonl")
        for number, line in enumerate(path.read_text().splitlines(), 1)
    }


def check_samples(report: dict[str, Any], corpus: Path) -> int:
    """Each segment is a piece of the document named; returns how many were compared."""
    known = texts(corpus)
    count = 0
    for view in report["samples"]:
        for segment in view["segments"]:
            document = view["documents"][segment["document"]]
            text = known[document["file"], document["line"]]
            assert segment["text"] in text
            whole = document["token_range"] == [0, document["tokens"]]
            assert (segment["text"] == text) == whole
            count += 1
    return count


@pytest.mark.parametrize(
    "options",
    [
        ("--seq-len", "128", "--samples-per-file", "50", "--set", "holdout.fraction=0.1"),
        ("--seq-len", "512", "--format", "corpus", "--set", "mix={Web: 1.5}"),
        ("--seq-len", "100", "--shuffle", "documents", "--set", "tail=drop"),
    ],
    ids=["samples", "corpus", "documents"],
)
def test_a_prepared_dataset(tmp_path: Path, corpus: Path, options: tuple[str, ...]) -> None:
    prepare(corpus, tmp_path / "shards", *options)
    assert faults(tmp_path / "shards") == []
    report = inspect(tmp_path / "shards", num_samples=30)
    assert report["unknown"] == []
    assert check_samples(report, corpus) > 30
    assert report["duplicates"]["clusters"]["histogram"] == [{"from": 2, "to": 2, "count": 2}]
    dropped = {stage["stage"]: stage["dropped"] for stage in report["ledger"]}
    assert dropped["dedupe"]["exact_duplicate"]["documents"] == 2
    console = Console(file=io.StringIO(), width=120)
    render.render(summary.inspect(tmp_path / "shards"), console, full=True)


@pytest.mark.parametrize(
    "options",
    [(), ("--shuffle", "none"), ("--set", "max_documents_per_sample=2"), ("--set", "mix={Web: 1.5}")],
    ids=["samples", "none", "two", "mix"],
)
def test_vsl(tmp_path: Path, corpus: Path, options: tuple[str, ...]) -> None:
    prepare(corpus, tmp_path / "shards", "--seq-len", "256", "--format", "vsl", *options)
    assert faults(tmp_path / "shards") == []
    report = inspect(tmp_path / "shards", num_samples=30)
    assert options or report["splits"]["train"]["packing_efficiency"] > 0.9
    assert check_samples(report, corpus) > 30


def test_vsl_packed_in_several_windows(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsl, "WINDOW_TOKENS", 5000)
    given = {
        "source.name": str(corpus),
        "run.out": str(tmp_path / "shards"),
        "run.workers": 1,
        "seq_len": [256],
        "format": "vsl",
    }
    pipeline.prepare(load(None, {key: (value, "test") for key, value in given.items()}), Lines())
    report = inspect(tmp_path / "shards", num_samples=1000)
    entry = json.loads((tmp_path / "shards/dataset.json").read_text())["splits"]["train"]
    assert entry["stream_tokens"] > 5 * 5000
    assert len(report["samples"]) == entry["samples"]
    check_samples(report, corpus)
    named = [document for view in report["samples"] for document in view["documents"]]
    assert {document["document"] for document in named} == set(range(entry["documents"]))
    assert sum(last - first for document in named for first, last in [document["token_range"]]) == sum(
        {document["document"]: document["tokens"] for document in named}.values()
    )
    monkeypatch.setattr(vsl, "WINDOW_TOKENS", 6000)
    assert all(
        "not its table" in view["note"] for view in inspect(tmp_path / "shards", num_samples=3)["samples"]
    )


def test_a_stopped_run_says_how_far_it_has_come(tmp_path: Path, corpus: Path) -> None:
    prepare(corpus, tmp_path / "shards", "--seq-len", "128", "--stop-after", "dedupe")
    assert "Tasks done by step: read " in inspect(tmp_path / "shards")["unknown"][0]
    result = CliRunner().invoke(cli, ["inspect", str(tmp_path / "shards")])
    assert result.output.count("\n") <= 40
    assert not re.search(r"\w\.\.\.", result.output)


def test_disjoint_sets(tmp_path: Path, corpus: Path) -> None:
    prepare(corpus, tmp_path / "shards", "--seq-len", "128:0.75", "--seq-len", "256:0.25")
    checks = {check.name: check for check in verify(tmp_path / "shards", lambda check: None)}
    assert [check for check in checks.values() if check.ok is False] == []
    assert checks["sets disjoint"].ok
    for name, report in inspect(tmp_path / "shards", num_samples=20)["sets"].items():
        assert check_samples(report, corpus) > 20, name


@pytest.mark.bench
def test_verify_of_the_sample_takes_less_than_three_seconds_of_cpu(tmp_path: Path) -> None:
    prepare("sample", tmp_path / "shards", "--seq-len", "2048")
    command = [sys.executable, "-m", "btlm_data.cli", "verify", str(tmp_path / "shards")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    seconds = []
    for _ in range(2):  # the first may compile
        before = os.times()
        subprocess.run(command, check=True, capture_output=True, env=environment)
        after = os.times()
        seconds.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    assert seconds[1] < 3
