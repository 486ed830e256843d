"""Does downloading hide behind processing? `prepare` from a hub throttled to twice the processing rate, against local files.

Corpus: BTLM_BENCH_CORPUS, as in bench_prepare; a small one is taken several times over (as chunks 1 to N), as the second that it takes to
reach a hub and list it would else be much of the run. The processing rate is what the whole local run made of the stored bytes in a second. The
hub runs in a process of its own, on the same machine, so its own work counts against us. Runs alternate; the ratio is of paired runs.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_prepare import ROUNDS, corpus, prepare

_LEAST_BYTES = 350 * 10**6
_ROOT = Path(__file__).resolve().parents[2]
_SERVE = """
import sys
from pathlib import Path
from tests.hub import Hub
root = Path(sys.argv[1])
with Hub(rate=float(sys.argv[2])) as hub:
    hub.add("cerebras/SlimPajama-627B", {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*.jsonl.zst")})
    print(hub.url, flush=True)
    sys.stdin.read()
"""


@contextmanager
def serving(source: Path, rate: float) -> Iterator[str]:
    """A hub with the corpus as SlimPajama, at `rate` bytes a second; gives its URL."""
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(source), str(rate)],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.stdin.close()
        server.wait()
        server.stdout.close()


def enlarged(source: Path, to: Path) -> Path:
    """The corpus as links, its train files once a chunk, in as many chunks as make `_LEAST_BYTES`."""
    files = sorted(source.rglob("*.jsonl.zst"))
    copies = min(10, -(-_LEAST_BYTES // sum(path.stat().st_size for path in files)))
    for path in files:
        split, *_, name = path.relative_to(source).parts
        for chunk in range(1, 1 + (copies if split == "train" else 1)):
            target = to / split / f"chunk{chunk}" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path.resolve())
    return to


def digest(out: Path) -> str:
    """Of a data set's shards."""
    found = hashlib.sha256()
    for path in sorted(out.rglob("*.h5")):
        found.update(path.relative_to(out).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="btlm-bench-corpus-") as folder:
        return compare(enlarged(corpus(), Path(folder) / "corpus"))


def compare(source: Path) -> list[dict[str, Any]]:
    """Rows of the benchmark for one corpus folder."""
    num_bytes = sum(path.stat().st_size for path in source.rglob("*.jsonl.zst"))
    largest = max(path.stat().st_size for path in source.rglob("*.jsonl.zst"))
    local: list[float] = []
    remote: list[float] = []
    with tempfile.TemporaryDirectory(prefix="btlm-bench-") as folder:
        out, cache = Path(folder) / "shards", Path(folder) / "cache"
        prepare(source, out, "--limit", "100")  # compile once
        for _ in range(ROUNDS):
            local.append(prepare(source, out, "--accept-removal").wall)
            expected = digest(out)
            with serving(source, 2 * num_bytes / local[-1]) as url:
                os.environ["HF_ENDPOINT"] = url
                try:
                    options = [
                        "--cache-dir",
                        str(cache),
                        "--cache-size",
                        str(max(4 * largest, num_bytes // 3)),
                        "--source",
                        "slimpajama",
                        "--accept-removal",
                    ]
                    remote.append(prepare(source, out, *options).wall)
                    assert digest(out) == expected, "the hub gave other shards than the folder"
                finally:
                    del os.environ["HF_ENDPOINT"]
            for path in cache.rglob("*"):
                if path.is_file():
                    path.unlink()
    return [
        {
            "name": "prepare from a hub at twice the processing rate, against local files",
            "ours": statistics.median(remote),
            "theirs": statistics.median(local),
            "ratio": statistics.median(r / n for r, n in zip(remote, local, strict=True)),
            "unit": "s",
            "budget": "<= 1.15",
        }
    ]
