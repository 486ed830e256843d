"""Where each document stands in its token stream, `doc_1 EOS doc_2 EOS ...`: a seeded order, and prefix sums.

Two steps make the index of every stream, both from tables only (no token is moved):

    scatter  a group of blocks   -> its kept documents' records, sorted by order key, cut at the buckets' edges
    sort     one bucket          -> its records from every group, merged: the index of one stretch of the stream

The order key is a seeded hash of the document's identity (`shuffle: samples|documents`), or its ordinal (`none`). Buckets are
ranges of keys, so how many there are does not change the order; ties (never seen) fall to the ordinal. Prefix sums over the
buckets' totals then give every document its place, and stages/stream.py can fill any stretch of the stream on any machine.

With shares each document belongs to one set by a seeded hash. A mix repeats documents: copy c of a document has its own key.

    shuffle/scatter/GROUP.cols      per stream s: `s/key` uint64, `s/block` uint32, `s/start` uint64, `s/length` uint32,
                                    `s/ordinal` uint64, `s/edges` (buckets + 1,) uint64: rows of each bucket
    shuffle/sort/STREAM-BUCKET.cols `block`, `start`, `length`, `ordinal`, `offset` uint64 (tokens from the bucket's
                                    beginning)

balance documents in = out + other sets' + left out by the mix; + repeats. tokens = lengths + one EOS each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from btlm_data import seeding
from btlm_data.advance import advance
from btlm_data.blocks import Block
from btlm_data.engine.runner import Runner
from btlm_data.estimate import Estimate, Workload
from btlm_data.fates import Fate
from btlm_data.fingerprint import digest
from btlm_data.formats.columns import Columns
from btlm_data.recipe.models import Settings
from btlm_data.records.base import BATCH_BYTES
from btlm_data.splits import SPLITS
from btlm_data.stages.stream import Bucket, Stream, StreamIndex
from btlm_data.task import Artifact, Counts, Step, Task, TaskResult
from btlm_data.task_files import TaskFiles, write_list

VERSION = 2
BUCKET_BYTES = (
    256 * 2**20
)  # of text, about 64 M tokens: what one bucket's index and one stretch of stream may need
GROUP_DOCUMENTS = 500_000
GROUP_BLOCKS = 256


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


_RECORD_BYTES = 32  # of a document in an index, before and after sorting


def estimate(workload: Workload) -> list[Estimate]:
    """What ordering the documents takes."""
    volume, stream, rates = workload.volume, workload.stream, workload.rates
    groups = max(
        1, -(-volume.documents // GROUP_DOCUMENTS), -(-volume.text_bytes // (GROUP_BLOCKS * BATCH_BYTES))
    )
    num_streams = len(StreamSettings(workload.settings, SPLITS[: workload.splits]).streams)
    buckets = num_streams * bucket_count(volume.text_bytes)
    index_bytes = _RECORD_BYTES * stream.documents
    held = 4 * _RECORD_BYTES  # a record, its copy in order, and what is sorted
    return [
        Estimate(
            "shuffle.scatter",
            tasks=groups,
            documents=volume.documents,
            read_bytes=30 * volume.documents,
            work_bytes=index_bytes,
            memory_bytes=rates.process_bytes + held * -(-stream.documents // groups),
            cpu_seconds=groups * rates.task
            + volume.documents * num_streams * rates.scatter_document / 2
            + stream.documents * rates.scatter_document / 2,
        ),
        Estimate(
            "shuffle.sort",
            tasks=buckets,
            documents=stream.documents,
            read_bytes=index_bytes,
            work_bytes=index_bytes,
            memory_bytes=rates.process_bytes + held * -(-stream.documents // buckets),
            cpu_seconds=buckets * rates.task + stream.documents * rates.order_document,
        ),
    ]


def bucket_count(text_bytes: int) -> int:
    """Into how many buckets each stream is cut. text_bytes: that passed cleaning."""
    return max(1, -(-text_bytes // BUCKET_BYTES))


def run(
    step: Callable[[Step], Sequence[TaskResult]],
    runner: Runner,
    blocks: Sequence[Block],
    fates: Artifact,
    settings: StreamSettings,
    num_bytes: int,
) -> dict[str, StreamIndex]:
    """The index of every stream by its name. step: runs a step. num_bytes: of text that passed cleaning."""
    num_buckets = bucket_count(num_bytes)
    groups = [result.outputs[0] for result in step(plan_scatter(blocks, fates, num_buckets, settings))]
    name = "shuffle/groups.json"
    runner.named.add(name)
    results = iter(step(plan_sort(num_buckets, write_list(runner.stores.work, name, groups), settings)))
    indices: dict[str, StreamIndex] = {}
    for stream in settings.streams:
        buckets, start = [], 0
        for _ in range(num_buckets):
            result = next(results)
            num_tokens = result.counts.extra["num_tokens"]
            buckets.append(Bucket(result.outputs[0], start, num_tokens, result.counts.extra["num_documents"]))
            start += num_tokens
        indices[stream.name] = StreamIndex(stream, tuple(buckets))
    return indices


def groups_of(blocks: Sequence[Block]) -> list[list[int]]:
    """Numbers of consecutive blocks that one task takes, of about GROUP_DOCUMENTS documents."""
    groups: list[list[int]] = []
    num_held = 0
    for number, block in enumerate(blocks):
        if not groups or num_held + block.num_documents > GROUP_DOCUMENTS or len(groups[-1]) >= GROUP_BLOCKS:
            groups.append([])
            num_held = 0
        groups[-1].append(number)
        num_held += block.num_documents
    return groups


def plan_scatter(
    blocks: Sequence[Block], fates: Artifact, num_buckets: int, settings: StreamSettings
) -> Step:
    """A task per group of consecutive blocks of about GROUP_DOCUMENTS documents."""
    groups = groups_of(blocks)
    total = blocks[-1].last_ordinal if blocks else 0
    tasks = [
        Task(
            id=f"{number:06d}",
            args={
                "blocks": [
                    [i, blocks[i].split, blocks[i].first_ordinal, blocks[i].num_documents] for i in group
                ],
                "buckets": num_buckets,
                "total": total,
            },
            reads={
                "docs": [blocks[i].docs for i in group],
                "tokens": [blocks[i].tokens for i in group],
                "fates": [fates],
            },
            outputs=[("work", f"shuffle/scatter/{number:06d}.cols")],
            weight=max(1, sum(blocks[i].num_documents for i in group)),
        )
        for number, group in enumerate(groups)
    ]
    return Step("shuffle.scatter", VERSION, scatter, tasks, settings, settings.digest, "doc")


def scatter(task: Task, settings: StreamSettings, files: TaskFiles) -> Counts:
    """Give each kept document its stream(s) and order key; count every stage from `dedupe` to `shuffle`."""
    fates = files.columns(task.reads["fates"][0])
    stages = {name: Counts() for name in ("dedupe", "holdout", "tokenize", "shuffle")}
    records: dict[str, list[tuple[npt.NDArray[Any], ...]]] = {stream.name: [] for stream in settings.streams}
    described = zip(task.args["blocks"], task.reads["docs"], task.reads["tokens"], strict=True)
    for (number, split, first, count), docs_file, tokens_file in described:
        tokens = files.columns(tokens_file)
        starts, lengths = tokens["starts"], tokens["lengths"]
        fate, new_split = (fates.rows(name, first, first + count) for name in ("fate", "split"))
        table = _Table(files.columns(docs_file), lengths, fate, new_split)
        table.count(stages, split)
        ordinals = np.arange(first, first + count, dtype=np.uint64)
        for stream in settings.streams:
            chosen, keys = _choose(table, stream, settings, ordinals, stages["shuffle"])
            if len(chosen):
                block_numbers = np.full(len(chosen), number, np.uint32)
                records[stream.name].append(
                    (keys, block_numbers, starts[chosen], lengths[chosen], ordinals[chosen])
                )
        advance(count)
    edges = _bucket_edges(task.args["buckets"], task.args["total"], settings)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, parts in records.items():
        kinds = (np.uint64, np.uint32, np.uint64, np.uint32, np.uint64)
        joined = [
            np.concatenate([part[i] for part in parts]) if parts else np.empty(0, kind)
            for i, kind in enumerate(kinds)
        ]
        order = np.argsort(joined[0], kind="stable")
        key, block_number, start, length, ordinal = (column[order] for column in joined)
        bounds = np.concatenate([np.searchsorted(key, edges), [len(key)]]).astype(np.uint64)
        arrays |= {f"{name}/key": key, f"{name}/block": block_number, f"{name}/start": start}
        arrays |= {f"{name}/length": length, f"{name}/ordinal": ordinal, f"{name}/edges": bounds}
    files.write_columns(task.outputs[0][1], arrays)
    return Counts(extra={"stages": {name: counts.to_json() for name, counts in stages.items()}})


def _bucket_edges(num_buckets: int, total: int, settings: StreamSettings) -> npt.NDArray[np.uint64]:
    """Lower edge of each bucket; the first is 0."""
    span = 2**64 if settings.settings.shuffle != "none" else max(1, total)
    return np.array([i * span // num_buckets for i in range(num_buckets)], np.uint64)


@dataclass
class _Table:
    """One block's documents with their fates."""

    docs: Columns
    lengths: npt.NDArray[np.uint32]
    fate: npt.NDArray[np.uint8]
    split: npt.NDArray[np.uint8]

    def count(self, stages: dict[str, Counts], read_split: str) -> None:
        """Fill the cells of dedupe, holdout and tokenize."""
        sources = self.docs.meta["sources"]
        num_bytes = self.docs["num_bytes"].astype(np.int64)
        tokens = self.lengths.astype(np.int64) + 1
        code = self.docs["source"].astype(np.int64)
        for fate in Fate:
            is_chosen = self.fate == fate
            if not is_chosen.any():
                continue
            for index, documents, size in _per_source(code, is_chosen, num_bytes, len(sources)):
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
            is_chosen = kept & (self.split == number)
            for index, documents, size in _per_source(code, is_chosen, num_bytes, len(sources)):
                source = sources[index]
                if split != read_split:
                    stages["holdout"].add(read_split, source, f"drop:drawn_for_{split}", documents, size)
                    stages["holdout"].add(split, source, f"add:drawn_from_{read_split}", documents, size)
                stages["holdout"].add(split, source, "out", documents, size)
                stages["tokenize"].add(split, source, "in", documents, size)
            for index, documents, size, count in _per_source(
                code, is_chosen, num_bytes, len(sources), tokens
            ):
                stages["tokenize"].add(split, sources[index], "out", documents, size, count)


def _per_source(
    code: npt.NDArray[np.int64],
    is_chosen: npt.NDArray[np.bool_],
    num_bytes: npt.NDArray[np.int64],
    num_sources: int,
    tokens: Any = None,
) -> list[tuple[int, ...]]:
    """(source, documents, bytes [, tokens]) of the chosen documents, for each source that has any."""
    chosen = code[is_chosen]
    documents = np.bincount(chosen, minlength=num_sources)
    amounts = [
        documents,
        *(
            np.bincount(chosen, w[is_chosen], num_sources).astype(np.int64)
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
    candidates, member, copies = places_of(table.docs, table.fate, table.split, stream, settings)
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


class StreamPlaces(NamedTuple):
    """The kept documents of a block in a stream's split, (n,) each: their numbers, whether the set has them, how often
    the mix repeats them.
    """

    candidates: npt.NDArray[np.int64]
    member: npt.NDArray[np.bool_]
    copies: npt.NDArray[np.int64]


def places_of(
    docs: Columns,
    fate: npt.NDArray[np.uint8],
    split: npt.NDArray[np.uint8],
    stream: Stream,
    settings: StreamSettings,
) -> StreamPlaces:
    """Which documents of a block stand in `stream`, and how often."""
    s = settings.settings
    keys = docs["key"]
    candidates = np.flatnonzero((fate == Fate.KEPT) & (split == SPLITS.index(stream.split)))
    member = np.ones(len(candidates), bool)
    if s.seq_len[stream.set_index].share is not None:
        position = seeding.unit_interval(keys[candidates], s.seed, "sets")
        edges = np.cumsum([0.0] + [part.share or 0.0 for part in s.seq_len])
        upper = edges[stream.set_index + 1] if edges[stream.set_index + 1] < 1 - 1e-9 else 2.0
        member = (position >= edges[stream.set_index]) & (position < upper)
    copies = np.ones(len(candidates), np.int64)
    if s.mix and stream.split == "train":
        epochs = np.array([s.mix.get(name, 1.0) for name in docs.meta["sources"]])[docs["source"][candidates]]
        whole = np.floor(epochs)
        is_more = seeding.unit_interval(keys[candidates], s.seed, "mix") < epochs - whole
        copies = (whole + is_more).astype(np.int64)
    return StreamPlaces(candidates, member, copies)


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
        table.lengths.astype(np.int64) + 1,
    )
    split = f"{stream.set_index}/{stream.split}"
    for cell, rows in (
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
                split, sources[index], cell, int(documents[index]), int(size[index]), int(count[index])
            )


def plan_sort(num_buckets: int, groups: Artifact, settings: StreamSettings) -> Step:
    """A task per stream and bucket. groups: the list of scattered files."""
    tasks = [
        Task(
            id=f"{stream.name}-{bucket:06d}",
            args={"stream": stream.name, "bucket": bucket},
            reads={"groups": [groups]},
            outputs=[("work", f"shuffle/sort/{stream.name}-{bucket:06d}.cols")],
        )
        for stream in settings.streams
        for bucket in range(num_buckets)
    ]
    return Step("shuffle.sort", VERSION, sort, tasks, settings, settings.digest, "task")


def sort(task: Task, settings: StreamSettings, files: TaskFiles) -> Counts:
    """Merge one bucket of every group into the index of its stretch of the stream."""
    name, bucket = task.args["stream"], task.args["bucket"]
    fields = ("key", "block", "start", "length", "ordinal")
    parts: list[list[npt.NDArray[Any]]] = []
    for group_file in files.read_list(task.reads["groups"][0]):
        group = files.columns(group_file)
        first, last = (int(edge) for edge in group.rows(f"{name}/edges", bucket, bucket + 2))
        parts.append([group.rows(f"{name}/{field}", first, last) for field in fields])
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
    files.write_columns(task.outputs[0][1], arrays)
    advance(1)
    return Counts(extra={"num_tokens": total, "num_documents": len(length)})
