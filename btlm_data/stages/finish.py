"""Write what stands beside the shards: documents.parquet per split, examples, rejects, provenance. dataset.json comes last.

documents.parquet has a row per document in stream order (a document repeated by a mix has several): `stream_offset` uint64 (its
first token's position in the split's stream), `tokens` uint32 (without EOS), `file` and `source` (dictionary-encoded strings), `line` uint64
(0-based), `offset` uint64 (bytes into the decompressed file; row for parquet), `bytes` and `chars` uint32 of the cleaned text.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.advance import advance
from btlm_data.errors import DataError
from btlm_data.formats import atomic, columns, dataset, ledger, provenance
from btlm_data.recipe.models import SetSettings, Settings
from btlm_data.redact import without_secrets
from btlm_data.sources.base import Listing
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
class Finished:
    """All that dataset.json and provenance.json tell.

    run_fingerprint: of settings and inputs with their modification times: what tells that the same command has nothing to do.
    other_inputs: digests of whatever else decides bytes (formats.dataset.fingerprint_of).
    """

    out: Path
    work_dir: Path
    settings: Settings
    listing: Listing
    tokenizer: Any
    indices: Mapping[str, Index]
    sets: Sequence[PreparedSet]
    stages: Mapping[str, Counts]
    run_fingerprint: str
    other_inputs: Mapping[str, str]
    dedupe: Mapping[str, Any] | None
    clusters: Path | None
    contamination: Path | None
    timings: Sequence[Mapping[str, Any]]
    version: str


def write(finished: Finished) -> None:
    """Write everything beside the shards, remove shards of another run, and give the dataset its dataset.json."""
    checksums: dict[str, str] = {}
    fingerprint = ""
    for prepared in finished.sets:
        folder = finished.out / prepared.folder
        value = _describe(finished, prepared, folder, _side_files(finished, folder))
        problems = ledger.imbalances(value.ledger)
        assert not problems, "the ledger does not balance: " + "; ".join(problems)
        fingerprint = value.fingerprint
        checksums[prepared.folder] = _publish(finished, folder, value)
    _remove_stale(finished)
    if len(finished.sets) > 1:
        references = [dataset.SetReference(name, checksum) for name, checksum in checksums.items()]
        _publish(finished, finished.out, dataset.SetList(fingerprint, references))


def _publish(finished: Finished, folder: Path, value: dataset.Dataset | dataset.SetList) -> str:
    """Write provenance.json, then dataset.json; returns the checksum of the latter."""
    data = dataset.encode(value)
    checksum = dataset.decode(data, dataset.FILE_NAME).checksum
    atomic.write_bytes(folder / provenance.FILE_NAME, provenance.encode(_provenance(finished, checksum)))
    atomic.write_bytes(folder / dataset.FILE_NAME, data)
    return checksum


def _describe(
    finished: Finished, prepared: PreparedSet, folder: Path, outputs: list[dataset.StoredFile]
) -> dataset.Dataset:
    """What one set is."""
    settings, tokenizer = finished.settings, finished.tokenizer
    divided = prepared.part.share is not None
    stream_set = prepared.index if divided else 0
    stages = {
        name: counts for name, counts in finished.stages.items() if name not in ("shuffle", "pack", "shard")
    }
    stages |= {"shuffle": Counts(), "pack": Counts(), "shard": Counts()}
    for (split, source, what), amount in finished.stages["shuffle"].cells.items():
        number, _, plain = split.partition("/")
        if int(number) == stream_set:
            stages["shuffle"].add(plain, source, what, *amount)
    splits: dict[Any, dataset.Split] = {}
    for index in finished.indices.values():
        if index.stream.set_index != stream_set:
            continue
        split = index.stream.split
        done = prepared.splits.get(split)
        files = [dataset.ShardFile(**file) for file in done.files] if done else []
        count_packing(
            stages["pack"],
            stages["shard"],
            split,
            index,
            done.sample_set if done else None,
            files,
            settings.format,
        )
        documents_path = folder / split / dataset.DOCUMENTS
        _join_documents(finished.work_dir, index, documents_path)
        splits[split] = dataset.Split(
            documents=sum(index.bucket_documents),
            stream_tokens=index.num_tokens,
            samples=sum(file.n_examples for file in files) if settings.format != "corpus" else None,
            label_tokens=sum(file.tokens for file in files),
            files=files,
            documents_file=_stored(documents_path),
        )
    configuration = dataset.without_places(_configuration(finished))
    inputs = [
        dataset.InputFile(
            file.name,
            file.split,
            file.size,
            f"sha256:{file.sha256}" if file.sha256 else None,
            file.source,
            file.text_field,
        )
        for file in finished.listing.files
    ]
    return dataset.Dataset(
        fingerprint=dataset.fingerprint_of(
            configuration, inputs, tokenizer.fingerprint, finished.other_inputs
        ),
        configuration=configuration,
        inputs=inputs,
        left_out=_left_out(finished.listing),
        other_inputs=dict(finished.other_inputs),
        tokenizer=dataset.Tokenizer(
            name=Path(tokenizer.name).name if Path(tokenizer.name).exists() else tokenizer.name,
            fingerprint=tokenizer.fingerprint,
            eos_id=tokenizer.eos_id,
            vocab_size=tokenizer.vocab_size,
        ),
        seq_len=prepared.part.seq_len,
        format=settings.format,
        shuffle=settings.shuffle,
        seed=settings.seed,
        dtype=tokenizer.dtype.name,
        set=dataset.SetPosition(
            index=prepared.index, names=[p.folder for p in finished.sets], share=prepared.part.share
        ),
        splits=splits,
        ledger=ledger.rows_of(stages),
        dedupe=dict(finished.dedupe) if finished.dedupe is not None else None,
        outputs=outputs,
    )


def _configuration(finished: Finished) -> dict[str, Any]:
    """The settings, with what the source itself decided where the user did not."""
    configuration: dict[str, Any] = finished.settings.model_dump(mode="json")
    configuration["source"] |= finished.listing.fields
    return configuration


def _left_out(listing: Listing) -> list[dataset.LeftOut]:
    count = listing.provenance.get("files_left_out", 0)
    return [dataset.LeftOut("not a corpus file", count)] if count else []


def _provenance(finished: Finished, checksum: str) -> provenance.Provenance:
    return provenance.Provenance(
        dataset=checksum,
        run=finished.run_fingerprint,
        program=finished.version,
        libraries={
            name: importlib.metadata.version(name)
            for name in ("h5py", "isal", "numba", "numpy", "pyarrow", "tokenizers", "zstandard")
        },
        configuration=_configuration(finished),
        source=dict(finished.listing.provenance),
        inputs=[
            provenance.InputPlace(file.name, file.split, without_secrets(file.url), file.version)
            for file in finished.listing.files
        ],
        steps=[provenance.StepTime(**step) for step in finished.timings],
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def count_packing(
    packing: Counts,
    writing: Counts,
    split: str,
    index: Index,
    sample_set: SampleSet | None,
    files: Sequence[dataset.ShardFile],
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
    written = sum(file.tokens for file in files)
    writing.add(split, "*", "in", tokens=kept)
    writing.add(split, "*", "out", tokens=written)


def _side_files(finished: Finished, folder: Path) -> list[dataset.StoredFile]:
    """Copy what people look at into the dataset folder."""
    named: dict[str, Path] = {name: finished.work_dir / name for name in ("examples.jsonl", "rejects.jsonl")}
    if finished.clusters is not None:
        named["clusters.parquet"] = finished.clusters
    if finished.contamination is not None:
        named["contamination.parquet"] = finished.contamination
    for name, path in named.items():
        with atomic.replacing(folder / name) as temporary:
            shutil.copyfile(path, temporary)
    return [_stored(folder / name) for name in sorted(named)]


def _stored(path: Path) -> dataset.StoredFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return dataset.StoredFile(path.name, path.stat().st_size, digest)


def _remove_stale(finished: Finished) -> None:
    """Remove shards and sets of an earlier dataset in this folder that are no part of this one."""
    wanted = {
        finished.out / split.sample_set.folder / file["name"]
        for prepared in finished.sets
        for split in prepared.splits.values()
        for file in split.files
    }
    places = [finished.out, *(path for path in finished.out.glob("msl*") if path.is_dir())]
    for place in places:
        for split in ("train", "validation", "test"):
            for path in (place / split).glob("*.h5"):
                if path not in wanted:
                    path.unlink()
        kept = {finished.out / prepared.folder for prepared in finished.sets}
        if place not in kept:
            for name in (
                "dataset.json",
                "provenance.json",
                "examples.jsonl",
                "rejects.jsonl",
                "clusters.parquet",
                "contamination.parquet",
            ):
                (place / name).unlink(missing_ok=True)
            for split in ("train", "validation", "test"):
                (place / split / "documents.parquet").unlink(missing_ok=True)


def is_whole(out: Path) -> bool:
    """Whether every file that the dataset.json in `out` names is there with its size (`verify` reads them)."""
    try:
        sets = dataset.read_sets(out)
        return all(
            (out / name / file.name).stat().st_size == file.bytes
            for name, value in sets.items()
            for file in value.stored()
        )
    except (DataError, OSError):
        return False


def total(counts: Counts, what: str) -> Amount:
    """Sum of one kind of cell over splits and sources."""
    amount = Amount()
    for (_, _, kind), value in counts.cells.items():
        if kind == what:
            amount = amount.plus(value)
    return amount
