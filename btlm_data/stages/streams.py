"""The token stream of a split, `doc_1 EOS doc_2 EOS ...`, as an index: which document's tokens stand where.

Two steps make it, both from tables only (no token is moved):

    scatter  a group of blocks   -> its kept documents' records, sorted by order key, cut at the buckets' edges
    sort     one bucket          -> its records from every group, merged: the index of one stretch of the stream

The order key is a seeded hash of the document's identity (`shuffle: samples|documents`), or its ordinal (`none`). Buckets are
ranges of keys, so how many there are does not change the order; ties (never seen) fall to the ordinal. Prefix sums over the
buckets' totals then give every document its place, and `gather` can fill any stretch of the stream on any machine.

A stream is (set, split): without shares every set has the same documents, so there is one stream a split (set 0); with
shares each document belongs to one set by a seeded hash. A mix repeats documents: copy c of a document has its own key.

    work/shuffle/scatter-GROUP.cols   per stream s: `s/key` uint64, `s/block` uint32, `s/start` uint64, `s/length` uint32,
                                      `s/ordinal` uint64, `s/edges` (buckets + 1,) uint64: rows of each bucket
    work/shuffle/index-s-BUCKET.cols  `block`, `start`, `length`, `ordinal`, `offset` uint64 (tokens from the bucket's
                                      beginning); meta["num_tokens"]

balance: documents in = out + other sets' + left out by the mix; + repeats. tokens = lengths + one EOS each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data import seeding
from btlm_data.advance import advance
from btlm_data.fingerprint import digest
from btlm_data.formats import columns
from btlm_data.recipe.models import Settings
from btlm_data.splits import SPLITS
from btlm_data.stages.blocks import Block
from btlm_data.stages.fates import Fate
from btlm_data.task import Counts, Task

VERSION = 1
BUCKET_BYTES = (
    256 * 2**20
)  # of text, about 64 M tokens: what one bucket's index and one stretch of stream may need in memory
GROUP_DOCUMENTS = 500_000
BLOCK_LIST = "shuffle/blocks.json"
FATES = "holdout/fates.cols"


@dataclass(frozen=True)
class Stream:
    """One token stream: the documents of a set in a split."""

    set_index: int
    split: str

    @property
    def name(self) -> str:
        """For file and column names."""
        return f"{self.set_index}-{self.split}"


@dataclass(frozen=True)
class StreamSettings:
    """What decides the streams."""

    settings: Settings
    splits: tuple[str, ...]  # the splits that can have documents

    @property
    def streams(self) -> list[Stream]:
        """Every stream, sets outermost."""
        divided = any(part.share is not None for part in self.settings.seq_len)
        return [
            Stream(s, split)
            for s in range(len(self.settings.seq_len) if divided else 1)
            for split in self.splits
        ]

    def of_set(self, set_index: int) -> int:
        """The set whose stream a prepared length reads: its own with shares, else the common one."""
        return set_index if self.settings.seq_len[set_index].share is not None else 0

    @property
    def digest(self) -> str:
        """Of what decides which documents stand where."""
        s = self.settings
        shares = [part.share for part in s.seq_len] if any(part.share for part in s.seq_len) else None
        return digest(VERSION, s.shuffle != "none", s.seed, s.mix, shares, list(self.splits))


def plan_scatter(blocks: Sequence[Block], num_buckets: int, lineage: str) -> list[Task]:
    """A task per group of consecutive blocks of about GROUP_DOCUMENTS documents."""
    groups: list[list[int]] = [[]]
    held = 0
    for number, block in enumerate(blocks):
        if groups[-1] and (held + block.num_documents > GROUP_DOCUMENTS or len(groups[-1]) >= 256):
            groups.append([])
            held = 0
        groups[-1].append(number)
        held += block.num_documents
    return [
        Task(
            id=f"{number:06d}",
            args={
                "blocks": [
                    [i, b.stem, b.split, b.first_ordinal, b.num_documents] for i in group for b in [blocks[i]]
                ],
                "buckets": num_buckets,
                "total": blocks[-1].last_ordinal,
            },
            inputs=[lineage],
            outputs=[f"shuffle/scatter-{number:06d}.cols"],
            weight=max(1, sum(blocks[i].num_documents for i in group)),
        )
        for number, group in enumerate(groups)
        if group
    ]


def scatter(task: Task, settings: StreamSettings, work_dir: str) -> Counts:
    """Give each kept document its stream(s) and order key; count every stage from `dedupe` to `shuffle`."""
    root = Path(work_dir)
    fates = columns.read(root / FATES)
    stages = {name: Counts() for name in ("dedupe", "holdout", "tokenize", "shuffle")}
    held: dict[str, list[tuple[npt.NDArray[Any], ...]]] = {stream.name: [] for stream in settings.streams}
    for number, stem, split, first, count in task.args["blocks"]:
        block = Block(stem, split, first, count)
        docs = columns.read(block.docs(root), ["key", "source", "num_bytes"], verify=True)
        lengths = columns.read(block.tokens(root), ["starts", "lengths"], verify=True)
        table = _Table(
            docs, lengths, fates["fate"][first : first + count], fates["split"][first : first + count]
        )
        table.count(stages, split)
        ordinals = np.arange(first, first + count, dtype=np.uint64)
        for stream in settings.streams:
            chosen, keys = _choose(table, stream, settings, ordinals, stages["shuffle"])
            if len(chosen):
                records = (
                    keys,
                    np.full(len(chosen), number, np.uint32),
                    lengths["starts"][chosen],
                    lengths["lengths"][chosen],
                    ordinals[chosen],
                )
                held[stream.name].append(records)
        advance(count)
    edges = _bucket_edges(task.args["buckets"], task.args["total"], settings)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, parts in held.items():
        kinds = (np.uint64, np.uint32, np.uint64, np.uint32, np.uint64)
        joined = [
            np.concatenate([part[i] for part in parts]) if parts else np.empty(0, kind)
            for i, kind in enumerate(kinds)
        ]
        order = np.argsort(joined[0], kind="stable")
        key, block_number, start, length, ordinal = (column[order] for column in joined)
        bounds = np.concatenate([np.searchsorted(key, edges), [len(key)]]).astype(np.uint64)
        arrays |= {
            f"{name}/key": key,
            f"{name}/block": block_number,
            f"{name}/start": start,
            f"{name}/length": length,
        }
        arrays |= {f"{name}/ordinal": ordinal, f"{name}/edges": bounds}
    columns.write(root / task.outputs[0], arrays)
    return Counts(extra={"stages": {name: counts.to_json() for name, counts in stages.items()}})


def _bucket_edges(num_buckets: int, total: int, settings: StreamSettings) -> npt.NDArray[np.uint64]:
    """Lower edge of each bucket; the first is 0."""
    span = 2**64 if settings.settings.shuffle != "none" else max(1, total)
    return np.array([i * span // num_buckets for i in range(num_buckets)], np.uint64)


@dataclass
class _Table:
    """One block's documents with their fates."""

    docs: columns.Columns
    lengths: columns.Columns
    fate: npt.NDArray[np.uint8]
    split: npt.NDArray[np.uint8]

    def count(self, stages: dict[str, Counts], read_split: str) -> None:
        """Fill the cells of dedupe, holdout and tokenize."""
        sources = self.docs.meta["sources"]
        num_bytes = self.docs["num_bytes"].astype(np.int64)
        tokens = self.lengths["lengths"].astype(np.int64) + 1
        code = self.docs["source"].astype(np.int64)
        for fate in Fate:
            mine = self.fate == fate
            if not mine.any():
                continue
            for index, documents, size in _per_source(code, mine, num_bytes, len(sources)):
                source = sources[index]
                stages["dedupe"].add(read_split, source, "in", documents, size)
                if fate.stage == "dedupe":
                    stages["dedupe"].add(read_split, source, f"drop:{fate.reason}", documents, size)
                    continue
                stages["dedupe"].add(read_split, source, "out", documents, size)
                stages["holdout"].add(read_split, source, "in", documents, size)
                if fate.stage == "holdout":
                    stages["holdout"].add(read_split, source, f"drop:{fate.reason}", documents, size)
        kept = self.fate == Fate.KEPT
        for number, split in enumerate(SPLITS):
            mine = kept & (self.split == number)
            for index, documents, size in _per_source(code, mine, num_bytes, len(sources)):
                source = sources[index]
                if split != read_split:
                    stages["holdout"].add(read_split, source, f"drop:drawn_for_{split}", documents, size)
                    stages["holdout"].add(split, source, f"add:drawn_from_{read_split}", documents, size)
                stages["holdout"].add(split, source, "out", documents, size)
                stages["tokenize"].add(split, source, "in", documents, size)
            for index, documents, size, count in _per_source(code, mine, num_bytes, len(sources), tokens):
                stages["tokenize"].add(split, sources[index], "out", documents, size, count)


def _per_source(
    code: npt.NDArray[np.int64],
    mine: npt.NDArray[np.bool_],
    num_bytes: npt.NDArray[np.int64],
    num_sources: int,
    tokens: Any = None,
) -> list[tuple[int, ...]]:
    """(source, documents, bytes [, tokens]) of the chosen documents, for each source that has any."""
    chosen = code[mine]
    documents = np.bincount(chosen, minlength=num_sources)
    amounts = [
        documents,
        *(
            np.bincount(chosen, w[mine], num_sources).astype(np.int64)
            for w in (num_bytes, tokens)
            if w is not None
        ),
    ]
    return [(int(i), *(int(a[i]) for a in amounts)) for i in np.flatnonzero(documents)]


def _choose(
    table: _Table, stream: Stream, settings: StreamSettings, ordinals: npt.NDArray[np.uint64], counts: Counts
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Rows of the documents in `stream` (repeated where the mix repeats them) and their order keys."""
    s = settings.settings
    keys = table.docs["key"]
    candidates = np.flatnonzero((table.fate == Fate.KEPT) & (table.split == SPLITS.index(stream.split)))
    member = np.ones(len(candidates), bool)
    if s.seq_len[stream.set_index].share is not None:
        place = seeding.unit_interval(keys[candidates], s.seed, "sets")
        edges = np.cumsum([0.0] + [part.share or 0.0 for part in s.seq_len])
        upper = edges[stream.set_index + 1] if edges[stream.set_index + 1] < 1 - 1e-9 else 2.0
        member = (place >= edges[stream.set_index]) & (place < upper)
    copies = np.ones(len(candidates), np.int64)
    sources = table.docs.meta["sources"]
    if s.mix and stream.split == "train":
        epochs = np.array([s.mix.get(name, 1.0) for name in sources])[table.docs["source"][candidates]]
        whole = np.floor(epochs)
        copies = (whole + (seeding.unit_interval(keys[candidates], s.seed, "mix") < epochs - whole)).astype(
            np.int64
        )
    _count_choice(table, stream, candidates, member, copies, counts, len(s.seq_len))
    chosen = np.repeat(candidates[member], copies[member])
    if s.shuffle == "none":
        return chosen, ordinals[chosen]
    salt = seeding.salt(s.seed, "shuffle")
    order_keys = seeding.mix64(keys[chosen], salt)
    repeats = copies[member]
    if (repeats > 1).any():
        number = np.arange(len(chosen)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        later = number > 0
        order_keys[later] = seeding.mix64(order_keys[later] + number[later].astype(np.uint64), salt)
    return chosen, order_keys


def _count_choice(
    table: _Table,
    stream: Stream,
    candidates: npt.NDArray[np.int64],
    member: Any,
    copies: npt.NDArray[np.int64],
    counts: Counts,
    num_sets: int,
) -> None:
    """Ledger of one stream. Its split is written "SET/SPLIT" where there are several sets."""
    sources = table.docs.meta["sources"]
    code = table.docs["source"].astype(np.int64)
    num_bytes, tokens = (
        table.docs["num_bytes"].astype(np.int64),
        table.lengths["lengths"].astype(np.int64) + 1,
    )
    split = f"{stream.set_index}/{stream.split}"
    for what, rows in (
        ("in", candidates),
        ("drop:in_other_set", candidates[~member]),
        ("drop:left_out_by_mix", candidates[member & (copies == 0)]),
        ("add:repeated_by_mix", np.repeat(candidates[member], np.maximum(copies[member] - 1, 0))),
        ("out", np.repeat(candidates[member], copies[member])),
    ):
        documents, size, count = (
            np.bincount(code[rows], w, len(sources)).astype(np.int64)
            for w in (None, num_bytes[rows], tokens[rows])
        )
        for index in np.flatnonzero(documents).tolist():
            counts.add(
                split, sources[index], what, int(documents[index]), int(size[index]), int(count[index])
            )


# Sort -----------------------------------------------------------------------------------------------------------


def plan_sort(
    streams: Sequence[Stream], num_buckets: int, groups: Sequence[Task], lineage: str
) -> list[Task]:
    """A task per stream and bucket."""
    return [
        Task(
            id=f"{stream.name}-{bucket:06d}",
            args={"stream": stream.name, "bucket": bucket, "groups": len(groups)},
            inputs=[lineage],
            outputs=[index_path(stream, bucket)],
            weight=1,
        )
        for stream in streams
        for bucket in range(num_buckets)
    ]


def index_path(stream: Stream, bucket: int) -> str:
    """Where a bucket's index stands in the work folder."""
    return f"shuffle/index-{stream.name}-{bucket:06d}.cols"


def sort(task: Task, settings: StreamSettings, work_dir: str) -> Counts:
    """Merge one bucket of every group into the index of its stretch of the stream."""
    root, name, bucket = Path(work_dir), task.args["stream"], task.args["bucket"]
    fields = ("key", "block", "start", "length", "ordinal")
    parts: list[list[npt.NDArray[Any]]] = []
    for group in range(task.args["groups"]):
        file = columns.read(
            root / f"shuffle/scatter-{group:06d}.cols", [f"{name}/{field}" for field in (*fields, "edges")]
        )
        first, last = (int(edge) for edge in file[f"{name}/edges"][bucket : bucket + 2])
        parts.append([file[f"{name}/{field}"][first:last] for field in fields])
    key, block, start, length, ordinal = (
        np.concatenate([part[i] for part in parts]) for i in range(len(fields))
    )
    order = np.argsort(key, kind="stable")  # ties keep the groups' order, which is the ordinals'
    length = length[order]
    ends = np.cumsum(length.astype(np.uint64) + np.uint64(1))
    total = int(ends[-1]) if len(ends) else 0
    offset = ends - length - np.uint64(1)
    arrays = {
        "block": block[order],
        "start": start[order],
        "length": length,
        "ordinal": ordinal[order],
        "offset": offset,
    }
    columns.write(root / task.outputs[0], arrays, {"num_tokens": total})
    advance(1)
    return Counts(extra={"num_tokens": total, "num_documents": len(length)})


# Gather ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Index:
    """The whole index of one stream, as the driver knows it: total tokens and documents of each bucket."""

    stream: Stream
    bucket_tokens: tuple[int, ...]
    bucket_documents: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the stream, EOS included."""
        return sum(self.bucket_tokens)

    def overlapping(self, start: int, stop: int) -> list[tuple[str, int]]:
        """(index file, stream offset of its first token) of the buckets that hold tokens [start, stop)."""
        found, offset = [], 0
        for bucket, tokens in enumerate(self.bucket_tokens):
            if tokens and offset < stop and offset + tokens > start:
                found.append((index_path(self.stream, bucket), offset))
            offset += tokens
        return found


def gather(
    work_dir: Path,
    buckets: Sequence[tuple[str, int]],
    start: int,
    stop: int,
    dtype: npt.DTypeLike,
    eos_id: int,
) -> npt.NDArray[Any]:
    """Tokens [start, stop) of a stream, (stop - start,), from whichever blocks hold them."""
    from btlm_data.kernels.packing import place_documents

    out = np.empty(stop - start, dtype)
    names = stems(str(work_dir))
    for path, bucket_offset in buckets:
        index = columns.read(work_dir / path)
        first, last = documents_between(index, bucket_offset, start, stop)
        block, begin, length = (
            index["block"][first:last],
            index["start"][first:last],
            index["length"][first:last],
        )
        place = index["offset"][first:last].astype(np.int64) + (bucket_offset - start)
        order = np.lexsort((begin, block))
        edges = np.flatnonzero(np.diff(block[order])) + 1
        for rows in np.split(order, edges) if len(order) else []:
            tokens = columns.read(work_dir / f"{names[int(block[rows[0]])]}.tokens", ["tokens"])["tokens"]
            place_documents(
                tokens, begin[rows].astype(np.int64), length[rows].astype(np.int64), place[rows], out, eos_id
            )
    return out


def gather_samples(
    work_dir: Path,
    buckets: Sequence[tuple[str, int]],
    samples: npt.NDArray[np.int64],
    length: int,
    total: int,
    dtype: npt.DTypeLike,
    eos_id: int,
) -> npt.NDArray[Any]:
    """Samples anywhere in a stream of `total` tokens, (m, L+1): row r is stream[samples[r]*L : samples[r]*L + L + 1], 0 behind the end.

    Touches every block, each once, at as many places as there are samples: for streams that lie in memory (the page cache).
    """
    from btlm_data.kernels.packing import place_documents

    out = np.zeros(len(samples) * (length + 1), dtype)
    block, begin, size, offset = _whole_index(str(work_dir), tuple(buckets))
    start = samples * length
    first = np.maximum(np.searchsorted(offset, start, side="right") - 1, 0)
    counts = np.searchsorted(offset, np.minimum(start + length + 1, total), side="left") - first
    row = np.repeat(np.arange(len(samples)), counts)
    document = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    row_start = row * (length + 1)
    place = offset[document] - start[row] + row_start
    order = np.argsort(block[document], kind="stable")
    names = stems(str(work_dir))
    for chosen in np.split(order, np.flatnonzero(np.diff(block[document[order]])) + 1) if len(order) else []:
        mine = document[chosen]
        tokens = columns.read(work_dir / f"{names[int(block[mine[0]])]}.tokens", ["tokens"])["tokens"]
        borders = row_start[chosen]
        place_documents(
            tokens, begin[mine], size[mine], place[chosen], out, eos_id, borders, borders + length + 1
        )
    return out.reshape(len(samples), length + 1)


@lru_cache(maxsize=1)
def _whole_index(work_dir: str, buckets: tuple[tuple[str, int], ...]) -> tuple[npt.NDArray[np.int64], ...]:
    """Block, start, length and stream offset of every document of a stream, all int64."""
    parts = [(columns.read(Path(work_dir) / path), offset) for path, offset in buckets]
    joined = [
        np.concatenate([part[name].astype(np.int64) for part, _ in parts])
        for name in ("block", "start", "length")
    ]
    return *joined, np.concatenate([part["offset"].astype(np.int64) + offset for part, offset in parts])


def documents_between(index: columns.Columns, bucket_offset: int, start: int, stop: int) -> tuple[int, int]:
    """Rows [first, last) of a bucket's index whose documents (EOS included) have tokens in [start, stop) of the stream."""
    offset = index["offset"]
    first = int(np.searchsorted(offset, max(0, start - bucket_offset), side="right")) - 1
    last = int(np.searchsorted(offset, max(0, stop - bucket_offset), side="left"))
    return max(0, first), last


@lru_cache(maxsize=2)
def stems(work_dir: str) -> list[str]:
    """Stem of every block, by number."""
    found: list[str] = json.loads((Path(work_dir) / BLOCK_LIST).read_bytes())
    return found
