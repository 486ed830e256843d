"""Documents that were forgotten, as shards hold them: masked, every other position as it was.

In a sample, the inputs of a forgotten document are EOS, the labels that were its tokens or its EOS are EOS,
and these labels' positions have the mask 0: no loss is taken from it. All else in the row stays (positions,
spans, other documents). A corpus has no mask; there its tokens are EOS. documents.parquet keeps the
document's row, with its place, `forgotten`, and without its id and fields.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.lineage.split_view import Span, SplitView


class Masks:
    """The masked spans of a split: by row of the split, or (corpus) by stream position."""

    def __init__(self, view: SplitView) -> None:
        self.view = view
        self.by_row: dict[int, list[Span]] = {}
        self.num_labels = 0
        self._sorted: list[int] = []
        # Of the documents that are masked already, so that `undo` reads nothing: several threads ask it at once, and a
        # table is for one.
        self._tokens: dict[int, int] = {}
        extents = view.extents(self.rows_of(view))
        for extent, spans in zip(extents, view.spans_of_all(extents), strict=True):
            self.add(spans)
            self._tokens[extent.row] = extent.tokens

    @staticmethod
    def rows_of(view: SplitView) -> list[int]:
        """The documents of a split that are masked, by their rows in the table."""
        return view.table.matching({"forgotten": {True}}) if "forgotten" in view.table.columns else []

    def add(self, spans: list[Span]) -> None:
        """Add spans to be masked."""
        for span in spans:
            self.by_row.setdefault(span.row, []).append(span)
            self.num_labels += 0 if self.view.is_corpus else span.labels[1] - span.labels[0]
        self._sorted = []

    def ranges(self, first: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Begins and ends, counted from row `first` of the split, of what is masked in rows [first, first +
        count), each (n,) int64 in order.
        """
        within = [(at, self._size(span)) for at, span in self._within(first, count)]
        begins = np.array([at for at, _ in within], np.int64)
        return begins, begins + np.array([size for _, size in within], np.int64)

    def apply(self, rows: npt.NDArray[Any], first: int) -> bool:
        """Mask what of rows [first, first + n) of the split is to be masked, in place; whether there was any.
        rows: (n, planes, L), of a corpus (n,), of an integer dtype.
        """
        eos = self.view.manifest.tokenizer.eos_id
        changed = False
        for row, span in self._within(first, len(rows)):
            changed = True
            if self.view.is_corpus:
                rows[row : row + span.positions[1] - span.positions[0]] = eos
                continue
            rows[row, 0, slice(*span.positions)] = eos
            rows[row, 1, slice(*span.labels)] = 0
            rows[row, 2, slice(*span.labels)] = eos
        return changed

    def undo(self, rows: npt.NDArray[Any], first: int) -> str | None:
        """Put other tokens (not the document's) and the mask where rows are masked, in place, so that they
        follow the rules of rows that are not. Returns a message about what is not masked although it should
        be, None if all is. rows: (n, planes, L), of a corpus (n,), of an integer dtype.
        """
        eos = self.view.manifest.tokenizer.eos_id
        filler = 1 if eos == 0 else 0
        for row, span in self._within(first, len(rows)):
            low, high = span.positions
            if self.view.is_corpus:
                part, tokens = rows[row : row + high - low], span.tokens
                if (part != eos).any():
                    return f"token {first + row} of the stream"
                part[: _without_eos(self._tokens[span.document], tokens)] = filler
                continue
            (start, stop), name = span.labels, f"row {first + row} of the split"
            if (rows[row, 0, low:high] != eos).any():
                return f"{name}, input_ids positions {low} to {high}"
            if (rows[row, 2, start:stop] != eos).any() or (rows[row, 1, start:stop] != 0).any():
                return f"{name}, labels and attention_mask positions {start} to {stop}"
            count = self._tokens[span.document]
            rows[row, 0, low : low + _without_eos(count, span.tokens)] = filler
            rows[row, 1, start:stop] = 1
            rows[row, 2, start : start + _without_eos(count, span.label_tokens)] = filler
        return None

    def _within(self, first: int, count: int) -> list[tuple[int, Span]]:
        """(row counted from `first`, span) of the masked spans that begin in some rows. The spans of a corpus
        are cut at the rows' ends.
        """
        self._sorted = self._sorted or sorted(self.by_row)
        low, high = bisect_left(self._sorted, first), bisect_left(self._sorted, first + count)
        if not self.view.is_corpus:
            return [(row - first, span) for row in self._sorted[low:high] for span in self.by_row[row]]
        within = []
        for start in self._sorted[max(0, low - 1) : high]:  # documents do not overlap: one can reach in
            for span in self.by_row[start]:
                size = self._size(span)
                begin, end = max(start, first), min(start + size, first + count)
                if begin < end:
                    where = (span.positions[0] + begin - start, span.positions[0] + end - start)
                    tokens = (span.tokens[0] + begin - start, span.tokens[0] + end - start)
                    within.append((begin - first, Span(span.document, begin, where, where, tokens, tokens)))
        return within

    def _size(self, span: Span) -> int:
        """Rows of the split that a span is in."""
        return span.positions[1] - span.positions[0] if self.view.is_corpus else 1


def _without_eos(count: int, tokens: tuple[int, int]) -> int:
    """How many of a document's tokens [first, last) are not its EOS. count: of all its tokens without EOS."""
    return max(0, min(tokens[1], count) - tokens[0])
