"""Samples, positions in the stream, documents: which is where, exactly, in every shard format.

A split's stream is `doc_1 EOS doc_2 EOS ...` and documents.parquet says where each document begins in it. A
document has its tokens and its EOS at stream positions [begin, end). In a sample they stand as inputs and,
one position earlier, as labels:

    sample   input t of sample i is stream position i * L + t, its label the position after it; samples are in
             the shards in the seeded order of shard_formats/order.py
    corpus   a row is a stream position
    vsl      documents are packed as shard_formats/vsl.py packs them; their lengths are packed once more to
             find out where
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import ConfigError, DataError
from btlm_data.formats.dataset import DOCUMENTS, Dataset
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.formats.shard_formats import get_format
from btlm_data.formats.shard_formats.order import SampleOrder
from btlm_data.formats.shard_formats.reader import ShardReader

Int64Array = npt.NDArray[np.int64]


class Extent(msgspec.Struct, frozen=True):
    """A document in its split. row: in documents.parquet; begin: its first token's stream position; tokens:
    without EOS.
    """

    row: int
    begin: int
    tokens: int

    @property
    def end(self) -> int:
        """One past its EOS."""
        return self.begin + self.tokens + 1


class Span(msgspec.Struct, frozen=True):
    """The positions of a document, or a part of one, in one row. Positions are ranges [first, last), empty
    where first = last.

    document: its row in documents.parquet. row: of the split (in the corpus format: the position in the
    stream of `positions[0]`). positions: of the row where its tokens or its EOS are inputs (corpus: of the
    shard, counted in tokens). labels: of the row where they are labels. tokens, label_tokens: of the
    document, those that are inputs and labels here (EOS counts as the last).
    """

    document: int
    row: int
    positions: tuple[int, int]
    labels: tuple[int, int]
    tokens: tuple[int, int]
    label_tokens: tuple[int, int]


class SplitView:
    """One split of a prepared set: its rows, its documents, and the ways between them.

    root: the folder of the set. Raises DataError wherever files are missing, damaged, or do not fit together.
    """

    def __init__(self, root: Path, manifest: Dataset, name: str) -> None:
        self.root, self.manifest, self.name = root, manifest, name
        self.entry = manifest.split(name)
        self.format = manifest.format
        self.length = manifest.seq_len
        self.is_corpus = not get_format(manifest.format).planes
        if manifest.format not in ("sample", "corpus", "vsl"):
            raise DataError(
                f"Where documents stand in the {manifest.format} format is not known. Use sample, corpus or vsl."
            )
        self._first = [0, *accumulate(file.n_examples for file in self.entry.files)]
        self.num_rows = self._first[-1]

    @cached_property
    def table(self) -> DocumentTable:
        """Its documents."""
        return DocumentTable(self.root / self.name / DOCUMENTS)

    @property
    def num_labels(self) -> int:
        """Label positions of the stream that are in the shards (sample format)."""
        return max(0, min(self.entry.stream_tokens - 1, self.num_rows * self.length))

    def shard_of(self, row: int) -> tuple[int, int]:
        """(number of the shard, row in it) of a row of the split."""
        if not 0 <= row < self.num_rows:
            raise ConfigError(
                f"There is no sample {row:,} in {self.name}: they go from 0 to {self.num_rows - 1:,}. Name another."
            )
        number = bisect_right(self._first, row) - 1
        return number, row - self._first[number]

    def row_in(self, file: str, row: int) -> int:
        """A row of the split, by its shard's name and the row in it. Raises ConfigError if there is none."""
        for number, shard in enumerate(self.entry.files):
            if shard.name == file:
                if not 0 <= row < shard.n_examples:
                    raise ConfigError(
                        f"{file} has the rows 0 to {shard.n_examples - 1:,}, not {row:,}. Name another."
                    )
                return self._first[number] + row
        names = ", ".join(shard.name for shard in self.entry.files[:3])
        raise ConfigError(f"There is no shard {file} in {self.name} (it has {names}, ...). Name another.")

    def first_row(self, number: int) -> int:
        """The row of the split that is a shard's first."""
        return self._first[number]

    def path(self, number: int) -> Path:
        """Of a shard."""
        return self.root / self.name / self.entry.files[number].name

    # Rows and samples of the stream -------------------------------------------------------------------------

    def samples_of(self, rows: Int64Array) -> Int64Array:
        """The samples of the stream (vsl: as they were packed) that are in some rows. rows: (n,) int64;
        returns the same shape.
        """
        order = self._order
        return rows.astype(np.int64) if order is None else order.samples_at(rows).astype(np.int64)

    def rows_of(self, samples: Int64Array) -> Int64Array:
        """The inverse of `samples_of`. samples: (n,) int64; returns the same shape."""
        order = self._order
        return samples.astype(np.int64) if order is None else order.rows_of(samples).astype(np.int64)

    @cached_property
    def _order(self) -> SampleOrder | None:
        return self.manifest.sample_order(self.name, self.num_rows)

    # Documents to spans -------------------------------------------------------------------------------------

    def extents(self, documents: Sequence[int]) -> list[Extent]:
        """Where documents are in the stream. documents: their rows in the table, sorted."""
        return [
            Extent(document["row"], document["stream_offset"], document["tokens"])
            for document in self.table.rows(documents, ("stream_offset", "tokens"))
        ]

    def spans(self, extent: Extent) -> list[Span]:
        """Every span of a document, in the order of the stream."""
        return self.spans_of_all([extent])[0]

    def spans_of_all(self, extents: Sequence[Extent]) -> list[list[Span]]:
        """Every span of each document, in the order of the stream."""
        if self.is_corpus:
            return [self._corpus_spans(extent) for extent in extents]
        if self.format == "vsl":
            return [self._vsl_spans(extent) for extent in extents]
        numbers = [self._samples_with(extent) for extent in extents]
        samples = [number for some in numbers for number in some]
        rows = iter(self.rows_of(np.array(samples, np.int64)).tolist())  # of all at once
        return [
            [self._sample_span(extent, sample, next(rows)) for sample in some]
            for extent, some in zip(extents, numbers, strict=True)
        ]

    def _samples_with(self, extent: Extent) -> range:
        """The samples of the stream that a document is in."""
        first, last = max(0, extent.begin - 1), min(extent.end, self.num_labels)
        return range(first // self.length, (last - 1) // self.length + 1) if first < last else range(0)

    def _sample_span(self, extent: Extent, sample: int, row: int) -> Span:
        base = sample * self.length
        real = min(self.length, self.num_labels - base)
        first, last = (min(max(at - base, 0), real) for at in (extent.begin, extent.end))
        first_label, last_label = (min(max(at - 1 - base, 0), real) for at in (extent.begin, extent.end))
        tokens = (base + first - extent.begin, base + last - extent.begin) if first < last else (0, 0)
        labels = (0, 0)
        if first_label < last_label:
            labels = (base + first_label + 1 - extent.begin, base + last_label + 1 - extent.begin)
        return Span(extent.row, row, (first, last), (first_label, last_label), tokens, labels)

    def _corpus_spans(self, extent: Extent) -> list[Span]:
        spans = []
        for number in range(bisect_right(self._first, extent.begin) - 1, len(self.entry.files)):
            low, high = self._first[number], self._first[number + 1]
            first, last = max(extent.begin, low), min(extent.end, high)
            if first >= last:
                break
            where = (first - low, last - low)
            tokens = (first - extent.begin, last - extent.begin)
            spans.append(Span(extent.row, first, where, where, tokens, tokens))
        return spans

    def _vsl_spans(self, extent: Extent) -> list[Span]:
        first, base, pieces = self._window_of(extent.row)
        low = int(np.searchsorted(pieces.document, extent.row - first))
        high = int(np.searchsorted(pieces.document, extent.row - first, side="right"))
        rows = self.rows_of(base + pieces.row[low:high]).tolist()
        return [
            self._vsl_span(extent.row, row, pieces, k) for row, k in zip(rows, range(low, high), strict=True)
        ]

    @staticmethod
    def _vsl_span(document: int, row: int, pieces: Any, k: int) -> Span:
        column, length, start = int(pieces.column[k]), int(pieces.length[k]), int(pieces.start[k])
        where = (column, column + length)
        labels = (start + 1, start + length + 1)
        return Span(document, row, where, where, (start, start + length), labels)

    # Spans to documents -------------------------------------------------------------------------------------

    def documents_in(self, row: int) -> list[Span]:
        """What is in a row (in the corpus format: in the seq_len tokens from stream position `row` on), in
        order of positions: every document that has an input or a label there.
        """
        self.shard_of(row)
        if self.format == "vsl":
            return self._vsl_documents(int(self.samples_of(np.array([row]))[0]), row)
        if self.is_corpus:
            return self.corpus_documents(row, row + self.length)
        sample = int(self.samples_of(np.array([row]))[0])
        base = sample * self.length
        stop = min(base + self.length, self.num_labels) + 1
        return [self._sample_span(extent, sample, row) for extent in self.between(base, stop)]

    def corpus_documents(self, start: int, stop: int) -> list[Span]:
        """What is at tokens [start, stop) of a corpus, and no more of each document."""
        stop = min(stop, self.num_rows)
        spans = []
        for extent in self.between(start, stop):
            for span in self._corpus_spans(extent):
                before = max(0, start - span.row)
                behind = max(0, span.row + span.positions[1] - span.positions[0] - stop)
                if before + behind < span.positions[1] - span.positions[0]:
                    where = (span.positions[0] + before, span.positions[1] - behind)
                    tokens = (span.tokens[0] + before, span.tokens[1] - behind)
                    spans.append(Span(span.document, span.row + before, where, where, tokens, tokens))
        return spans

    def between(self, start: int, stop: int) -> list[Extent]:
        """The documents with a token or their EOS at stream positions [start, stop)."""
        return [
            Extent(document["row"], document["stream_offset"], document["tokens"])
            for document in self.table.between(start, stop, ("stream_offset", "tokens"))
        ]

    def pieces(self) -> Any:
        """Every piece of every document (kernels.packing.Pieces), of the vsl format: `document` is the row in
        the table, `row` that of the split.
        """
        from btlm_data.kernels.packing import Pieces

        names = ("document", "start", "length", "row", "column")
        parts: list[list[Int64Array]] = [[np.empty(0, np.int64)] * len(names)]
        for first, _, base, pieces in self._packed_windows:
            rows = self.rows_of(base + pieces.row)
            parts.append([first + pieces.document, pieces.start, pieces.length, rows, pieces.column])
        document, start, length, row, column = (
            np.concatenate([part[i] for part in parts]) for i in range(len(names))
        )
        return Pieces(document, start, length, row, column, self.num_rows)

    def _vsl_documents(self, packed: int, row: int) -> list[Span]:
        for first, _, base, pieces in self._packed_windows:
            if base <= packed < base + pieces.num_rows:
                chosen = np.flatnonzero(pieces.row == packed - base)
                ordered = chosen[np.argsort(pieces.column[chosen])]
                return [
                    self._vsl_span(first + int(pieces.document[k]), row, pieces, k) for k in ordered.tolist()
                ]
        raise DataError(
            f"{self.root / self.name} has {self.num_rows:,} samples, but its documents do not fill sample {packed:,}. "
            "Run `btlm-data verify`."
        )

    def _window_of(self, document: int) -> tuple[int, int, Any]:
        for first, count, base, pieces in self._packed_windows:
            if first <= document < first + count:
                return first, base, pieces
        raise DataError(
            f"There is no document {document:,} in {self.root / self.name}. Run `btlm-data verify`."
        )

    @cached_property
    def _packed_windows(self) -> list[tuple[int, int, int, Any]]:
        """(row of the first document, documents, number of the first sample, pieces) of each window."""
        from btlm_data.kernels.packing import pack_documents

        most = self.manifest.configuration.get("max_documents_per_sample") or 0
        extents, base = [], 0
        for first, lengths in windows(self.table, self.entry.borders):
            pieces = pack_documents(lengths, self.length, most)
            extents.append((first, len(lengths), base, pieces))
            base += pieces.num_rows
        if base != self.num_rows:
            raise DataError(
                f"{self.root / self.name}: packing its documents once more gives {base:,} samples, and it has "
                f"{self.num_rows:,}. Run `btlm-data verify`."
            )
        return extents

    # Tokens -------------------------------------------------------------------------------------------------

    def document_tokens(self, extent: Extent, first: int = 0, last: int | None = None) -> Int64Array:
        """A document's tokens [first, last) as they are in the shards as inputs, without EOS; those that an
        unpadded tail leaves out, or that are a label only, are missing at the end. Returns (n,) int64.
        """
        last = extent.tokens if last is None else min(last, extent.tokens)
        parts = []
        for span in self.spans(extent):
            low, high = max(first, span.tokens[0]), min(last, span.tokens[1])
            if low < high:
                at = span.positions[0] - span.tokens[0]
                parts.append(self.inputs(span)[low + at : high + at])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def inputs(self, span: Span) -> Int64Array:
        """The input ids of the row of a span; of a corpus, the tokens of its shard up to the end of the span.
        Returns (L,) int64, of a corpus (n,).
        """
        number, row = self.shard_of(span.row)
        with ShardReader(self.path(number)) as shard:
            if self.is_corpus:
                out = np.zeros(span.positions[1], np.int64)
                out[span.positions[0] :] = shard.read(*span.positions)
                return out
            return np.asarray(shard.read(row, row + 1)[0][0], np.int64)


def windows(table: DocumentTable, borders: Sequence[int]) -> Iterator[tuple[int, Int64Array]]:
    """(row of the first document, tokens of each) of the documents that begin in one window of
    shard_formats/vsl.py. borders: of the split's phases.
    """
    from btlm_data.formats.shard_formats.vsl import WINDOW_TOKENS

    begins, ends = np.array([0, *borders], np.int64), np.array(borders, np.int64)
    lengths: list[Int64Array] = []
    begin, current = 0, -1
    for first, columns in table.batches(("stream_offset", "tokens")):
        offset = columns["stream_offset"].astype(np.int64)
        phase = np.searchsorted(ends, offset, side="right")
        window = (offset - begins[phase]) // WINDOW_TOKENS + phase * 2**40
        edges = [0, *(np.flatnonzero(np.diff(window)) + 1).tolist(), len(window)]
        for low, high in pairwise(edges):
            if low == high:
                continue
            if lengths and int(window[low]) != current:
                yield begin, np.concatenate(lengths)
                lengths = []
            if not lengths:
                begin, current = first + low, int(window[low])
            lengths.append(columns["tokens"][low:high].astype(np.int64))
    if lengths:
        yield begin, np.concatenate(lengths)
