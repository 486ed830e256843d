"""Tokens sent from their blocks straight to the shards whose rows they fill, where they do not fit in memory (the page cache).

A row's tokens stand anywhere among the blocks, as documents are shuffled and so are samples. Which rows a document has a part in
follows from its place in the stream, which the index tells (stages/shuffle.py). So tokens are not put into the stream's order
first: each document is cut where rows begin, and each piece moves once to where it belongs.

    pack.places     buckets of the streams' indices    -> the places of documents, by group of blocks
    pack.pieces     a group of blocks                  -> pieces of rows, by shard
    pack.pieces-2   a range of shards, out of many     -> the same, of that range (by_group.py)

All reads are long: a group is as many blocks as memory holds, and by_group.py moves places and pieces in passes, as many as the
logarithm of the corpus, until a group finds its places and a shard its pieces in few files. How they are cut into files follows
from the memory; what a shard finds does not.

    pack/groups.json              the first block of each group, and their number
    pack/places/STREAM-NUMBER.cols   tables named after streams: PLACE each, by group (from 1)
    pack/pieces/GROUP-NUMBER.cols    tables `pieces`: PIECE each, and `tokens`, by shard: those of all splits and lengths are
                                  numbered through, from 1
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from btlm_data import by_group
from btlm_data.advance import advance
from btlm_data.engine.runner import Runner
from btlm_data.errors import DataError
from btlm_data.estimate import Estimate, Workload
from btlm_data.formats.shard_formats import get_format
from btlm_data.formats.shard_formats.base import PIECE, PackedFile, Packing, StreamSize
from btlm_data.formats.shard_formats.in_memory import PackedColumns
from btlm_data.stages.pack import FormatSettings, PackedSet, SampleSet, StreamSource, prepared_streams
from btlm_data.storage import digest, page_cache
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 1
# A document in a stream. offset: of its first token; block, start: where its tokens are; length: without its EOS.
PLACE = np.dtype([("offset", "<u8"), ("start", "<u8"), ("block", "<u4"), ("length", "<u4")])
_TABLE_READ = 64 * 1024  # bytes of places that a group reads of one file, on average
LEAST_PIECE = 2**20  # bytes that a shard reads of one file, on average
Places = npt.NDArray[np.void]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Target:
    """Rows to which documents of a stream go. first_group: of the first shard."""

    stream: str
    first_group: int
    size: StreamSize
    packing: Packing

    def to_json(self) -> list[Any]:
        return [self.stream, self.first_group, list(self.size), self.packing.to_json()]

    @staticmethod
    def from_json(value: Sequence[Any]) -> _Target:
        stream, first_group, size, packing = value
        return _Target(stream, first_group, StreamSize(*size), Packing.from_json(packing))


def are_needed(settings: FormatSettings, source: StreamSource) -> bool:
    """Whether shards are put together of pieces."""
    token_bytes = sum(block.tokens.size for block in source.blocks)
    return settings.shard_format.takes_pieces and not page_cache.fits(token_bytes)


def run_bytes_of(memory: int) -> int:
    """Bytes of tokens that one task sends to their shards at a time; it holds them once. memory: of one worker."""
    return max(1, memory * 2 // 5)


def estimate(workload: Workload) -> list[Estimate]:
    """What sending all tokens takes; nothing where they fit in memory."""
    rates, stream = workload.rates, workload.stream
    memory, shard_format = workload.run.memory_per_worker, get_format(workload.settings.format)
    token_bytes = volume_bytes(workload)
    if not shard_format.takes_pieces or page_cache.fits(token_bytes):
        return []
    run_bytes = run_bytes_of(memory)
    groups = max(1, min(workload.blocks, -(-token_bytes // run_bytes)))
    place_bytes = PLACE.itemsize * stream.documents
    place_tasks = max(1, -(-place_bytes // by_group.file_bytes_of(memory)))
    moved_places, place_files = by_group.estimates(
        rates, "pack.places", place_tasks, place_bytes, groups, memory, _most_files(place_bytes, groups)
    )
    piece_bytes, piece_files, moved_pieces, _ = _sending(workload)
    return [
        Estimate(
            "pack.places",
            tasks=place_tasks,
            documents=stream.documents,
            read_bytes=32 * stream.documents,
            reads=4 * place_tasks,
            work_bytes=place_bytes,
            memory_bytes=rates.process_bytes + 4 * by_group.file_bytes_of(memory),
            cpu_seconds=place_tasks * rates.task + stream.documents * rates.order_document,
        ),
        *moved_places,
        Estimate(
            "pack.pieces",
            tasks=groups,
            documents=stream.documents,
            read_bytes=token_bytes + place_bytes,
            reads=workload.blocks + 3 * groups * place_files,
            work_bytes=piece_bytes,
            memory_bytes=rates.process_bytes + max(run_bytes, piece_bytes // piece_files) * 5 // 4,
            cpu_seconds=groups * rates.task + piece_bytes * rates.pack_byte,
        ),
        *moved_pieces,
    ]


class _Sending(NamedTuple):
    """What pieces come to. files: that `pack.pieces` writes; moved: the passes after it; read: files that a shard reads then."""

    num_bytes: int
    files: int
    moved: list[Estimate]
    read: int


def _sending(workload: Workload) -> _Sending:
    memory, shard_format = workload.run.memory_per_worker, get_format(workload.settings.format)
    prepared, run_bytes = prepared_streams(workload), run_bytes_of(memory)
    token_bytes = volume_bytes(workload)
    num_bytes = sum(shard_format.packed_bytes(size, packing) for size, packing in prepared)
    shards = sum(shard_format.plan(size, packing, ()).num_files for size, packing in prepared)
    files = max(1, min(workload.blocks, -(-max(num_bytes, token_bytes) // run_bytes)))
    moved, read = by_group.estimates(
        workload.rates, "pack.pieces", files, num_bytes, shards, memory, most_files(num_bytes, shards)
    )
    return _Sending(num_bytes, files, moved, read)


def volume_bytes(workload: Workload) -> int:
    """Of the tokens in all blocks."""
    return workload.volume.tokens * workload.token_bytes


def reads_of_shard(workload: Workload) -> int:
    """Reads that writing one shard makes: of each file two tables, and where they begin."""
    return 4 * _sending(workload).read


def packed(
    runner: Runner, sample_sets: Sequence[SampleSet], settings: FormatSettings, source: StreamSource
) -> dict[str, PackedSet]:
    """The pieces of every split, by its folder."""
    memory, first_group = source.memory_per_worker, 1
    targets: list[_Target] = []
    num_shards: list[int] = []
    for sample_set in sample_sets:
        plan = settings.shard_format.plan(sample_set.size, sample_set.packing, ())
        targets.append(
            _Target(sample_set.index.stream.name, first_group, sample_set.size, sample_set.packing)
        )
        num_shards.append(plan.num_files)
        first_group += plan.num_files
    edges = _groups_of(source)
    placing = _plan_places(runner, sample_sets, edges, source)
    places = _gathered(
        runner, placing, len(edges) - 1, memory, lambda size: _most_files(size, len(edges) - 1)
    )
    cutting = _plan_cut(targets, edges, places, settings, source)
    pieces = _gathered(
        runner, cutting, first_group - 1, memory, lambda size: most_files(size, first_group - 1)
    )
    return {
        sample_set.folder: PackedSet((pieces,), (), target.first_group)
        for sample_set, target in zip(sample_sets, targets, strict=True)
    }


def of_shard(files: TaskFiles, listed: Artifact, group: int) -> list[PackedFile]:
    """The pieces of one shard. listed: list of files (by_group.py). Raises DataError if there are none."""
    having: list[PackedFile] = [
        PackedColumns(piece.tables) for piece in by_group.of_group(files, listed, group, ("pieces", "tokens"))
    ]
    if not having:
        raise DataError(f"There are no pieces of shard {group} in {listed.name}. Rerun the same command.")
    return having


def _most_files(num_bytes: int, groups: int) -> int:
    """Files that a group looks into for its places: as many as still give it long reads."""
    return min(by_group.MOST_INPUTS, max(by_group.MOST_FILES, num_bytes // max(1, groups) // _TABLE_READ))


def most_files(num_bytes: int, shards: int) -> int:
    """Files that a shard looks into for its pieces."""
    return max(2, num_bytes // max(1, shards) // LEAST_PIECE)


def _gathered(runner: Runner, step: Step, num_groups: int, memory: int, most: Any) -> Artifact:
    """Run a step that writes by group, put together what belongs to a group; returns the list of files."""
    written = [artifact for result in runner.run(step) for artifact in result.outputs]
    size = sum(artifact.size for artifact in written)
    held = by_group.gathered(runner, step.name, written, num_groups, memory, most_files=most(size))
    runner.named.add(name := f"{step.folder}.json")
    return by_group.write_list(runner.stores.work, name, held)


def _groups_of(source: StreamSource) -> list[int]:
    """The first block of each group, and the number of blocks: as many together as memory holds, in tokens."""
    most, held, edges = run_bytes_of(source.memory_per_worker), 0, [0]
    for number, block in enumerate(source.blocks):
        if held and held + block.tokens.size > most:
            edges.append(number)
            held = 0
        held += block.tokens.size
    return [*edges, len(source.blocks)]


def _plan_places(
    runner: Runner, sample_sets: Sequence[SampleSet], edges: Sequence[int], source: StreamSource
) -> Step:
    """A task per several buckets of a stream."""
    runner.named.add(name := "pack/groups.json")
    data = (json.dumps(edges, separators=(",", ":")) + "\n").encode()
    runner.stores.work.write(name, data, durable=False)
    groups = Artifact(name, len(data), digest.checksum(data))
    indices = {sample_set.index.stream.name: sample_set.index for sample_set in sample_sets}
    tasks: list[Task] = []
    most = max(1, by_group.file_bytes_of(source.memory_per_worker) // PLACE.itemsize)
    for stream, index in indices.items():
        chosen: list[int] = []
        held, batches = 0, [chosen]
        for number, bucket in enumerate(index.buckets):
            if chosen and (held + bucket.num_documents > most or len(chosen) >= by_group.MOST_INPUTS):
                batches.append(chosen := [])
                held = 0
            chosen.append(number)
            held += bucket.num_documents
        for batch in batches:
            buckets = [index.buckets[number] for number in batch]
            tasks.append(
                Task(
                    id=f"{stream}-{len(tasks):06d}",
                    args={
                        "stream": stream,
                        "streams": list(indices),
                        "starts": [bucket.start for bucket in buckets],
                    },
                    inputs=[source.lineage],
                    reads={"groups": [groups], "index": [bucket.file for bucket in buckets]},
                    outputs=[("work", f"pack/places/{stream}-{len(tasks):06d}.cols")],
                    weight=max(1, sum(bucket.num_documents for bucket in buckets)),
                )
            )
    return Step("pack.places", VERSION, place, tasks, None, "", "doc")


def place(task: Task, settings: None, files: TaskFiles) -> Counts:
    """Where the documents of some buckets stand, by group of their blocks."""
    edges = json.loads(files.read(task.reads["groups"][0]))
    parts = [np.empty(0, PLACE)]
    for start, file in zip(task.args["starts"], task.reads["index"], strict=True):
        index = files.columns(file)
        part = np.empty(index.shape("block")[0], PLACE)
        for name in ("start", "block", "length"):
            part[name] = index[name]
        part["offset"] = index["offset"] + np.uint64(start)
        parts.append(part)
    records = np.concatenate(parts)
    groups = np.searchsorted(edges, records["block"], side="right").astype(np.uint32)
    nothing = np.empty(0, PLACE), np.empty(0, np.uint32)
    tables = dict.fromkeys(task.args["streams"], nothing) | {task.args["stream"]: (records, groups)}
    by_group.write(files, task.outputs[0][1], [by_group.piece_of(tables)])
    advance(task.weight)
    return Counts()


def _plan_cut(
    targets: Sequence[_Target],
    edges: Sequence[int],
    places: Artifact,
    settings: FormatSettings,
    source: StreamSource,
) -> Step:
    """A task per group of blocks."""
    described = [target.to_json() for target in targets]
    tasks = []
    for number, (first, last) in enumerate(pairwise(edges)):
        blocks = source.blocks[first:last]
        tasks.append(
            Task(
                id=f"{number:06d}",
                args={"group": number + 1, "first": first, "targets": described},
                inputs=[source.lineage],
                reads={"tokens": [block.tokens for block in blocks]},
                through={"places": [places]},
                weight=max(1, sum(block.tokens.size for block in blocks)),
                hints={"bytes": run_bytes_of(source.memory_per_worker)},
            )
        )
    return Step("pack.pieces", VERSION, send, tasks, settings, settings.digest, "B")


def send(task: Task, settings: FormatSettings, files: TaskFiles) -> Counts:
    """Cut the documents of a group of blocks, and put their pieces together by shard."""
    targets = [_Target.from_json(value) for value in task.args["targets"]]
    first, tokens = task.args["first"], task.reads["tokens"]
    streams = list(dict.fromkeys(target.stream for target in targets))
    parts: dict[str, list[Places]] = {stream: [np.empty(0, PLACE)] for stream in streams}
    for piece in by_group.of_group(files, task.through["places"][0], task.args["group"], streams):
        for stream in streams:
            parts[stream].append(by_group.as_records(piece.tables[stream], PLACE))
    places: dict[str, Places] = {}
    num_bytes = np.zeros(len(tokens), np.int64)
    for stream in streams:
        joined = np.concatenate(parts.pop(stream))
        if len(joined) and not first <= joined["block"].min() <= joined["block"].max() < first + len(tokens):
            raise DataError(f"Places of documents of stream {stream} are in blocks of another group.")
        places[stream] = joined[np.argsort(joined["block"], kind="stable")]
        for target in targets:
            if target.stream == stream:
                size = np.dtype(target.packing.dtype).itemsize * (joined["length"].astype(np.int64) + 1)
                num_bytes += np.bincount(joined["block"] - first, size, len(tokens)).astype(np.int64)
    for number, (low, high) in enumerate(_together(num_bytes, task.hints["bytes"])):
        name = f"pack/pieces/{task.id}-{number:04d}.cols"
        _send_blocks(files, name, tokens[low:high], first + low, targets, places, settings)
        advance(sum(file.size for file in tokens[low:high]))
    return Counts()


def _together(num_bytes: Int64Array, most: int) -> Iterator[tuple[int, int]]:
    """Blocks [low, high) after each other, of so many bytes together at most."""
    low, held = 0, 0
    for high, size in enumerate(num_bytes.tolist()):
        if high > low and held + size > most:
            yield low, high
            low, held = high, 0
        held += size
    if len(num_bytes) > low:
        yield low, len(num_bytes)


def _send_blocks(
    files: TaskFiles,
    name: str,
    tokens: Sequence[Artifact],
    first: int,
    targets: Sequence[_Target],
    places: Mapping[str, Places],
    settings: FormatSettings,
) -> None:
    """Write the pieces of some blocks, from number `first` on, by shard. places: by stream, in the order of blocks."""
    from btlm_data.kernels.packing import place_documents

    documents, piece_tables, groups, blocks, starts = [], [], [], [], []
    for target in targets:
        chosen = places[target.stream]
        low, high = np.searchsorted(chosen["block"], [first, first + len(tokens)])
        chosen = chosen[low:high]
        offset, length = (chosen[field].astype(np.int64) for field in ("offset", "length"))
        cut = settings.shard_format.pieces(offset, length, target.size, target.packing)
        table = np.empty(len(cut.row), PIECE)
        table["row"], table["column"], table["length"] = cut.row, cut.column, cut.length
        rows_per_file = settings.shard_format.plan(target.size, target.packing, ()).rows_per_file
        piece_tables.append(table)
        groups.append(target.first_group + cut.row // rows_per_file)
        documents.append(chosen[cut.document])
        blocks.append(chosen["block"][cut.document].astype(np.int64))
        starts.append(cut.start)
    piece_groups = np.concatenate(groups)
    if not len(piece_groups):
        return
    table = np.concatenate(piece_tables)
    order = np.lexsort((table["row"], piece_groups))
    ordered, ordered_groups = table[order], piece_groups[order]
    ends = np.cumsum(ordered["length"], dtype=np.int64)
    out_starts = np.empty(len(order), np.int64)
    out_starts[order] = ends - ordered["length"]
    out = np.empty(int(ends[-1]), targets[0].packing.dtype)
    edges = np.cumsum([0, *map(len, groups)])
    for number, file in enumerate(tokens, start=first):
        block_tokens = files.columns(file)["tokens"]
        for (begin, _), in_target, of_blocks, skipped in zip(
            pairwise(edges), documents, blocks, starts, strict=True
        ):
            low, high = np.searchsorted(of_blocks, [number, number + 1])
            if low < high:
                chosen = in_target[low:high]
                to = out_starts[begin + low : begin + high]
                stop = to + table["length"][begin + low : begin + high]
                source_start, length = (chosen[field].astype(np.int64) for field in ("start", "length"))
                place_documents(
                    block_tokens,
                    source_start,
                    length,
                    to - skipped[low:high],
                    out,
                    targets[0].packing.eos_id,
                    to,
                    stop,
                )
    present, begins = np.unique(ordered_groups, return_index=True)
    rows = np.append(begins, len(ordered)).astype(np.int64)
    token_bounds = np.concatenate([[0], ends])[rows] * out.itemsize
    bounds = np.stack([rows * PIECE.itemsize, token_bounds], axis=1)
    tables = {"pieces": ordered.view(np.uint8), "tokens": out.view(np.uint8)}
    by_group.write_tables(files, name, present.astype(np.uint32), bounds, tables)
