"""Texts that begin in one sample and end in another: what was seen at the end of a sample, looked at together with the
sample beside it in the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from btlm_data.inspection.opening import OpenShards
from btlm_data.lineage.passages import Seen, resolved
from btlm_data.lineage.split_view import SplitView

if TYPE_CHECKING:
    from btlm_data.kernels.passages import Needles


class CutText(NamedTuple):
    """Where a text begins. row: of the split (in the corpus format: 0); position: in it (in the stream); tokens: that hold it, the last in
    another sample.
    """

    row: int
    position: int
    tokens: int


def find(view: SplitView, seen: Seen, sought: Needles, shards: OpenShards) -> list[CutText]:
    """The text of which `seen` is a part, if what is in the sample beside it fits. Raises DataError."""
    if view.format == "sample":
        return _in_neighbours(view, seen, sought, shards)
    texts = []
    for _, document, (first, last) in resolved(view, [seen], sought):
        if view.is_corpus:
            texts.append(CutText(0, document.begin + first, last - first))
            continue
        span = next(span for span in view.spans(document) if span.tokens[0] <= first < span.tokens[1])
        texts.append(CutText(span.row, span.positions[0] + first - span.tokens[0], last - first))
    return texts


def _in_neighbours(view: SplitView, seen: Seen, sought: Needles, shards: OpenShards) -> list[CutText]:
    """Of samples that are cut from the stream end to end: no table of documents is needed."""
    from btlm_data.kernels import passages

    [middle] = view.samples_of(np.array([seen.row])).tolist()
    samples = np.arange(max(0, middle - 1), min(view.num_rows, middle + 2))
    rows = view.rows_of(samples).tolist()
    parts = []
    for sample, row in zip(samples.tolist(), rows, strict=True):
        number, at = view.shard_of(row)
        real = min(view.length, view.num_labels - sample * view.length)
        parts.append(shards.ids(view.path(number), at, at + 1, axes=3)[0, :real])
    starts = np.cumsum([0, *map(len, parts)])
    ids = np.concatenate(parts)[None, :]
    hits = passages.find(ids, np.array([ids.shape[1]]), np.zeros((0, 0), np.bool_), sought)
    anchor = starts[middle - samples[0]] + seen.token
    texts = []
    for k in np.flatnonzero((hits.state == passages.FOUND) & (hits.token == anchor)).tolist():
        begin, end = int(hits.begin[k]), int(hits.end[k])
        part = int(np.searchsorted(starts, begin, side="right")) - 1
        if end > starts[part + 1]:
            texts.append(CutText(rows[part], begin - int(starts[part]), end - begin))
    return texts
