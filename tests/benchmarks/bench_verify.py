"""What comparing texts costs: the whole `prepare` with dedupe.verify: text against none, the bands the same. CPU of whole processes.

Corpora: BTLM_BENCH_CORPUS as it is, and one made from it in which each document has a copy with a few words changed. Runs
alternate. Every document that `none` removes would be removed by the bands alone; `text` keeps what is distinct, and so
writes more.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zstandard

from tests.benchmarks.bench_prepare import _row, corpus, prepare

ROUNDS = int(os.environ.get("BTLM_BENCH_ROUNDS", "3"))
HALF_BYTES = 120 * 10**6  # text of the corpus that is copied, before its copies


def copied(source: Path, to: Path, most_bytes: int = HALF_BYTES) -> Path:
    """A corpus of which half is copies: each document of `source` is followed, anywhere later, by one with 0.5 % of its words
    changed.
    """
    draw = random.Random(11)
    lines: list[str] = []
    size = 0
    for path in sorted((source / "train").rglob("*.jsonl.zst")):
        with path.open("rb") as raw:
            text = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True).read().decode()
        for line in text.splitlines():
            record = json.loads(line)
            words = record["text"].split(" ")
            for _ in range(max(1, len(words) // 200)):
                words[draw.randrange(len(words))] = f"changed{draw.randrange(1000)}"
            size += len(record["text"])
            lines += [line, json.dumps(record | {"text": " ".join(words)})]
        if size >= most_bytes:
            break
    draw.shuffle(lines)
    (to / "train").mkdir(parents=True)
    each = -(-len(lines) // 8)
    for number in range(8):
        data = "\n".join(lines[number * each : (number + 1) * each]).encode()
        (to / f"train/{number}.jsonl.zst").write_bytes(zstandard.compress(data, 3))
    return to


def compare(source: Path, folder: Path, name: str, budget: str) -> dict[str, Any]:
    """A row: CPU seconds with texts compared, against bands alone."""
    ways: Sequence[str] = ("text", "none")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way in ways:
            options = ("--workers", "1", "--set", f"dedupe.verify={way}", "--set", "dedupe.max_removed=1")
            seconds[way].append(prepare(source, folder / "shards", *options).cpu)
    text, none = (statistics.median(seconds[way]) for way in ways)
    ratios = [a / b for a, b in zip(seconds["text"], seconds["none"], strict=True)]
    return _row(name, text, none, statistics.median(ratios), "s CPU", budget)


def run() -> list[dict[str, Any]]:
    source = corpus()
    with tempfile.TemporaryDirectory(prefix="btlm-bench-") as name:
        folder = Path(name)
        prepare(source, folder / "shards", "--workers", "1", "--limit", "100")  # compile once
        half = copied(source, folder / "half")
        return [
            compare(source, folder, "prepare with texts compared, against bands alone", "<= 1.15"),
            compare(half, folder, "the same, of a corpus that is half copies", "<= 1.35"),
        ]


if __name__ == "__main__":
    for row in run():
        print(row)
