"""Sources in parts, with copies and near-copies across them; datasets that grew by such parts."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from btlm_data.formats import generations
from btlm_data.generations.add import add, plan
from btlm_data.pipeline import Prepared
from btlm_data.progress import Lines
from btlm_data.recipe.load import Override
from tests.stages.runs import prepare


def parts(count: int, each: int, seed: int) -> list[list[dict[str, Any]]]:
    """Documents in parts; every fifth says what an earlier one says, or nearly so."""
    drawn = random.Random(seed)
    documents: list[dict[str, Any]] = []
    for number in range(count * each):
        words = [f"{drawn.choice('bcdfgh')}{drawn.choice('aeiou')}{drawn.randrange(300)}" for _ in range(70)]
        text = " ".join(words)
        if documents and drawn.random() < 0.2:
            text = drawn.choice(documents)["text"]
            text = drawn.choice([text, f"{text} {words[0]}", text.replace(" b", " c", 1)])
        documents.append({"text": text, "id": f"doc-{number}", "url": f"https://x.example/{number}"})
    return [documents[k * each : (k + 1) * each] for k in range(count)]


PARTS = parts(4, 40, 3)


def write(path: Path, documents: list[dict[str, Any]]) -> Path:
    """As JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def first(source: Path, out: Path, **options: Any) -> Path:
    """The first generation."""
    given = {"clean__min_chars": 20, "source__id_field": "id", "source__keep_fields": ["url"]}
    prepare(source, out, **{"seq_len": 32, "shards__samples_per_file": 50, **given, **options})
    return out


def grow(root: Path, source: Path | str, **options: Any) -> Prepared:
    """One more generation."""
    given = {"source.name": str(source), "run.workers": 1}
    given |= {key.replace("__", "."): value for key, value in options.items()}
    return add(plan(root, {key: Override(value, "test") for key, value in given.items()}), Lines())


def kept(root: Path) -> list[str]:
    """Ids of the documents of all splits, generation by generation, sorted in each."""
    found: list[str] = []
    for generation in generations.read(root):
        tables = [
            pq.read_table(path, columns=["id"]) for path in generation.root.glob("t*/documents.parquet")
        ]
        tables += [
            pq.read_table(path, columns=["id"]) for path in generation.root.glob("val*/documents.parquet")
        ]
        found += sorted(value for table in tables for value in table["id"].to_pylist())
    return found


def state(root: Path) -> dict[str, tuple[int, int, str]]:
    """Inode, time of the last change and SHA-256 of every file of the dataset, but for its list of generations."""
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    chosen = [
        path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    return {
        str(path.relative_to(root)): (
            path.stat().st_ino,
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in chosen
        if path.name != generations.FILE_NAME
    }
