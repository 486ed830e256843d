"""Writing sample shards against h5py's own `compression="gzip"` (one call for all rows, its default level):
CPU time and file size.

    BTLM_BENCH_CORPUS=corpus/ python -m tests.benchmarks.bench_shards

The rows are the corpus' first 34 million GPT-2 tokens, documents joined by EOS. h5py is given the finished
planes; our time includes making them, fsync and the file's sha256. Both are the best of three turns taken
alternately. What is read back must be identical.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from tests.benchmarks.bench_tokenize import blocks

TOKENS = 1 << 25
ROUNDS = 3
SPEED_BUDGET = 4.0
SIZE_BUDGET = 1.0


def stream() -> npt.NDArray[np.uint16]:
    """The corpus' first tokens with an EOS behind each document, (TOKENS + 1,) or fewer."""
    from btlm_data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("gpt2", backend="fast")
    parts: list[npt.NDArray[Any]] = []
    total = 0
    for texts, _ in blocks(Path(os.environ["BTLM_BENCH_CORPUS"]), float("inf")):
        ids, offsets = tokenizer.encode_batch(texts)
        parts.append(np.insert(ids, np.asarray(offsets[1:], np.int64), 50256).astype(np.uint16))
        total += len(parts[-1])
        if total > TOKENS:
            break
    return np.concatenate(parts)[: TOKENS + 1]


def run() -> list[dict[str, Any]]:
    """Two rows, speed and size, for each of BTLM's two sequence lengths. Raises AssertionError if a value
    read back differs.
    """
    tokens = stream()
    rows_out = []
    with tempfile.TemporaryDirectory() as folder:
        for length in (2048, 8192):
            n = (len(tokens) - 1) // length
            rows = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::length][:n]
            ours, theirs, our_bytes, their_bytes = compare(rows, Path(folder))
            megabytes = n * 3 * length * 4 / 1e6
            name = f"L = {length}, {n * length:,} tokens"
            rows_out += [
                {
                    "name": f"write samples ({name})",
                    "ours": megabytes / ours,
                    "theirs": megabytes / theirs,
                    "ratio": theirs / ours,
                    "unit": "MB of int32 per CPU second",
                    "budget": SPEED_BUDGET,
                },
                {
                    "name": f"shard size ({name})",
                    "ours": our_bytes / (n * length),
                    "theirs": their_bytes / (n * length),
                    "ratio": our_bytes / their_bytes,
                    "unit": "bytes a token",
                    "budget": SIZE_BUDGET,
                },
            ]
    return rows_out


def compare(rows: npt.NDArray[np.uint16], folder: Path) -> tuple[float, float, int, int]:
    """CPU seconds and bytes, ours and h5py's, for token rows (n, L+1)."""
    from tests import shard_files as shards

    length = rows.shape[1] - 1
    planes = np.ones((len(rows), 3, length), np.int32)
    planes[:, 0], planes[:, 2] = rows[:, :-1], rows[:, 1:]
    mine, other = folder / "ours.h5", folder / "theirs.h5"
    shards.write_samples(mine, rows[:2])  # compile
    ours = theirs = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        shards.write_samples(mine, rows)
        middle = time.process_time()
        with h5py.File(other, "w") as file:
            file.create_dataset("data", data=planes, chunks=(1, 3, length), compression="gzip")
            file.attrs["n_examples"] = len(planes)
        ours, theirs = min(ours, middle - start), min(theirs, time.process_time() - middle)
    with h5py.File(mine, "r") as file:
        assert np.array_equal(file["data"][:], planes)
    return ours, theirs, mine.stat().st_size, other.stat().st_size


if __name__ == "__main__":
    for row in run():
        print(row)
