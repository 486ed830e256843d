"""How fast is a passage found in the shards, and what does it cost to take documents out?

The passage search reads every shard once; theirs is what one would write instead: decode each sample with `tokenizers` and
look for the passage in the text (on a part of the samples). Forgetting 0.1 % of the documents is set against the whole
`prepare`. CPU time of this process and its children. The corpus is the sample's documents, each turned about a random word.
"""

from __future__ import annotations

import json
import random
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from btlm_data.formats.shard_formats.reader import read_rows
from btlm_data.lineage.datasets import open_dataset
from btlm_data.lineage.forget import forget
from btlm_data.lineage.passages import find_passages
from btlm_data.lineage.queries import make
from btlm_data.sources.local import SAMPLE
from tests.stages.runs import prepare

TEXT_BYTES = 100_000_000
DECODED_ROWS = 200
PASSAGE = b"a passage that stands nowhere in the texts"


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Of this process and of those that it has waited for."""

    def now() -> float:
        return sum(
            usage.ru_utime + usage.ru_stime
            for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        )

    start = now()
    work()
    return now() - start


def write_corpus(path: Path) -> None:
    """About TEXT_BYTES of documents."""
    texts = []
    for file in sorted(Path(SAMPLE).rglob("*.zst")):
        for line in zstandard.ZstdDecompressor().decompressobj().decompress(file.read_bytes()).splitlines():
            try:
                texts.append(json.loads(line)["text"].encode().decode())
            except (ValueError, KeyError, AttributeError, TypeError):
                continue  # the sample has bad records on purpose
    drawn, size = random.Random(1), 0
    with path.open("w") as file_:
        while size < TEXT_BYTES:
            words = drawn.choice(texts).split(" ")
            turn = drawn.randrange(len(words))
            text = " ".join(words[turn:] + words[:turn])
            size += len(text.encode())
            file_.write(json.dumps({"text": text}) + "\n")


def run() -> list[dict[str, Any]]:
    """Rows of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "a.jsonl")
        prepare(folder / "a.jsonl", folder / "warm", seq_len=2048, dedupe__method="exact", source__limit=100)
        whole = cpu_seconds(
            lambda: prepare(folder / "a.jsonl", folder / "out", seq_len=2048, dedupe__method="exact")
        )
        [of_set] = open_dataset(folder / "out")
        view = of_set.splits["train"]
        size = sum(int(columns["bytes"].sum()) for _, columns in view.table.batches(("bytes",)))
        find_passages(of_set, ["train"], [b"compile what is to be compiled"])
        found = size / cpu_seconds(lambda: find_passages(of_set, ["train"], [PASSAGE]))
        rows = read_rows(view.path(0), 0, DECODED_ROWS)
        part = size * DECODED_ROWS / view.num_rows
        decoded = part / cpu_seconds(
            lambda: [PASSAGE in of_set.tokenizer.decode(row[0]).encode() for row in rows]
        )
        chosen = random.Random(2).sample(range(view.table.num_rows), max(1, view.table.num_rows // 1000))
        places = [f"{d['file']}#{d['offset']}" for d in view.table.described(sorted(chosen))]
        forget(folder / "warm", [make("id", _first(folder / "warm"))])
        taken = cpu_seconds(lambda: forget(folder / "out", [make("id", place) for place in places]))
    return [
        {
            "name": f"find a passage ({size / view.entry.stream_tokens:.1f} bytes of text a token)",
            "ours": round(found / 1e6, 1),
            "theirs": round(decoded / 1e6, 1),
            "ratio": round(found / decoded, 1),
            "unit": "MB/s of text, one core",
            "budget": ">= 300 MB/s",
        },
        {
            "name": "forget 0.1 % of the documents",
            "ours": round(taken, 2),
            "theirs": round(whole, 2),
            "ratio": round(taken / whole, 3),
            "unit": "s CPU, against the whole prepare",
            "budget": "<= 0.03",
        },
    ]


def _first(root: Path) -> str:
    [of_set] = open_dataset(root)
    document = next(of_set.splits["train"].table.described([0]))
    return f"{document['file']}#{document['offset']}"
