"""Equal keys become edges between documents.

dedupe/sort-KIND/PARTITION.cols  edges `first`, `other` (e,) uint32 with first < other, and `known` (u,)
                                 uint32, the documents found in an index; meta: {"compared", "rejected"} pairs
                                 of a verification
                                 Where texts are compared, pairs by ranges of 2^k documents instead (by_group.py; range r is
                                 group r + 1): the tables `edges` of EDGE, in the range of the `other`, and `index` of INDEX,
                                 documents to compare with those of an index
dedupe/exact/all.cols            `root` (N,) uint32: the first document with the same normalised text; `known`
                                 as above
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data import by_group
from btlm_data.dedupe.index import IndexReader
from btlm_data.dedupe.keys import Keys, check_ordinals
from btlm_data.dedupe.settings import KeyKind
from btlm_data.dedupe.verify import INDEX_CANDIDATES, ROWS, Verifier
from btlm_data.errors import DataError
from btlm_data.kernels import buckets, union_find
from btlm_data.task import Artifact
from btlm_data.task_files import TaskFiles

UInt32Array = npt.NDArray[np.uint32]
BoolArray = npt.NDArray[np.bool_]


EDGE = np.dtype([("first", "<u4"), ("other", "<u4")])
INDEX = np.dtype([("document", "<u4"), ("run", "<u2"), ("ordinal", "<u4")])


class IndexPairs(NamedTuple):
    """Documents that share a key with documents of an index, (c,) each: run is its number among the runs
    matched against.
    """

    document: UInt32Array
    run: npt.NDArray[np.uint16]
    ordinal: UInt32Array

    @staticmethod
    def concatenate(parts: Sequence[IndexPairs]) -> IndexPairs:
        """All of them."""
        empty = IndexPairs(np.empty(0, np.uint32), np.empty(0, np.uint16), np.empty(0, np.uint32))
        return IndexPairs(*(np.concatenate(column) for column in zip(empty, *parts, strict=True)))


class Links(msgspec.Struct):
    """What a partition's keys say: edges first-other, documents known to an index, what verification
    compared.

    sorted_keys: what an index would keep of the partition.
    """

    first: list[UInt32Array] = msgspec.field(default_factory=list)
    other: list[UInt32Array] = msgspec.field(default_factory=list)
    known: list[UInt32Array] = msgspec.field(default_factory=list)
    in_index: list[IndexPairs] = msgspec.field(default_factory=list)
    compared: int = 0
    rejected: int = 0
    sorted_keys: Keys | None = None

    @property
    def num_bytes(self) -> int:
        """Of the edges and of the documents to compare with an index's."""
        return sum(part.nbytes for part in self.first + self.other) + sum(
            column.nbytes for pairs in self.in_index for column in pairs
        )

    def write(self, files: TaskFiles, name: str) -> Artifact:
        """Write as a columns file, without pairs to compare and the sorted keys."""
        arrays = {key: _joined(getattr(self, key)) for key in ("first", "other", "known")}
        return files.write_columns(name, arrays, {"compared": self.compared, "rejected": self.rejected})

    @staticmethod
    def read(files: TaskFiles, artifact: Artifact, num_documents: int) -> Links:
        """Inverse of write. Raises DataError for a damaged file or a document that there is not."""
        opened = files.columns(artifact)
        first, other, known = (opened[name] for name in ("first", "other", "known"))
        for ordinals in (first, other, known):
            check_ordinals(ordinals, num_documents, artifact.name)
        if len(first) != len(other):
            raise DataError(f"{artifact.name} has {len(first)} first documents and {len(other)} others.")
        return Links([first], [other], [known], [], opened.meta["compared"], opened.meta["rejected"])

    def pairs_by_range(self, log_range: int) -> by_group.Piece:
        """The pairs to compare, by ranges of 2^log_range documents."""
        assert not self.known, "what an index has is compared as well"
        edges = np.empty(sum(map(len, self.other)), EDGE)
        edges["first"], edges["other"] = _joined(self.first), _joined(self.other)
        pairs = IndexPairs.concatenate(self.in_index)
        index = np.empty(len(pairs.document), INDEX)
        for name, column in pairs._asdict().items():
            index[name] = column
        return by_group.piece_of(
            {
                "edges": (edges, (edges["other"] >> np.uint32(log_range)) + np.uint32(1)),
                "index": (index, (pairs.document >> np.uint32(log_range)) + np.uint32(1)),
            }
        )

    @staticmethod
    def of_piece(piece: by_group.Piece, first: int, last: int, name: str) -> Links:
        """Pairs to compare out of one range. first, last: ordinals of the documents whose pairs they are.
        Raises DataError for another document.
        """
        tables = piece.of("edges", "index")
        edges, index = (by_group.as_records(*each) for each in zip(tables, (EDGE, INDEX), strict=True))
        one, other = (np.ascontiguousarray(edges[end]) for end in ("first", "other"))
        pairs = IndexPairs(*(np.ascontiguousarray(index[name]) for name in IndexPairs._fields))
        check_ordinals(one, last, name)
        for ordinals in (other, pairs.document):
            if len(ordinals) and (int(ordinals.min()) < first or int(ordinals.max()) >= last):
                raise DataError(
                    f"{name} has documents beyond {first:,} to {last:,}. Remove the work folder and rerun the same command."
                )
        return Links([one], [other], [], [pairs])


def write_index_keys(
    files: TaskFiles, name: str, keys: Keys, kind: KeyKind, log_partitions: int, *, with_ordinals: bool
) -> Artifact:
    """Write a partition's sorted keys as an index keeps them; with_ordinals: of exact hashes too, to choose
    from.
    """
    arrays: dict[str, npt.NDArray[Any]] = {"keys": keys.keys}
    if kind == "exact":
        arrays["low"] = keys.low
    if kind == "bands" or with_ordinals:
        arrays["ordinals"] = keys.ordinals
    return files.write_columns(name, arrays, {"log_partitions": log_partitions})


class Linker(msgspec.Struct):
    """Makes edges from the keys of one partition after another."""

    kind: KeyKind
    log_partitions: int
    verifier: Verifier | None = None
    index: IndexReader | None = None
    keeps_keys: bool = False  # for an index
    nominates: bool = (
        False  # edges are pairs whose texts are compared later (buckets.nominate), not only what connects
    )

    @property
    def is_needed_sorted(self) -> bool:
        """Whether the keys are compared with an index, or kept for one."""
        return self.keeps_keys or self.index is not None

    def link(self, chunks: Iterator[Keys], partition: int) -> Links:
        """Edges between the equal keys of one partition; with an index, also the documents it knows.

        A document that is linked to another need not be seen again: of a key that fills memory many times
        over, one representative a chunk is left, and those are linked in the end.
        """
        links = Links()
        if self.nominates:
            return self._nominate(chunks, links, partition)
        left: list[Keys] = []
        chunk, following = next(chunks, None), next(chunks, None)
        has_several = following is not None
        while chunk is not None:
            is_linked = self._link_chunk(chunk, links)
            if has_several or self.is_needed_sorted:
                left.append(chunk.take(~is_linked))
            chunk, following = following, next(chunks, None)
        if has_several:
            rest = Keys.concatenate(left)
            left = [rest.take(~self._link_chunk(rest, links))]
        if self.is_needed_sorted:
            rest = left[0] if left else Keys.empty()
            rest = rest.take(np.argsort(rest.keys, kind="stable"))
            if self.index is not None:
                links.known.append(self._known(rest, self.index, partition))
            links.sorted_keys = rest if self.keeps_keys else None
        if self.verifier is not None:
            links.compared, links.rejected = self.verifier.compared, self.verifier.rejected
        return links

    def _nominate(self, chunks: Iterator[Keys], links: Links, partition: int) -> Links:
        """Pairs of documents with equal keys. Of a chunk only what later members of its buckets need is held
        on to.
        """
        left = Keys.empty()
        for chunk in chunks:
            both = Keys.concatenate([left, chunk])
            packed, mask = buckets.sort_order(both.keys, self.log_partitions)
            members, starts = buckets.equal_runs(packed, mask, both.keys, both.low)
            first, other, is_needed = buckets.nominate(members, starts, both.ordinals, len(left))
            links.first.append(first)
            links.other.append(other)
            left = both.take(is_needed)
        if self.is_needed_sorted:
            left = left.take(np.argsort(left.keys, kind="stable"))
            if self.index is not None:
                links.in_index.append(_candidates(left, self.index, partition, self.log_partitions))
            links.sorted_keys = left if self.keeps_keys else None
        return links

    def _link_chunk(self, chunk: Keys, links: Links) -> BoolArray:
        """Add the edges of one chunk; returns which rows are now linked to an earlier one."""
        packed, mask = buckets.sort_order(chunk.keys, self.log_partitions)
        members, starts = buckets.equal_runs(packed, mask, chunk.keys, chunk.low)
        del packed
        is_linked = np.zeros(len(chunk), np.bool_)
        if self.verifier is None:
            first, other = buckets.star_edges(members, starts, chunk.ordinals)
            is_linked[members] = True
            is_linked[members[starts[:-1]]] = False
            links.first.append(first)
            links.other.append(other)
            return is_linked
        begins = np.zeros(len(members), np.bool_)
        begins[starts[:-1]] = True
        for low in range(0, len(members), ROWS):
            rows = members[low : low + ROWS]
            ordinals = chunk.ordinals[rows]
            signatures = self.verifier.signatures.read(ordinals)
            leader = self.verifier.leaders.attach(signatures, ordinals, begins[low : low + ROWS])
            is_attached = leader != ordinals
            is_linked[rows[is_attached]] = True
            links.first.append(leader[is_attached])
            links.other.append(ordinals[is_attached])
        return is_linked

    def _known(self, keys: Keys, index: IndexReader, partition: int) -> UInt32Array:
        """Documents whose key an earlier run has (verified: whose signature is similar to one of the first
        that have it).
        """
        known = np.zeros(len(keys), np.bool_)
        for run, index_columns in index.ranges(self.kind, partition, self.log_partitions):
            index_keys = index_columns["keys"]
            row = np.searchsorted(index_keys, keys.keys)
            rows = np.flatnonzero(~known)
            for _ in range(INDEX_CANDIDATES):
                rows = rows[row[rows] < len(index_keys)]
                rows = rows[index_keys[row[rows]] == keys.keys[rows]]
                if not len(rows):
                    break
                if self.kind == "exact":
                    is_hit = index_columns["low"][row[rows]] == keys.low[rows]
                elif self.verifier is None:
                    is_hit = np.ones(len(rows), np.bool_)
                else:
                    is_hit = self.verifier.agree(
                        keys.ordinals[rows], index.signatures(run), index_columns["ordinals"][row[rows]]
                    )
                known[rows[is_hit]] = True
                rows = rows[~is_hit]
                row[rows] += 1
        return np.unique(keys.ordinals[known])


def _candidates(keys: Keys, index: IndexReader, partition: int, log_partitions: int) -> IndexPairs:
    """Each document with the first INDEX_CANDIDATES documents of every earlier run that have one of its keys."""
    numbers = {run: number for number, (run, _) in enumerate(index.runs)}
    candidates: list[IndexPairs] = []
    for run, index_columns in index.ranges("bands", partition, log_partitions):
        index_keys, index_ordinals = index_columns["keys"], index_columns["ordinals"]
        row = np.searchsorted(index_keys, keys.keys)
        for _ in range(INDEX_CANDIDATES):
            rows = np.flatnonzero(row < len(index_keys))
            rows = rows[index_keys[row[rows]] == keys.keys[rows]]
            if not len(rows):
                break
            number = np.full(len(rows), numbers[run], np.uint16)
            candidates.append(IndexPairs(keys.ordinals[rows], number, index_ordinals[row[rows]]))
            row[rows] += 1
    return IndexPairs.concatenate(candidates)


def exact_roots(parts: Iterable[Links], num_documents: int) -> tuple[UInt32Array, UInt32Array]:
    """The first document of each text, (N,) uint32 by ordinal, and the documents an index knows, (u,)."""
    roots = np.arange(num_documents, dtype=np.uint32)
    known: list[UInt32Array] = [np.empty(0, np.uint32)]
    for links in parts:
        unite(roots, links)
        known += links.known
    union_find.flatten(roots)
    return roots, np.concatenate(known)


def unite(parent: UInt32Array, links: Links) -> None:
    """Join the components that the edges connect. parent: (N,) uint32; edges must be below N (Links.read
    checks it).
    """
    for first, other in zip(links.first, links.other, strict=True):
        union_find.unite(parent, buckets.readonly(first), buckets.readonly(other))


def _joined(parts: Sequence[UInt32Array]) -> UInt32Array:
    return np.concatenate(parts) if parts else np.empty(0, np.uint32)
