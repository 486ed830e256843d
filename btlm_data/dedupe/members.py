"""What is known of the documents in components of two or more, group by group: their places, and where
requested their texts.

dedupe/members/PART-NUMBER.cols, rows by group (groups.py), then by ordinal:
    `bounds` (G + 2,) int64   group g is rows bounds[g]:bounds[g + 1] (there is no group 0)
    `ordinal` uint32, `root`, `cluster`, `best` and `score` uint32, `known` bool (see components.py),
    `file` and `source` uint32 (indices into meta["files"] and meta["sources"]), `split` uint8 (index into
    SPLITS), `line` uint64 (0-based, in the file), `offset` uint64, `bytes` uint32; `keys` (n, B) uint64, its band keys
    `utf8` uint8 and `text` (n + 1,) int64: normalised texts of the first document of each text, where its
    component has several texts and they are to be compared; others are empty
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.blocks import Block
from btlm_data.formats.columns import Columns
from btlm_data.kernels import stretches
from btlm_data.splits import SPLITS
from btlm_data.task import Artifact
from btlm_data.task_files import TaskFiles

FOLDER = "dedupe/members"
OF_COMPONENTS = ("root", "cluster", "best", "score", "known")
COLUMNS = ("ordinal", *OF_COMPONENTS, "file", "source", "split", "line", "offset", "bytes", "keys")
FILE_BYTES = 64 * 2**20  # of texts and rows in one file
UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Texts:
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

    def as_bytes(self) -> list[bytes]:
        """Each text by itself."""
        rows = zip(self.buffer.tolist(), self.starts.tolist(), self.lengths.tolist(), strict=True)
        return [self.buffers[buffer][start : start + length].tobytes() for buffer, start, length in rows]

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


@dataclass
class Members:
    """Rows of one block. columns: by the names of the layout; groups (n,) uint32."""

    columns: dict[str, npt.NDArray[Any]]
    groups: npt.NDArray[np.uint32]
    texts: Texts

    @property
    def num_bytes(self) -> int:
        """Of what is held."""
        return int(self.texts.lengths.sum()) + sum(column.nbytes for column in self.columns.values())


def rows_of(block: Block, docs: Columns, keys: npt.NDArray[np.uint64], rows: Int64Array) -> dict[str, Any]:
    """The columns that a block's own files give, for some of its rows. keys: (n, B) of all its rows."""
    return {
        "ordinal": rows.astype(np.uint32) + np.uint32(block.first_ordinal),
        "file": docs["file"][rows].astype(np.uint32),
        "source": docs["source"][rows].astype(np.uint32),
        "split": np.full(len(rows), SPLITS.index(block.split), np.uint8),
        "line": docs["line"][rows].astype(np.uint64) + np.uint64(block.first_line),
        "offset": docs["offset"][rows],
        "bytes": docs["num_bytes"][rows],
        "keys": keys[rows],
    }


@dataclass
class MembersWriter:
    """Collects the members of a task's blocks and writes them in files of about FILE_BYTES."""

    files: TaskFiles
    task_id: str
    num_groups: int
    _held: list[Members] = field(default_factory=list)
    _names: dict[str, dict[str, int]] = field(default_factory=lambda: {"files": {}, "sources": {}})
    _num_bytes: int = 0
    _num_files: int = 0

    def add(self, members: Members, files: Sequence[str], sources: Sequence[str]) -> None:
        """Add a block's members; files, sources: what its codes mean."""
        for column, kind, names in (("file", "files", files), ("source", "sources", sources)):
            codes = self._names[kind]
            local = np.array([codes.setdefault(name, len(codes)) for name in names], np.uint32)
            members.columns[column] = local[members.columns[column]]
        self._held.append(members)
        self._num_bytes += members.num_bytes
        if self._num_bytes >= FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is held, if anything."""
        if not self._held:
            return
        columns = {name: np.concatenate([part.columns[name] for part in self._held]) for name in COLUMNS}
        groups = np.concatenate([part.groups for part in self._held])
        lengths = np.concatenate([part.texts.lengths for part in self._held])
        order = np.argsort(groups, kind="stable")
        bounds = np.searchsorted(groups[order], np.arange(self.num_groups + 2)).astype(np.int64)
        arrays = {name: column[order] for name, column in columns.items()}
        arrays["bounds"] = bounds
        arrays["text"] = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[order])])
        arrays["utf8"] = np.empty(int(arrays["text"][-1]), np.uint8)
        places, begin = np.empty(len(order), np.int64), 0
        places[order] = arrays["text"][:-1]
        for part in self._held:
            end = begin + len(part.groups)
            part.texts.copy(np.arange(end - begin), arrays["utf8"], places[begin:end])
            begin = end
        name = f"{FOLDER}/{self.task_id}-{self._num_files:04d}.cols"
        meta = {kind: list(codes) for kind, codes in self._names.items()}
        self.files.write_columns(name, arrays, meta)
        self._held, self._num_bytes, self._num_files = [], 0, self._num_files + 1
        self._names = {"files": {}, "sources": {}}


@dataclass(frozen=True)
class Group:
    """The members of one group, from all files, by ordinal. columns: as the layout names them; `file` and
    `source` are codes into the two lists of names. texts: of each row, empty where there is none.
    """

    columns: dict[str, npt.NDArray[Any]]
    files: list[str]
    sources: list[str]
    texts: Texts

    def __len__(self) -> int:
        return len(self.columns["ordinal"])


def read_group(files: TaskFiles, members: Sequence[Artifact], group: int, *, with_texts: bool) -> Group:
    """Read one group. Texts stay where they are (mapped, where the store is local)."""
    parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in COLUMNS}
    names: dict[str, dict[str, int]] = {"files": {}, "sources": {}}
    buffers: list[UInt8Array] = []
    extents: list[tuple[Int64Array, Int64Array, Int64Array]] = []
    for artifact in members:
        opened = files.columns(artifact)
        first, last = (int(bound) for bound in opened.rows("bounds", group, group + 2))
        if first == last:
            continue
        for name in COLUMNS:
            column = opened.rows(name, first, last)
            if name in ("file", "source"):
                codes = names[f"{name}s"]
                column = np.array(
                    [codes.setdefault(n, len(codes)) for n in opened.meta[f"{name}s"]], np.uint32
                )[column]
            parts[name].append(column)
        offsets = opened.rows("text", first, last + 1)
        number = np.full(last - first, len(buffers), np.int64)
        extents.append((number, offsets[:-1] - offsets[0], np.diff(offsets)))
        is_read = with_texts and offsets[-1] > offsets[0]
        buffers.append(
            opened.rows("utf8", int(offsets[0]), int(offsets[-1])) if is_read else np.empty(0, np.uint8)
        )
    if not extents:
        nothing: dict[str, npt.NDArray[Any]] = {
            name: np.empty(0, np.bool_ if name == "known" else np.uint32) for name in COLUMNS
        }
        return Group(nothing, [], [], Texts.none(0))
    columns = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    order = np.argsort(columns["ordinal"], kind="stable")
    buffer, starts, lengths = (np.concatenate(pieces)[order] for pieces in zip(*extents, strict=True))
    return Group(
        {name: column[order] for name, column in columns.items()},
        list(names["files"]),
        list(names["sources"]),
        Texts(buffers, buffer, starts, lengths),
    )
