"""Tables whose rows belong to groups, put together until each group finds its rows in few files. Groups are of documents that are
compared (dedupe/groups.py), of blocks, or the shards (stages/pieces.py).

What makes them (a part of the source, a range of documents or of tokens) has rows of any group. If every group looked into every such
file, there would be as many reads as files times groups, and both grow with the corpus. So where more than MOST_FILES
files have rows of one group, they are moved, as an external radix sort moves them:

    NAME      whatever makes them                           -> files over all groups
    NAME-2    a range of groups, out of many of these files -> files over that range
    NAME-3    a range of that range, ...

Every pass reads pieces of about PIECE_BYTES or whole files, and leaves far fewer files to a range; so the number of passes
grows with the logarithm of the corpus. Small corpora need none. Nothing of what a group finds depends on it: within a group
the rows of a table stand in no particular order, and their readers put them in one, unless that of the files is kept
(`in_order`).

    `index` (g + 1, 1 + t) int64 a row for each group that has rows here, ascending: its number, and where its rows of each of the
                                 t tables begin in `rows`, in bytes; the last row: 0, and t times the end
    `rows`  (bytes,) uint8       the rows of the first group, table by table, then those of the next: what is wanted of a group,
                                 or of a range, is read at once. What the bytes are their readers know. Pieces of a group stand in
                                 the same order in all tables.
    meta: `tables`, their names; `every`, the groups in rows 0, STRIDE, 2 STRIDE, ..., so that a reader of few groups reads few
    rows of the index

A list of such files is JSON: [[first group, end of groups, name, size, checksum], ...].
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.advance import advance
from btlm_data.engine.runner import Runner
from btlm_data.errors import DataError
from btlm_data.estimate import Estimate, Rates
from btlm_data.formats.columns import Columns
from btlm_data.kernels import stretches
from btlm_data.storage import Store, digest
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 3
MOST_FILES = 64  # that one group looks into, where more than one group has rows in them
PIECE_BYTES = 2**20  # of one file, that a pass reads at least where it does not read whole files
STRIDE = 4096  # rows of an index: at least 64 kB
_MOST_RANGES = 512  # into which one pass divides a range
MOST_INPUTS = 1024  # files that one task of a pass reads, or one group where there are few groups
_LEAST_FILE, _LARGEST_FILE = 16 * 2**20, 2**30  # bytes of a file
UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]
Int64Array = npt.NDArray[np.int64]


class GroupedFile(NamedTuple):
    """A file of rows of groups in [first, end)."""

    file: Artifact
    first: int
    end: int


class Piece(msgspec.Struct, frozen=True):
    """Rows of some groups. groups: (g,) uint32 ascending; tables: names of the t tables; bounds: (g * t + 1,) int64, where the rows
    of each group begin in each table, in bytes, and the end; rows: (bytes,) uint8, or the file that has them as `rows`, which
    is read whenever they are asked for: nothing is kept.
    """

    groups: UInt32Array
    tables: tuple[str, ...]
    bounds: Int64Array
    rows: UInt8Array | Columns

    @property
    def num_bytes(self) -> int:
        """Of its rows."""
        return int(self.bounds[-1] - self.bounds[0])

    @property
    def sizes(self) -> Int64Array:
        """Bytes of each group in each table, (g, t)."""
        return np.diff(self.bounds).reshape(len(self.groups), len(self.tables))

    def stretch(self, first: int, end: int) -> UInt8Array:
        """Bytes [first, end), (end - first,), as `bounds` counts them."""
        if isinstance(self.rows, Columns):
            stored: UInt8Array = self.rows.rows("rows", first, end)
            return stored
        return self.rows[first:end]

    def of(self, *tables: str) -> list[UInt8Array]:
        """Some tables, (bytes,) uint8 each, in one read: what lies between them is read with them. That of one group is not copied."""
        at, begins = [self.tables.index(table) for table in tables], self.bounds[:-1]
        if not len(self.groups):
            return [np.empty(0, np.uint8)] * len(at)
        first = int(begins[min(at)])
        stretch = self.stretch(first, int(self.bounds[len(begins) - len(self.tables) + max(at) + 1]))
        parts = (
            [stretch[begin - first : end - first] for begin, end in self._places(number)] for number in at
        )
        return [each[0] if len(each) == 1 else np.concatenate(each) for each in parts]

    def _places(self, table: int) -> list[tuple[int, int]]:
        """Where the rows of each group are in a table that is numbered."""
        step = len(self.tables)
        begins, ends = (self.bounds[start::step][: len(self.groups)] for start in (table, table + 1))
        return [*zip(begins.tolist(), ends.tolist(), strict=True)]


def read(opened: Columns, first: int, end: int) -> Piece:
    """The rows of groups in [first, end). Raises DataError for a damaged file."""
    every, tables = opened.meta["every"], tuple(opened.meta["tables"])
    num_groups = opened.shape("index")[0] - 1
    begin = STRIDE * max(0, bisect_left(every, first) - 1)
    index = opened.rows("index", begin, max(begin, min(num_groups, STRIDE * bisect_left(every, end))) + 1)
    low, high = (int(row) for row in np.searchsorted(index[:-1, 0], [first, end]))
    bounds = np.append(index[low:high, 1:], index[high, 1]).astype(np.int64)
    return Piece(index[low:high, 0].astype(np.uint32), tables, bounds, opened)


def read_all(opened: Columns) -> Piece:
    """The rows of all groups in a file. Raises DataError for a damaged file."""
    return read(opened, 0, 2**32)


def bounds_of(sizes: Int64Array) -> Int64Array:
    """Where rows stand that have so many bytes of each group in each table, (g, t): the bounds of a piece, (g * t + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def piece_of(tables: Mapping[str, tuple[npt.NDArray[Any], UInt32Array]]) -> Piece:
    """Records, (n,) of any dtype, with the group of each, (n,) uint32: put in the order of groups."""
    present = np.unique(np.concatenate([groups for _, groups in tables.values()]))
    ordered: list[UInt8Array] = []
    edges = np.empty((len(present) + 1, len(tables)), np.int64)
    for number, (records, groups) in enumerate(tables.values()):
        order = np.argsort(groups, kind="stable")
        rows = np.searchsorted(groups, present, sorter=order)
        edges[:, number] = np.append(rows, len(records)) * records.dtype.itemsize
        ordered.append(records[order].view(np.uint8))
    sizes = np.diff(edges, axis=0)
    bounds = bounds_of(sizes)
    [*filled] = (number for number, table in enumerate(ordered) if len(table))
    if len(filled) == 1:
        return Piece(present, tuple(tables), bounds, ordered[filled[0]])
    out = np.empty(int(bounds[-1]), np.uint8)
    for number in filled:
        copy_table(ordered[number], edges[:-1, number], sizes, bounds, number, out)
    return Piece(present, tuple(tables), bounds, out)


def copy_table(
    table: UInt8Array, begins: Int64Array, sizes: Int64Array, bounds: Int64Array, number: int, out: UInt8Array
) -> None:
    """Copy one table to where its groups stand. table: (bytes,) uint8; begins: (g,) int64, of each group in it; sizes: (g, t) int64;
    bounds: of them (`bounds_of`); number: of the table; out: (bytes,) uint8.
    """
    num_tables = sizes.shape[1]
    chosen = np.ascontiguousarray(sizes[:, number])
    places = np.ascontiguousarray(bounds[:-1][number::num_tables])
    stretches.copy(table, np.ascontiguousarray(begins), chosen, out, places)


def write(files: TaskFiles, name: str, pieces: Sequence[Piece]) -> Artifact:
    """Write one file out of pieces, which have the same tables; all of it is held, and a piece. Raises DataError for bounds beyond
    the rows.
    """
    if len(pieces) == 1:
        return write_piece(files, name, pieces[0])
    groups = np.unique(np.concatenate([piece.groups for piece in pieces]))
    at = [np.searchsorted(groups, piece.groups) for piece in pieces]
    totals = np.zeros((len(groups), len(pieces[0].tables)), np.int64)
    for rows, piece in zip(at, pieces, strict=True):
        totals[rows] += piece.sizes
    bounds = bounds_of(totals)
    out, places = np.empty(int(bounds[-1]), np.uint8), bounds[:-1].reshape(totals.shape).copy()
    for rows, piece in zip(at, pieces, strict=True):
        begin, sizes = int(piece.bounds[0]), piece.sizes
        stretch = piece.stretch(begin, int(piece.bounds[-1]))
        stretches.copy(stretch, piece.bounds[:-1] - begin, sizes.reshape(-1), out, places[rows].reshape(-1))
        places[rows] += sizes
    return write_piece(files, name, Piece(groups, pieces[0].tables, bounds, out))


def write_piece(files: TaskFiles, name: str, piece: Piece) -> Artifact:
    """Write one file with what a piece has."""
    num_groups, num_tables = len(piece.groups), len(piece.tables)
    begin, end = int(piece.bounds[0]), int(piece.bounds[-1])
    index = np.full((num_groups + 1, 1 + num_tables), end - begin, np.int64)
    index[:, 0] = np.append(piece.groups, 0)
    index[:-1, 1:] = (piece.bounds[:-1] - begin).reshape(num_groups, num_tables)
    meta = {"tables": list(piece.tables), "every": piece.groups[::STRIDE].tolist()}
    return files.write_columns(name, {"index": index, "rows": piece.stretch(begin, end)}, meta)


class Writer(msgspec.Struct):
    """Collects pieces, and writes them in files of about `file_bytes`, which are named after `prefix`."""

    files: TaskFiles
    prefix: str
    file_bytes: int
    _held: list[Piece] = msgspec.field(default_factory=list)
    _num_bytes: int = 0
    _num_files: int = 0

    def add(self, piece: Piece) -> None:
        """Add a piece."""
        if not len(piece.groups):
            return
        self._held.append(piece)
        self._num_bytes += piece.num_bytes
        if self._num_bytes >= self.file_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is held, if anything."""
        if self._held:
            write(self.files, f"{self.prefix}-{self._num_files:05d}.cols", self._held)
            self._held, self._num_bytes, self._num_files = [], 0, self._num_files + 1


# Moving -----------------------------------------------------------------------------------------------------


class Amounts(msgspec.Struct, frozen=True):
    """In what amounts one pass moves the rows of a range. ranges: into which it is divided; batch: files that one task
    reads.
    """

    ranges: int
    batch: int

    @staticmethod
    def plan(num_groups: int, mean_bytes: int, file_bytes: int) -> Amounts:
        """num_groups: of the range; mean_bytes: of the files that have rows of it; file_bytes: of one that is to be written."""
        ranges = max(1, min(num_groups, _MOST_RANGES, mean_bytes // PIECE_BYTES))
        return Amounts(ranges, max(2, min(MOST_INPUTS, file_bytes * ranges // max(1, mean_bytes))))


class Pass(NamedTuple):
    """What one pass does on average. tasks: of it; opens: files that all of them open together; files, num_groups: that a
    range has afterwards.
    """

    tasks: int
    opens: int
    files: int
    num_groups: int


def passes_of(
    num_files: int, mean_bytes: int, num_groups: int, memory: int, most_files: int | None = None
) -> list[Pass]:
    """What `gathered` does where so many files of so many bytes each have rows of all groups alike. memory: of one worker.
    most_files: as `gathered` takes it.
    """
    most_files = most_files or MOST_FILES
    passes: list[Pass] = []
    file_bytes, num_ranges = moved_bytes_of(memory), 1
    while num_groups > 1 and num_files > most_files:
        amounts = Amounts.plan(num_groups, mean_bytes, file_bytes)
        batches = -(-num_files // amounts.batch)
        tasks = num_ranges * amounts.ranges * batches
        passes.append(
            Pass(tasks, num_ranges * amounts.ranges * num_files, batches, -(-num_groups // amounts.ranges))
        )
        mean_bytes = max(1, num_files * mean_bytes // amounts.ranges // batches)
        num_ranges *= amounts.ranges
        num_files, num_groups = passes[-1].files, passes[-1].num_groups
    return passes


def estimates(
    rates: Rates,
    name: str,
    num_files: int,
    num_bytes: int,
    num_groups: int,
    memory: int,
    most_files: int | None = None,
) -> tuple[list[Estimate], int]:
    """What the passes of `gathered` take, and the files that a group then looks into. name: of the step that writes so many files;
    num_bytes: of all rows. memory: of one worker. most_files: as `gathered` takes it.
    """
    passes = passes_of(num_files, num_bytes // max(1, num_files), num_groups, memory, most_files)
    steps = [
        Estimate(
            f"{name}-{number}",
            tasks=each.tasks,
            read_bytes=num_bytes,
            reads=2 * each.opens,
            work_bytes=num_bytes,
            memory_bytes=rates.process_bytes + moved_bytes_of(memory),
            cpu_seconds=each.tasks * rates.task + num_bytes * rates.move_byte,
        )
        for number, each in enumerate(passes, start=2)
    ]
    return steps, passes[-1].files if passes else num_files


def file_bytes_of(memory: int) -> int:
    """Bytes of a file that a step writes out of pieces that it holds besides. memory: of one worker."""
    return min(max(memory // 8, _LEAST_FILE), _LARGEST_FILE)


def moved_bytes_of(memory: int) -> int:
    """Bytes of a file that a pass writes: most of what a worker holds. memory: of that worker."""
    return min(max(memory * 2 // 5, _LEAST_FILE), _LARGEST_FILE)


def gathered(
    runner: Runner,
    name: str,
    written: Sequence[Artifact],
    num_groups: int,
    memory: int,
    *,
    most_files: int | None = None,
    passes: list[Step] | None = None,
    in_order: bool = False,
) -> list[GroupedFile]:
    """Files out of which each group finds its rows in few. name: of the step that wrote the files. memory: of one worker.
    most_files: that a group may look into, by default MOST_FILES. passes: the steps that moved rows are appended. in_order: the rows of
    a group stay in the order of the files, `written` being in the order of their names. Group numbers begin at 1.
    """
    most_files = most_files or MOST_FILES
    held = [GroupedFile(artifact, 1, num_groups + 1) for artifact in written]
    number = 1
    while scattered := [
        of_range for of_range, having in _ranges(held).items() if _is_scattered(of_range, having, most_files)
    ]:
        number += 1
        step = _plan(f"{name}-{number}", held, scattered, moved_bytes_of(memory), in_order=in_order)
        after = [file for file in held if (file.first, file.end) not in scattered]
        for task, result in zip(step.tasks, runner.run(step), strict=True):
            after += [GroupedFile(output, *task.args["groups"]) for output in result.outputs]
        held = sorted(after, key=lambda file: (file.first, file.file.name))
        if passes is not None:
            passes.append(step)
    return held


def _ranges(held: Sequence[GroupedFile]) -> dict[tuple[int, int], list[GroupedFile]]:
    """The files of each range of groups, in order."""
    ranges: dict[tuple[int, int], list[GroupedFile]] = {}
    for file in held:
        ranges.setdefault((file.first, file.end), []).append(file)
    return ranges


def _is_scattered(groups: tuple[int, int], having: Sequence[GroupedFile], most_files: int) -> bool:
    """Whether several groups would look into too many files."""
    return groups[1] - groups[0] > 1 and len(having) > most_files


def _plan(
    name: str,
    held: Sequence[GroupedFile],
    scattered: Sequence[tuple[int, int]],
    file_bytes: int,
    *,
    in_order: bool,
) -> Step:
    """A task per range of those `scattered` and batch. A batch has files from all over the corpus, as neighbours have rows of the
    same groups; where the order of rows is to stay, neighbours.
    """
    tasks, folder = [], name.replace(".", "/")
    for (first, end), having in _ranges(held).items():
        if (first, end) not in scattered:
            continue
        sizes = sum(file.file.size for file in having)
        amounts = Amounts.plan(end - first, sizes // len(having), file_bytes)
        num_batches = -(-len(having) // amounts.batch)
        edges = [first + (end - first) * i // amounts.ranges for i in range(amounts.ranges + 1)]
        for low, high in pairwise(edges):
            for batch in range(num_batches):
                of_batch = (
                    slice(len(having) * batch // num_batches, len(having) * (batch + 1) // num_batches)
                    if in_order
                    else slice(batch, None, num_batches)
                )
                chosen = [file.file for file in having[of_batch]]
                tasks.append(
                    Task(
                        id=f"{low:06d}-{batch:06d}",
                        args={
                            "groups": [low, high],
                            "file_bytes": file_bytes,
                            "prefix": f"{folder}/{low:06d}-{batch:06d}",
                        },
                        reads={"files": chosen},
                        weight=max(1, sum(file.size for file in chosen) // amounts.ranges),
                    )
                )
    return Step(name, VERSION, move, tasks, None, "", "B")


def move(task: Task, settings: None, files: TaskFiles) -> Counts:
    """The rows of a range of groups out of several files."""
    writer = Writer(files, task.args["prefix"], task.args["file_bytes"])
    for artifact in task.reads["files"]:
        writer.add(read(files.columns(artifact), *task.args["groups"]))
    writer.flush()
    advance(task.weight)
    return Counts()


def discard_passed(work: Store, folder: str) -> None:
    """Remove the rows that were moved once more: the dataset is complete. folder: of the step that wrote the first files."""
    size = work.size(f"{folder}.json")
    if size is None:
        return
    listed = {file.file.name for file in _parsed(work.read(f"{folder}.json"))}
    if all(name.startswith(f"{folder}/") for name in listed):
        return  # nothing was moved
    passes = (entry.name for entry in work.list(folder.rpartition("/")[0]))
    work.delete(
        name for name in passes if name.startswith((f"{folder}/", f"{folder}-")) and name not in listed
    )


# Lists ------------------------------------------------------------------------------------------------------


def write_list(store: Store, name: str, held: Sequence[GroupedFile]) -> Artifact:
    """Write the list of files that groups read, so that each task names one file and not thousands."""
    rows = [[file.first, file.end, *file.file[:3]] for file in held]
    data = (json.dumps(rows, separators=(",", ":")) + "\n").encode()
    store.write(name, data, durable=False)
    return Artifact(name, len(data), digest.checksum(data))


def of_group(files: TaskFiles, listed: Artifact, group: int) -> Iterator[Piece]:
    """The rows of one group out of each file that has some. listed: of write_list. Raises DataError for a damaged file."""
    having = [file.file for file in read_list(files, listed) if file.first <= group < file.end]
    files.allow(having)
    for artifact in having:
        piece = read(files.columns(artifact), group, group + 1)
        if len(piece.groups):
            yield piece


def read_list(files: TaskFiles, listed: Artifact) -> list[GroupedFile]:
    """Inverse of write_list, in a task."""
    return files.kept(("grouped files", listed.checksum), lambda: _parsed(files.read(listed)))


def _parsed(data: bytes) -> list[GroupedFile]:
    return [
        GroupedFile(Artifact(name, size, checksum), first, end)
        for first, end, name, size, checksum in json.loads(data)
    ]


def as_records(table: UInt8Array, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A table of records, (n,) of their dtype. Raises DataError for one that does not end behind a record."""
    if len(table) % dtype.itemsize:
        raise DataError(
            f"A table of groups has {len(table):,} bytes, which are no records of {dtype.itemsize}. Rerun the same command."
        )
    return np.ascontiguousarray(table).view(dtype)
