"""Small random corpora, prepared, with what is known of every document."""

from __future__ import annotations

import json
import random
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from btlm_data.lineage.datasets import SetView, open_dataset
from btlm_data.tokenizer import Tokenizer, load_tokenizer
from tests.stages.runs import prepare

_TOKENIZER: list[Tokenizer] = []


class Killed(BaseException):
    """What ends a call in a test as a signal that cannot be caught would: nothing is put in order."""


def tokenizer() -> Tokenizer:
    """GPT-2's, loaded once."""
    if not _TOKENIZER:
        _TOKENIZER.append(load_tokenizer("gpt2", backend="reference"))
    return _TOKENIZER[0]


def records(count: int, seed: int, most_words: int = 60) -> list[dict[str, Any]]:
    """Documents of a few to `most_words` words, each with an id and a URL; a few say the same."""
    drawn = random.Random(seed)
    found: list[dict[str, Any]] = []
    for number in range(count):
        words = [
            f"{drawn.choice('bcdfgh')}{drawn.choice('aeiou')}{drawn.randrange(300)}"
            for _ in range(drawn.randrange(3, most_words))
        ]
        text = " ".join(words)
        if found and drawn.random() < 0.05:
            text = drawn.choice(found)["text"]
        host = drawn.choice(["one", "two", "three"])
        found.append(
            {
                "text": text,
                "id": f"doc-{number}",
                "url": f"https://{host}.example/{number}",
                "meta": {"redpajama_set_name": drawn.choice(["Web", "Books"])},
            }
        )
    return found


def prepared(folder: Path, documents: list[dict[str, Any]], **options: Any) -> SetView:
    """Prepare them; returns the one set."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "docs.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in documents))
    given = {
        "clean__min_chars": 20,
        "source__id_field": "id",
        "source__keep_fields": ["url"],
        "run__allow_missing_source": True,
        **options,
    }
    prepare(source, folder / "out", **given)
    [of_set] = open_dataset(folder / "out")
    return of_set


class Truth:
    """What the shards of a split hold, read with the HDF5 library, and what documents are by the source's text."""

    def __init__(self, of_set: SetView, split: str, documents: list[dict[str, Any]]) -> None:
        self.view = of_set.splits[split]
        self.eos = of_set.manifest.tokenizer.eos_id
        self.table = self.view.table.described(range(self.view.table.num_rows))
        self.rows = list(self.table)
        self.texts = {f"doc-{n}": record["text"] for n, record in enumerate(documents)}

    @cached_property
    def tokens(self) -> list[list[int]]:
        """Of each document of the table, with its EOS."""
        texts = [self.texts[row["id"]] for row in self.rows]
        ids, offsets = tokenizer().encode_batch(texts)
        return [
            [*ids[a:b].tolist(), self.eos]
            for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        ]

    @cached_property
    def data(self) -> npt.NDArray[Any]:
        """All rows of the split."""
        parts = []
        for number in range(len(self.view.entry.files)):
            with h5py.File(self.view.path(number)) as file:
                parts.append(file["data"][:])
        return np.concatenate(parts)
