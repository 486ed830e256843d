"""The format `vsl` (variable sequence length): (n, 5, L), documents bin-packed, none attending across its
borders.

Planes: input_ids, attention_mask, labels, attention_span (tokens of the document after this one),
position_ids. `pack` takes the documents that begin in one window of the stream, cuts them into pieces and
gives each its place; only lengths are looked at, so packing needs no memory for the corpus and is the same on
every machine:

    block uint32, source uint64 (token in the block), length uint32, ends bool (the document's last piece),
    column uint32: pieces sorted by row; edges (rows + 1,) uint64: the pieces of each row

Prefix sums over the windows' rows number the samples, and the shuffle permutes those numbers. A document of m
tokens has m label positions (kernels.packing.Pieces); nothing is cropped.

Ledger: tokens in = label positions + one a document (its first token is never a label).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from btlm_data.formats.shard_formats.base import (
    PIECE,
    Balance,
    Checked,
    Int64Array,
    Packed,
    PackedFile,
    PackedPieces,
    Packing,
    Pieces,
    RowContext,
    RowPlan,
    Shard,
    StreamAccess,
    StreamSize,
    Stretch,
    faults_of,
)
from btlm_data.formats.shard_formats.order import SampleOrder
from btlm_data.formats.shard_formats.pieces import check_apart
from btlm_data.formats.shard_formats.writer import (
    BATCH_UNITS,
    ElementType,
    ShardInfo,
    ShardOptions,
    ShardWriter,
)

if TYPE_CHECKING:
    from btlm_data.kernels.checks import Prints, Vocabulary

_OURS = frozenset({"mask order", "padding", "crossing"})  # rules that other writers need not keep
WINDOW_TOKENS = 16_777_216
_COLUMNS = ("block", "source", "length", "ends", "column")


class VslFormat:
    """See the module."""

    name = "vsl"
    planes = ("input_ids", "attention_mask", "labels", "attention_span", "position_ids")
    rules = ("mask value", "mask order", "padding", "shift", "token", "span", "position", "crossing")
    follows_stream = False
    plans_by_packing = True

    def element_type(self, chosen: ElementType, token_dtype: str) -> ElementType:
        """Always int32, as readers expect."""
        return "int32"

    def stretches(self, size: StreamSize, packing: Packing, memory: int) -> list[Stretch]:
        """Windows of the stream, none over a border between phases."""
        edges = [0, *(packing.borders or (size.tokens,))]
        return [
            Stretch((0, 0), (start, min(start + WINDOW_TOKENS, stop)))
            for begin, stop in pairwise(edges)
            for start in range(begin, stop, WINDOW_TOKENS)
        ]

    def pieces(self, offsets: Int64Array, lengths: Int64Array, size: StreamSize, packing: Packing) -> Pieces:
        """Never requested: where a document stands follows from the others in its window. offsets, lengths: (n,) int64."""
        raise NotImplementedError

    def packed_pieces(
        self, packed: PackedFile, number: int, size: StreamSize, packing: Packing, packed_rows: Sequence[int]
    ) -> PackedPieces:
        """All pieces of a window; the rows of windows follow each other, and are shuffled."""
        edges = packed["edges"].astype(np.int64)
        first = sum(packed_rows[:number])
        rows = np.arange(first, first + len(edges) - 1)
        if packing.is_shuffled:
            rows = self._order(size, packing, packed_rows).rows_of(rows).astype(np.int64)
        block, source, length, column = (
            packed[name].astype(np.int64) for name in ("block", "source", "length", "column")
        )
        return PackedPieces(block, source, length, packed["ends"], np.repeat(rows, np.diff(edges)), column)

    def num_pieces(self, size: StreamSize, packing: Packing) -> int:
        """One for each document and each row that a document runs over."""
        return size.documents + -(-size.tokens // packing.seq_len)

    def _order(self, size: StreamSize, packing: Packing, packed_rows: Sequence[int]) -> SampleOrder:
        return packing.order(sum(packed_rows), self.phase_rows(size, packing, packed_rows))

    def packed_bytes(self, size: StreamSize, packing: Packing) -> int:
        """A piece for each document and for each row that a document runs over, and an edge a row."""
        rows = -(-size.tokens // packing.seq_len)
        return (size.documents + rows) * 21 + rows * 8

    def pack(self, stretch: Stretch, size: StreamSize, packing: Packing, stream: StreamAccess) -> Packed:
        """Pack the documents that begin in one window."""
        from btlm_data.kernels.packing import pack_documents

        block, begin, length = stream.documents(*stretch.tokens)
        pieces = pack_documents(length, packing.seq_len, packing.max_documents)
        order = np.argsort(pieces.row, kind="stable")
        document = pieces.document[order]
        columns = {
            "block": block[document].astype(np.uint32),
            "source": (begin[document] + pieces.start[order]).astype(np.uint64),
            "length": pieces.length[order].astype(np.uint32),
            "ends": (pieces.start + pieces.length == length[pieces.document])[order],
            "column": pieces.column[order].astype(np.uint32),
            "edges": np.searchsorted(pieces.row[order], np.arange(pieces.num_rows + 1)).astype(np.uint64),
        }
        return Packed(columns, pieces.num_rows)

    def plan(self, size: StreamSize, packing: Packing, packed_rows: Sequence[int]) -> RowPlan:
        """As many rows as the windows fill."""
        return RowPlan(sum(packed_rows), packing.samples_per_file)

    def phase_rows(self, size: StreamSize, packing: Packing, packed_rows: Sequence[int]) -> tuple[int, ...]:
        """Those of the windows before each border."""
        windows = [stretch.tokens for stretch in self.stretches(size, packing, 0)]
        return tuple(
            sum(rows for (_, stop), rows in zip(windows, packed_rows, strict=True) if stop <= border)
            for border in packing.borders
        )

    def tokens_needed(self, rows: tuple[int, int], size: StreamSize, packing: Packing) -> tuple[int, int]:
        """None: pieces name their tokens by block."""
        return 0, 0

    def write(
        self,
        file: BinaryIO,
        shard: Shard,
        stream: StreamAccess,
        packed: Sequence[PackedFile],
        sent: Iterable[PackedFile] | None = None,
    ) -> ShardInfo:
        """Write one shard of packed samples."""
        from btlm_data.kernels.packing import fill_vsl

        (first, last), packing = shard.rows, shard.packing
        planes = np.zeros((last - first, len(self.planes), packing.seq_len), np.int32)
        if sent is not None:
            _fill_sent(sent, first, packing, planes)
            return write_vsl(file, planes, packing.storage)
        rows = np.arange(first, last, dtype=np.int64)
        if packing.is_shuffled:
            rows = self._order(shard.size, packing, shard.packed_rows).samples_at(rows).astype(np.int64)
        pieces = _pieces(packed, shard.packed_rows, rows)
        order = np.argsort(pieces["block"], kind="stable")
        borders = np.flatnonzero(np.diff(pieces["block"][order])) + 1
        for chosen in np.split(order, borders) if len(order) else []:
            source, length, ends, row, column = (
                pieces[name][chosen] for name in ("source", "length", "ends", "row", "column")
            )
            # A piece that does not end its document has that document's next token as its last label.
            tokens = stream.tokens_of_block(int(pieces["block"][chosen[0]]), source, length + ~ends)
            fill_vsl(tokens, source, length, ends, row, column, packing.eos_id, planes)
        return write_vsl(file, planes, packing.storage)

    def balance(self, size: StreamSize, packing: Packing) -> Balance:
        """All tokens but each document's first are labels."""
        return Balance(size.tokens - size.documents, {"first_of_document_is_no_label": size.documents})

    def check(
        self, rows: npt.NDArray[Any], context: RowContext, vocabulary: Vocabulary, prints: Prints
    ) -> Checked:
        """Masks, padding, label shift, ids, spans, positions, and that no prediction crosses a document's
        end. rows: (n, 5, L) of any integer dtype.
        """
        from btlm_data.kernels.checks import scan_vsl

        result = scan_vsl(rows, vocabulary)
        faults = faults_of(result, self.rules, frozenset() if context.is_ours else _OURS)
        return Checked(faults, int(result.real.sum()), int(result.eos.sum()))


def write_vsl(
    file: BinaryIO, planes: npt.NDArray[np.int32], options: ShardOptions | None = None
) -> ShardInfo:
    """Write planes (n, 5, L) int32 as a VSL shard into an empty file, open for reading and writing."""
    options = options or ShardOptions()
    with ShardWriter(file, planes.shape, (1, *planes.shape[1:]), options) as writer:
        step = max(1, BATCH_UNITS // max(1, planes[0].size if len(planes) else 1))
        for start in range(0, len(planes), step):
            writer.add(planes[start : start + step])
    return writer.info(int(planes[:, 1].sum(dtype=np.int64)))


def _pieces(
    packed: Sequence[PackedFile], packed_rows: Sequence[int], rows: Int64Array
) -> dict[str, npt.NDArray[Any]]:
    """The pieces of samples `rows` (numbered over all windows), with `row` their place in `rows`; int64 but
    for `ends`.
    """
    edges = np.cumsum([0, *packed_rows])
    window = np.searchsorted(edges, rows, side="right") - 1
    parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in (*_COLUMNS, "row")}
    for number in np.flatnonzero(np.bincount(window, minlength=len(packed))).tolist():
        bounds = packed[number]["edges"]
        positions = np.flatnonzero(window == number)
        first = bounds[rows[positions] - edges[number]].astype(np.int64)
        counts = bounds[rows[positions] - edges[number] + 1].astype(np.int64) - first
        chosen = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - first, counts)
        parts["row"].append(np.repeat(positions, counts))
        for name in _COLUMNS:
            column = packed[number][name][chosen]
            parts[name].append(column if name == "ends" else column.astype(np.int64))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _fill_sent(
    sent: Iterable[PackedFile], first: int, packing: Packing, planes: npt.NDArray[np.int32]
) -> None:
    """Fill planes with pieces, each with the label of its last position behind its tokens. first: row of the split."""
    from btlm_data.kernels.packing import fill_vsl

    places, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for file in sent:
        table, tokens = np.ascontiguousarray(file["pieces"]).view(PIECE), file["tokens"].view(packing.dtype)
        count = table["length"].astype(np.int64)
        row, column = table["row"].astype(np.int64) - first, table["column"].astype(np.int64)
        within = np.zeros(len(count), np.bool_)  # the last label is there, whatever it is
        fill_vsl(tokens, np.cumsum(count) - count, count - 1, within, row, column, packing.eos_id, planes)
        places.append(row * packing.seq_len + column)
        lengths.append(count - 1)
    check_apart(np.concatenate(places), np.concatenate(lengths), first)


FORMAT = VslFormat()
