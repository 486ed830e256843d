"""Tokenising with GPT-2's vocabulary against `tokenizers.encode_batch_fast`, one thread each, and equality of every id.

    BTLM_BENCH_CORPUS=corpus/ python -m tests.benchmarks.bench_tokenize

The corpus is a folder in SlimPajama's layout (*.jsonl.zst anywhere below). Both encode every document of it once, in
blocks of a few MB taken in turn, so that drifting clock speeds and caches meet both alike. At 2 MB/s, 400 MB take
`tokenizers` about three minutes; BTLM_BENCH_MB sets how much of the corpus is taken.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zstandard

BLOCK_BYTES = 8_000_000
BUDGET = 40.0


class _Record(msgspec.Struct):
    text: str


def blocks(corpus: Path, max_bytes: float) -> Iterator[tuple[list[str], int]]:
    """Texts of the corpus, in order, in blocks of about BLOCK_BYTES; and their size as UTF-8."""
    texts: list[str] = []
    size = total = 0
    for path in sorted(corpus.rglob("*.jsonl.zst")):
        with path.open("rb") as file:
            raw = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
        for record in msgspec.json.Decoder(_Record).decode_lines(raw):
            texts.append(record.text)
            size += len(record.text.encode())
            if size >= BLOCK_BYTES:
                yield texts, size
                total += size
                texts, size = [], 0
                if total >= max_bytes:
                    return
    if texts:
        yield texts, size


def run() -> list[dict[str, Any]]:
    """One row: MB of text per CPU second, ours and theirs. Raises AssertionError if any id differs."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from btlm_data.tokenizer import load_tokenizer

    corpus = Path(os.environ["BTLM_BENCH_CORPUS"])
    max_bytes = float(os.environ.get("BTLM_BENCH_MB", "inf")) * 1e6
    tokenizer = load_tokenizer("gpt2", backend="fast")
    reference = tokenizer._reference.tokenizer
    ours = theirs = 0.0
    num_bytes = num_documents = num_tokens = 0
    for texts, size in blocks(corpus, max_bytes):
        start = time.process_time()
        ids, offsets = tokenizer.encode_batch(texts)
        middle = time.process_time()
        expected = reference.encode_batch_fast(texts, add_special_tokens=False)
        theirs += time.process_time() - middle
        ours += middle - start
        for i, encoding in enumerate(expected):
            assert np.array_equal(ids[offsets[i] : offsets[i + 1]], encoding.ids), (
                f"document {num_documents + i} differs: {texts[i][:80]!r}"
            )
        num_bytes += size
        num_documents += len(texts)
        num_tokens += len(ids)
    assert num_documents, f"no *.jsonl.zst below {corpus}"
    megabytes = num_bytes / 1e6
    return [
        {
            "name": f"tokenise (GPT-2, {megabytes:.0f} MB, {num_documents:,} documents, {num_tokens:,} tokens, all equal)",
            "ours": megabytes / ours,
            "theirs": megabytes / theirs,
            "ratio": theirs / ours,
            "unit": "MB of text per CPU second",
            "budget": BUDGET,
        }
    ]


if __name__ == "__main__":
    for row in run():
        print(row)
