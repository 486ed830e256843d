"""Clustering alone: millions of synthetic signatures within 1 GB, and whether a document costs the same at ten times the number.

Signatures are drawn, not computed from text: 80 in 100 documents are like no other, 10 are near-duplicates of one of a pool (each value
replaced with probability 0.05: similarity about 0.9 between two of them), 5 are exact copies, and one in 200 shares one band with
all others like it: boilerplate, a hot key. BTLM_BENCH_DOCUMENTS sets the larger number (default 20 million: 4 GB of disk).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

MEMORY = 10**9
_BLOCK = 50_000
_POOL = 100_000


def run() -> list[dict[str, Any]]:
    """Rows of time, its growth, memory and disk, at a tenth of the documents and at all of them."""
    large = int(os.environ.get("BTLM_BENCH_DOCUMENTS", "20_000_000"))
    with tempfile.TemporaryDirectory(prefix="bench-cluster-", dir=os.environ.get("BTLM_BENCH_DIR")) as folder:
        work_dir = Path(folder)
        build(work_dir, large)
        # The smaller run reads the first tenth of the same blocks; both go through the disk. Growth is judged by our own CPU
        # seconds, the best of some runs: clock and kernel time depend on how much of the disk the file cache happens to hold.
        smaller = min((measure(work_dir, large // 10) for _ in range(3)), key=lambda m: m["cpu_seconds"])
        larger = min((measure(work_dir, large) for _ in range(2)), key=lambda m: m["cpu_seconds"])
    per_document = [m["cpu_seconds"] / m["documents"] * 1e6 for m in (smaller, larger)]
    name = f"cluster {large / 1e6:g} M documents"
    return [
        {
            "name": f"{name}: seconds by the clock, disk and a busy machine included",
            "ours": larger["seconds"],
            "theirs": None,
            "ratio": None,
            "unit": "s",
            "budget": "",
        },
        {
            "name": f"{name}: CPU time per document, against a tenth",
            "ours": per_document[1],
            "theirs": per_document[0],
            "ratio": per_document[1] / per_document[0],
            "unit": "us",
            "budget": "at most 1.15x",
        },
        {
            "name": f"{name}: peak memory within --memory 1GB",
            "ours": larger["peak_bytes"] / 1e9,
            "theirs": None,
            "ratio": None,
            "unit": "GB",
            "budget": "at most 1 GB",
        },
        {
            "name": f"{name}: peak disk besides sketches",
            "ours": larger["disk_bytes"] / 1e9,
            "theirs": None,
            "ratio": None,
            "unit": "GB",
            "budget": "",
        },
    ]


def build(work_dir: Path, count: int) -> None:
    """Write blocks of sketches and document tables."""
    from btlm_data.kernels.minhash import band_keys
    from tests.stages.test_dedupe import write_block

    blocks: list[Any] = []
    pool = np.random.default_rng(1).integers(0, 2**32, (_POOL, 128), dtype=np.uint32)
    for number, first in enumerate(range(0, count, _BLOCK)):
        n = min(_BLOCK, count - first)
        rng = np.random.default_rng([2, number])
        signatures = rng.integers(0, 2**32, (n, 128), dtype=np.uint32)
        kind = rng.random(n)
        near, copies, hot = (
            np.flatnonzero(kind < 0.10),
            np.flatnonzero((kind > 0.10) & (kind < 0.15)),
            np.flatnonzero(kind > 0.995),
        )
        signatures[near] = np.where(
            rng.random((len(near), 128)) < 0.05, signatures[near], pool[rng.integers(0, _POOL, len(near))]
        )
        chosen = rng.integers(0, _POOL, len(copies))
        signatures[copies] = pool[chosen]
        signatures[hot, :13] = 7
        exact = rng.integers(0, 2**64, (n, 2), dtype=np.uint64)
        exact[copies] = chosen[:, None].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        docs: dict[str, Any] = {
            "offset": np.arange(first, first + n, dtype=np.uint64),
            "line": np.arange(n, dtype=np.uint32),
            "file": np.zeros(n, np.uint16),
            "source": (np.arange(n) % 7).astype(np.uint32),
            "num_bytes": rng.integers(200, 9000, n, dtype=np.uint32),
        }
        meta = {"files": [f"{number:06d}.jsonl.zst"], "sources": [f"s{i}" for i in range(7)]}
        sketch = {"exact": exact, "bands": band_keys(signatures, 9, 13)}
        write_block(work_dir, blocks, "train", docs, meta, sketch)
    (work_dir / "blocks.json.all").write_text(json.dumps(blocks))


def measure(work_dir: Path, count: int) -> dict[str, Any]:
    """Cluster the first `count` documents in a process of its own, compiled beforehand."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_cluster", str(work_dir), str(count)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _child(work_dir: Path, count: int) -> None:
    import shutil

    from btlm_data.blocks import write_table
    from btlm_data.recipe.models import DedupeSettings, Run
    from btlm_data.stages import dedupe
    from btlm_data.storage import open_store
    from tests.stages.runs import Context, no_texts, plan_places

    blocks = [_decode(row) for row in json.loads((work_dir / "blocks.json.all").read_text())]

    def cluster(count: int, memory: int) -> tuple[dict[str, float], dict[str, Any]]:
        for name in ("dedupe", "receipts"):
            shutil.rmtree(work_dir / name, ignore_errors=True)
        chosen = blocks[: -(-count // _BLOCK)]
        how = Run(workers=1, accept_removal=True).model_copy(update={"memory": memory})
        with Context(work_dir).runner() as runner:
            table = write_table(open_store(work_dir), chosen)
            result = dedupe.run(
                runner,
                chosen,
                table,
                DedupeSettings(verify="none"),
                how,
                partial(plan_places, chosen),
                no_texts,
            )
        assert result is not None
        return runner.seconds, dict(result.summary)

    cluster(_BLOCK, MEMORY // 100)  # compile, on a block through the disk
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            peak[0] = max(peak[0], _folder_bytes(work_dir / "dedupe"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, before = perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    steps, summary = cluster(count, MEMORY)
    seconds, used = perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    stop.set()
    watcher.join()
    print(
        json.dumps(
            {
                "documents": count,
                "seconds": seconds,
                "cpu_seconds": used.ru_utime - before.ru_utime,
                "kernel_seconds": used.ru_stime - before.ru_stime,
                "steps": {name: round(value, 2) for name, value in steps.items()},
                "peak_bytes": used.ru_maxrss * 1024,
                "disk_bytes": peak[0],
                "clusters": summary["clusters"],
                "documents_in_clusters": summary["documents_in_clusters"],
                "largest": summary["largest_clusters"][0]["documents"],
            }
        )
    )


def _decode(row: list[Any]) -> Any:
    from btlm_data.blocks import Block
    from btlm_data.task import Artifact

    return Block(*row[:5], *(Artifact(*file) if file is not None else None for file in row[5:]))


def _folder_bytes(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).stat().st_size
            except FileNotFoundError:  # removed meanwhile
                continue
    return total


if __name__ == "__main__":
    _child(Path(sys.argv[1]), int(sys.argv[2]))
