"""How the keys of all documents are cut to fit the memory, and what the steps of deduplication take."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from btlm_data import by_group
from btlm_data.blocks import RANGE_DOCUMENTS
from btlm_data.dedupe.clusters import DECIDED
from btlm_data.dedupe.compare import EDGE, PAIRS_BYTES
from btlm_data.dedupe.groups import GROUP_BYTES, ROW_BYTES
from btlm_data.dedupe.members import FILE_BYTES, parts_together, row_type
from btlm_data.dedupe.partitioned import MOST_FILES
from btlm_data.dedupe.parts import MAX_THREADS
from btlm_data.dedupe.ranges import MOST_NARROW, Ranges
from btlm_data.dedupe.settings import ClusterSettings, KeyKind
from btlm_data.estimate import Estimate, Rates
from btlm_data.kernels.buckets import LEADERS, NEIGHBOURS

# What sorting holds per key: the key, its ordinal, the packed number that is sorted, and the edges it may
# give.
SORT_BYTES: dict[KeyKind, int] = {"exact": 8 + 8 + 4 + 8 + 8, "bands": 8 + 4 + 8 + 8}
_PAIR_BYTES = 8 * (
    LEADERS + NEIGHBOURS
)  # of the pairs that a key nominates at most, where texts are compared
SPLIT_BYTES: dict[KeyKind, int] = {
    "exact": 20,
    "bands": 12,
}  # what splitting writes per key; it holds it twice
MOST_SPLIT_FILES = (
    512  # of which a partition reads its keys: reads then have 60 kB or more, whatever the memory
)
_COMPONENTS_BYTES = 22  # of a document's row in components
_FATES_BYTES = 7  # of a document's rows in dedupe/fates
_DOCUMENT_BYTES = 20  # that joining holds: union-find, best copies, scores, groups (components.py)
_COMPONENTS_MEMORY = 24  # bytes of a document that joining in one process holds
_RANGE_MEMORY = 64  # of a document of a range, where documents are joined in steps over ranges
_EDGE_BYTES = 8
_LABEL_BYTES = 32  # of a record of a member, about (partitioned.py)
_ROUNDS = 4  # of stars, as texts of the web have them
_LEAST_RANGE = 256  # documents of such a range, however little memory there is
_MANY_DOCUMENTS, _MANY_WORKERS = 2**27, 32  # of which one process takes some 5 seconds
MOST_JOINED = MOST_NARROW  # documents that one process joins
_MOST_RANGES = (
    256  # of documents, by which nominated pairs are put in order, and keys are split where memory allows it
)


class Nominated(msgspec.Struct, frozen=True):
    """Documents in components of two or more, and bytes of their texts."""

    documents: int = 0
    text_bytes: int = 0

    @property
    def groups(self) -> int:
        """Groups that they are in (groups.py)."""
        return -(-(self.text_bytes + self.documents * ROW_BYTES) // GROUP_BYTES)


_NOMINATED = Nominated()


class Sizes(msgspec.Struct, frozen=True):
    """Groups and partitions of the keys of num_documents documents. settings.memory_bytes bounds each task."""

    num_documents: int
    settings: ClusterSettings

    @property
    def budget(self) -> int:
        """Bytes of arrays; the other half is the interpreter, libraries and the pages of mapped files."""
        return self.settings.memory_bytes // 2

    @property
    def fits_in_memory(self) -> bool:
        """Whether all keys can be sorted at once."""
        held = self.num_documents * self._held_per_document
        return held <= self.budget and not self.is_partitioned

    @property
    def is_partitioned(self) -> bool:
        """Whether documents are joined in steps over ranges: one process numbers them with 32 bits, and holds a few bytes of each;
        and where there are many of both, it would keep many workers waiting.
        """
        documents, workers = self.num_documents, self.settings.workers
        is_too_large = (
            documents > MOST_JOINED or documents * _COMPONENTS_MEMORY > self.settings.memory_alone // 2
        )
        return is_too_large or (documents >= _MANY_DOCUMENTS and workers >= _MANY_WORKERS)

    @property
    def _held_per_document(self) -> int:
        """Bytes of arrays for each document while its keys are sorted and joined."""
        return _DOCUMENT_BYTES + max(
            self.settings.keys_per_document(kind) * SORT_BYTES[kind] for kind in self.settings.key_kinds
        )

    def log_partitions(self, kind: KeyKind) -> int:
        """Partitions are 2^k; each holds a quarter to half of the memory, so that uneven ones still fit."""
        per_key = SORT_BYTES[kind] + (_PAIR_BYTES if self.settings.by_text and kind == "bands" else 0)
        per_key += per_key // 4 if self.ranges.wide else 0
        total = self.num_documents * self.settings.keys_per_document(kind) * per_key
        return max(0, (-(-2 * total // self.budget) - 1).bit_length())

    @property
    def ranges_of_fates(self) -> Ranges:
        """By which fates are put in order: about _MOST_RANGES at most, whatever the memory."""
        return Ranges.plan(self.num_documents, self._range_documents)

    @property
    def ranges(self) -> Ranges:
        """By which edges are put in order: the same, but where documents are joined in ranges no more than a worker can hold."""
        most = (
            max(_LEAST_RANGE, self.budget // _RANGE_MEMORY) if self.is_partitioned else self._range_documents
        )
        return Ranges.plan(self.num_documents, min(self._range_documents, most))

    @property
    def _range_documents(self) -> int:
        return 1 << (max(RANGE_DOCUMENTS, -(-self.num_documents // _MOST_RANGES)) - 1).bit_length()

    def group_documents(self, kind: KeyKind) -> int:
        """Most documents of one task that splits keys. Each partition reads what every such task has written."""
        per_document = SPLIT_BYTES[kind] * self.settings.keys_per_document(kind)
        wanted = max(RANGE_DOCUMENTS, -(-self.num_documents // _MOST_RANGES))
        return max(1, min(wanted, self.budget // (2 * per_document)))

    def estimate(
        self, rates: Rates, parts: int, blocks: int, nominated: Nominated = _NOMINATED
    ) -> list[Estimate]:
        """What the steps take (steps.py, text_steps.py), without what an index of earlier runs holds.

        parts, blocks: of the source, and what cleaning leaves.
        """
        documents = self.num_documents
        by_text = self.settings.by_text
        in_memory = self.fits_in_memory and not by_text
        ranges = -(-documents // RANGE_DOCUMENTS)
        measuring = Estimate(
            "dedupe.documents",
            tasks=ranges,
            documents=documents,
            read_bytes=8 * documents,
            reads=2 * blocks,
            work_bytes=8 * documents,
            memory_bytes=rates.process_bytes + 16 * min(documents, RANGE_DOCUMENTS),
            cpu_seconds=ranges * rates.task + documents * rates.fate_document,
        )
        bands = self.settings.keys_per_document("bands") if "bands" in self.settings.key_kinds else 0
        num_pairs = bands * nominated.documents  # a copy shares most bands
        joining = (
            self._estimate_ranges(rates, nominated, num_pairs)
            if self.is_partitioned
            else [self._estimate_whole(rates, blocks, in_memory=in_memory)]
        )
        of_fates = self.ranges_of_fates
        moved_decisions, _ = self._estimate_moves(
            rates,
            "dedupe.decide",
            nominated.groups,
            DECIDED.itemsize * nominated.documents,
            max(1, DECIDED.itemsize * nominated.documents),
            of_fates.count,
        )
        row_bytes = row_type(bands).itemsize * nominated.documents
        text_bytes = nominated.text_bytes if by_text else 0
        has_members = nominated.documents > 0
        member_tasks = -(-parts // parts_together(parts))
        members = Estimate(
            "dedupe.members",
            tasks=member_tasks,
            documents=documents,
            read_bytes=4 * documents + 2 * row_bytes + text_bytes // 2,
            reads=(1 + 16 * has_members) * blocks,
            work_bytes=row_bytes + text_bytes,
            memory_bytes=rates.process_bytes + FILE_BYTES * has_members,
            cpu_seconds=member_tasks * rates.task
            + documents * rates.fate_document / 10
            + text_bytes * rates.member_byte,
        )
        moved_members, member_files = self._estimate_moves(
            rates,
            "dedupe.members",
            member_tasks * has_members,
            row_bytes + text_bytes,
            FILE_BYTES,
            nominated.groups,
        )
        members_and_moves = [members, *moved_members]
        decided = [
            Estimate(
                "dedupe.decide",
                tasks=nominated.groups,
                documents=nominated.documents,
                read_bytes=row_bytes,
                reads=2 * nominated.groups * member_files,
                work_bytes=ROW_BYTES // 4 * nominated.documents,
                memory_bytes=rates.process_bytes + GROUP_BYTES,
                cpu_seconds=nominated.groups * rates.task + nominated.documents * rates.decide_document,
            ),
            *moved_decisions,
            Estimate(
                "dedupe.fates",
                tasks=of_fates.count,
                documents=documents,
                read_bytes=DECIDED.itemsize * nominated.documents,
                work_bytes=_FATES_BYTES * documents,
                memory_bytes=rates.process_bytes + _FATES_BYTES * min(documents, 1 << of_fates.log),
                cpu_seconds=of_fates.count * rates.task + documents * rates.place_document,
            ),
            Estimate(
                "dedupe.cluster",
                tasks=ranges,
                documents=documents,
                read_bytes=14 * documents,
                reads=2 * blocks + 3 * ranges,
                memory_bytes=rates.process_bytes,
                cpu_seconds=ranges * rates.task + documents * rates.fate_document,
            ),
            Estimate("dedupe.table", tasks=2, memory_bytes=rates.process_bytes, cpu_seconds=2 * rates.task),
        ]
        if in_memory:
            return [measuring, *joining, *members_and_moves, *decided]
        exact = Estimate(
            "dedupe.exact",
            tasks=self.ranges.count,
            documents=documents,
            work_bytes=self._ordinal_bytes * documents,
            memory_bytes=rates.process_bytes + self._ordinal_bytes * min(documents, 1 << self.ranges.log),
            cpu_seconds=self.ranges.count * rates.task + documents * rates.place_document / 2,
        )
        steps = [*self._estimate_kind("exact", rates, blocks), exact]
        if "bands" in self.settings.key_kinds:
            steps += self._estimate_kind("bands", rates, blocks)
        if not by_text:
            return [*steps, measuring, *joining, *members_and_moves, *decided]
        pair_ranges = self.ranges.count
        edge_bytes, pair_bytes = num_pairs * _EDGE_BYTES, num_pairs * EDGE.itemsize
        moved_edges, edge_files = self._estimate_moves(
            rates,
            "dedupe.edges-bands",
            (1 << self.log_partitions("bands")) * has_members,
            edge_bytes,
            max(1, edge_bytes),
            pair_ranges,
            by_group.MOST_INPUTS,
        )
        pairs = Estimate(
            "dedupe.pairs",
            tasks=pair_ranges,
            read_bytes=4 * documents + edge_bytes,
            reads=2 * pair_ranges * edge_files,
            work_bytes=pair_bytes,
            memory_bytes=rates.process_bytes + 4 * min(documents, 1 << self.ranges.log),
            cpu_seconds=pair_ranges * rates.task + num_pairs * rates.pair,
        )
        moved_pairs, pair_files = self._estimate_moves(
            rates, "dedupe.pairs", pair_ranges * has_members, pair_bytes, PAIRS_BYTES, nominated.groups
        )
        compare = Estimate(
            "dedupe.compare",
            tasks=nominated.groups,
            documents=nominated.documents,
            read_bytes=row_bytes + text_bytes + pair_bytes,
            reads=nominated.groups * (3 * member_files + 2 * pair_files),
            work_bytes=20 * nominated.documents,
            memory_bytes=rates.process_bytes + 3 * GROUP_BYTES,
            cpu_seconds=nominated.groups * rates.task
            + text_bytes * rates.compare_byte
            + num_pairs * rates.pair,
        )
        joined = [measuring, *joining, *moved_edges, pairs, *moved_pairs]
        return [*steps, *joined, *members_and_moves, compare, *decided]

    def _estimate_moves(
        self,
        rates: Rates,
        name: str,
        tasks: int,
        num_bytes: int,
        file_bytes: int,
        num_groups: int,
        most_files: int | None = None,
    ) -> tuple[list[Estimate], int]:
        """Passes that put together what belongs to a group, and the files that a group then looks into. tasks: that write
        the first files; num_bytes: of all rows; file_bytes: of one of these files at most; most_files: as by_group.gathered takes it.
        """
        num_files = max(tasks, -(-num_bytes // file_bytes))
        memory = self.settings.memory_bytes
        return by_group.estimates(rates, name, num_files, num_bytes, num_groups, memory, most_files)

    def _estimate_kind(self, kind: KeyKind, rates: Rates, blocks: int) -> list[Estimate]:
        """Splitting and sorting one kind of keys; the split files are removed when they are sorted."""
        documents, per_document = self.num_documents, self.settings.keys_per_document(kind)
        keys = documents * per_document
        split_bytes = keys * SPLIT_BYTES[kind]
        groups = min(-(-documents // self.group_documents(kind)), max(1, blocks))
        partitions = 1 << self.log_partitions(kind)
        moved, files = by_group.estimates(
            rates,
            f"dedupe.split-{kind}",
            groups,
            split_bytes,
            partitions,
            self.settings.memory_bytes,
            MOST_SPLIT_FILES,
        )
        return [
            Estimate(
                f"dedupe.split-{kind}",
                tasks=groups,
                documents=documents,
                read_bytes=16 * documents if kind == "exact" else (8 * per_document + 4) * documents,
                reads=2 * blocks,
                work_bytes=split_bytes,
                memory_bytes=rates.process_bytes + self.budget,
                cpu_seconds=groups * rates.task + keys * rates.split_key,
            ),
            *moved,
            Estimate(
                f"dedupe.sort-{kind}",
                tasks=partitions,
                documents=documents,
                read_bytes=split_bytes,
                reads=2 * files * partitions,
                freed_bytes=split_bytes * (1 + len(moved)),
                memory_bytes=rates.process_bytes + self.budget,
                cpu_seconds=partitions * rates.task + keys * rates.sort_key,
            ),
        ]

    @property
    def _ordinal_bytes(self) -> int:
        return self.ranges.dtype.itemsize

    def _estimate_whole(self, rates: Rates, blocks: int, *, in_memory: bool) -> Estimate:
        """Joining in one process."""
        documents = self.num_documents
        keys = documents * sum(self.settings.keys_per_document(kind) for kind in self.settings.key_kinds)
        key_bytes = 16 + 8 * self.settings.keys_per_document("bands") if in_memory else 0
        held = self._held_per_document if in_memory else _COMPONENTS_MEMORY
        alone = rates.task + documents * rates.join_document
        alone += keys * (rates.split_key + rates.sort_key) * in_memory
        ranking = documents * rates.rank_document
        return Estimate(
            "dedupe.components",
            tasks=1,
            documents=documents,
            read_bytes=(16 + key_bytes) * documents,
            reads=4 * -(-documents // RANGE_DOCUMENTS) + 2 * blocks * in_memory,
            work_bytes=_COMPONENTS_BYTES * documents,
            freed_bytes=8 * documents,
            memory_bytes=rates.process_bytes + documents * held,
            cpu_seconds=alone + ranking,
            cores=(alone + ranking) / (alone + ranking / MAX_THREADS),
        )

    def _estimate_ranges(self, rates: Rates, nominated: Nominated, num_pairs: int) -> list[Estimate]:
        """Joining in ranges. num_pairs: edges of bands."""
        documents, members, count = self.num_documents, nominated.documents, self.ranges.count
        memory = rates.process_bytes + _RANGE_MEMORY * min(documents, 1 << self.ranges.log)
        # Each task of a range reads what tasks of all ranges have written for it.
        between = 2 * count * min(count, MOST_FILES) * (members > 0)

        def step(
            name: str, each: float, member: float, read: int, written: int, reads: int = between
        ) -> Estimate:
            return Estimate(
                f"dedupe.{name}",
                tasks=count,
                documents=documents,
                read_bytes=read,
                reads=2 * count + reads,
                work_bytes=written,
                memory_bytes=memory,
                cpu_seconds=count * rates.task + documents * each + members * member,
            )

        def star(name: str, edges: int, tables: int) -> Estimate:
            moved = 2 * _EDGE_BYTES * edges
            starred = step(name, rates.star_document, 0.0, moved, tables * _EDGE_BYTES * edges)
            return replace(starred, cpu_seconds=starred.cpu_seconds + edges * rates.pair)

        rounds = [star("small-1", num_pairs + members, 2), star("large-1", members, 1)]
        for number in range(2, _ROUNDS + 1):
            rounds += [star(f"small-{number}", members, 2), star(f"large-{number}", members, 1)]
        row = self._ordinal_bytes * 3 + 10
        return [
            *rounds,
            step(
                "labels", rates.fate_document, rates.unite_member / 4, 12 * documents, _LABEL_BYTES * members
            ),
            step("whole", 0.0, rates.unite_member / 2, _LABEL_BYTES * members, _LABEL_BYTES * members),
            Estimate(
                "dedupe.numbers",
                tasks=1,
                read_bytes=4 * members,
                reads=4 * count,
                work_bytes=4 * members,
                memory_bytes=memory,
                cpu_seconds=rates.task * (1 + count) + members * rates.place_document,
            ),
            step("places", 0.0, rates.unite_member / 4, _LABEL_BYTES * members, _LABEL_BYTES * members, 0),
            step(
                "components",
                rates.fate_document,
                rates.place_document,
                _LABEL_BYTES * members,
                row * documents,
            ),
        ]
