"""Write what stands beside the shards: documents.parquet per split, examples, the manifest. dataset.json comes last.

documents.parquet has a row per document in stream order (a document repeated by a mix has several): `stream_offset` uint64 (its
first token's position in the split's stream), `tokens` uint32 (without EOS), `file` and `source` (dictionary-encoded strings), `line` uint64
(0-based), `offset` uint64 (bytes into the decompressed file; row for parquet), `bytes` and `chars` uint32 of the cleaned text.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.advance import advance
from btlm_data.errors import DataError
from btlm_data.formats import atomic, columns, manifest
from btlm_data.recipe.models import SetSettings, Settings
from btlm_data.sources.listing import Listing
from btlm_data.stages.blocks import Block
from btlm_data.stages.pack import SampleSet
from btlm_data.stages.streams import BLOCK_LIST, Index, index_path
from btlm_data.task import Amount, Counts, Task

VERSION = 1
PLACES = "documents/places.json"
_ROW_GROUP = 131_072


@dataclass
class PreparedSplit:
    """One split of a set and the shards that hold it."""

    sample_set: SampleSet
    files: list[dict[str, Any]]


@dataclass
class PreparedSet:
    """One prepared length: its folder ("" where it is the only one) and splits."""

    index: int
    part: SetSettings
    folder: str
    splits: dict[str, PreparedSplit]


# documents.parquet --------------------------------------------------------------------------------------------------


def plan_documents(indices: Mapping[str, Index], blocks: Sequence[Block], lineage: str) -> list[Task]:
    """A task per bucket of each stream."""
    tasks = []
    for index in indices.values():
        offset = 0
        for bucket, tokens in enumerate(index.bucket_tokens):
            tasks.append(
                Task(
                    id=f"{index.stream.name}-{bucket:06d}",
                    args={"index": index_path(index.stream, bucket), "offset": offset},
                    inputs=[lineage],
                    outputs=[_part_path(index, bucket)],
                    weight=max(1, index.bucket_documents[bucket]),
                )
            )
            offset += tokens
    return tasks


def _part_path(index: Index, bucket: int) -> str:
    return f"documents/{index.stream.name}-{bucket:06d}.parquet"


def write_places(work_dir: Path, blocks: Sequence[Block], lines: Mapping[str, int]) -> None:
    """Write what `documents` needs of every block: its first ordinal and the line its stretch begins at in the file."""
    values = {
        "first": [block.first_ordinal for block in blocks],
        "line": [lines[block.stem] for block in blocks],
    }
    atomic.write_bytes(work_dir / PLACES, json.dumps(values).encode())


def documents(task: Task, settings: None, work_dir: str) -> Counts:
    """Join one bucket's index with the blocks' tables."""
    import pyarrow as pa

    root = Path(work_dir)
    index = columns.read(root / task.args["index"])
    stems = json.loads((root / BLOCK_LIST).read_bytes())
    places = json.loads((root / PLACES).read_bytes())
    count = len(index["ordinal"])
    out: dict[str, npt.NDArray[Any]] = {
        "line": np.empty(count, np.uint64),
        "offset": np.empty(count, np.uint64),
        "bytes": np.empty(count, np.uint32),
        "chars": np.empty(count, np.uint32),
        "file": np.empty(count, np.int32),
        "source": np.empty(count, np.int32),
    }
    names: dict[str, dict[str, int]] = {"file": {}, "source": {}}
    order = np.argsort(index["block"], kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(index["block"][order])) + 1) if count else []:
        number = int(index["block"][rows[0]])
        docs = columns.read(root / f"{stems[number]}.docs")
        mine = (index["ordinal"][rows] - np.uint64(places["first"][number])).astype(np.int64)
        out["line"][rows] = docs["line"][mine].astype(np.uint64) + np.uint64(places["line"][number])
        for column, field in (("offset", "offset"), ("bytes", "num_bytes"), ("chars", "num_chars")):
            out[column][rows] = docs[field][mine]
        for column in ("file", "source"):
            known = names[column]
            local = np.array(
                [known.setdefault(name, len(known)) for name in docs.meta[f"{column}s"]], np.int32
            )
            out[column][rows] = local[docs[column][mine]]
    table = pa.table(
        {
            "stream_offset": index["offset"] + np.uint64(task.args["offset"]),
            "tokens": np.asarray(index["length"]),
            "file": pa.DictionaryArray.from_arrays(out["file"], pa.array(list(names["file"]), pa.string())),
            "line": out["line"],
            "offset": out["offset"],
            "source": pa.DictionaryArray.from_arrays(
                out["source"], pa.array(list(names["source"]), pa.string())
            ),
            "bytes": out["bytes"],
            "chars": out["chars"],
        }
    )
    _write_parquet(root / task.outputs[0], [table])
    advance(max(1, count))
    return Counts()


def _write_parquet(path: Path, tables: Any) -> None:
    import pyarrow.parquet as pq

    tables = iter(tables)
    first = next(tables)
    with (
        atomic.replacing(path, durable=False) as temporary,
        pq.ParquetWriter(temporary, first.schema, compression="zstd") as writer,
    ):
        writer.write_table(first, row_group_size=_ROW_GROUP)
        for table in tables:
            writer.write_table(table, row_group_size=_ROW_GROUP)


def _join_documents(work_dir: Path, index: Index, path: Path) -> None:
    """One documents.parquet from the buckets' parts."""
    import pyarrow.parquet as pq

    parts = [work_dir / _part_path(index, bucket) for bucket in range(len(index.bucket_tokens))]
    if len(parts) == 1:
        with atomic.replacing(path) as temporary:
            shutil.copyfile(parts[0], temporary)
        return
    _write_parquet(path, (pq.read_table(part) for part in parts))


# dataset.json -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dataset:
    """All that the manifest tells."""

    out: Path
    work_dir: Path
    settings: Settings
    listing: Listing
    tokenizer: Any
    indices: Mapping[str, Index]
    sets: Sequence[PreparedSet]
    stages: Mapping[str, Counts]
    fingerprint: str
    dedupe: Mapping[str, Any] | None
    clusters: Path | None
    contamination: Path | None
    timings: Sequence[Mapping[str, Any]]
    version: str


def write(dataset: Dataset) -> None:
    """Write everything beside the shards, remove shards of another run, and give the dataset its dataset.json."""
    several = len(dataset.sets) > 1
    for prepared in dataset.sets:
        folder = dataset.out / prepared.folder
        outputs = _side_files(dataset, folder)
        value = _manifest(dataset, prepared, folder, outputs)
        problems = manifest.imbalances(value["ledger"])
        assert not problems, "the ledger does not balance: " + "; ".join(problems)
        atomic.write_json(folder / manifest.FILE_NAME, value)
    _remove_stale(dataset)
    if several:
        names = [prepared.folder for prepared in dataset.sets]
        top = {
            "format_version": manifest.FORMAT_VERSION,
            "fingerprint": dataset.fingerprint,
            "version": dataset.version,
            "configuration": dataset.settings.model_dump(mode="json"),
            "sets": names,
            "sha256": {name: _sha256(dataset.out / name / manifest.FILE_NAME) for name in names},
        }
        atomic.write_json(dataset.out / manifest.FILE_NAME, top)


def _manifest(
    dataset: Dataset, prepared: PreparedSet, folder: Path, outputs: Mapping[str, Any]
) -> dict[str, Any]:
    settings, tokenizer = dataset.settings, dataset.tokenizer
    divided = prepared.part.share is not None
    stream_set = prepared.index if divided else 0
    stages = {
        name: counts for name, counts in dataset.stages.items() if name not in ("shuffle", "pack", "shard")
    }
    stages |= {"shuffle": Counts(), "pack": Counts(), "shard": Counts()}
    for (split, source, what), amount in dataset.stages["shuffle"].cells.items():
        number, _, plain = split.partition("/")
        if int(number) == stream_set:
            stages["shuffle"].add(plain, source, what, *amount)
    splits: dict[str, Any] = {}
    for index in dataset.indices.values():
        if index.stream.set_index != stream_set:
            continue
        split = index.stream.split
        done = prepared.splits.get(split)
        files = done.files if done else []
        count_packing(
            stages["pack"],
            stages["shard"],
            split,
            index,
            done.sample_set if done else None,
            files,
            settings.format,
        )
        place = folder / split / "documents.parquet"
        _join_documents(dataset.work_dir, index, place)
        splits[split] = {
            "documents": sum(index.bucket_documents),
            "stream_tokens": index.num_tokens,
            "samples": sum(file["n_examples"] for file in files) if settings.format != "corpus" else None,
            "label_tokens": sum(file["tokens"] for file in files),
            "files": files,
            "documents_file": {"name": place.name, "sha256": _sha256(place), "bytes": place.stat().st_size},
        }
    return {
        "format_version": manifest.FORMAT_VERSION,
        "fingerprint": dataset.fingerprint,
        "version": dataset.version,
        "configuration": settings.model_dump(mode="json"),
        "source": dict(dataset.listing.provenance),
        "inputs": [
            {"name": f.name, "split": f.split, "size": f.size, "sha256": f.sha256, "source": f.source}
            for f in dataset.listing.files
        ],
        "tokenizer": {
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "eos_id": tokenizer.eos_id,
            "vocab_size": tokenizer.vocab_size,
            "revision": tokenizer.revision,
        },
        "seq_len": prepared.part.seq_len,
        "format": settings.format,
        "shuffle": settings.shuffle,
        "seed": settings.seed,
        "dtype": tokenizer.dtype.name,
        "set": {
            "index": prepared.index,
            "share": prepared.part.share,
            "names": [p.folder for p in dataset.sets],
        },
        "splits": splits,
        "ledger": manifest.ledger(stages),
        "dedupe": dict(dataset.dedupe) if dataset.dedupe is not None else None,
        "outputs": dict(outputs),
    }


def count_packing(
    packing: Counts,
    writing: Counts,
    split: str,
    index: Index,
    sample_set: SampleSet | None,
    files: Sequence[Mapping[str, Any]],
    form: str,
) -> None:
    """Ledger of `pack` and `shard` for one split, in label positions (tokens, for a corpus)."""
    total = index.num_tokens
    packing.add(split, "*", "in", tokens=total)
    kept = 0
    if sample_set is not None:
        if form == "corpus":
            kept = total
        elif form == "vsl":
            kept = total - sum(index.bucket_documents)
            packing.add(split, "*", "drop:first_of_document_is_no_label", tokens=total - kept)
        else:
            kept = sample_set.labels_kept
            packing.add(split, "*", "drop:first_token_is_no_label", tokens=1)
            packing.add(split, "*", "drop:unfilled_tail", tokens=total - 1 - kept)
    else:
        packing.add(split, "*", "drop:stream_too_short", tokens=total)
    packing.add(split, "*", "out", tokens=kept)
    written = sum(file["tokens"] for file in files)
    writing.add(split, "*", "in", tokens=kept)
    writing.add(split, "*", "out", tokens=written)


def _side_files(dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Copy what people look at into the dataset folder; returns name -> sha256 of those that are the same every time."""
    named: dict[str, Path] = {"examples.jsonl": dataset.work_dir / "examples.jsonl"}
    if dataset.clusters is not None:
        named["clusters.parquet"] = dataset.clusters
    if dataset.contamination is not None:
        named["contamination.parquet"] = dataset.contamination
    for name, path in named.items():
        with atomic.replacing(folder / name) as temporary:
            shutil.copyfile(path, temporary)
    atomic.write_json(folder / "timings.json", list(dataset.timings))
    return {name: {"sha256": _sha256(folder / name)} for name in sorted(named)}


def _remove_stale(dataset: Dataset) -> None:
    """Remove shards and sets of an earlier dataset in this folder that are no part of this one."""
    wanted = {
        dataset.out / split.sample_set.folder / file["name"]
        for prepared in dataset.sets
        for split in prepared.splits.values()
        for file in split.files
    }
    places = [dataset.out, *(path for path in dataset.out.glob("msl*") if path.is_dir())]
    for place in places:
        for split in ("train", "validation", "test"):
            for path in (place / split).glob("*.h5"):
                if path not in wanted:
                    path.unlink()
        kept = {dataset.out / prepared.folder for prepared in dataset.sets}
        if place not in kept:
            for name in (
                "dataset.json",
                "examples.jsonl",
                "clusters.parquet",
                "contamination.parquet",
                "timings.json",
            ):
                (place / name).unlink(missing_ok=True)
            for split in ("train", "validation", "test"):
                (place / split / "documents.parquet").unlink(missing_ok=True)


def is_whole(out: Path, value: Mapping[str, Any]) -> bool:
    """Whether every file that a manifest names is there with its size (`verify` reads them)."""
    if "sets" in value:
        try:
            return all(
                is_whole(out / name, manifest.read(out / name / manifest.FILE_NAME)) for name in value["sets"]
            )
        except DataError:
            return False
    for split, entry in value["splits"].items():
        for file in [*entry["files"], entry["documents_file"]]:
            path = out / split / file["name"]
            if not path.exists() or path.stat().st_size != file["bytes"]:
                return False
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def total(counts: Counts, what: str) -> Amount:
    """Sum of one kind of cell over splits and sources."""
    amount = Amount()
    for (_, _, kind), value in counts.cells.items():
        if kind == what:
            amount = amount.plus(value)
    return amount
