"""The same bytes wherever and however the work is done: on S3, in fresh interpreters, in two threads, one after another."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from btlm_data import pipeline
from btlm_data.engine import base
from btlm_data.progress import Lines
from btlm_data.recipe.load import load
from btlm_data.storage import open_store
from tests import fresh_interpreter
from tests.fresh_interpreter import ROOT, FreshEngine

SAMPLE = ["--source", "sample", "--set", "source.files=2", "--seq-len", "512", "--samples-per-file", "700"]


def run(out: str | Path, **options: Any) -> pipeline.Prepared:
    """Prepare in this process; options by dotted key with `__` for the dot."""
    given = {"source.name": "sample", "source.files": 2, "run.out": str(out), "run.workers": 1}
    given |= {"seq_len": 512, "shards.samples_per_file": 700} | {
        key.replace("__", "."): value for key, value in options.items()
    }
    return pipeline.prepare(load(None, {key: (value, "test") for key, value in given.items()}), Lines())


def contents(out: str | Path) -> dict[str, bytes]:
    """Every file of a dataset that must be the same every time."""
    store = open_store(out)
    return {
        entry.name: store.read(entry.name)
        for entry in store.list()
        if not entry.name.startswith(".work/") and not entry.name.endswith("provenance.json")
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "out"
    run(out)
    return contents(out)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.stress), 2])
def test_work_and_dataset_on_s3(bucket: Any, expected: dict[str, bytes], workers: int) -> None:
    options = {"run__work_dir": "s3://corpus/work", "run__workers": workers}
    prepared = run("s3://corpus/data", **options)
    assert prepared.complete
    assert contents("s3://corpus/data") == expected
    assert run("s3://corpus/data", **options).already_done
    store = open_store("s3://corpus/data")
    store.delete(["train/data-00001.h5", "validation/documents.parquet"])
    run("s3://corpus/data", **options)
    assert contents("s3://corpus/data") == expected


@pytest.mark.stress
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["workers", "ray"])
def test_engines_with_work_and_dataset_on_s3(
    bucket: Any, tmp_path: Path, expected: dict[str, bytes], engine: str
) -> None:
    """No file is shared but those in the store: each process has a folder of its own."""
    if engine == "ray":
        pytest.importorskip("ray")
    work, options = "s3://corpus/work", ["--engine", engine, "--workers", "2", "--memory", "600MB"]
    commands = [["prepare", *SAMPLE, "--out", "s3://corpus/data", "--work-dir", work, *options]]
    if engine == "workers":
        commands += [["worker", work, "--rank", str(rank), "--world", "2"] for rank in range(2)]
    with contextlib.ExitStack() as stack:
        processes = []
        for number, command in enumerate(commands):
            (tmp_path / str(number)).mkdir()
            process = subprocess.Popen(
                [sys.executable, "-m", "btlm_data", *command],
                cwd=tmp_path / str(number),
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            words, _ = process.communicate(timeout=400)
            assert process.returncode == 0, words
    assert {name: data for name, data in contents("s3://corpus/data").items() if name in expected} == expected
    assert not list(tmp_path.glob("*/*.h5"))
    receipts = {entry.name for entry in open_store(work).list("receipts")}
    assert any(name.startswith("receipts/shard.write/") for name in receipts)


def test_dataset_on_s3_with_a_local_work_folder(
    bucket: Any, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    run("s3://corpus/data", run__work_dir=str(tmp_path / "work"))
    assert contents("s3://corpus/data") == expected
    assert not list((tmp_path / "work").rglob("*.h5")), "no local copy of the shards is made"


def test_dedupe_on_s3_goes_through_files_where_memory_is_small(bucket: Any, tmp_path: Path) -> None:
    options = {
        "run__memory": "40KB",
        "source__files": 1,
        "dedupe__index": "s3://corpus/index",
        "run__emit_text": "s3://corpus/text",
    }
    run("s3://corpus/data", run__work_dir="s3://corpus/work", **options)
    receipts = [entry.name.split("/")[1] for entry in open_store("s3://corpus/work").list("receipts")]
    assert receipts.count("dedupe.sort-exact") > 1
    assert receipts.count("dedupe.sort-bands") > 1
    here = options | {"dedupe__index": str(tmp_path / "index"), "run__emit_text": str(tmp_path / "text")}
    run(tmp_path / "out", **here)
    assert contents("s3://corpus/data") == contents(tmp_path / "out")
    text, text_here = contents("s3://corpus/text"), contents(tmp_path / "text")
    assert text.pop("files.json") != text_here.pop("files.json")  # says where the index is
    assert text == text_here
    assert contents("s3://corpus/index") == contents(tmp_path / "index")


def test_every_step_in_a_fresh_interpreter_elsewhere(
    tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(base.ENGINES, "local", "tests.fresh_interpreter:FreshEngine")
    done: list[int] = []
    monkeypatch.setattr(FreshEngine, "__exit__", lambda self, *_: done.append(self.num_jobs))
    monkeypatch.chdir(tmp_path)
    run("out", run__memory="1MB", source__files=1)
    assert done[0] > 12
    monkeypatch.undo()
    run(tmp_path / "whole", source__files=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert fresh_interpreter.ROOT.is_dir()


def test_two_runs_at_once_in_two_threads(tmp_path: Path, expected: dict[str, bytes]) -> None:
    run(tmp_path / "other", seed=3, format="vsl")
    errors: list[BaseException] = []

    def prepare(name: str, **options: Any) -> None:
        try:
            run(tmp_path / name, **options)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=prepare, args=("one",), kwargs={"run__workers": 2}),
        threading.Thread(target=prepare, args=("two",), kwargs={"seed": 3, "format": "vsl"}),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert contents(tmp_path / "one") == expected
    assert contents(tmp_path / "two") == contents(tmp_path / "other")


def test_one_run_after_another_on_one_work_folder(tmp_path: Path, expected: dict[str, bytes]) -> None:
    work = {"run__work_dir": str(tmp_path / "work")}
    run(tmp_path / "first", seed=9, **work)
    run(tmp_path / "second", **work)
    run(tmp_path / "fresh", seed=9)
    assert contents(tmp_path / "second") == expected
    assert contents(tmp_path / "first") == contents(tmp_path / "fresh")
