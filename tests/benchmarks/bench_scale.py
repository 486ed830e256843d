"""Ten times the input: time per MB and memory stay where they are, in many files or in one.

Gigabytes of real text are hard to come by, so the benchmark corpus is grown: each copy of a document has its words in
another order (every k-th word, forwards or backwards), which leaves the vocabulary and the tokens per byte as they are, but almost no
13-gram and so no duplicate. The small and the large input are made the same way: all orders, and of each the same share of
the documents, from all of the corpus. BTLM_BENCH_TEXT_BYTES sets the larger size (default 2 x 10^9; 400 MB of corpus are
enough for 20 x 10^9, on a disk with room for twice that).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from tests.benchmarks.bench_prepare import ROUNDS, corpus, floor, prepare

SMALL = 200_000_000
LARGE = int(float(os.environ.get("BTLM_BENCH_TEXT_BYTES", "2e9")))
NUM_ORDERS = 50


def _reordered(text: str, order: int) -> str:
    """Its words, which spaces divide, in one of NUM_ORDERS orders; 0 is its own."""
    step = order // 2 + 1
    words = text.split(" ")
    if order % 2:
        words.reverse()
    return " ".join([word for first in range(step) for word in words[first::step]])


def _records(source: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((source / "train").rglob("*.jsonl.zst")):
        with path.open("rb") as raw:
            for line in zstandard.ZstdDecompressor().stream_reader(raw).read().split(b"\n"):
                if line:
                    yield json.loads(line)


def grow(source: Path, to: Path, size: int, *, one_file: bool = False) -> int:
    """Write about `size` bytes of text below `to`, the same share of the documents in each word order; returns the bytes
    written.
    """
    records = list(_records(source))
    part = size / NUM_ORDERS / sum(len(record["text"].encode()) for record in records)
    if part > 1:
        raise SystemExit(f"The corpus is too small to be grown to {size / 1e9:g} GB. Make a larger one.")
    written, number = 0, 0
    folder = to / "train" / "chunk1"
    folder.mkdir(parents=True)
    plain = (to / "all.jsonl").open("wb") if one_file else None
    held: list[bytes] = []

    def flush() -> None:
        nonlocal number
        data = b"".join(held)
        (folder / f"example_train_{number:05d}.jsonl.zst").write_bytes(
            zstandard.ZstdCompressor(level=3).compress(data)
        )
        number += 1
        held.clear()

    for order in range(NUM_ORDERS):
        for place, record in enumerate(records):
            if int((place + 1) * part) == int(place * part):
                continue
            text = _reordered(record["text"], order)
            written += len(text.encode())
            line = json.dumps(record | {"text": text}, ensure_ascii=False).encode() + b"\n"
            if plain is not None:
                plain.write(line)
            else:
                held.append(line)
                if len(held) == 4000:
                    flush()
    if held:
        flush()
    if plain is not None:
        plain.close()
        shutil.rmtree(to / "train")
    return written


def run() -> list[dict[str, Any]]:
    source = corpus()
    with tempfile.TemporaryDirectory(prefix="btlm-bench-") as folder:
        root = Path(folder)
        small, large, single = root / "small", root / "large", root / "single"
        sizes = {name: grow(source, path, size, one_file=path is single) for name, path, size in (
            ("small", small, SMALL), ("large", large, LARGE), ("single", single, LARGE))}  # fmt: skip
        prepare(small, root / "out", "--workers", "1", "--limit", "100")
        rounds = [
            (prepare(small, root / "out", "--workers", "1"), prepare(large, root / "out", "--workers", "1"))
            for _ in range(ROUNDS)
        ]
        small_rate = statistics.median(s.cpu for s, _ in rounds) / sizes["small"] * 1e6
        large_rate = statistics.median(b.cpu for _, b in rounds) / sizes["large"] * 1e6
        floors = floor(sorted(large.rglob("*.jsonl.zst")))
        two = prepare(large, root / "out", "--workers", "2")
        alone = prepare(single / "all.jsonl", root / "out", "--workers", "2")
        one = statistics.median(b.wall for _, b in rounds)
        cpu = statistics.median(b.cpu for _, b in rounds)
        return [
            _row(f"2 workers against 1, wall time, {LARGE / 1e9:g} GB", two.wall, one, one / two.wall, "s", ">= 1.8"),
            _row(f"whole prepare, CPU against decompress + parse, {LARGE / 1e9:g} GB", cpu, floors, cpu / floors, "s CPU", "<= 10, aim 8"),
            _row(f"CPU a MB, {LARGE / 1e9:g} GB of input against 0.2 GB", large_rate * 1000, small_rate * 1000, large_rate / small_rate, "ms", "<= 1.05"),
            _row(f"peak memory of a worker, {LARGE / 1e9:g} GB of input against 0.2 GB, without pages of files",
                 max(b.peak_own for _, b in rounds) / 1e9, max(s.peak_own for s, _ in rounds) / 1e9,
                 max(b.peak_own for _, b in rounds) / max(s.peak_own for s, _ in rounds), "GB", "<= 1 GB, flat"),
            _row("the same, with the pages of files that it maps",
                 max(b.peak_rss for _, b in rounds) / 1e9, max(s.peak_rss for s, _ in rounds) / 1e9, None, "GB", "as memory is free"),
            _row(f"peak memory of a worker, one JSONL file of {LARGE / 1e9:g} GB, without pages of files",
                 alone.peak_own / 1e9, None, None, "GB", "<= 1"),
        ]  # fmt: skip


def _row(
    name: str, ours: float, theirs: float | None, ratio: float | None, unit: str, budget: str
) -> dict[str, Any]:
    return {"name": name, "ours": ours, "theirs": theirs, "ratio": ratio, "unit": unit, "budget": budget}


if __name__ == "__main__":
    for row in run():
        print(row)
