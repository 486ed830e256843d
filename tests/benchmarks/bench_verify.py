"""What comparing texts costs: the whole `prepare` with dedupe.verify: text against none, the bands the same. CPU of whole processes.

Corpora: BTLM_BENCH_CORPUS as it is, and one made from it in which each document has a copy with a few words changed. Then
pages of one template, ten times as many: their cost must be linear, too. Runs alternate. Every document that `none` removes would be removed by the bands alone; `text` keeps what is distinct, and so
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


def pages(source: Path, to: Path, count: int) -> Path:
    """Pages of one template, 150 words of a real document, with 60 other words each: all are candidates of each other."""
    draw = random.Random(7)
    first = min((source / "train").rglob("*.jsonl.zst"))
    text = (
        zstandard.ZstdDecompressor().stream_reader(first.read_bytes()).read(2 * 10**6).decode(errors="ignore")
    )
    texts = [json.loads(line)["text"] for line in text.splitlines()[:-1]]
    template = " ".join(next(text for text in texts if len(text.split()) > 1000).split()[:150])
    vocabulary = sorted({word for text in texts for word in text.split()})
    (to / "train").mkdir(parents=True)
    each = 20_000
    for number in range(-(-count // each)):
        lines = (
            json.dumps({"text": f"{template} {' '.join(draw.choices(vocabulary, k=60))}"})
            for _ in range(min(each, count - number * each))
        )
        (to / f"train/{number}.jsonl.zst").write_bytes(zstandard.compress("\n".join(lines).encode(), 3))
    return to


def hot(source: Path, folder: Path) -> dict[str, Any]:
    """A row: CPU seconds of ten times as many pages of one template."""
    corpora = [pages(source, folder / f"hot{count}", count) for count in (20_000, 200_000)]
    seconds: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for held, corpus_ in zip(seconds, corpora, strict=True):
            held.append(prepare(corpus_, folder / "shards", "--workers", "1").cpu)
    few, many = (statistics.median(held) for held in seconds)
    return _row("a template's 200,000 pages, against 20,000", many, few, many / few, "s CPU", "<= 11")


def run() -> list[dict[str, Any]]:
    source = corpus()
    with tempfile.TemporaryDirectory(prefix="btlm-bench-") as name:
        folder = Path(name)
        prepare(source, folder / "shards", "--workers", "1", "--limit", "100")  # compile once
        half = copied(source, folder / "half")
        return [
            compare(source, folder, "prepare with texts compared, against bands alone", "<= 1.15"),
            compare(half, folder, "the same, of a corpus that is half copies", "<= 1.35"),
            hot(source, folder),
        ]


if __name__ == "__main__":
    for row in run():
        print(row)
