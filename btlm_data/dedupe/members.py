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


@dataclass
class Texts:
    """Normalised texts of some documents: row i is utf8[offsets[i]:offsets[i + 1]]."""

    utf8: UInt8Array
    offsets: Int64Array

    @staticmethod
    def none(count: int) -> Texts:
        """Of documents whose texts are not needed."""
        return Texts(np.empty(0, np.uint8), np.zeros(count + 1, np.int64))


@dataclass
class Members:
    """Rows of one block. columns: by the names of the layout; groups (n,) uint32."""

    columns: dict[str, npt.NDArray[Any]]
    groups: npt.NDArray[np.uint32]
    texts: Texts

    @property
    def num_bytes(self) -> int:
        """Of what is held."""
        return len(self.texts.utf8) + sum(column.nbytes for column in self.columns.values())


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
        lengths = np.concatenate([np.diff(part.texts.offsets) for part in self._held])
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
            starts = part.texts.offsets[:-1]
            stretches.copy(part.texts.utf8, starts, lengths[begin:end], arrays["utf8"], places[begin:end])
            begin = end
        name = f"{FOLDER}/{self.task_id}-{self._num_files:04d}.cols"
        meta = {kind: list(codes) for kind, codes in self._names.items()}
        self.files.write_columns(name, arrays, meta)
        self._held, self._num_bytes, self._num_files = [], 0, self._num_files + 1
        self._names = {"files": {}, "sources": {}}


@dataclass(frozen=True)
class Group:
    """The members of one group, from all files, by ordinal. columns: as the layout names them; `file` and
    `source` are codes into the two lists of names. lengths: bytes of the text of each row, 0 where there is none.
    """

    columns: dict[str, npt.NDArray[Any]]
    files: list[str]
    sources: list[str]
    _utf8: list[UInt8Array]
    _part: Int64Array
    _starts: Int64Array
    lengths: Int64Array

    def __len__(self) -> int:
        return len(self.columns["ordinal"])

    def copy_texts(self, rows: Int64Array, out: UInt8Array, places: Int64Array) -> None:
        """Copy the normalised texts of some rows, (n,) int64, to their places in a buffer: out (bytes,) uint8, places (n,)
        int64. Raises DataError where one is not inside.
        """
        parts = self._part[rows]
        for part, utf8 in enumerate(self._utf8):
            chosen = np.flatnonzero(parts == part)
            of_part = rows[chosen]
            stretches.copy(utf8, self._starts[of_part], self.lengths[of_part], out, places[chosen])


def read_group(files: TaskFiles, members: Sequence[Artifact], group: int, *, with_texts: bool) -> Group:
    """Read one group. Texts stay where they are (mapped, where the store is local)."""
    parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in COLUMNS}
    names: dict[str, dict[str, int]] = {"files": {}, "sources": {}}
    utf8: list[UInt8Array] = []
    text_extents: list[tuple[Int64Array, Int64Array, Int64Array]] = []
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
        utf8.append(
            opened.rows("utf8", int(offsets[0]), int(offsets[-1])) if with_texts else np.empty(0, np.uint8)
        )
        lengths = np.diff(offsets)
        text_extents.append(
            (np.full(last - first, len(utf8) - 1, np.int64), offsets[:-1] - offsets[0], lengths)
        )
    if not text_extents:
        none = np.empty(0, np.int64)
        return Group(
            {name: np.empty(0, np.bool_ if name == "known" else np.uint32) for name in COLUMNS},
            [],
            [],
            [],
            none,
            none,
            none,
        )
    columns = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    order = np.argsort(columns["ordinal"], kind="stable")
    part, starts, lengths = (np.concatenate(pieces)[order] for pieces in zip(*text_extents, strict=True))
    return Group(
        {name: column[order] for name, column in columns.items()},
        list(names["files"]),
        list(names["sources"]),
        utf8,
        part,
        starts,
        lengths,
    )
