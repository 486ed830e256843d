"""Prepared datasets written by hand: h5py, pyarrow and json, from the layout's description alone.

Small numbers stand for tokens: EOS is 0 of a vocabulary of 100.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from btlm_data import seeding
from btlm_data.formats.shard_formats.permutation import permute_index

EOS, VOCABULARY, SEED = 0, 100, 3
STAGES = ("acquire", "clean", "dedupe", "holdout", "tokenize", "shuffle")


@dataclass(frozen=True)
class Document:
    """One document of the stream."""

    file: str
    line: int
    source: str
    tokens: tuple[int, ...]


def documents(count: int, split: str, seed: int = 0) -> list[Document]:
    """Some documents, 0 to 30 tokens each, of two sources."""
    rng = np.random.default_rng(seed)
    return [
        Document(
            f"{split}/a.jsonl",
            line,
            "Web" if rng.random() < 0.7 else "Books",
            tuple(rng.integers(1, 99, rng.integers(0, 31)).tolist()),
        )
        for line in range(count)
    ]


def stream_of(chosen: Sequence[Document]) -> npt.NDArray[np.int64]:
    """doc_1 EOS doc_2 EOS ..."""
    return np.array([token for document in chosen for token in (*document.tokens, EOS)], np.int64)


def write(
    root: Path, splits: Mapping[str, Sequence[Document]], *, seq_len: int = 16, form: str = "sample", shuffle: str = "samples",
    tail: str = "pad", rows_per_file: int = 7, row_group: int = 8, sets: tuple[int, Sequence[str], float | None] = (0, ("",), None),
) -> dict[str, Any]:  # fmt: skip
    """Write a dataset (of one set) and return its manifest."""
    entries: dict[str, Any] = {}
    ledger: list[dict[str, Any]] = []
    for split, chosen in splits.items():
        stream = stream_of(chosen)
        rows: npt.NDArray[Any]
        if form == "corpus":
            rows, real = stream.astype(np.uint16), np.ones(len(stream), np.int64)
        else:
            rows, real = samples_of(stream, seq_len, tail)
            if shuffle == "samples" and len(rows):
                place = permute_index(
                    np.arange(len(rows), dtype=np.uint64),
                    len(rows),
                    seeding.salt(SEED, f"samples/{seq_len}/{split}"),
                )
                order = np.argsort(place)
                rows, real = rows[order], real[order]
        step = rows_per_file * (seq_len if form == "corpus" else 1)
        files = []
        for number, first in enumerate(range(0, len(rows), step)):
            path = root / split / f"data-{number:05d}.h5"
            write_shard(path, rows[first : first + step])
            files.append(
                {
                    "name": path.name,
                    "n_examples": len(rows[first : first + step]),
                    "tokens": int(real[first : first + step].sum()),
                }
            )
        write_documents(root / split / "documents.parquet", chosen, row_group)
        entries[split] = {
            "documents": len(chosen),
            "stream_tokens": len(stream),
            "samples": None if form == "corpus" else len(rows),
            "label_tokens": int(real.sum()),
            "files": files,
            "documents_file": {"name": "documents.parquet"},
        }
        ledger += _ledger(split, chosen, len(stream), int(real.sum()))
    lengths = [int(name[3:]) for name in sets[1]] if len(sets[1]) > 1 else [seq_len]
    configuration = {
        "tail": tail,
        "shards": {"dtype": "int32", "samples_per_file": rows_per_file},
        "dedupe": {"method": "none"},
        "format": form,
        "shuffle": shuffle,
        "seed": SEED,
        "seq_len": [{"seq_len": length, "share": sets[2]} for length in lengths],
    }
    inputs: list[dict[str, Any]] = [
        {"name": f"{s}/a.jsonl", "split": s, "size": 1, "digest": None, "source": None, "text_field": None}
        for s in splits
    ]
    rows_of_inputs = [[f["split"], f["name"], f["size"], f["digest"], f["source"], None] for f in inputs]
    manifest = {
        "format_version": 2,
        "fingerprint": _digest([2, configuration, rows_of_inputs, "0", {}]),
        "configuration": configuration,
        "source": {"files": len(inputs), "bytes": sum(f["size"] for f in inputs)},
        "inputs": inputs,
        "left_out": [],
        "other_inputs": {},
        "tokenizer": {"name": "by-hand", "fingerprint": "0", "eos_id": EOS, "vocab_size": VOCABULARY},
        "seq_len": seq_len,
        "format": form,
        "shuffle": shuffle,
        "seed": SEED,
        "dtype": "uint16",
        "set": {"index": sets[0], "share": sets[2], "names": list(sets[1])},
        "splits": entries,
        "ledger": ledger,
        "dedupe": None,
        "outputs": [{"name": "examples.jsonl"}, {"name": "rejects.jsonl"}],
    }
    example = {
        "reason": "too_short",
        "hash": 1,
        "file": "train/a.jsonl",
        "offset": 7,
        "source": "Web",
        "text": "a\x1b[31mb",
    }
    (root / "examples.jsonl").write_text(json.dumps(example) + "\n")
    (root / "rejects.jsonl").write_text(
        "".join(
            json.dumps(
                {"file": "a", "line": 1, "offset": 0, "reason": "invalid_json", "detail": "", "bytes": 50}
            )
            + "\n"
            for row in ledger
            for _ in range(row["dropped"].get("invalid_json", {"documents": 0})["documents"])
        )
    )
    (root / "dataset.json").write_text(json.dumps(manifest))
    resign(root)
    return manifest


def write_set_list(root: Path, names: Sequence[str]) -> None:
    """The dataset.json of a folder of sets; a set that is not there gets a checksum of nothing."""
    checksums = [
        json.loads(path.read_text())["checksum"]
        if (path := root / name / "dataset.json").exists()
        else "0" * 64
        for name in names
    ]
    fingerprint = json.loads((root / names[0] / "dataset.json").read_text())["fingerprint"]
    sets = [{"name": name, "checksum": checksum} for name, checksum in zip(names, checksums, strict=True)]
    (root / "dataset.json").write_text(
        json.dumps({"format_version": 2, "fingerprint": fingerprint, "sets": sets})
    )
    edit_manifest(root, lambda value: None)


def samples_of(
    stream: npt.NDArray[np.int64], seq_len: int, tail: str
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Sample i is stream[i*L : (i+1)*L + 1]; returns planes (n, 3, L) and real positions of each."""
    labels = max(0, len(stream) - 1)
    count = -(-labels // seq_len) if tail == "pad" else labels // seq_len
    planes = np.zeros((count, 3, seq_len), np.int32)
    for i in range(count):
        piece = stream[i * seq_len : (i + 1) * seq_len + 1]
        n = len(piece) - 1
        planes[i, 0, :n], planes[i, 1, :n], planes[i, 2, :n] = piece[:-1], 1, piece[1:]
    return planes, planes[:, 1].sum(axis=1, dtype=np.int64)


def write_shard(path: Path, rows: npt.NDArray[Any], **attributes: Any) -> None:
    """As the Model Zoo writes: gzip, a chunk a row, attribute n_examples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = (1, *rows.shape[1:]) if rows.ndim > 1 else (min(len(rows), 64),)
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=rows, dtype=rows.dtype, chunks=chunks, compression="gzip")
        file.attrs["n_examples"] = len(rows)
        for name, value in attributes.items():
            file.attrs[name] = value


def write_documents(
    path: Path, chosen: Sequence[Document], row_group: int = 8, offsets: Sequence[int] | None = None
) -> None:
    """documents.parquet of a stream."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lengths = np.array([len(document.tokens) for document in chosen], np.int64)
    start = np.cumsum(lengths + 1) - lengths - 1 if offsets is None else np.array(offsets)
    table = pa.table(
        {
            "stream_offset": pa.array(start, pa.uint64()),
            "tokens": pa.array(lengths, pa.uint32()),
            "file": pa.array([d.file for d in chosen], pa.string()).dictionary_encode(),
            "line": pa.array([d.line for d in chosen], pa.uint64()),
            "offset": pa.array([100 * d.line for d in chosen], pa.uint64()),
            "source": pa.array([d.source for d in chosen], pa.string()).dictionary_encode(),
            "bytes": pa.array(5 * lengths, pa.uint32()),
            "chars": pa.array(4 * lengths, pa.uint32()),
        }
    )
    pq.write_table(table, path, row_group_size=row_group)


def _ledger(split: str, chosen: Sequence[Document], tokens: int, labels: int) -> list[dict[str, Any]]:
    entries = []
    for source in sorted({document.source for document in chosen}):
        mine = [document for document in chosen if document.source == source]
        size = sum(5 * len(document.tokens) for document in mine)
        with_eos = sum(len(document.tokens) + 1 for document in mine)
        for stage in STAGES:
            out = {
                "documents": len(mine),
                "bytes": size,
                "tokens": with_eos if stage in ("tokenize", "shuffle") else 0,
            }
            came, dropped = dict(out), {}
            if stage == "tokenize":
                came["tokens"] = 0
            if stage == "acquire":
                dropped = {"invalid_json": {"documents": 2, "bytes": 50, "tokens": 0}}
                came = {"documents": len(mine) + 2, "bytes": size + 50, "tokens": 0}
            entries.append(
                {
                    "stage": stage,
                    "split": split,
                    "source": source,
                    "in": came,
                    "added": {},
                    "dropped": dropped,
                    "out": out,
                }
            )
    lost = {"first_token_is_no_label": {"documents": 0, "bytes": 0, "tokens": tokens - labels}}
    for stage, count, reasons, left in (("pack", tokens, lost, labels), ("shard", labels, {}, labels)):
        amounts = {
            "in": {"documents": 0, "bytes": 0, "tokens": count},
            "out": {"documents": 0, "bytes": 0, "tokens": left},
        }
        entries.append(
            {"stage": stage, "split": split, "source": "*", "added": {}, "dropped": reasons, **amounts}
        )
    return entries


# Tampering --------------------------------------------------------------------------------------------------------


def edit_manifest(root: Path, change: Callable[[dict[str, Any]], object], *, seal: bool = True) -> None:
    """Change dataset.json; seal: give it the checksum of what it says now."""
    path = root / "dataset.json"
    value = json.loads(path.read_text())
    change(value)
    if seal and isinstance(value, dict):
        value["checksum"] = _digest({key: v for key, v in value.items() if key != "checksum"})
    path.write_text(json.dumps(value))


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def resign(root: Path) -> None:
    """Give every listed file the size and sha256 it has now, so that only what was tampered with can be found."""

    def change(manifest: dict[str, Any]) -> None:
        for split, entry in manifest["splits"].items():
            for file in [*entry["files"], entry["documents_file"]]:
                _sign(file, root / split / file["name"])
        for file in manifest["outputs"]:
            _sign(file, root / file["name"])

    edit_manifest(root, change)


def _sign(file: dict[str, Any], path: Path) -> None:
    file["bytes"], file["sha256"] = path.stat().st_size, _sha256(path)


def edit_shard(root: Path, name: str, change: Callable[[npt.NDArray[Any]], object]) -> None:
    """Change a shard's data in place and sign it anew."""
    with h5py.File(root / name, "r+") as file:
        data = file["data"][:]
        change(data)
        file["data"][...] = data
    resign(root)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
