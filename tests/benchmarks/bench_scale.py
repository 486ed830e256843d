"""Ten times the input: time per MB and memory stay where they are, in many files or in one.

Two gigabytes of real text are hard to come by, so the benchmark corpus is grown: each copy of a document has its lines' words in
another order (reversed, interleaved), which leaves the vocabulary and the tokens per byte as they are, but almost no 13-gram and so no
duplicate. The small and the large input are made the same way, from the same share of plain and reordered text.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from tests.benchmarks.bench_prepare import ROUNDS, corpus, floor, prepare

SMALL, LARGE = 200_000_000, 2_000_000_000
_ORDERS: list[Callable[[list[str]], list[str]]] = [
    lambda words: words,
    lambda words: words[::-1],
    lambda words: words[::2] + words[1::2],
    lambda words: words[1::2][::-1] + words[::2],
    lambda words: words[::3] + words[1::3] + words[2::3],
]


def _documents(source: Path, order: int) -> Iterator[dict[str, Any]]:
    reorder = _ORDERS[order]
    for path in sorted((source / "train").rglob("*.jsonl.zst")):
        with path.open("rb") as raw:
            for line in zstandard.ZstdDecompressor().stream_reader(raw).read().split(b"\n"):
                if line:
                    record = json.loads(line)
                    record["text"] = "\n".join(
                        " ".join(reorder(part.split(" "))) for part in record["text"].split("\n")
                    )
                    yield record


def grow(source: Path, to: Path, size: int, *, one_file: bool = False) -> int:
    """Write about `size` bytes of text below `to`, an equal share in each word order; returns the bytes written."""
    share, written, number = size // len(_ORDERS), 0, 0
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

    for order in range(len(_ORDERS)):
        mine = 0
        for record in _documents(source, order):
            mine += len(record["text"].encode())
            line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
            if plain is not None:
                plain.write(line)
            else:
                held.append(line)
                if len(held) == 4000:
                    flush()
            if mine >= share:
                break
        written += mine
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
            _row("2 workers against 1, wall time, 2 GB", two.wall, one, one / two.wall, "s", ">= 1.8"),
            _row("whole prepare, CPU against decompress + parse, 2 GB", cpu, floors, cpu / floors, "s CPU", "<= 10, aim 8"),
            _row("CPU a MB, 2 GB of input against 0.2 GB", large_rate * 1000, small_rate * 1000, large_rate / small_rate, "ms", "<= 1.05"),
            _row("peak memory of a worker, 2 GB of input against 0.2 GB",
                 max(b.peak_rss for _, b in rounds) / 1e9, max(s.peak_rss for s, _ in rounds) / 1e9,
                 max(b.peak_rss for _, b in rounds) / max(s.peak_rss for s, _ in rounds), "GB", "<= 1 GB, flat"),
            _row("peak memory of a worker, one JSONL file of 2 GB", alone.peak_rss / 1e9, None, None, "GB", "<= 1"),
        ]  # fmt: skip


def _row(
    name: str, ours: float, theirs: float | None, ratio: float | None, unit: str, budget: str
) -> dict[str, Any]:
    return {"name": name, "ours": ours, "theirs": theirs, "ratio": ratio, "unit": unit, "budget": budget}


if __name__ == "__main__":
    for row in run():
        print(row)
