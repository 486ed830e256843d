"""Candidates compared by their texts, and which of them go (`dedupe.verify: text`).

In each component, texts come in the order of `keep` (holdout first, then by score, then by place in the
source). A text goes if its similarity to an earlier one that stays reaches the threshold; else it stays. So
whatever goes is, by its own text, a copy of something that is kept, and chains cannot join documents that are
unlike.

A text is compared with at most CANDIDATES earlier ones: those that share most bands with it, and the first in
order, in this order, until one is similar enough. Where a candidate goes itself, the document kept for it
takes its place. What was not compared stays, and is counted.

dedupe/pairs/RANGE-NUMBER.cols, dedupe/pairs-N/...: nominated pairs by group (by_group.py), of one range of documents first:
                             the tables `edges` and `index`, of records EDGE and FOREIGN
dedupe/compare/GROUP.cols    what goes: `gone`, `anchor` int64 (first documents of texts: the one that goes, and the one
                             that it goes for; IN_INDEX: one of an index), `shared`, `gone_size`, `anchor_size` uint32 features
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data import by_group
from btlm_data.advance import advance
from btlm_data.by_ordinal import ByOrdinal
from btlm_data.dedupe.components import HOLDOUT
from btlm_data.dedupe.deciding import IN_INDEX
from btlm_data.dedupe.groups import GROUP_BYTES
from btlm_data.dedupe.index import IndexReader
from btlm_data.dedupe.links import IndexPairs, Links
from btlm_data.dedupe.members import Group, read_group
from btlm_data.dedupe.ranges import Ranges
from btlm_data.dedupe.settings import ClusterSettings
from btlm_data.kernels import shingles
from btlm_data.kernels.minhash import Shingle
from btlm_data.task import Artifact, Counts, Task
from btlm_data.task_files import TaskFiles

CANDIDATES = 16  # half of them by shared bands, half the first in order
PAIRS_BYTES = 64 * 2**20  # of the pairs in one file
_ORDINAL_BITS = 47  # of a run of an index, beside the number of the run
BATCH_BYTES = 4 * 2**20  # of texts that are laid side by side at once: they stay in a processor's cache
KINDS = {"jaccard": shingles.JACCARD, "containment": shingles.CONTAINMENT}
EDGE = np.dtype([("first", "<i8"), ("other", "<i8")])
FOREIGN = np.dtype([("document", "<i8"), ("run", "<u2"), ("ordinal", "<i8")])
UInt32Array = npt.NDArray[np.uint32]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def pairs_by_group(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """The pairs of one range of documents, out of all partitions, sorted by group; in files of about PAIRS_BYTES."""
    ranges: Ranges = task.hints["ranges"]
    first, last = task.args["documents"]
    groups = ByOrdinal(files, task.through["components"][0]).rows("group", first, last)
    held: list[Links] = []
    num_files = num_bytes = 0

    def flush() -> None:
        nonlocal num_files, num_bytes
        piece = _pairs(held, groups, first)
        if len(piece.groups):
            by_group.write(files, f"dedupe/pairs/{task.id}-{num_files:05d}.cols", [piece])
        num_files, num_bytes = num_files + 1, 0
        held.clear()

    [listed] = task.through["edges"]
    for piece in by_group.of_group(files, listed, task.hints["range"] + 1):
        links = Links.of_piece(piece, ranges, f"An edge of dedupe.pairs {task.id}")
        held.append(links)
        num_bytes += links.num_bytes
        if num_bytes >= PAIRS_BYTES:
            flush()
    if held:
        flush()
    advance(task.weight)
    return Counts()


def _pairs(held: Sequence[Links], groups: UInt32Array, base: int) -> by_group.Piece:
    """Pairs sorted by group. groups: (n,) uint32, of the documents from `base` on."""
    ends = zip(*((links.first, links.other) for links in held), strict=True)
    first, other = (np.concatenate([part for parts in end for part in parts]) for end in ends)
    edges = np.empty(len(other), EDGE)
    edges["first"], edges["other"] = first, other
    pairs = IndexPairs.concatenate([part for links in held for part in links.in_index])
    index = np.empty(len(pairs.document), FOREIGN)
    for name, column in pairs._asdict().items():
        index[name] = column
    return by_group.piece_of(
        {
            "edges": (edges, groups[other.astype(np.int64) - base]),
            "index": (index, groups[pairs.document - base]),
        }
    )


def compare(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Compare the candidates of one group and decide."""
    members, pairs = task.through["members"][0], task.through["pairs"][0]
    compared = open_group(files, members, pairs, task.args["group"], settings.index)
    dedupe = settings.dedupe
    shingle = Shingle.of(dedupe.shingle, dedupe.shingle_size)
    decisions = compared.decide([shingles.Rule(KINDS[dedupe.similarity], dedupe.threshold)], shingle)
    [anchors] = decisions.anchor
    gone = np.flatnonzero(anchors >= 0)
    anchor = anchors[gone]
    arrays: dict[str, npt.NDArray[Any]] = {
        "gone": compared.ordinals[gone],
        "anchor": compared.ordinals[anchor],
        "shared": decisions.shared[0][gone],
        "gone_size": decisions.sizes[gone],
        "anchor_size": decisions.sizes[anchor],
    }
    files.write_columns(task.outputs[0][1], arrays)
    advance(task.weight)
    stays = anchors < 0
    return Counts(
        extra={
            "compared": int(decisions.compared[0]),
            "similar": int(decisions.similar[0]),
            "not_compared": int(compared.left_out[stays].sum()),
        }
    )


class Compared(msgspec.Struct, frozen=True):
    """The texts of a group in the order of keep, n of them, and whom each is compared with.

    foreign: texts of an index, which come first. ordinals: (n,) int64, IN_INDEX for foreign ones. rows: of
    the group, (n - foreign,). candidates, bounds: as shingles.decide takes them. left_out: (n,) how many
    nominated pairs of each text are not compared.
    """

    group: Group
    foreign: Sequence[bytes]
    ordinals: Int64Array
    rows: Int64Array
    candidates: Int64Array
    bounds: Int64Array
    left_out: Int64Array

    def decide(
        self, rules: Sequence[shingles.Rule], shingle: Shingle, floor: float | None = None
    ) -> shingles.Decisions:
        """What goes under each rule. Whole components are laid side by side, about BATCH_BYTES at a time; one that is larger
        than a group is in a temporary file.
        """
        lengths = np.array([len(text) for text in self.foreign], np.int64)
        lengths = np.concatenate([lengths, self.group.texts.lengths[self.rows]])
        decisions = shingles.undecided(len(rules), len(lengths))
        buffer = np.empty(0, np.uint8)
        for texts in _batches(self.candidates, self.bounds, lengths):
            offsets = shingles.offsets_of(lengths[texts], shingle)
            total = int(offsets[-1])
            with contextlib.ExitStack() as files:
                if total > 2 * GROUP_BYTES:
                    file = files.enter_context(tempfile.TemporaryFile())
                    utf8: npt.NDArray[np.uint8] = np.memmap(file, np.uint8, "w+", shape=(total,))
                else:
                    if total > len(buffer):
                        buffer = np.empty(total, np.uint8)
                    utf8 = buffer[:total]
                self._copy_texts(texts, utf8, offsets)
                shingles.end_words(utf8, offsets, shingle)
                candidates, bounds = _of_texts(self.candidates, self.bounds, texts)
                part = shingles.decide(utf8, offsets, candidates, bounds, rules, shingle, floor)
            decisions.put(part, texts)
        return decisions

    def _copy_texts(self, texts: Int64Array, utf8: npt.NDArray[np.uint8], offsets: Int64Array) -> None:
        """Copy texts, given by their numbers, ascending, to where they begin in a buffer."""
        num_foreign = int(np.searchsorted(texts, len(self.foreign)))
        for number, begin in zip(texts[:num_foreign].tolist(), offsets.tolist(), strict=False):
            text = self.foreign[number]
            utf8[begin : begin + len(text)] = np.frombuffer(text, np.uint8)
        rows = self.rows[texts[num_foreign:] - len(self.foreign)]
        self.group.texts.copy(rows, utf8, offsets[num_foreign:-1])


def _batches(candidates: Int64Array, bounds: Int64Array, lengths: Int64Array) -> Iterator[Int64Array]:
    """Texts that are compared with each other, whole components of about BATCH_BYTES at a time: their numbers, ascending. A
    text that is compared with none is in no batch.
    """
    component = shingles.components(candidates, bounds)
    is_compared = np.bincount(component, minlength=len(component))[component] > 1
    chosen = np.flatnonzero(is_compared)
    chosen = chosen[np.argsort(component[chosen], kind="stable")]
    ends = np.cumsum(lengths[chosen])
    starts_component = np.diff(component[chosen].astype(np.int64), prepend=-1) != 0
    before = (ends - lengths[chosen])[starts_component]
    batch = (before // BATCH_BYTES)[np.cumsum(starts_component) - 1]
    for texts in np.split(chosen, np.flatnonzero(np.diff(batch)) + 1):
        if len(texts):
            yield np.sort(texts)


def _of_texts(candidates: Int64Array, bounds: Int64Array, texts: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Candidates of some texts, as numbers among these, and their bounds. texts: (n,) int64, ascending."""
    counts = np.diff(bounds)[texts]
    new_bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    at = np.repeat(bounds[:-1][texts] - new_bounds[:-1], counts) + np.arange(new_bounds[-1])
    return np.searchsorted(texts, candidates[at]), new_bounds


def open_group(
    files: TaskFiles, members_list: Artifact, pairs_list: Artifact, number: int, index: IndexReader | None
) -> Compared:
    """Read a group and choose whom each of its texts is compared with."""
    group = read_group(files, members_list, number, with_texts=True)
    columns = group.columns
    rows = np.flatnonzero(columns["ordinal"] == columns["root"])
    scores = columns["score"][rows]
    order = np.argsort(-scores.astype(np.int64), kind="stable")
    rows, scores = rows[order], scores[order]
    ordinals = columns["ordinal"][rows]
    edges = _records(files, pairs_list, number, "edges", EDGE)
    one_end, other_end = edges["first"], edges["other"]
    by_ordinal = np.argsort(ordinals)
    one_end, other_end = (
        by_ordinal[np.searchsorted(ordinals[by_ordinal], column)] for column in (one_end, other_end)
    )
    first, other = np.minimum(one_end, other_end), np.maximum(one_end, other_end)
    is_open = scores[other] != HOLDOUT  # holdout texts never go
    count = len(ordinals)
    codes = np.sort(other[is_open] * count + first[is_open])
    codes = codes[np.diff(codes, prepend=-1) != 0]
    other, first = np.divmod(codes, max(1, count))
    bands = _shared_bands(columns["keys"], rows[first], rows[other])
    foreign: Sequence[bytes] = ()
    if index is not None:
        documents, text_numbers, shared, foreign = _foreign(files, pairs_list, number, index)
        local_documents = by_ordinal[np.searchsorted(ordinals[by_ordinal], documents)]
        is_open = scores[local_documents] != HOLDOUT
        first = np.concatenate([text_numbers[is_open], first + len(foreign)])
        other = np.concatenate([local_documents[is_open], other]) + len(foreign)
        bands = np.concatenate([shared[is_open], bands])
        order = np.lexsort((first, other))
        first, other, bands = first[order], other[order], bands[order]
        ordinals = np.concatenate([np.full(len(foreign), IN_INDEX, np.int64), ordinals])
        count += len(foreign)
    chosen = rank(first, other, bands)
    nominated = np.bincount(other, minlength=count)
    first, other = first[chosen], other[chosen]
    number_chosen = np.bincount(other, minlength=count)
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(number_chosen)])
    return Compared(group, foreign, ordinals, rows, first, bounds, nominated - number_chosen)


def _foreign(
    files: TaskFiles, pairs_list: Artifact, group: int, index: IndexReader
) -> tuple[Int64Array, Int64Array, Int64Array, list[bytes]]:
    """Pairs of this group's documents and texts of an index: document, number of the text, bands that
    nominated the pair; the texts.
    """
    records = _records(files, pairs_list, group, "index", FOREIGN)
    pairs = IndexPairs(*(records[name] for name in IndexPairs._fields))
    codes = pairs.run.astype(np.int64) << _ORDINAL_BITS | pairs.ordinal
    texts, text_numbers = np.unique(codes, return_inverse=True)
    present, document_numbers = np.unique(pairs.document, return_inverse=True)
    codes, bands = np.unique(document_numbers * max(1, len(texts)) + text_numbers, return_counts=True)
    numbers, text_numbers = np.divmod(codes, max(1, len(texts)))
    runs, ordinals = texts >> _ORDINAL_BITS, texts & ((1 << _ORDINAL_BITS) - 1)
    index_texts: list[bytes] = []
    for run in np.unique(runs).tolist():
        index_texts += index.texts(run, ordinals[runs == run])
    return present[numbers], text_numbers, bands, index_texts


def _records(
    files: TaskFiles, pairs_list: Artifact, group: int, table: str, dtype: np.dtype[np.void]
) -> npt.NDArray[np.void]:
    """A group's records of one table of pairs, (n,) of a structured dtype."""
    parts = [
        by_group.as_records(piece.of(table)[0], dtype)
        for piece in by_group.of_group(files, pairs_list, group)
    ]
    return np.concatenate([np.empty(0, dtype), *parts])


def _shared_bands(keys: npt.NDArray[np.uint64], first: Int64Array, other: Int64Array) -> Int64Array:
    """How many band keys two rows have in common, for each pair."""
    out = np.empty(len(first), np.int64)
    for low in range(0, len(first), 1 << 16):
        part = slice(low, low + (1 << 16))
        out[part] = np.count_nonzero(keys[first[part]] == keys[other[part]], axis=1)
    return out


def rank(first: Int64Array, other: Int64Array, bands: Int64Array) -> Int64Array:
    """Which pairs are compared, as indices, by `other` and then as they are tried: most shared bands first,
    then in order.

    Pairs must be sorted by other, then first. Of a text with more than CANDIDATES pairs half of these are the
    first in order and half those with most bands. first, other, bands: (n,) int64; returns (m,) int64.
    """
    order = np.lexsort((first, -bands, other))
    by_bands = _rank_within(other[order])
    is_chosen = np.zeros(len(first), np.bool_)
    is_chosen[order[by_bands < CANDIDATES // 2]] = True
    is_chosen |= _rank_within(other) < CANDIDATES // 2
    few = np.bincount(other, minlength=1)[other] <= CANDIDATES if len(other) else is_chosen
    return order[(is_chosen | few)[order]]


def _rank_within(sorted_values: Int64Array) -> Int64Array:
    """The position of each element within its run of equal elements: (n,) int64, for (n,) sorted values."""
    starts = np.flatnonzero(np.diff(sorted_values, prepend=-1))
    return np.arange(len(sorted_values)) - np.repeat(starts, np.diff(starts, append=len(sorted_values)))
