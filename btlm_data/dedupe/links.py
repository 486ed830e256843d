"""Equal keys become edges between documents.

dedupe/sort-KIND/links-PARTITION.cols  by ranges of documents (by_group.py; range r is group r + 1), of edges the one of the
                                 later document: the tables `edges` (uint64, see ranges.py), `known` (places in the range,
                                 uint32, of documents that an index has), and where texts are compared `index` of INDEX, documents
                                 to compare with those of an index. A document is linked to the first one that has its key
dedupe/exact/RANGE.cols          of a range of documents `root` (n,): the first document with the same normalised text; `known`
                                 (u,): documents that an index has. Ordinals: see ranges.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data import by_group
from btlm_data.dedupe.index import IndexReader
from btlm_data.dedupe.keys import Keys
from btlm_data.dedupe.ranges import Ordinals, Ranges, damaged
from btlm_data.dedupe.settings import KeyKind
from btlm_data.dedupe.verify import INDEX_CANDIDATES, ROWS, Verifier
from btlm_data.kernels import buckets, union_find

UInt32Array = npt.NDArray[np.uint32]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


TABLES = ("edges", "known", "index")
_CODE, _PLACE = np.dtype("<u8"), np.dtype("<u4")
# document: its place in the range. ordinal: in the run of the index.
INDEX = np.dtype([("document", "<u4"), ("run", "<u2"), ("ordinal", "<i8")])


class IndexPairs(NamedTuple):
    """Documents that share a key with documents of an index, (c,) each: run is its number among the runs
    matched against.
    """

    document: Int64Array
    run: npt.NDArray[np.uint16]
    ordinal: Int64Array

    @staticmethod
    def concatenate(parts: Sequence[IndexPairs]) -> IndexPairs:
        """All of them."""
        empty = IndexPairs(np.empty(0, np.int64), np.empty(0, np.uint16), np.empty(0, np.int64))
        return IndexPairs(*(np.concatenate(column) for column in zip(empty, *parts, strict=True)))


class Links(msgspec.Struct):
    """What a partition's keys say: edges first-other, documents known to an index, what verification compared."""

    first: list[Ordinals] = msgspec.field(default_factory=list)
    other: list[Ordinals] = msgspec.field(default_factory=list)
    known: list[Ordinals] = msgspec.field(default_factory=list)
    in_index: list[IndexPairs] = msgspec.field(default_factory=list)
    compared: int = 0
    rejected: int = 0

    @property
    def num_bytes(self) -> int:
        """Of the edges and of the documents to compare with an index's."""
        return sum(part.nbytes for part in self.first + self.other) + sum(
            column.nbytes for pairs in self.in_index for column in pairs
        )

    def by_range(self, ranges: Ranges) -> by_group.Piece:
        """All but the sorted keys, by ranges of documents."""
        first, other, known = (
            np.concatenate([np.empty(0, ranges.dtype), *parts])
            for parts in (self.first, self.other, self.known)
        )
        pairs = IndexPairs.concatenate(self.in_index)
        index = np.empty(len(pairs.document), INDEX)
        index["document"] = ranges.places_of(pairs.document)
        index["run"], index["ordinal"] = pairs.run, pairs.ordinal
        return by_group.piece_of(
            {
                "edges": (ranges.pack(first, other), ranges.groups_of(other)),
                "known": (ranges.places_of(known), ranges.groups_of(known)),
                "index": (index, ranges.groups_of(pairs.document)),
            }
        )

    @staticmethod
    def of_piece(piece: by_group.Piece, ranges: Ranges, name: str) -> Links:
        """Inverse of by_range, for some ranges. Raises DataError for a document that there is not."""
        tables = piece.of(*TABLES)
        dtypes: tuple[np.dtype[Any], ...] = (_CODE, _PLACE, INDEX)
        codes, places, index = (by_group.as_records(*each) for each in zip(tables, dtypes, strict=True))
        bases = (piece.groups.astype(np.int64) - 1) << ranges.log
        sizes = (_CODE.itemsize, _PLACE.itemsize, INDEX.itemsize)
        of_edges, of_known, of_index = (
            np.repeat(bases, column // size) for column, size in zip(piece.sizes.T, sizes, strict=True)
        )
        first, other = ranges.unpack(codes, of_edges, name)
        known, documents = places + of_known, index["document"] + of_index
        for some, ordinals in ((places, known), (index["document"], documents)):
            if len(some) and (int(some.max()) >> ranges.log or int(ordinals.max()) >= ranges.num_documents):
                raise damaged(name, ranges.num_documents)
        pairs = IndexPairs(
            documents, np.ascontiguousarray(index["run"]), np.ascontiguousarray(index["ordinal"])
        )
        return Links([first], [other], [known.astype(ranges.dtype)], [pairs])


class Linker(msgspec.Struct):
    """Makes edges from the keys of one partition after another."""

    kind: KeyKind
    log_partitions: int
    dtype: np.dtype[Any]  # of ordinals
    verifier: Verifier | None = None
    index: IndexReader | None = None
    nominates: bool = (
        False  # edges are pairs whose texts are compared later (buckets.nominate), not only what connects
    )

    def link(self, chunks: Iterator[Keys], partition: int) -> Links:
        """Edges between the equal keys of one partition; with an index, also the documents it knows."""
        links = Links()
        kept = self._link(chunks, links, is_kept=self.index is not None)
        if self.index is not None and self.nominates:
            links.in_index.append(_candidates(kept, self.index, partition, self.log_partitions))
        elif self.index is not None:
            links.known.append(self._known(kept, self.index, partition))
        if self.verifier is not None:
            links.compared, links.rejected = self.verifier.compared, self.verifier.rejected
        return links

    def representatives(self, chunks: Iterator[Keys]) -> Keys:
        """Of the documents of each key those with which a document of another run is compared, ascending by key and ordinal."""
        return self._link(chunks, Links(), is_kept=True)

    def _link(self, chunks: Iterator[Keys], links: Links, *, is_kept: bool) -> Keys:
        """Add the edges of all chunks; returns what stands for each key, sorted, where that is to be kept.

        A document that is linked to another need not be seen again: of a key that fills memory many times
        over, one representative a chunk is left, and those are linked in the end.
        """
        if self.nominates:
            return _sorted(self._nominate(chunks, links)) if is_kept else self._nominate(chunks, links)
        left: list[Keys] = []
        chunk, following = next(chunks, None), next(chunks, None)
        has_several = following is not None
        while chunk is not None:
            is_linked = self._link_chunk(chunk, links)
            if has_several or is_kept:
                left.append(chunk.take(~is_linked))
            chunk, following = following, next(chunks, None)
        if has_several:
            rest, of_chunks = Keys.concatenate(left), len(links.first)
            left = [rest.take(~self._link_chunk(rest, links))]
            _link_to_first(links, of_chunks)
        return _sorted(left[0]) if is_kept and left else Keys.empty(self.dtype)

    def _nominate(self, chunks: Iterator[Keys], links: Links) -> Keys:
        """Pairs of documents with equal keys. Of a chunk only what later members of its buckets need is held
        on to, and returned.
        """
        left = Keys.empty(self.dtype)
        for chunk in chunks:
            both = Keys.concatenate([left, chunk])
            packed, mask = buckets.sort_order(both.keys, self.log_partitions)
            members, starts = buckets.equal_runs(packed, mask, both.keys, both.low)
            first, other, is_needed = buckets.nominate(members, starts, both.ordinals, len(left))
            links.first.append(first)
            links.other.append(other)
            left = both.take(is_needed)
        return left

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

    def _known(self, keys: Keys, index: IndexReader, partition: int) -> Ordinals:
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


def _sorted(keys: Keys) -> Keys:
    """Ascending by key; of equal keys in the order of documents."""
    return keys.take(np.argsort(keys.keys, kind="stable"))


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
            candidates.append(
                IndexPairs(
                    keys.ordinals[rows].astype(np.int64), number, index_ordinals[row[rows]].astype(np.int64)
                )
            )
            row[rows] += 1
    return IndexPairs.concatenate(candidates)


def _link_to_first(links: Links, of_chunks: int) -> None:
    """Let the edges of single chunks, which come first, lead to where the later ones lead that join what was first in each."""
    if len(links.first) == of_chunks:
        return
    first, other = (np.concatenate(ends[of_chunks:]) for ends in (links.first, links.other))
    order = np.argsort(other)
    first, other = first[order], other[order]
    for edges in links.first[:of_chunks] if len(other) else []:
        place = np.minimum(np.searchsorted(other, edges), len(other) - 1)
        is_linked = other[place] == edges
        edges[is_linked] = first[place[is_linked]]


def exact_roots(links: Iterable[Links], roots: Ordinals, base: int) -> Ordinals:
    """Put the first document of each text where a later one of it is, and return the documents that an index knows, (u,).

    links: of some documents; roots: (n,), each of them itself at first; base: the first one.
    """
    known: list[Ordinals] = [np.empty(0, roots.dtype)]
    for each in links:
        for first, other in zip(each.first, each.other, strict=True):
            roots[other.astype(np.int64) - base] = first
        known += each.known
    return np.concatenate(known)


def unite(parent: UInt32Array, links: Links) -> None:
    """Join the components that the edges connect. parent: (N,) uint32; edges must be below N (Links.of_piece
    checks it).
    """
    for first, other in zip(links.first, links.other, strict=True):
        union_find.unite(parent, buckets.readonly(first), buckets.readonly(other))
