"""Documents that were forgotten, as shards hold them: masked, every other position as it was.

In a sample, the inputs of a forgotten document are EOS, the labels that were its tokens or its EOS are EOS, and these labels'
positions have the mask 0: no loss is taken from it. All else in the row stays (positions, spans, other documents). A corpus has
no mask; there its tokens are EOS. documents.parquet keeps the document's row, with its place, `forgotten`, and without its id
and fields.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from btlm_data.lineage.places import Place, SplitView


class Masks:
    """The masked places of a split: by row of the split, or (corpus) by stream position."""

    def __init__(self, view: SplitView) -> None:
        self.view = view
        self.by_row: dict[int, list[Place]] = {}
        self.num_labels = 0
        rows = view.table.matching({"forgotten": {True}}) if "forgotten" in view.table.columns else []
        for extent in view.extents(rows):
            self.add(view.places(extent))

    def add(self, places: list[Place]) -> None:
        """More places to be masked."""
        for place in places:
            self.by_row.setdefault(place.row, []).append(place)
            self.num_labels += 0 if self.view.is_corpus else place.labels[1] - place.labels[0]

    def apply(self, rows: npt.NDArray[Any], first: int) -> bool:
        """Mask what of rows [first, first + n) of the split is to be masked, in place; whether there was any."""
        eos = self.view.manifest.tokenizer.eos_id
        changed = False
        for row, place in self._within(first, len(rows)):
            changed = True
            if self.view.is_corpus:
                rows[row : row + place.positions[1] - place.positions[0]] = eos
                continue
            rows[row, 0, slice(*place.positions)] = eos
            rows[row, 1, slice(*place.labels)] = 0
            rows[row, 2, slice(*place.labels)] = eos
        return changed

    def undo(self, rows: npt.NDArray[Any], first: int) -> str | None:
        """Put other tokens (not the document's) and the mask where rows are masked, in place, so that they follow the rules of
        rows that are not. Returns in words what is not masked although it should be, None if all is.
        """
        eos = self.view.manifest.tokenizer.eos_id
        other = 1 if eos == 0 else 0
        for row, place in self._within(first, len(rows)):
            low, high = place.positions
            if self.view.is_corpus:
                part, tokens = rows[row : row + high - low], place.tokens
                if (part != eos).any():
                    return f"token {first + row} of the stream"
                part[: _without_eos(self._tokens(place), tokens)] = other
                continue
            (start, stop), name = place.labels, f"row {first + row} of the split"
            if (rows[row, 0, low:high] != eos).any():
                return f"{name}, input_ids positions {low} to {high}"
            if (rows[row, 2, start:stop] != eos).any() or (rows[row, 1, start:stop] != 0).any():
                return f"{name}, labels and attention_mask positions {start} to {stop}"
            count = self._tokens(place)
            rows[row, 0, low : low + _without_eos(count, place.tokens)] = other
            rows[row, 1, start:stop] = 1
            rows[row, 2, start : start + _without_eos(count, place.label_tokens)] = other
        return None

    def _tokens(self, place: Place) -> int:
        [extent] = self.view.extents([place.document])
        return extent.tokens

    def _within(self, first: int, count: int) -> list[tuple[int, Place]]:
        """(row from `first` on, place) of the masked places that begin in some rows. A corpus's places are cut at the rows' ends."""
        if not self.view.is_corpus:
            if len(self.by_row) < count:
                chosen = [row for row in self.by_row if first <= row < first + count]
            else:
                chosen = [row for row in range(first, first + count) if row in self.by_row]
            return [(row - first, place) for row in chosen for place in self.by_row[row]]
        found = []
        for start, places in self.by_row.items():
            for place in places:
                size = place.positions[1] - place.positions[0]
                low, high = max(start, first), min(start + size, first + count)
                if low < high:
                    where = (place.positions[0] + low - start, place.positions[0] + high - start)
                    tokens = (place.tokens[0] + low - start, place.tokens[0] + high - start)
                    found.append((low - first, Place(place.document, low, where, where, tokens, tokens)))
        return found


def _without_eos(count: int, tokens: tuple[int, int]) -> int:
    """How many of a document's tokens [first, last) are not its EOS. count: of all its tokens without EOS."""
    return max(0, min(tokens[1], count) - tokens[0])
