"""Attacks that once succeeded and are of no kind elsewhere here, as they were found."""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.attacks.bench import ROOT, Bench, probe
from tests.attacks.trainer_and_exports import EXPORTS, WEIGHTS, _train


@probe("same bytes")
def other_bands_after_a_safety_stop(bench: Bench) -> None:
    chance = random.Random(1)
    words = [f"w{i}" for i in range(3000)]
    lines = []
    for _ in range(60):
        text = chance.choices(words, k=200)
        near = list(text)
        near[chance.randrange(200)] = "other"
        lines += [json.dumps({"text": " ".join(one)}) for one in (text, near)]
    bench.write("a.jsonl", "\n".join(lines) + "\n")
    other = (
        "--set",
        "dedupe.bands=2",
        "--set",
        "dedupe.rows=60",
        "--memory",
        "40KB",
        "--set",
        "dedupe.max_removed=1.0",
    )
    bench.prepare("a.jsonl", "out", "--set", "dedupe.max_removed=0.1", "--memory", "40KB", code=5)
    bench.prepare("a.jsonl", "out", *other, "--overwrite")
    bench.prepare("a.jsonl", "fresh", *other)
    assert bench.hashes("out") == bench.hashes("fresh")


@probe(EXPORTS, "npy", "megatron", "mds", slow=True)
def a_killed_one_and_the_same_command(bench: Bench, to: str) -> None:
    root = bench.dataset()
    bench.run("export", root, "--to", to, "--out", bench.root / "sound", code=0)
    for number in range(6):
        out = bench.root / f"out{number}"
        words = [sys.executable, "-m", "btlm_data", "export", str(root), "--to", to, "--out", str(out)]
        run = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while not (out / "exporting.json").exists() and run.poll() is None and time.monotonic() < end:
            time.sleep(0.001 * number)
        run.kill()
        run.wait()
        if not (out / "export.json").exists():
            bench.run("export", root, "--to", to, "--out", out, code=0)
        (out / "export.lock").unlink(missing_ok=True)
        assert bench.hashes(out) == bench.hashes("sound")


def _appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(path.read_bytes()[:2000])


def _deleted(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    os.truncate(path, 1000)


def _replaced(path: Path) -> None:
    """Same size, same time."""
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"word1", b"word2"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@probe("flipped bits", _appended, _deleted, _cut, _replaced)
def the_source_changes_during_the_run(bench: Bench, change: Callable[[Path], None]) -> None:
    clean: Any = importlib.import_module("btlm_data.stages.read")

    for number in range(3):
        bench.corpus(f"src/{number}.jsonl", 30, number)
    original = clean.read_batches
    changed: list[Path] = []

    def changing(path: Path, *arguments: object, **options: object) -> object:
        if path.name == "1.jsonl" and not changed:
            changed.append(path)
            change(path.with_name("2.jsonl"))
        return original(path, *arguments, **options)

    clean.read_batches = changing
    try:
        ended = bench.prepare("src", "out", code=None)
    finally:
        clean.read_batches = original
    assert changed
    assert ended.code == 3, ended.words
    assert "2.jsonl" in ended.words


@probe("same bytes")
def out_inside_the_source(bench: Bench) -> None:
    bench.corpus("src/a.jsonl")
    bench.prepare("src", "src/shards")
    bench.prepare("src", "src/shards")
    shutil.rmtree(bench.root / "src/shards")
    bench.prepare("src", "src/shards", "--stop-after", "pack", "--emit-text", bench.root / "text")
    bench.prepare("src", "src/shards")
    inputs = json.loads((bench.root / "src/shards/dataset.json").read_bytes())["inputs"]
    assert [file["name"] for file in inputs] == ["a.jsonl"]


@probe("hostile files")
def folders_and_files_that_are_links(bench: Bench) -> None:
    bench.corpus("real/part/b.jsonl", 20, 1)
    bench.corpus("src/train/a.jsonl", 20, 2)
    (bench.root / "src/train/part").symlink_to(bench.root / "real/part")
    (bench.root / "src/train/c.jsonl").symlink_to("nowhere.jsonl")
    ended = bench.prepare("src", "out")
    tree = json.loads((bench.root / "out/dataset.json").read_bytes())
    assert "train/part/b.jsonl" in [file["name"] for file in tree["inputs"]] or "link" in ended.words
    assert any("c.jsonl" in name for left in tree["left_out"] for name in left["names"])


@probe(WEIGHTS, "1e-3", "1E-3", ".001", "1_0e-4")
def a_number_as_yaml_does_not_read_it(bench: Bench, text: str) -> None:
    _train(bench, "run", 1, "--set", f"optimizer.learning_rate={text}", code=None)
