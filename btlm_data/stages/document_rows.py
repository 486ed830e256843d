"""Rows of documents moved into the order of the streams, so that a stretch of documents.parquet is together
in few files.

A block holds documents from all over a stream. Asking every block for the documents of every stretch would be
as many reads as blocks times stretches; instead rows are moved, by an external radix
sort:

    shard.rows      a group of blocks             -> its rows of each stream, in the order of their keys
    [shard.rows-2   one range of buckets, out of as many files -> a file of that range; then -3, ...]

so that a task which makes documents.parquet reads pieces of PIECE_BYTES or more, out of `RowMoves.fanout`
files at most.

    shard/rows/GROUP.cols, shard/rows-N/STREAM-NUMBER.cols
        per stream s `s/records` (n, 72) uint8: ROW each, in the order of their keys, and for each kept field
        `s/NAME/data`, `s/NAME/ends`, `s/NAME/present` (formats/text_columns.py); meta: `first`, `edges` as in
        order_records.py, `names`: of each block its number, its files and its sources
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.advance import advance
from btlm_data.blocks import Block
from btlm_data.by_ordinal import ByOrdinal
from btlm_data.cleaning.signal_parameters import Kind
from btlm_data.engine.runner import Runner
from btlm_data.errors import DataError
from btlm_data.formats import text_columns
from btlm_data.formats.columns import Columns
from btlm_data.stages import order_records
from btlm_data.stages.order_records import RECORD
from btlm_data.stages.shuffle import GROUP_DOCUMENTS, ScatteredGroup
from btlm_data.stages.stream import StreamIndex
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 1
PIECE_BYTES = 64 * 1024  # of rows out of one file, that a task reads at least
LEAST_FANOUT = 16
HELD = 6  # times its bytes that a row takes while it is moved: read, put in order, written
# A document in a stream, and what documents.parquet says of it. block: its number; file, source: codes there.
ROW = np.dtype(
    [
        ("key", "<u8"),
        ("ordinal", "<u8"),
        ("line", "<u8"),
        ("offset", "<u8"),
        ("hash", "u1", (16,)),
        ("block", "<u4"),
        ("file", "<u4"),
        ("source", "<u4"),
        ("bytes", "<u4"),
        ("chars", "<u4"),
        ("copies", "<u4"),
    ]
)
Names = dict[int, tuple[list[str], list[str]]]  # block -> names of its files, and of its sources


class RowMoves(msgspec.Struct, frozen=True):
    """In what amounts rows are moved. group_documents: of one task. fanout: files that one task reads at most."""

    group_documents: int
    fanout: int

    @staticmethod
    def plan(documents: int, row_bytes: int, memory: int) -> RowMoves:
        """For so many documents in all. row_bytes: of one with its kept fields. memory: of one worker."""
        held = max(1, memory // 2 // (HELD * row_bytes))
        fanout = max(LEAST_FANOUT, held * row_bytes // PIECE_BYTES)
        return RowMoves(min(held, max(GROUP_DOCUMENTS, -(-documents // fanout))), fanout)

    def levels(self, documents: int) -> tuple[int, int]:
        """How often rows are moved before a task can read them in pieces that are long enough, and how many
        files then have rows of one bucket.
        """
        files, passes = max(1, -(-documents // self.group_documents)), 1
        while files > self.fanout:
            files, passes = -(-files // self.fanout), passes + 1
        return passes, files

    def together(self, documents: int, buckets: int, files: int, row_bytes: int) -> int:
        """Of how many buckets of a stream a task makes the tables. files: that have rows of them."""
        per_bucket = max(1, documents // max(1, buckets))
        wanted = -(-PIECE_BYTES * files // (per_bucket * row_bytes))
        return max(1, min(wanted, self.group_documents // per_bucket))


class RowFile(NamedTuple):
    """Rows of the buckets [first, last)."""

    file: Artifact
    first: int
    last: int

    def overlaps(self, buckets: range) -> bool:
        """Whether it has rows of some of these buckets."""
        return self.first < buckets.stop and buckets.start < self.last


class Sources(msgspec.Struct, frozen=True):
    """What rows are made from. blocks: of the run. groups: what `shuffle.scatter` made of them. copies: list of
    files with `copies` by ordinal (dedupe/clusters.py), None where nothing was deduplicated. kept: columns of the records' own
    fields and of signals that travel with their rows. signals: columns. memory: of one worker.
    """

    blocks: Sequence[Block]
    groups: Sequence[ScatteredGroup]
    copies: Artifact | None
    kept: Sequence[str]
    memory: int
    signals: Mapping[str, Kind]

    @property
    def num_documents(self) -> int:
        """Documents of all blocks."""
        return self.blocks[-1].last_ordinal if self.blocks else 0

    @property
    def row_bytes(self) -> int:
        """Of a row with its kept fields, on average."""
        fields = sum(
            file.size for block in self.blocks for file in (block.fields, block.signals) if file is not None
        )
        return ROW.itemsize + -(-fields // max(1, self.num_documents))

    @property
    def moves(self) -> RowMoves:
        """In what amounts rows are moved."""
        return RowMoves.plan(self.num_documents, self.row_bytes, self.memory)


def run(
    runner: Runner, sources: Sources, streams: Mapping[str, StreamIndex]
) -> tuple[dict[str, list[RowFile]], list[Step]]:
    """Move all rows; returns the files of each stream, and the steps whose files are no longer needed once
    these have been read.
    """
    num_buckets = max((len(index.buckets) for index in streams.values()), default=0)
    gathering = plan_gather(sources, list(streams), num_buckets)
    files = [RowFile(result.outputs[0], 0, num_buckets) for result in runner.run(gathering)]
    by_stream = dict.fromkeys(streams, files)
    steps = [gathering]
    while any(len(having) > sources.moves.fanout for having in _ranges(by_stream).values()):
        merging = _plan_merge(len(steps) + 1, by_stream, sources)
        merged = {
            task.id: result.outputs[0]
            for task, result in zip(merging.tasks, runner.run(merging), strict=True)
        }
        by_stream = _after(merging, merged, by_stream, sources.moves)
        steps.append(merging)
    return by_stream, steps


def plan_gather(sources: Sources, streams: Sequence[str], num_buckets: int) -> Step:
    """A task per several groups of `shuffle.scatter`, of about RowMoves.group_documents documents."""
    together: list[list[ScatteredGroup]] = []
    held = 0
    for group in sources.groups:
        count = sum(sources.blocks[i].num_documents for i in group.blocks)
        if not together or held + count > sources.moves.group_documents:
            together.append([])
            held = 0
        together[-1].append(group)
        held += count
    tasks = [
        _gather_task(number, chosen, sources, streams, num_buckets) for number, chosen in enumerate(together)
    ]
    return Step("shard.rows", VERSION, gather, tasks, None, "", "doc")


def _gather_task(
    number: int, chosen: Sequence[ScatteredGroup], sources: Sources, streams: Sequence[str], num_buckets: int
) -> Task:
    numbers = [i for group in chosen for i in group.blocks]
    blocks = [sources.blocks[i] for i in numbers]
    return Task(
        id=f"{number:06d}",
        args={
            "blocks": [[i, *block[:5]] for i, block in zip(numbers, blocks, strict=True)],
            "streams": list(streams),
            "buckets": num_buckets,
            "kept": list(sources.kept),
        },
        reads={
            "docs": [block.docs for block in blocks],
            "fields": [
                file for block in blocks for file in (block.fields, block.signals) if file is not None
            ],
            "records": [group.records for group in chosen],
            "copies": [sources.copies] if sources.copies is not None else [],
        },
        outputs=[("work", f"shard/rows/{number:06d}.cols")],
        weight=max(1, sum(block.num_documents for block in blocks)),
        hints={"blocks": blocks},
    )


def gather(task: Task, settings: None, files: TaskFiles) -> Counts:
    """The rows of one group of blocks, by stream."""
    blocks: Sequence[Block] = task.hints["blocks"]
    kept, num_buckets = task.args["kept"], task.args["buckets"]
    base, names = blocks[0].first_ordinal, Names()
    places = np.empty(blocks[-1].last_ordinal - base, ROW)
    texts: dict[str, list[Any]] = {name: [] for name in kept}
    for (number, *_), block in zip(task.args["blocks"], blocks, strict=True):
        docs = files.columns(block.docs)
        _fill(places[block.first_ordinal - base : block.last_ordinal - base], number, block, docs)
        names[number] = (docs.meta["files"], docs.meta["sources"])
        if kept:
            for name, column in _fields(files, block, kept).items():
                texts[name].append(column)
        advance(block.num_documents)
    places["copies"] = 1
    if task.reads["copies"]:
        copies = ByOrdinal(files, task.reads["copies"][0])
        places["copies"] = copies.rows("copies", base, blocks[-1].last_ordinal)
    streams: dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}
    more: dict[str, npt.NDArray[Any]] = {}
    for stream in task.args["streams"]:
        records, edges = _records(files, task.reads["records"], stream, num_buckets)
        number_in_group = records["ordinal"].astype(np.int64) - base
        if len(records) and not 0 <= int(number_in_group.min()) <= int(number_in_group.max()) < len(places):
            raise DataError(
                f"A file of stream {stream} names documents of other blocks. Rerun the same command."
            )
        rows = places[number_in_group]
        rows["key"] = records["key"]
        streams[stream] = (rows, edges)
        more |= _text_arrays(stream, texts, number_in_group)
    order_records.write(files, task.outputs[0][1], streams, 0, more, {"names": _encoded(names)})
    return Counts()


def _fill(places: npt.NDArray[Any], number: int, block: Block, docs: Columns) -> None:
    """The rows of one block. places: (n,) of ROW, written to."""
    places["ordinal"] = np.arange(block.first_ordinal, block.last_ordinal, dtype=np.uint64)
    places["line"] = docs["line"].astype(np.uint64) + np.uint64(block.first_line)
    places["block"] = number
    for name, column in (("bytes", "num_bytes"), ("chars", "num_chars")):
        places[name] = docs[column]
    for name in ("offset", "hash", "file", "source"):
        places[name] = docs[name]


def _fields(files: TaskFiles, block: Block, kept: Sequence[str]) -> dict[str, Any]:
    """Kept fields and signals of the documents of a block, as Arrow arrays."""
    columns: dict[str, Any] = {}
    for opened in (files.columns(file) for file in (block.fields, block.signals) if file is not None):
        for name in kept:
            if f"{name}/ends" in opened:
                columns[name] = text_columns.to_arrow(opened, name).slice(0, block.num_documents)
    if missing := [name for name in kept if name not in columns]:
        raise DataError(f"The block {block.stem} has no column {missing[0]!r}. Rerun the same command.")
    return {name: columns[name] for name in kept}


def _records(
    files: TaskFiles, groups: Sequence[Artifact], stream: str, num_buckets: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Records of a stream out of several groups in the order of their keys, and where each bucket begins."""
    parts = []
    edges = np.zeros(num_buckets + 1, np.int64)
    for artifact in groups:
        opened = files.columns(artifact)
        parts.append(order_records.read(opened, stream, 0, num_buckets))
        edges += np.array(opened.meta["edges"][stream], np.int64)
    return order_records.ordered(parts, RECORD)[0], edges


def _text_arrays(stream: str, texts: Mapping[str, list[Any]], order: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Text columns of a stream in a new order, as arrays by their names in the file."""
    import pyarrow as pa

    arrays: dict[str, Any] = {}
    for name, parts in texts.items():
        column = pa.chunked_array(parts, pa.large_string()).take(pa.array(order)).combine_chunks()
        arrays |= text_columns.from_arrow(f"{stream}/{name}", column)
    return arrays


def _encoded(names: Names) -> list[Any]:
    return [[number, *lists] for number, lists in names.items()]


class Range(msgspec.Struct, frozen=True):
    """Rows of some buckets of a stream, in the order of their keys. edges: where each bucket begins, and the
    end. texts: kept fields, Arrow arrays.
    """

    rows: npt.NDArray[Any]
    edges: npt.NDArray[np.int64]
    texts: Mapping[str, Any]
    names: Names


def read_range(
    files: TaskFiles, row_files: Sequence[RowFile], stream: str, buckets: tuple[int, int], kept: Sequence[str]
) -> Range:
    """The rows of buckets [first, last) out of several files."""
    import pyarrow as pa

    first, last = buckets
    parts: list[npt.NDArray[Any]] = []
    texts: dict[str, list[Any]] = {name: [] for name in kept}
    edges, names = np.zeros(last - first + 1, np.int64), Names()
    for file in row_files:
        opened = files.columns(file.file)
        low, high = max(first, file.first), min(last, file.last)
        bounds = np.array(opened.meta["edges"][stream], np.int64)[low - file.first : high - file.first + 1]
        parts.append(order_records.read(opened, stream, low, high, ROW))
        edges[low - first : high - first + 1] += bounds - bounds[0]
        edges[high - first + 1 :] += bounds[-1] - bounds[0]
        names |= {number: (files_, sources) for number, files_, sources in opened.meta["names"]}
        for name in kept:
            texts[name].append(text_columns.rows(opened, f"{stream}/{name}", int(bounds[0]), int(bounds[-1])))
    rows, order = order_records.ordered(parts, ROW)
    ordered_texts = {
        name: pa.chunked_array(columns, pa.large_string()).take(pa.array(order)).combine_chunks()
        for name, columns in texts.items()
    }
    return Range(rows, edges, ordered_texts, names)


# More passes -------------------------------------------------------------------------------------------------


def _ranges(by_stream: Mapping[str, Sequence[RowFile]]) -> dict[tuple[str, int, int], list[RowFile]]:
    """The files of each stream and range of buckets, in order."""
    ranges: dict[tuple[str, int, int], list[RowFile]] = {}
    for stream, files in by_stream.items():
        for file in files:
            ranges.setdefault((stream, file.first, file.last), []).append(file)
    return ranges


def _plan_merge(number: int, by_stream: Mapping[str, Sequence[RowFile]], sources: Sources) -> Step:
    """A task per range of buckets and `fanout` of the files that have it, where there are more than that."""
    tasks: list[Task] = []
    fanout = sources.moves.fanout
    for (stream, first, last), having in sorted(_ranges(by_stream).items()):
        if len(having) <= fanout:
            continue
        num_ranges = min(fanout, last - first)
        edges = [first + (last - first) * i // num_ranges for i in range(num_ranges + 1)]
        for low, high in pairwise(edges):
            for begin in range(0, len(having), fanout):
                name = f"{stream}-{len(tasks):06d}"
                tasks.append(
                    Task(
                        id=name,
                        args={
                            "stream": stream,
                            "buckets": [low, high],
                            "range": [first, last],
                            "kept": list(sources.kept),
                        },
                        reads={"rows": [file.file for file in having[begin : begin + fanout]]},
                        outputs=[("work", f"shard/rows-{number}/{name}.cols")],
                    )
                )
    return Step(f"shard.rows-{number}", VERSION, merge, tasks, None, "", "task")


def merge(task: Task, settings: None, files: TaskFiles) -> Counts:
    """One file of a range of buckets out of several of a longer one."""
    stream, (first, last) = task.args["stream"], task.args["buckets"]
    row_files = [RowFile(file, *task.args["range"]) for file in task.reads["rows"]]
    range_read = read_range(files, row_files, stream, (first, last), task.args["kept"])
    more: dict[str, npt.NDArray[Any]] = {}
    for name, column in range_read.texts.items():
        more |= text_columns.from_arrow(f"{stream}/{name}", column)
    used = set(np.unique(range_read.rows["block"]).tolist())
    names = {number: lists for number, lists in range_read.names.items() if number in used}
    order_records.write(
        files,
        task.outputs[0][1],
        {stream: (range_read.rows, range_read.edges)},
        first,
        more,
        {"names": _encoded(names)},
    )
    advance(1)
    return Counts()


def _after(
    merging: Step,
    merged: Mapping[str, Artifact],
    by_stream: Mapping[str, Sequence[RowFile]],
    moves: RowMoves,
) -> dict[str, list[RowFile]]:
    """The files of each stream after a pass: what it made, and what was few enough before."""
    after: dict[str, list[RowFile]] = {stream: [] for stream in by_stream}
    for (stream, _, _), having in _ranges(by_stream).items():
        if len(having) <= moves.fanout:
            after[stream] += having
    for task in merging.tasks:
        after[task.args["stream"]].append(RowFile(merged[task.id], *task.args["buckets"]))
    return after
