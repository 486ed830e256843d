"""Components become fates: which documents stay, which go and why; and the list of clusters that people look
at.

dedupe/cluster/fates.cols      `fate` (N,) uint8 by ordinal: fates.py
dedupe/cluster/clusters.cols   `cluster` (N,) uint32: the smallest ordinal of the document's connected
                               component; `copies` (N,) uint32: how many documents a kept one stands for,
                               itself included
dedupe/cluster/clusters.parquet   see cluster_table.py
dedupe/cluster/removed.cols    `removed` (r,) uint32 ascending, the documents that go; `kept` (r,) uint32, the
                               one kept for each (NOT_IN_RUN: it is in an index)

Memory: 4 bytes a document for the union-find, 1 of flags, 1 of fate, and 8 for the document to keep
(`longest`, `source-priority`) or the cluster's size; 4 more are mapped from disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.advance import advance
from btlm_data.blocks import Block
from btlm_data.dedupe.cluster_table import ClusterRows
from btlm_data.fates import Fate
from btlm_data.formats.columns import Columns
from btlm_data.kernels import buckets
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_same_length
from btlm_data.recipe.models import DedupeSettings
from btlm_data.task import Counts
from btlm_data.task_files import TaskFiles

FOLDER = "dedupe/cluster"
FATES, CLUSTERS, TABLE = f"{FOLDER}/fates.cols", f"{FOLDER}/clusters.cols", f"{FOLDER}/clusters.parquet"
REMOVED = f"{FOLDER}/removed.cols"
SHOWN_CLUSTERS = 10
# Flags of a component, kept at its root; the last one of a text, kept at its first document.
_SEVERAL, _HAS_HOLDOUT, _HAS_KNOWN, _TEXT_IN_HOLDOUT, _TEXT_KNOWN = 1, 2, 4, 8, 16
HOLDOUT = NOT_IN_RUN = (
    2**32 - 1
)  # the score of a holdout document; the document kept for one that an index has
_KEPT, _EXACT_DUPLICATE, _NEAR_DUPLICATE = int(Fate.KEPT), int(Fate.EXACT_DUPLICATE), int(Fate.NEAR_DUPLICATE)
_DUPLICATE_OF_HOLDOUT = int(Fate.DUPLICATE_OF_HOLDOUT)
_NEAR_DUPLICATE_OF_HOLDOUT = int(Fate.NEAR_DUPLICATE_OF_HOLDOUT)
_IN_INDEX = int(Fate.IN_INDEX)
UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Components:
    """What the edges have joined. roots: (N,) uint32, the first document of each text; clusters: (N,) uint32,
    the first of each component (both flat: every entry is a root); known: documents that an index has.
    """

    roots: UInt32Array
    clusters: UInt32Array
    known: UInt32Array


@dataclass(frozen=True)
class Decider:
    """What decides the fate of each document, for one way of deciding. All (N,) by ordinal.

    roots, clusters: as Components has them. flags: of components at their first document (_SEVERAL, and where
    the component decides _HAS_HOLDOUT and _HAS_KNOWN), of texts at theirs (_TEXT_IN_HOLDOUT, _TEXT_KNOWN).
    best: the document that stays of a component (of a text, where anchors are given), at its first document.
    anchors: where texts were compared, for each text that goes, at its first document, the first document of
    the text that stays for it, else NOT_IN_RUN; None where components decide.
    """

    roots: UInt32Array
    clusters: UInt32Array
    flags: UInt8Array
    best: UInt32Array
    anchors: UInt32Array | None

    def fates(self, block: Block, fate: UInt8Array, kept: UInt32Array) -> None:
        """Fill the fates of a block's documents, and for each that goes the one kept for it (NOT_IN_RUN: it
        is in an index). fate: (n,) uint8, kept: (n,) uint32, of the n documents of the block; both are
        written to.
        """
        train = block.split == "train"
        if self.anchors is None:
            _fates(block.first_ordinal, train, self.roots, self.clusters, self.best, self.flags, fate, kept)
        else:
            _fates_of_texts(
                block.first_ordinal, train, self.roots, self.best, self.flags, self.anchors, fate, kept
            )


def by_components(
    files: TaskFiles, blocks: Sequence[Block], dedupe: DedupeSettings, components: Components
) -> Decider:
    """Of each component one document stays; where it holds a holdout document, or one of an index, no train
    document.
    """
    clusters, roots = components.clusters, buckets.readonly(components.roots)
    flags = np.zeros(len(clusters), np.uint8)
    _flag_several(clusters, flags)
    has_holdout = False
    for block in blocks:
        if block.split != "train" and dedupe.holdout:
            has_holdout = True
            ordinals = np.arange(block.first_ordinal, block.last_ordinal, dtype=np.uint32)
            _flag(clusters, ordinals, _HAS_HOLDOUT, flags)
            _flag(roots, ordinals, _TEXT_IN_HOLDOUT, flags)
    _flag(clusters, components.known, _HAS_KNOWN, flags)
    is_plain = dedupe.keep == "first" and not has_holdout
    best = clusters if is_plain else best_of(files, blocks, dedupe, clusters)[0]
    return Decider(roots, clusters, flags, best, None)


def by_texts(
    blocks: Sequence[Block],
    dedupe: DedupeSettings,
    components: Components,
    best: UInt32Array,
    anchors: UInt32Array,
) -> Decider:
    """Texts go as they were compared (compare.py); of those that stay, one copy. best, anchors: (documents,)
    uint32.
    """
    roots = components.roots
    flags = np.zeros(len(roots), np.uint8)
    _flag_several(components.clusters, flags)
    for block in blocks:
        if block.split != "train" and dedupe.holdout:
            ordinals = np.arange(block.first_ordinal, block.last_ordinal, dtype=np.uint32)
            _flag(roots, ordinals, _TEXT_IN_HOLDOUT, flags)
    _flag(roots, components.known, _TEXT_KNOWN, flags)
    return Decider(buckets.readonly(roots), components.clusters, flags, buckets.readonly(best), anchors)


def decide(files: TaskFiles, blocks: Sequence[Block], decider: Decider) -> Counts:
    """Write the fates, the clusters and clusters.parquet; returns the ledger's cells and a summary."""
    clusters, flags = decider.clusters, decider.flags
    total = len(clusters)
    fate = np.empty(total, np.uint8)
    copies = np.ones(total, np.uint32)
    counts = Counts()
    removed: dict[str, list[int]] = {}
    removals = Removals()
    largest = _largest(clusters, flags)
    shown: dict[int, dict[str, Any]] = {}
    in_clusters: dict[int, dict[str, int]] = {ordinal: {} for ordinal, _ in largest}
    documents: dict[str, int] = {}
    num_clustered = 0
    with files.create(TABLE) as creating, ClusterRows(creating.file) as rows:
        for block in blocks:
            docs = files.columns(block.docs)
            ordinals = slice(block.first_ordinal, block.last_ordinal)
            block_fates = fate[ordinals]
            kept = np.empty(block.num_documents, np.uint32)
            decider.fates(block, block_fates, kept)
            removals.add(block.first_ordinal, block_fates, kept)
            _add_copies(block_fates, kept, copies)
            sources: list[str] = docs.meta["sources"]
            num_bytes = docs["num_bytes"].astype(np.int64)
            _count(counts, removed, block.split, sources, docs["source"], num_bytes, block_fates)
            clustered = np.flatnonzero(flags[clusters[ordinals]] & _SEVERAL)
            num_clustered += len(clustered)
            if len(clustered):
                rows.add(
                    block.split,
                    [f.reason for f in Fate],
                    sources,
                    docs.meta["files"],
                    {
                        "document": clustered.astype(np.uint32) + np.uint32(block.first_ordinal),
                        "cluster": clusters[ordinals][clustered],
                        "kept": block_fates[clustered] == Fate.KEPT,
                        "fate": block_fates[clustered],
                        "source": docs["source"][clustered],
                        "file": docs["file"][clustered],
                        "line": docs["line"][clustered].astype(np.uint64) + np.uint64(block.first_line),
                        "offset": docs["offset"][clustered],
                        "bytes": docs["num_bytes"][clustered],
                    },
                )
            for ordinal, size in largest:
                if block.first_ordinal <= ordinal < block.last_ordinal:
                    row = ordinal - block.first_ordinal
                    shown[ordinal] = {
                        "cluster": ordinal,
                        "documents": size,
                        "source": sources[int(docs["source"][row])],
                        "file": docs.meta["files"][int(docs["file"][row])],
                        "offset": int(docs["offset"][row]),
                        "bytes": int(num_bytes[row]),
                    }
                if block.split == "train":
                    _count_in_cluster(in_clusters[ordinal], clusters[ordinals] == ordinal, docs, block_fates)
            if block.split == "train":
                for source, amount in zip(
                    sources, np.bincount(docs["source"], minlength=len(sources)), strict=True
                ):
                    documents[source] = documents.get(source, 0) + int(amount)
            advance(block.num_documents)
    files.write_columns(CLUSTERS, {"cluster": clusters, "copies": copies})
    files.write_columns(FATES, {"fate": fate})
    files.write_columns(REMOVED, removals.arrays())
    counts.extra["removed"] = removed
    counts.extra["summary"] = {
        "clusters": int(np.count_nonzero(flags & _SEVERAL)),
        "documents_in_clusters": num_clustered,
        "largest_clusters": [
            shown[ordinal]
            | {
                "removed": {
                    name: [gone, documents[name]] for name, gone in sorted(in_clusters[ordinal].items())
                }
            }
            for ordinal, _ in largest
        ],
    }
    return counts


def _count_in_cluster(
    gone: dict[str, int], is_member: npt.NDArray[np.bool_], docs: Columns, fate: UInt8Array
) -> None:
    """Add a block's documents of one component that go, by source."""
    codes = docs["source"][is_member & (fate != _KEPT)]
    for code, amount in zip(*np.unique(codes, return_counts=True), strict=True):
        name = docs.meta["sources"][int(code)]
        gone[name] = gone.get(name, 0) + int(amount)


@dataclass
class Removals:
    """Documents that go, by ordinal, and those kept for them: 8 bytes for each."""

    _removed: list[UInt32Array] = field(default_factory=list)
    _kept: list[UInt32Array] = field(default_factory=list)

    def add(self, first_ordinal: int, fate: UInt8Array, kept: UInt32Array) -> None:
        """Add the documents of a block. fate: (n,) uint8, kept: (n,) uint32."""
        gone = np.flatnonzero(fate != _KEPT)
        self._removed.append(gone.astype(np.uint32) + np.uint32(first_ordinal))
        self._kept.append(kept[gone])

    def arrays(self) -> dict[str, UInt32Array]:
        """`removed` ascending, and `kept`. Both are (removed,) uint32."""
        none = [np.empty(0, np.uint32)]
        return {
            "removed": np.concatenate([*none, *self._removed]),
            "kept": np.concatenate([*none, *self._kept]),
        }


def texts_that_stay(components: Columns, fates: Columns) -> npt.NDArray[np.bool_]:
    """Whether a document is the first of a text of which a copy stays, (N,)."""
    roots = components["root"]
    is_first = roots == np.arange(len(roots), dtype=np.uint32)
    kept: npt.NDArray[np.bool_] = is_first & (fates["fate"][components["best"][roots]] == _KEPT)
    return kept


def _count(
    counts: Counts,
    removed: dict[str, list[int]],
    split: str,
    sources: Sequence[str],
    codes: npt.NDArray[Any],
    num_bytes: npt.NDArray[np.int64],
    fate: UInt8Array,
) -> None:
    """Add one block's documents and bytes by source and fate, and what each source loses: source -> removed
    and all bytes, and removed documents, of train.
    """
    cells = codes.astype(np.int64) * len(Fate) + fate
    documents = np.bincount(cells, minlength=len(sources) * len(Fate)).reshape(-1, len(Fate))
    # A float sum is exact up to 2^53 bytes; a block is far smaller.
    amounts = (
        np.bincount(cells, num_bytes, minlength=len(sources) * len(Fate))
        .astype(np.int64)
        .reshape(-1, len(Fate))
    )
    for code, source in enumerate(sources):
        counts.add(split, source, "in", int(documents[code].sum()), int(amounts[code].sum()))
        for f in Fate:
            if documents[code, f]:
                cell = "out" if f == Fate.KEPT else f"drop:{f.reason}"
                counts.add(split, source, cell, int(documents[code, f]), int(amounts[code, f]))
        if split == "train":
            gone = removed.setdefault(source, [0, 0, 0])
            gone[0] += int(amounts[code].sum() - amounts[code, Fate.KEPT])
            gone[1] += int(amounts[code].sum())
            gone[2] += int(documents[code].sum() - documents[code, Fate.KEPT])


def best_of(
    files: TaskFiles, blocks: Sequence[Block], dedupe: DedupeSettings, owners: UInt32Array
) -> tuple[UInt32Array, UInt32Array]:
    """Of the documents with one owner the one to keep and its score, both (N,) uint32 at the owner.

    The highest score stays, the first among equals; a holdout document has HOLDOUT.
    """
    best, score = np.zeros(len(owners), np.uint32), np.zeros(len(owners), np.uint32)
    for block in blocks:
        docs = files.columns(block.docs)
        if block.split != "train" and dedupe.holdout:
            scores = np.full(block.num_documents, HOLDOUT, np.uint32)
        else:
            scores = _scores(dedupe, docs["source"], docs.meta["sources"], docs["num_bytes"])
        check_same_length("Documents of a block", owners[block.first_ordinal : block.last_ordinal], scores)
        _keep_best(owners, block.first_ordinal, scores, best, score)
    return best, score


def _scores(
    dedupe: DedupeSettings, codes: npt.NDArray[Any], sources: Sequence[str], num_bytes: npt.NDArray[Any]
) -> UInt32Array:
    if dedupe.keep == "longest":
        longest: UInt32Array = np.minimum(num_bytes, HOLDOUT - 1).astype(np.uint32)
        return longest
    if dedupe.keep == "first":
        return np.zeros(len(codes), np.uint32)
    ranks = {name: len(dedupe.source_priority) - rank for rank, name in enumerate(dedupe.source_priority)}
    by_source: UInt32Array = np.array([ranks.get(name, 0) for name in sources], np.uint32)
    scores: UInt32Array = by_source[codes]
    return scores


def _largest(clusters: UInt32Array, flags: UInt8Array) -> list[tuple[int, int]]:
    """(root, documents) of the largest components of two or more, largest first, then by root."""
    sizes = np.zeros(len(clusters), np.uint32)
    _sizes(clusters, sizes)
    best_so_far: list[tuple[int, int]] = []
    for low in range(0, len(sizes), 1 << 20):  # a partial sort of all would hold 8 bytes a document
        part = sizes[low : low + (1 << 20)]
        smallest = best_so_far[-1][1] if len(best_so_far) == SHOWN_CLUSTERS else 1
        documents = np.flatnonzero(part > smallest)
        documents = documents[np.argsort(-part[documents].astype(np.int64), kind="stable")[:SHOWN_CLUSTERS]]
        best_so_far = sorted(
            best_so_far + [(int(p) + low, int(part[p])) for p in documents],
            key=lambda item: (-item[1], item[0]),
        )[:SHOWN_CLUSTERS]
    return best_so_far


@jit
def _flag_several(clusters: UInt32Array, flags: UInt8Array) -> None:
    for i in range(len(clusters)):
        if clusters[i] != i:
            flags[clusters[i]] |= np.uint8(_SEVERAL)


def _flag(owners: UInt32Array, ordinals: UInt32Array, flag: int, flags: UInt8Array) -> None:
    flags[owners[ordinals]] |= np.uint8(flag)


@jit
def _keep_best(
    owners: UInt32Array, first_ordinal: int, scores: UInt32Array, best: UInt32Array, score: UInt32Array
) -> None:
    for i in range(len(scores)):
        root = owners[first_ordinal + i]
        # A root is the first of its component, so what it sets is never looked at before.
        if root == first_ordinal + i or scores[i] > score[root]:
            best[root], score[root] = first_ordinal + i, scores[i]


@jit
def _fates(
    first_ordinal: int,
    train: bool,
    roots: UInt32Array,
    clusters: UInt32Array,
    best: UInt32Array,
    flags: UInt8Array,
    out: UInt8Array,
    out_kept: UInt32Array,
) -> None:
    for i in range(len(out)):
        ordinal = first_ordinal + i
        flag = flags[clusters[ordinal]]
        kept = best[clusters[ordinal]]
        out_kept[i] = kept
        if not train:
            out[i] = _KEPT
        elif flag & _HAS_HOLDOUT:
            out[i] = (
                _DUPLICATE_OF_HOLDOUT
                if flags[roots[ordinal]] & _TEXT_IN_HOLDOUT
                else _NEAR_DUPLICATE_OF_HOLDOUT
            )
        elif flag & _HAS_KNOWN:
            out[i] = _IN_INDEX
            out_kept[i] = NOT_IN_RUN
        elif kept == ordinal:
            out[i] = _KEPT
        elif roots[ordinal] != ordinal or roots[ordinal] == roots[kept]:
            out[i] = _EXACT_DUPLICATE
        else:
            out[i] = _NEAR_DUPLICATE


@jit
def _fates_of_texts(
    first_ordinal: int,
    train: bool,
    roots: UInt32Array,
    best: UInt32Array,
    flags: UInt8Array,
    anchors: UInt32Array,
    out: UInt8Array,
    out_kept: UInt32Array,
) -> None:
    for i in range(len(out)):
        ordinal = first_ordinal + i
        root = roots[ordinal]
        anchor = anchors[root]
        is_best = best[root] == ordinal
        out_kept[i] = best[root] if anchor == NOT_IN_RUN else best[anchor]
        if not train:
            out[i] = _KEPT
        elif flags[root] & _TEXT_IN_HOLDOUT:
            out[i] = _DUPLICATE_OF_HOLDOUT
        elif flags[root] & _TEXT_KNOWN or (anchor != NOT_IN_RUN and flags[anchor] & _TEXT_KNOWN):
            out[i] = _IN_INDEX
            out_kept[i] = NOT_IN_RUN
        elif anchor == NOT_IN_RUN:
            out[i] = _KEPT if is_best else _EXACT_DUPLICATE
        elif flags[anchor] & _TEXT_IN_HOLDOUT:
            out[i] = _NEAR_DUPLICATE_OF_HOLDOUT
        else:
            out[i] = _NEAR_DUPLICATE if is_best else _EXACT_DUPLICATE


@jit
def _add_copies(fate: UInt8Array, kept: UInt32Array, copies: UInt32Array) -> None:
    for i in range(len(fate)):
        if fate[i] != _KEPT and kept[i] != NOT_IN_RUN:
            copies[kept[i]] += np.uint32(1)


@jit
def _sizes(clusters: UInt32Array, sizes: UInt32Array) -> None:
    for i in range(len(clusters)):
        sizes[clusters[i]] += np.uint32(1)
