"""What is known of the documents in components of two or more, group by group: their places, and where
requested their texts.

dedupe/members/PART-NUMBER.cols, dedupe/members-N/...: files by group (by_group.py), with the tables
    `rows`  records of `row_type`, one for each document
    `names` of each piece JSON `[documents, [name, ...]],`: its documents, and the names that `file` and `source` of its rows
            number
    `utf8`  normalised texts, of as many bytes each as `text` says: of the first document of each text, where its component has
            several texts and they are to be compared; others are empty
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data import by_group
from btlm_data.blocks import Block
from btlm_data.by_group import Piece
from btlm_data.errors import DataError
from btlm_data.formats.columns import Columns
from btlm_data.kernels import stretches
from btlm_data.splits import SPLITS
from btlm_data.task import Artifact
from btlm_data.task_files import TaskFiles

FOLDER = "dedupe/members"
OF_COMPONENTS = ("root", "cluster", "best", "score", "known")
TABLES = ("rows", "names", "utf8")
FILE_BYTES = 64 * 2**20  # of texts and rows in one file
_FIELDS = [
    *((name, "<i8") for name in ("ordinal", "root", "cluster", "best")),  # see components.py
    ("score", "<u4"),
    ("known", "?"),
    ("split", "u1"),  # index into SPLITS
    ("file", "<u4"),
    ("source", "<u4"),
    ("line", "<u8"),  # 0-based, in the file
    ("offset", "<u8"),
    ("bytes", "<u4"),
    ("text", "<u8"),
]
UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
_MOST_TASKS = 8192  # that write members


def parts_together(num_parts: int) -> int:
    """Parts of the source that one task looks into: where there are very many, most have few documents in components, and a task
    costs more.
    """
    return max(1, -(-num_parts // _MOST_TASKS))


def row_type(bands: int) -> np.dtype[np.void]:
    """A document's record: its fields, and `keys`, its band keys."""
    return np.dtype([*_FIELDS, ("keys", "<u8", (bands,))])


class Texts(msgspec.Struct, frozen=True):
    """Normalised texts of n documents, where they lie: row i is the `lengths[i]` bytes of buffers[buffer[i]] from `starts[i]`
    on. buffer, starts, lengths: (n,) int64.
    """

    buffers: list[UInt8Array]
    buffer: Int64Array
    starts: Int64Array
    lengths: Int64Array

    @staticmethod
    def of(utf8: UInt8Array, offsets: Int64Array) -> Texts:
        """Row i is utf8[offsets[i]:offsets[i + 1]]. utf8: (bytes,) uint8; offsets: (n + 1,) int64."""
        return Texts([utf8], np.zeros(len(offsets) - 1, np.int64), offsets[:-1].copy(), np.diff(offsets))

    @staticmethod
    def none(count: int) -> Texts:
        """Of documents whose texts are not needed."""
        return Texts.of(np.empty(0, np.uint8), np.zeros(count + 1, np.int64))

    def __len__(self) -> int:
        return len(self.lengths)

    def as_bytes(self, rows: Int64Array | slice = slice(None), most: int | None = None) -> list[bytes]:
        """Each text of some rows, (n,) int64, by itself; of each the first `most` bytes."""
        lengths = self.lengths[rows] if most is None else np.minimum(self.lengths[rows], most)
        places = zip(self.buffer[rows].tolist(), self.starts[rows].tolist(), lengths.tolist(), strict=True)
        return [self.buffers[buffer][start : start + length].tobytes() for buffer, start, length in places]

    def put(self, rows: Int64Array, texts: Texts) -> None:
        """Let these texts stand in some rows. rows: (n,) int64."""
        self.buffer[rows] = texts.buffer + len(self.buffers)
        self.starts[rows], self.lengths[rows] = texts.starts, texts.lengths
        self.buffers.extend(texts.buffers)

    def copy(self, rows: Int64Array, out: UInt8Array, places: Int64Array) -> None:
        """Copy the texts of some rows, (n,) int64, to their places in a buffer: out (bytes,) uint8, places (n,) int64. Raises
        DataError where one is not inside.
        """
        order = np.argsort(self.buffer[rows], kind="stable")
        in_order = self.buffer[rows[order]]
        for chosen in np.split(order, np.flatnonzero(np.diff(in_order)) + 1):
            if len(chosen):
                some = rows[chosen]
                utf8 = self.buffers[int(self.buffer[some[0]])]
                stretches.copy(utf8, self.starts[some], self.lengths[some], out, places[chosen])


class Members(msgspec.Struct):
    """Rows of one block. rows: (n,) of row_type, `file` and `source` numbers among the block's; groups (n,) uint32."""

    rows: npt.NDArray[np.void]
    groups: npt.NDArray[np.uint32]
    texts: Texts

    @property
    def num_bytes(self) -> int:
        """Of what is held."""
        return int(self.texts.lengths.sum()) + self.rows.nbytes


def rows_of(
    block: Block, docs: Columns, keys: npt.NDArray[np.uint64], rows: Int64Array
) -> npt.NDArray[np.void]:
    """Records of some rows of a block, (n,) of row_type, without what components say. keys: (documents, B) uint64; rows:
    (n,) int64.
    """
    out = np.zeros(len(rows), row_type(keys.shape[1]))
    out["ordinal"] = rows + block.first_ordinal
    out["split"] = SPLITS.index(block.split)
    out["line"] = docs["line"][rows].astype(np.uint64) + np.uint64(block.first_line)
    for name, column in (
        ("file", "file"),
        ("source", "source"),
        ("offset", "offset"),
        ("bytes", "num_bytes"),
    ):
        out[name] = docs[column][rows]
    out["keys"] = keys[rows]
    return out


class MembersWriter(msgspec.Struct):
    """Collects the members of a task's blocks and writes them in files of about FILE_BYTES."""

    files: TaskFiles
    task_id: str
    _held: list[Members] = msgspec.field(default_factory=list)
    _names: dict[str, int] = msgspec.field(default_factory=dict)
    _num_bytes: int = 0
    _num_files: int = 0

    def add(self, members: Members, files: Sequence[str], sources: Sequence[str]) -> None:
        """Add a block's members; files, sources: what its numbers mean."""
        for column, names in (("file", files), ("source", sources)):
            numbers = np.array([self._names.setdefault(name, len(self._names)) for name in names], np.uint32)
            members.rows[column] = numbers[members.rows[column]]
        self._held.append(members)
        self._num_bytes += members.num_bytes
        if self._num_bytes >= FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is held, if anything."""
        if not self._held:
            return
        groups = np.concatenate([part.groups for part in self._held])
        lengths = np.concatenate([part.texts.lengths for part in self._held])
        order = np.argsort(groups, kind="stable")
        rows = np.concatenate([part.rows for part in self._held])[order]
        rows["text"] = lengths[order]
        present, starts = np.unique(groups[order], return_index=True)
        edges = np.append(starts, len(rows)).astype(np.int64)
        names, name_bounds = _numbered(rows, edges, list(self._names))
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[order])])
        sizes = np.diff(np.stack([edges * rows.dtype.itemsize, name_bounds, ends[edges]], axis=1), axis=0)
        bounds = by_group.bounds_of(sizes)
        out = np.empty(int(bounds[-1]), np.uint8)
        by_group.copy_table(rows.view(np.uint8), edges[:-1] * rows.dtype.itemsize, sizes, bounds, 0, out)
        by_group.copy_table(names, name_bounds[:-1], sizes, bounds, 1, out)
        places, begin = np.empty(len(order), np.int64), 0
        places[order] = ends[:-1] + np.repeat(bounds[2:-1:3] - ends[edges[:-1]], np.diff(edges))
        for part in self._held:
            end = begin + len(part.groups)
            part.texts.copy(np.arange(end - begin), out, places[begin:end])
            begin = end
        name = f"{FOLDER}/{self.task_id}-{self._num_files:04d}.cols"
        by_group.write_piece(self.files, name, Piece(present, TABLES, bounds, out))
        self._held, self._num_bytes, self._num_files = [], 0, self._num_files + 1
        self._names = {}


def _numbered(
    rows: npt.NDArray[np.void], edges: Int64Array, names: Sequence[str]
) -> tuple[UInt8Array, Int64Array]:
    """Number the names of each piece by itself, in the rows; returns the table `names` and its bounds, (pieces + 1,).

    rows: (n,) of row_type, changed; edges: (pieces + 1,) int64, where each piece begins, and the end.
    """
    piece = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    codes = np.concatenate([piece * len(names) + rows[column] for column in ("file", "source")])
    used, numbers = np.unique(codes, return_inverse=True)
    first_used = np.searchsorted(used, np.arange(len(edges)) * len(names))
    rows["file"], rows["source"] = (
        part - first_used[piece] for part in np.split(numbers.astype(np.int64), 2)
    )
    encoded = [json.dumps(name) for name in names]
    used_names = (used % max(1, len(names))).tolist()
    table = [
        f"[{count},[{','.join([encoded[name] for name in used_names[begin:end]])}]],".encode()
        for count, begin, end in zip(
            np.diff(edges).tolist(), first_used[:-1].tolist(), first_used[1:].tolist(), strict=True
        )
    ]
    bounds = np.cumsum([0, *map(len, table)], dtype=np.int64)
    return np.frombuffer(b"".join(table), np.uint8), bounds


class Group(msgspec.Struct, frozen=True):
    """The members of one group, from all files, by ordinal. columns: as the layout names them; `file` and
    `source` are codes into the two lists of names. texts: of each row, empty where there is none.
    """

    columns: dict[str, npt.NDArray[Any]]
    files: list[str]
    sources: list[str]
    texts: Texts

    def __len__(self) -> int:
        return len(self.columns["ordinal"])


def read_group(files: TaskFiles, members: Artifact, group: int, *, with_texts: bool) -> Group:
    """Read one group. members: the list of files (by_group.py). Texts stay where they are (mapped, where the store is
    local). Raises DataError for a damaged file.
    """
    parts: list[npt.NDArray[np.void]] = []
    names: dict[str, int] = {}
    buffers: list[UInt8Array] = []
    for piece in by_group.of_group(files, members, group):
        rows = _rows_of_piece(piece, names)
        if with_texts:
            buffers += piece.of("utf8")
            if int(rows["text"].sum()) != len(buffers[-1]):
                raise _damaged(f"texts of {len(buffers[-1]):,} bytes for {int(rows['text'].sum()):,}")
        parts.append(rows)
    rows = np.concatenate(parts) if parts else np.empty(0, row_type(0))
    number = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    of_parts = [part["text"].astype(np.int64) for part in parts]
    lengths = np.concatenate([np.empty(0, np.int64), *of_parts])
    starts = np.concatenate([np.empty(0, np.int64), *(np.cumsum(part) - part for part in of_parts)])
    order = np.argsort(rows["ordinal"], kind="stable")
    in_order = rows[order]
    used = {}
    for column in ("file", "source"):
        codes, in_order[column] = np.unique(in_order[column], return_inverse=True)
        all_names = list(names)
        used[column] = [all_names[code] for code in codes.tolist()]
    columns = {name: np.ascontiguousarray(in_order[name]) for name in in_order.dtype.names or ()}
    texts = Texts(buffers, number[order], starts[order], lengths[order])
    return Group(columns, used["file"], used["source"], texts if with_texts else Texts.none(len(rows)))


def _rows_of_piece(piece: Piece, names: dict[str, int]) -> npt.NDArray[np.void]:
    """Rows of the pieces of one file, (n,) of row_type; `file` and `source` are numbers in `names`, which grows. Raises
    DataError where rows and names do not belong together.
    """
    table, of_names = piece.of("rows", "names")
    listed = json.loads(b"[" + of_names.tobytes()[:-1] + b"]")
    counts = np.array([count for count, _ in listed], np.int64)
    per_row, rest = divmod(len(table), max(1, int(counts.sum())))
    bands, beside = divmod(per_row - row_type(0).itemsize, 8)
    if rest or beside or bands < 0:
        raise _damaged(f"{len(table):,} bytes for {int(counts.sum()):,} documents")
    rows = by_group.as_records(table, row_type(bands)).copy()
    numbers = np.array([names.setdefault(name, len(names)) for _, used in listed for name in used], np.uint32)
    used_before = np.cumsum([0, *(len(used) for _, used in listed)], dtype=np.int64)
    base, num_names = np.repeat(used_before[:-1], counts), np.repeat(np.diff(used_before), counts)
    for column in ("file", "source"):
        if (rows[column] >= num_names).any():
            raise _damaged(f"{len(numbers):,} names, fewer than the {column} column numbers,")
        rows[column] = numbers[base + rows[column]]
    return rows


def _damaged(amounts: str) -> DataError:
    return DataError(
        f"The work files of deduplication have {amounts} of a group. Remove the folder dedupe of the work folder and rerun the "
        "same command."
    )
