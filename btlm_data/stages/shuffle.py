"""Where each document is in its token stream, `doc_1 EOS doc_2 EOS ...`: a seeded order, and prefix sums.

Two steps make the index of every stream. No tokens are moved:

    scatter  a group of blocks   -> its kept documents' records, sorted by order key, cut by bucket
    sort     some buckets        -> their records from every group, merged: the index of a stretch of the
                                 stream each

The order key is a seeded hash of the document's identity (`shuffle: samples|documents`), or its ordinal
(`none`). Buckets are ranges of keys, so how many there are does not change the order; ties (never seen) fall
to the ordinal. Prefix sums over the buckets' totals then give every document its place, and stages/stream.py
can fill any stretch of the stream on any machine.

With shares each document belongs to one set by a seeded hash. A mix repeats documents (mix_plan.py): copy c of a
document has its own key. A mix by budget counts the tokens of sources first (mixing.py); the documents of each of
its phases stand behind those of the phase before.

    shuffle/scatter/GROUP.cols      the records of each stream (order_records.py)
    shuffle/sort/STREAM-BUCKET.cols `block`, `start`, `length`, `ordinal`, `offset` uint64 (tokens from the
                                    bucket's beginning)

balance documents in = out + other sets' + left out by the mix; + repeats. tokens = lengths + one EOS each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data import mix_plan
from btlm_data.advance import advance
from btlm_data.blocks import Block
from btlm_data.by_ordinal import ByOrdinal
from btlm_data.engine.runner import Runner
from btlm_data.estimate import Estimate, Workload
from btlm_data.fates import Fate
from btlm_data.formats.columns import Columns
from btlm_data.formats.ledger import MOVED
from btlm_data.records.base import BATCH_BYTES
from btlm_data.splits import SPLITS
from btlm_data.stages import mixing, order_records, sorting
from btlm_data.stages.mixing import BlockMix, MixFiles
from btlm_data.stages.order_records import RECORD, Records
from btlm_data.stages.places import StreamPlaces, places_of
from btlm_data.stages.stream import (
    ORDER_VERSION,
    Bucket,
    PhaseAmount,
    PhaseAmounts,
    Stream,
    StreamIndex,
    StreamSettings,
)
from btlm_data.task import Artifact, Counts, Step, Task, TaskResult
from btlm_data.task_files import TaskFiles, write_list

BUCKET_BYTES = (
    256 * 2**20
)  # of text, about 64 M tokens: what one bucket's index and one stretch of stream may need
GROUP_DOCUMENTS = 500_000
MOST_GROUPS = (
    1500  # of so many documents: what `sort` opens; of more documents where there would be more groups
)
GROUP_BLOCKS = 256


Asked = dict[str, dict[str, list[int]]]  # stream -> source -> tokens of each phase
_RECORD_BYTES = 32  # of a document in an index, before and after sorting


class ScatteredGroup(NamedTuple):
    """What `shuffle.scatter` made of some consecutive blocks. records: their records of every stream (order_records.py);
    blocks: their numbers.
    """

    records: Artifact
    blocks: list[int]


class Shuffled(NamedTuple):
    """What the stage hands on. streams: the index of each by its name."""

    streams: dict[str, StreamIndex]
    groups: list[ScatteredGroup]
    mix: MixFiles


def estimate(workload: Workload) -> list[Estimate]:
    """What ordering the documents takes."""
    volume, stream, rates = workload.volume, workload.stream, workload.rates
    groups = max(
        1,
        -(-volume.documents // group_documents(volume.documents)),
        -(-volume.text_bytes // (GROUP_BLOCKS * BATCH_BYTES)),
    )
    num_streams = stream_count(workload)
    of_a_stream = bucket_count(volume.text_bytes)
    index_bytes = _RECORD_BYTES * stream.documents
    together = max(1, min(of_a_stream, -(-sorting.SORT_BYTES * groups * of_a_stream // max(1, index_bytes))))
    sorts = num_streams * -(-of_a_stream // together)
    held = 4 * _RECORD_BYTES  # a record, its copy in order, and what is sorted
    return [
        *mixing.estimate(workload, groups),
        Estimate(
            "shuffle.scatter",
            tasks=groups,
            documents=volume.documents,
            read_bytes=30 * volume.documents,
            reads=4 * workload.blocks,
            work_bytes=index_bytes,
            memory_bytes=rates.process_bytes + held * -(-stream.documents // groups),
            cpu_seconds=groups * rates.task
            + volume.documents * num_streams * rates.scatter_document / 2
            + stream.documents * rates.scatter_document / 2,
        ),
        Estimate(
            "shuffle.sort",
            tasks=sorts,
            documents=stream.documents,
            read_bytes=index_bytes,
            reads=sorts * groups,
            work_bytes=index_bytes,
            memory_bytes=rates.process_bytes + held * -(-stream.documents // sorts),
            cpu_seconds=sorts * rates.task + stream.documents * rates.order_document,
        ),
    ]


def stream_count(workload: Workload) -> int:
    """How many streams there are."""
    return len(StreamSettings(workload.settings, SPLITS[: workload.splits]).streams)


def bucket_count(text_bytes: int) -> int:
    """Into how many buckets each stream is cut. text_bytes: that passed cleaning."""
    return max(1, -(-text_bytes // BUCKET_BYTES))


def run(
    step: Callable[[Step], Sequence[TaskResult]],
    runner: Runner,
    blocks: Sequence[Block],
    fates: Artifact,
    copies: Artifact | None,
    settings: StreamSettings,
    num_bytes: int,
) -> Shuffled:
    """The index of every stream by its name. step: runs a step. copies: list of files (dedupe/clusters.py); None where nothing was
    deduplicated. num_bytes: of text that passed cleaning.
    """
    num_buckets = bucket_count(num_bytes)
    borders, asked = _borders(step, blocks, fates, settings)
    mix = MixFiles(copies, borders)
    scattering = plan_scatter(blocks, fates, mix, num_buckets, settings)
    scattered = step(scattering)
    records = [result.outputs[0] for result in scattered]
    ordering = sorting.plan_sort(runner, records, settings, num_buckets)
    buckets: dict[str, list[Bucket]] = {stream.name: [] for stream in settings.streams}
    for task, result in zip(ordering.tasks, step(ordering), strict=True):
        stream_buckets = buckets[task.args["stream"]]
        for file, extra in zip(result.outputs, result.counts.extra["buckets"], strict=True):
            start = stream_buckets[-1].start + stream_buckets[-1].num_tokens if stream_buckets else 0
            stream_buckets.append(
                Bucket(file, start, extra["num_tokens"], extra["num_documents"], extra["content"])
            )
    runner.named.add(name := "shuffle/tokens.json")
    listed = write_list(runner.stores.work, name, [block.tokens for block in blocks])
    indices = {
        stream.name: StreamIndex(
            stream,
            tuple(buckets[stream.name]),
            listed,
            _phases_of(scattered, stream.name, asked.get(stream.name, {})),
        )
        for stream in settings.streams
    }
    groups = [
        ScatteredGroup(file, [number for number, *_ in task.args["blocks"]])
        for task, file in zip(scattering.tasks, records, strict=True)
    ]
    return Shuffled(indices, groups, mix)


def _borders(
    step: Callable[[Step], Sequence[TaskResult]],
    blocks: Sequence[Block],
    fates: Artifact,
    settings: StreamSettings,
) -> tuple[Artifact | None, Asked]:
    """Where the phases of a mix by budget end (mixing.py), and the tokens that it asks for; None for any other mix."""
    if not settings.settings.mix.is_budget:
        return None, {}
    weighed = step(mixing.plan_weigh(blocks, groups_of(blocks), fates, settings))
    [result] = step(mixing.plan_budget([file for each in weighed for file in each.outputs], settings))
    return result.outputs[0], result.counts.extra["asked"]


def _phases_of(
    scattered: Sequence[TaskResult], stream: str, asked: Mapping[str, Sequence[int]]
) -> tuple[PhaseAmounts, ...]:
    """What each phase of a mix by budget has of each source; () for any other mix, and splits without one."""
    phases: list[PhaseAmounts] = [
        {source: PhaseAmount(0, 0, tokens) for source, each in asked.items() if (tokens := each[number])}
        for number in range(max((len(each) for each in asked.values()), default=0))
    ]
    for result in scattered:
        for phase, by_source in zip(
            phases, result.counts.extra.get("phases", {}).get(stream, ()), strict=False
        ):
            for source, (documents, tokens) in by_source.items():
                before = phase.get(source, PhaseAmount(0, 0, 0))
                phase[source] = PhaseAmount(
                    before.documents + documents, before.tokens + tokens, before.asked
                )
    return tuple(phases)


def groups_of(blocks: Sequence[Block]) -> list[list[int]]:
    """Numbers of consecutive blocks that one task takes, of about GROUP_DOCUMENTS documents (of more where there would be more than
    MOST_GROUPS).
    """
    groups: list[list[int]] = []
    num_held = 0
    most_documents = group_documents(sum(block.num_documents for block in blocks))
    for number, block in enumerate(blocks):
        if not groups or num_held + block.num_documents > most_documents or len(groups[-1]) >= GROUP_BLOCKS:
            groups.append([])
            num_held = 0
        groups[-1].append(number)
        num_held += block.num_documents
    return groups


def group_documents(total: int) -> int:
    """Documents of one group, where there are so many in all."""
    return max(GROUP_DOCUMENTS, -(-total // MOST_GROUPS))


def plan_scatter(
    blocks: Sequence[Block],
    fates: Artifact,
    mix: MixFiles,
    num_buckets: int,
    settings: StreamSettings,
) -> Step:
    """A task per group of consecutive blocks."""
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
                **mix.reads(settings.settings.mix),
            },
            outputs=[("work", f"shuffle/scatter/{number:06d}.cols")],
            weight=max(1, sum(blocks[i].num_documents for i in group)),
        )
        for number, group in enumerate(groups)
    ]
    return Step("shuffle.scatter", ORDER_VERSION, scatter, tasks, settings, settings.digest, "doc")


def scatter(task: Task, settings: StreamSettings, files: TaskFiles) -> Counts:
    """Give each kept document its stream(s) and order key; count every stage from `dedupe` to `shuffle`."""
    fates = ByOrdinal(files, task.reads["fates"][0])
    blocks = task.args["blocks"]
    base, end = blocks[0][2], blocks[-1][2] + blocks[-1][3]
    of_group = [fates.rows(name, base, end) for name in ("fate", "split")]
    stages = {name: Counts() for name in ("dedupe", "holdout", "tokenize", "shuffle")}
    records: dict[str, list[Records]] = {stream.name: [] for stream in settings.streams}
    phases: dict[str, list[dict[str, tuple[int, int]]]] = {}
    described = zip(blocks, task.reads["docs"], task.reads["tokens"], strict=True)
    for (number, split, first, count), docs_file, tokens_file in described:
        tokens = files.columns(tokens_file).hold("starts", "lengths")
        starts, lengths = tokens["starts"], tokens["lengths"]
        rows = slice(first - base, first - base + count)
        fate, new_split = of_group[0][rows], of_group[1][rows]
        of_mix = mixing.of_block(task, files, first, first + count)
        docs = files.columns(docs_file).hold("key", "source", "num_bytes")
        table = _Table(docs, lengths, fate, new_split, of_mix)
        table.count(stages, split)
        ordinals = np.arange(first, first + count, dtype=np.uint64)
        for stream in settings.streams:
            places = places_of(table.docs, fate, new_split, of_mix, stream, settings)
            _count_choice(table, stream, places, stages["shuffle"])
            chosen, phase = _copies_of(places)
            keys = _order_keys(table, places, chosen, phase, settings, ordinals, task.args["total"])
            if stream.name in of_mix.borders:
                _count_phases(table, chosen, phase, phases.setdefault(stream.name, []), settings)
            part = np.empty(len(chosen), RECORD)
            part["key"], part["block"], part["start"] = keys, number, starts[chosen]
            part["length"], part["ordinal"] = lengths[chosen], ordinals[chosen]
            records[stream.name].append(part)
        advance(count)
    edges = _bucket_edges(task.args["buckets"], task.args["total"], settings)
    name = task.outputs[0][1]
    streams: dict[str, tuple[Records, npt.NDArray[Any]]] = {}
    for stream_name, parts in records.items():
        in_order, _ = order_records.ordered(parts, RECORD)
        bounds = np.concatenate([np.searchsorted(in_order["key"], edges), [len(in_order)]])
        streams[stream_name] = (in_order, bounds)
    order_records.write(files, name, streams, 0)
    extra: dict[str, Any] = {"stages": {name: counts.to_json() for name, counts in stages.items()}}
    return Counts(extra=extra | ({"phases": phases} if phases else {}))


def _bucket_edges(num_buckets: int, total: int, settings: StreamSettings) -> npt.NDArray[np.uint64]:
    """Lower edge of each bucket; the first is 0."""
    phases = len(settings.settings.mix.phases)
    span = 2**64 if settings.settings.shuffle != "none" else max(1, total * phases)
    return np.array([i * span // num_buckets for i in range(num_buckets)], np.uint64)


class _Table(msgspec.Struct):
    """One block's documents with their fates."""

    docs: Columns
    lengths: npt.NDArray[np.uint32]
    fate: npt.NDArray[np.uint8]
    split: npt.NDArray[np.uint8]
    of_mix: BlockMix

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
                    stages["holdout"].add(read_split, source, f"drop:{MOVED}{split}", documents, size)
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


def _copies_of(places: StreamPlaces) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of the documents in a stream, repeated where the mix repeats them, and the phase of each, (m,)."""
    by_phase = places.by_phase[places.member]
    return np.repeat(places.candidates[places.member], by_phase.sum(axis=1)), mix_plan.phases_of(by_phase)


def _order_keys(
    table: _Table,
    places: StreamPlaces,
    chosen: npt.NDArray[np.int64],
    phase: npt.NDArray[np.int64],
    settings: StreamSettings,
    ordinals: npt.NDArray[np.uint64],
    total: int,
) -> npt.NDArray[np.uint64]:
    """What the documents of a stream are ordered by, (m,). total: documents of all blocks."""
    s = settings.settings
    if s.shuffle == "none":
        return ordinals[chosen] + phase.astype(np.uint64) * np.uint64(total)
    copies = places.copies[places.member]
    ends = s.mix.ends if places.by_phase.shape[1] > 1 else (1.0,)
    return mix_plan.order_keys(table.docs["key"][chosen], copies, phase, ends, s.seed)


def _count_phases(
    table: _Table,
    chosen: npt.NDArray[np.int64],
    phase: npt.NDArray[np.int64],
    counted: list[dict[str, tuple[int, int]]],
    settings: StreamSettings,
) -> None:
    """Add documents and tokens of one block by phase and source."""
    sources = table.docs.meta["sources"]
    codes = table.docs["source"][chosen].astype(np.int64)
    tokens = table.lengths[chosen].astype(np.int64) + 1
    for number in range(len(settings.settings.mix.phases)):
        if len(counted) <= number:
            counted.append({})
        is_here = phase == number
        documents = np.bincount(codes[is_here], minlength=len(sources))
        sums = np.bincount(codes[is_here], tokens[is_here], len(sources)).astype(np.int64)
        for code in np.flatnonzero(documents).tolist():
            before = counted[number].get(sources[code], (0, 0))
            counted[number][sources[code]] = (before[0] + int(documents[code]), before[1] + int(sums[code]))


def _count_choice(table: _Table, stream: Stream, places: StreamPlaces, counts: Counts) -> None:
    """Ledger of one stream. Its split is written "SET/SPLIT": there may be several sets."""
    sources = table.docs.meta["sources"]
    code = table.docs["source"].astype(np.int64)
    num_bytes, tokens = (
        table.docs["num_bytes"].astype(np.int64),
        table.lengths.astype(np.int64) + 1,
    )
    split = f"{stream.set_index}/{stream.split}"
    member, copies = places.member, places.copies
    more = np.where(member, np.maximum(copies - 1, 0), 0)
    cells = [
        ("in", places.candidates),
        ("drop:in_other_set", places.candidates[~member]),
        ("drop:left_out_by_mix", places.candidates[member & (copies == 0)]),
        ("out", np.repeat(places.candidates[member], copies[member])),
    ]
    for number in np.unique(places.reason[more > 0]).tolist():
        repeated = np.where(places.reason == number, more, 0)
        cells.append((f"add:{places.reasons[number]}", np.repeat(places.candidates, repeated)))
    for cell, rows in cells:
        documents, size, count = (
            np.bincount(code[rows], w, len(sources)).astype(np.int64)
            for w in (None, num_bytes[rows], tokens[rows])
        )
        for index in np.flatnonzero(documents).tolist():
            counts.add(
                split, sources[index], cell, int(documents[index]), int(size[index]), int(count[index])
            )
