"""Tokens sent from their blocks straight to the shards whose rows they fill, where they do not fit in memory (the page cache).

A row's tokens stand anywhere among the blocks, as documents are shuffled and so are samples. Which rows a document has a part in
follows from its place in the stream, which the index tells (stages/shuffle.py), or
from how a stretch of the stream was packed (stages/pack.py). So tokens are not put into the stream's order
first: each document is cut where rows begin, and each piece moves once to where it belongs.

    pack.places     buckets of the streams' indices, or  -> places of documents, or of what was packed, by group of blocks
                    packed stretches (pack.py)
    pack.pieces     a group of blocks                    -> pieces of rows, by shard
    pack.pieces-2   a range of shards, out of many       -> the same, of that range (by_group.py)

All reads are long: a group is as many blocks as memory holds, and by_group.py moves places and pieces in passes, as many as the
logarithm of the corpus, until a group finds its places and a shard its pieces in few files. How they are cut into files follows
from the memory; what a shard finds does not.

    pack/groups.json              the first block of each group, and their number
    pack/rows-SPLIT.json          how many rows each packed stretch of a split fills
    pack/places/NAME-NUMBER.cols  tables named after streams: PLACE each; or after splits: PACKED_PLACE each; by group (from 1)
    pack/pieces/GROUP-NUMBER.cols tables `pieces`: PIECE each, and `tokens`, by shard: those of all splits and lengths are
                                  numbered through, from 1. A shard's pieces stand before its tokens, and are read with them
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
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

VERSION = 2
# A document in a stream. offset: of its first token; block, start: where its tokens are; length: without its EOS.
PLACE = np.dtype([("offset", "<u8"), ("start", "<u8"), ("block", "<u4"), ("length", "<u4")])
# A piece that was packed. length: tokens of the document; one more belongs to it: its EOS where `ends`, else its next token.
PACKED_PLACE = np.dtype(
    [
        ("start", "<u8"),
        ("row", "<u8"),
        ("block", "<u4"),
        ("length", "<u4"),
        ("column", "<u4"),
        ("ends", "<u4"),
    ]
)
_TABLE_READ = 64 * 1024  # bytes of places that a group reads of one file, on average
_TABLES = ("pieces", "tokens")
LEAST_PIECE = 2**20  # bytes that a shard reads of one file, on average
Places = npt.NDArray[np.void]
Int64Array = npt.NDArray[np.int64]


class _Target(msgspec.Struct, frozen=True):
    """A split to whose rows documents go. table: of their places; first_group: of the first shard; rows_per_file: of a shard."""

    table: str
    first_group: int
    rows_per_file: int
    size: StreamSize
    packing: Packing

    def to_json(self) -> list[Any]:
        return [self.table, self.first_group, self.rows_per_file, list(self.size), self.packing.to_json()]

    @staticmethod
    def from_json(value: Sequence[Any]) -> _Target:
        table, first_group, rows_per_file, size, packing = value
        return _Target(table, first_group, rows_per_file, StreamSize(*size), Packing.from_json(packing))


def are_needed(source: StreamSource) -> bool:
    """Whether shards are put together of pieces."""
    return not page_cache.fits(sum(block.tokens.size for block in source.blocks))


def run_bytes_of(memory: int) -> int:
    """Bytes of tokens that one task sends to their shards at a time; it holds them once. memory: of one worker."""
    return max(1, memory * 2 // 5)


def estimate(workload: Workload) -> list[Estimate]:
    """What sending all tokens takes; nothing where they fit in memory."""
    rates, stream, memory = workload.rates, workload.stream, workload.run.memory_per_worker
    token_bytes = _volume_bytes(workload)
    if page_cache.fits(token_bytes):
        return []
    shard_format, run_bytes = get_format(workload.settings.format), run_bytes_of(memory)
    groups = max(1, min(workload.blocks, -(-token_bytes // run_bytes)))
    place_bytes, place_reads = PLACE.itemsize * stream.documents, 32 * stream.documents
    if shard_format.plans_by_packing:
        num_pieces = sum(shard_format.num_pieces(*prepared) for prepared in prepared_streams(workload))
        place_bytes, place_reads = PACKED_PLACE.itemsize * num_pieces, 21 * num_pieces
    place_tasks = max(1, -(-place_bytes // by_group.file_bytes_of(memory)))
    moved_places, place_files = by_group.estimates(
        rates, "pack.places", place_tasks, place_bytes, groups, memory, _files_of_group(place_bytes, groups)
    )
    piece_bytes, piece_files, moved_pieces, _ = _sending(workload)
    return [
        Estimate(
            "pack.places",
            tasks=place_tasks,
            documents=stream.documents,
            read_bytes=place_reads,
            reads=place_tasks,
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
            reads=workload.blocks + 2 * groups * place_files,
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
    token_bytes = _volume_bytes(workload)
    num_bytes = shards = 0
    for size, packing in prepared:
        rows = [-(-size.tokens // packing.seq_len)] if shard_format.plans_by_packing else []
        shards += shard_format.plan(size, packing, rows).num_files
        # A token more for each piece: rows have one in common, or a label behind them.
        each = PIECE.itemsize + workload.token_bytes
        num_bytes += size.tokens * workload.token_bytes + shard_format.num_pieces(size, packing) * each
    files = max(1, min(workload.blocks, -(-max(num_bytes, token_bytes) // run_bytes)))
    moved, read = by_group.estimates(
        workload.rates, "pack.pieces", files, num_bytes, shards, memory, _files_of_shard(num_bytes, shards)
    )
    return _Sending(num_bytes, files, moved, read)


def _volume_bytes(workload: Workload) -> int:
    """Of the tokens in all blocks."""
    return workload.volume.tokens * workload.token_bytes


def reads_of_shard(workload: Workload) -> int:
    """Reads that writing one shard makes: of each file its rows, and where they begin."""
    return 2 * _sending(workload).read


def sent(
    runner: Runner,
    sample_sets: Sequence[SampleSet],
    packed: Mapping[str, PackedSet],
    settings: FormatSettings,
    source: StreamSource,
) -> dict[str, PackedSet]:
    """Send the pieces of every split to its shards. packed: what was packed of each, by folder; so is the result."""
    memory, first_group = source.memory_per_worker, 1
    targets: dict[str, _Target] = {}
    for sample_set in sample_sets:
        rows = packed[sample_set.folder].rows
        plan = settings.shard_format.plan(sample_set.size, sample_set.packing, rows)
        by_packing = settings.shard_format.plans_by_packing
        table = sample_set.name if by_packing else sample_set.index.stream.name
        targets[sample_set.folder] = _Target(
            table, first_group, plan.rows_per_file, sample_set.size, sample_set.packing
        )
        first_group += plan.num_files
    edges = _groups_of(source)
    groups = _written(runner, "pack/groups.json", edges)
    if settings.shard_format.plans_by_packing:
        placing = _plan_packed_places(runner, sample_sets, packed, groups, settings, source)
    else:
        placing = _plan_places(sample_sets, groups, source)
    places = _gathered(
        runner, placing, len(edges) - 1, memory, lambda size: _files_of_group(size, len(edges) - 1)
    )
    sending = _plan_send([*targets.values()], edges, places, settings, source)
    pieces = _gathered(
        runner, sending, first_group - 1, memory, lambda size: _files_of_shard(size, first_group - 1)
    )
    return {
        folder: packed[folder]._replace(files=(), sent=pieces, first_group=target.first_group)
        for folder, target in targets.items()
    }


def of_shard(files: TaskFiles, listed: Artifact, group: int) -> Iterator[PackedFile]:
    """The pieces of one shard, file by file. listed: list of files (by_group.py). Raises DataError if there are none."""
    piece = None
    for piece in by_group.of_group(files, listed, group):
        yield PackedColumns(dict(zip(_TABLES, piece.of(*_TABLES), strict=True)))
    if piece is None:
        raise DataError(f"There are no pieces of shard {group} in {listed.name}. Rerun the same command.")


def _files_of_group(num_bytes: int, groups: int) -> int:
    """Files that a group looks into for its places: as many as still give it long reads."""
    return min(by_group.MOST_INPUTS, max(by_group.MOST_FILES, num_bytes // max(1, groups) // _TABLE_READ))


def _files_of_shard(num_bytes: int, shards: int) -> int:
    """Files that a shard looks into for its pieces."""
    return max(2, num_bytes // max(1, shards) // LEAST_PIECE)


def _gathered(
    runner: Runner, step: Step, num_groups: int, memory: int, most: Callable[[int], int]
) -> Artifact:
    """Run a step that writes by group, put together what belongs to a group; returns the list of files. most: files that a group may
    look into, by the bytes of all of them.
    """
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


def _written(runner: Runner, name: str, values: Sequence[int]) -> Artifact:
    """A list of numbers that many tasks read."""
    runner.named.add(name)
    data = (json.dumps(values, separators=(",", ":")) + "\n").encode()
    runner.stores.work.write(name, data, durable=False)
    return Artifact(name, len(data), digest.checksum(data))


def _plan_places(sample_sets: Sequence[SampleSet], groups: Artifact, source: StreamSource) -> Step:
    """A task per several buckets of a stream."""
    indices = {sample_set.index.stream.name: sample_set.index for sample_set in sample_sets}
    most = max(1, by_group.file_bytes_of(source.memory_per_worker) // PLACE.itemsize)
    tasks: list[Task] = []
    for stream, index in indices.items():
        for low, high in _together([bucket.num_documents for bucket in index.buckets], most):
            buckets = index.buckets[low:high]
            tasks.append(
                Task(
                    id=f"{stream}-{len(tasks):06d}",
                    args={
                        "table": stream,
                        "tables": list(indices),
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
    parts = [np.empty(0, PLACE)]
    for start, file in zip(task.args["starts"], task.reads["index"], strict=True):
        index = files.columns(file).hold("block", "start", "length", "offset")
        part = np.empty(index.shape("block")[0], PLACE)
        for name in ("start", "block", "length"):
            part[name] = index[name]
        part["offset"] = index["offset"] + np.uint64(start)
        parts.append(part)
    return _write_places(task, files, np.concatenate(parts))


def _plan_packed_places(
    runner: Runner,
    sample_sets: Sequence[SampleSet],
    packed: Mapping[str, PackedSet],
    groups: Artifact,
    settings: FormatSettings,
    source: StreamSource,
) -> Step:
    """A task per several packed stretches of a split."""
    most, tasks = by_group.file_bytes_of(source.memory_per_worker), list[Task]()
    for sample_set in sample_sets:
        name, packed_set = sample_set.name, packed[sample_set.folder]
        rows = _written(runner, f"pack/rows-{name}.json", packed_set.rows)
        for low, high in _together([2 * file.size for file in packed_set.files], most):
            chosen = packed_set.files[low:high]
            tasks.append(
                Task(
                    id=f"{name}-{len(tasks):06d}",
                    args={
                        "table": name,
                        "tables": [each.name for each in sample_sets],
                        "first": low,
                        "size": list(sample_set.size),
                        "packing": sample_set.packing.to_json(),
                    },
                    inputs=[source.lineage],
                    reads={"groups": [groups], "rows": [rows], "packed": chosen},
                    outputs=[("work", f"pack/places/{name}-{len(tasks):06d}.cols")],
                    weight=max(1, sum(file.size for file in chosen)),
                )
            )
    return Step("pack.places", VERSION, place_packed, tasks, settings, settings.digest, "B")


def place_packed(task: Task, settings: FormatSettings, files: TaskFiles) -> Counts:
    """Where what was packed of some stretches stands, by group of its blocks."""
    size, packing = StreamSize(*task.args["size"]), Packing.from_json(task.args["packing"])
    rows = json.loads(files.read(task.reads["rows"][0]))
    parts = [np.empty(0, PACKED_PLACE)]
    for number, file in enumerate(task.reads["packed"], start=task.args["first"]):
        pieces = settings.shard_format.packed_pieces(files.columns(file), number, size, packing, rows)
        part = np.empty(len(pieces.row), PACKED_PLACE)
        for name in pieces._fields:
            part[name] = getattr(pieces, name)
        parts.append(part)
    return _write_places(task, files, np.concatenate(parts))


def _write_places(task: Task, files: TaskFiles, records: Places) -> Counts:
    """Write one file, with a table of these records and others that are empty."""
    edges = json.loads(files.read(task.reads["groups"][0]))
    groups = np.searchsorted(edges, records["block"], side="right").astype(np.uint32)
    nothing = np.empty(0, records.dtype), np.empty(0, np.uint32)
    tables = dict.fromkeys(task.args["tables"], nothing) | {task.args["table"]: (records, groups)}
    by_group.write(files, task.outputs[0][1], [by_group.piece_of(tables)])
    advance(task.weight)
    return Counts()


def _plan_send(
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
    dtype = PACKED_PLACE if settings.shard_format.plans_by_packing else PLACE
    tables = list(dict.fromkeys(target.table for target in targets))
    parts: dict[str, list[Places]] = {table: [np.empty(0, dtype)] for table in tables}
    for piece in by_group.of_group(files, task.through["places"][0], task.args["group"]):
        for table, records in zip(tables, piece.of(*tables), strict=True):
            parts[table].append(by_group.as_records(records, dtype))
    places: dict[str, Places] = {}
    num_bytes = np.zeros(len(tokens), np.int64)
    for table in tables:
        joined = np.concatenate(parts.pop(table))
        if len(joined) and not first <= joined["block"].min() <= joined["block"].max() < first + len(tokens):
            raise DataError(
                f"Places of {table} are in blocks of another group. Remove the work folder and rerun the same command."
            )
        places[table] = joined[np.argsort(joined["block"], kind="stable")]
        for target in targets:
            if target.table == table:
                size = np.dtype(target.packing.dtype).itemsize * (joined["length"].astype(np.int64) + 1)
                num_bytes += np.bincount(joined["block"] - first, size, len(tokens)).astype(np.int64)
    for number, (low, high) in enumerate(_together(num_bytes.tolist(), task.hints["bytes"])):
        name = f"pack/pieces/{task.id}-{number:04d}.cols"
        _send_blocks(files, name, tokens[low:high], first + low, targets, places, settings)
        advance(sum(file.size for file in tokens[low:high]))
    return Counts()


def _together(sizes: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Items [low, high) after each other, of so much together at most, and by_group.MOST_INPUTS of them."""
    low, held = 0, 0
    for high, size in enumerate(sizes):
        if high > low and (held + size > most or high - low >= by_group.MOST_INPUTS):
            yield low, high
            low, held = high, 0
        held += size
    if len(sizes) > low:
        yield low, len(sizes)


class _Sent(NamedTuple):
    """Pieces of one target, each (p,) int64, in the order of blocks. start, length: of the document in its block; skipped: of its
    tokens, EOS included, before the piece; group: the shard.
    """

    block: Int64Array
    start: Int64Array
    length: Int64Array
    skipped: Int64Array
    group: Int64Array
    table: npt.NDArray[np.void]

    @staticmethod
    def of(places: Places, target: _Target, settings: FormatSettings) -> _Sent:
        """places: of documents, or of packed pieces."""
        block, start, length = (places[name].astype(np.int64) for name in ("block", "start", "length"))
        if settings.shard_format.plans_by_packing:
            row, column = places["row"].astype(np.int64), places["column"]
            count, skipped = length + 1, np.zeros(len(places), np.int64)
            length = length + (places["ends"] == 0)
        else:
            offset = places["offset"].astype(np.int64)
            cut = settings.shard_format.pieces(offset, length, target.size, target.packing)
            block, start, length = block[cut.document], start[cut.document], length[cut.document]
            row, column, count, skipped = cut.row, cut.column, cut.length, cut.start
        table = np.empty(len(row), PIECE)
        table["row"], table["column"], table["length"] = row, column, count
        group = target.first_group + row // target.rows_per_file
        return _Sent(block, start, length, skipped, group, table)


def _send_blocks(
    files: TaskFiles,
    name: str,
    tokens: Sequence[Artifact],
    first: int,
    targets: Sequence[_Target],
    places: Mapping[str, Places],
    settings: FormatSettings,
) -> None:
    """Write the pieces of some blocks, from number `first` on, by shard. places: by table, in the order of blocks."""
    from btlm_data.kernels.packing import place_documents

    parts: list[_Sent] = []
    for target in targets:
        chosen = places[target.table]
        low, high = np.searchsorted(chosen["block"], [first, first + len(tokens)])
        parts.append(_Sent.of(chosen[low:high], target, settings))
    groups, table = (np.concatenate([getattr(part, name) for part in parts]) for name in ("group", "table"))
    if not len(groups):
        return
    order = np.lexsort((table["row"], groups))
    ordered = table[order]
    present, rows = np.unique(groups[order], return_index=True)
    rows = np.append(rows, len(ordered)).astype(np.int64)
    ends = np.cumsum(ordered["length"], dtype=np.int64)
    packing = targets[0].packing
    item = np.dtype(packing.dtype).itemsize
    sizes = np.diff(np.stack([rows * PIECE.itemsize, np.append(0, ends)[rows] * item], axis=1), axis=0)
    bounds = by_group.bounds_of(sizes)
    out = np.empty(int(bounds[-1]) // item, packing.dtype)
    by_group.copy_table(
        ordered.view(np.uint8), rows[:-1] * PIECE.itemsize, sizes, bounds, 0, out.view(np.uint8)
    )
    # Of each piece: tokens, and the tables before them.
    begins = np.empty(len(order), np.int64)
    begins[order] = ends - ordered["length"] + np.repeat(rows[1:] * (PIECE.itemsize // item), np.diff(rows))
    edges = np.cumsum([0, *(len(part.group) for part in parts)])
    for number, file in enumerate(tokens, start=first):
        block_tokens = files.columns(file)["tokens"]
        for edge, part in zip(edges.tolist(), parts, strict=False):
            low, high = (int(row) for row in np.searchsorted(part.block, [number, number + 1]))
            to = begins[edge + low : edge + high]
            place_documents(
                block_tokens,
                part.start[low:high],
                part.length[low:high],
                to - part.skipped[low:high],
                out,
                packing.eos_id,
                to,
                to + part.table["length"][low:high],
            )
    piece = by_group.Piece(present.astype(np.uint32), _TABLES, bounds, out.view(np.uint8))
    by_group.write_piece(files, name, piece)
