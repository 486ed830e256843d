"""The steps of deduplication, in order. All are pure functions of named files; how they are cut depends on
the memory, what comes out never does.

    split-exact   exact hashes, partitioned by range               |  all of this at once, in memory, if it fits:
    sort-exact    equal hashes -> edges                            |  the same bytes
    exact         edges -> the first document of each text         |
    split-bands   band keys of first documents, partitioned        |
    sort-bands    equal keys -> edges (each to its bucket's first) |
    documents     lengths and scores of documents, in few files
    components    edges -> components, put into groups (components.py); where one process cannot hold a few bytes of every
                  document, in steps over ranges of documents (partitioned.py)
    members       who is in a component (stages/members.py)
    decide        which members of a group stay, and why others go (deciding.py, removals.py)
    fates         decisions -> fates of a range of documents (clusters.py)
    cluster       fates -> clusters of a range of blocks
    table         clusters.parquet, removals.parquet

Documents sharing a band are connected (design, section 5). Exact duplicates are found first and only the
first of each text reaches the bands. The steps hold what Run.memory_per_worker allows; `components` as one process holds a few
bytes a document, up to Run.memory_alone. Where texts are compared, text_steps.py has what differs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from btlm_data import blocks as block_table
from btlm_data import by_group, by_ordinal
from btlm_data.advance import advance
from btlm_data.blocks import RANGE_DOCUMENTS, Block, grouped
from btlm_data.by_ordinal import ByOrdinal
from btlm_data.dedupe import components, keys, links, partitioned
from btlm_data.dedupe.keys import Chosen
from btlm_data.dedupe.ranges import Ordinals, Ranges, dtype_of
from btlm_data.dedupe.settings import ClusterSettings, KeyKind
from btlm_data.dedupe.sizes import MOST_SPLIT_FILES, SORT_BYTES, Sizes
from btlm_data.dedupe.verify import Verifier
from btlm_data.engine.runner import Runner
from btlm_data.kernels import union_find
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 9
_MOST_RANGES = 2**20  # more are no plan of ours, but a damaged file


class Sorted(msgspec.Struct, frozen=True):
    """What sorting keys gives: files of edges, and of a verification the pairs `compared` and `rejected`."""

    edges: Sequence[Artifact] = ()
    verified: Mapping[str, int] = msgspec.field(default_factory=lambda: {"compared": 0, "rejected": 0})


class Joined(msgspec.Struct, frozen=True):
    """Components of documents. components: list of files (by_ordinal.py). extra: `groups`, and of a verification the pairs
    `compared` and `rejected`. edges: of bands.
    """

    components: Artifact
    extra: Mapping[str, Any]
    edges: Sequence[Artifact]

    @property
    def num_groups(self) -> int:
        """Groups that the documents in components of two or more are in."""
        groups: int = self.extra["groups"]
        return groups


class Joining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How documents are joined, dedupe/joining.json: a run that goes on where another stopped does it the same way, whatever its
    memory, where it can. log: of the ranges.
    """

    lineage: str
    partitioned: bool
    log: int


class Steps(msgspec.Struct, frozen=True):
    """The steps over one list of blocks; which groups and partitions there are follows from the memory.

    lineage: of the blocks and of the settings that decide the fates. table: of the blocks (blocks.py). joining: None: as the memory
    has it.
    """

    blocks: Sequence[Block]
    table: Artifact
    settings: ClusterSettings
    lineage: str
    joining: Joining | None = None

    def as_before(self, runner: Runner) -> Steps:
        """The steps as a run before has begun them, where these are of the same lineage, and done or within the memory."""
        work, name = runner.stores.work, "dedupe/joining.json"
        now = Joining(self.lineage, self.sizes.is_partitioned, self.sizes.ranges.log)
        runner.named.add(name)
        if (size := work.size(name)) is not None and size < 4096:
            with contextlib.suppress(ValueError):  # not ours, or cut off: chosen anew
                before = msgspec.json.decode(work.read(name), type=Joining)
                fits = before.partitioned >= now.partitioned and before.log <= now.log
                steps = replace(self, joining=before)
                is_ours = (
                    before.lineage == self.lineage
                    and 0 <= before.log < 64
                    and steps.ranges.count <= _MOST_RANGES
                )
                if is_ours and (fits or runner.is_done(steps.final)):
                    return steps
        work.write(name, msgspec.json.encode(now) + b"\n", durable=False)
        return replace(self, joining=now)

    @property
    def is_partitioned(self) -> bool:
        """Whether documents are joined in steps over ranges."""
        return self.joining.partitioned if self.joining is not None else self.sizes.is_partitioned

    @property
    def is_in_memory(self) -> bool:
        """Whether all keys are sorted at once, in the process that joins."""
        return self.sizes.fits_in_memory and not self.is_partitioned and not self.settings.by_text

    @property
    def num_documents(self) -> int:
        """Documents of all blocks."""
        return self.blocks[-1].last_ordinal if self.blocks else 0

    @property
    def sizes(self) -> Sizes:
        """How the keys are cut."""
        return Sizes(self.num_documents, self.settings)

    @property
    def ranges(self) -> Ranges:
        """By which edges are put in order."""
        planned = self.sizes.ranges
        return planned if self.joining is None else replace(planned, log=self.joining.log)

    def run(self, runner: Runner) -> Joined:
        """Join what the settings connect: texts, or texts and what shares a band."""
        if self.is_in_memory:
            return self.run_components(runner, None, Sorted())
        exact, bands = None, Sorted()
        if not runner.is_done(self.final):
            exact = self.run_exact(runner)
            if "bands" in self.settings.key_kinds:
                bands = self.run_sort(runner, "bands", exact)
        return self.run_components(runner, exact, bands)

    @property
    def final(self) -> Step:
        """The step that joins, to see whether it is done."""
        if self.is_partitioned:
            return partitioned.plan_components(self, None, None, {})
        return self.components(None, (), ())

    def run_components(self, runner: Runner, exact: Artifact | None, bands: Sorted) -> Joined:
        """Join the edges. The lengths of documents that it needs are read by tasks of their own first."""
        step = self.final
        if not runner.is_done(step):
            measuring = components.plan_documents(self.blocks, self.settings, self.lineage)
            documents = [result.outputs[0] for result in runner.run(measuring)]
            if self.is_partitioned:
                assert exact is not None
                results = partitioned.run(self, runner, exact, bands, documents)
            else:
                results = runner.run(self.components(exact, bands.edges, documents, bands.verified))
            runner.discard(measuring)
        else:
            results = runner.run(step)
        files = [output for result in results for output in result.outputs]
        ranges = self.ranges if self.is_partitioned else Ranges.plan(self.num_documents, 2**32)
        listed = list_ranges(runner, f"{components.FOLDER}.json", ranges, files)
        extra = results[0].counts.extra if results else {"compared": 0, "rejected": 0}
        groups = max((result.counts.extra["groups"] for result in results), default=0)
        return Joined(listed, {**extra, "groups": groups}, bands.edges)

    def run_exact(self, runner: Runner) -> Artifact:
        """The first document of each text, a list of files (by_ordinal.py)."""
        step, passes = self.exact(()), list[Step]()
        if not runner.is_done(step):
            sorting = self.run_sort(runner, "exact", None)
            step = self.exact([self.list_edges(runner, "exact", sorting.edges, passes)])
        files = [result.outputs[0] for result in runner.run(step)]
        runner.discard(*passes)
        return list_ranges(runner, "dedupe/exact.json", self.ranges, files)

    def run_sort(self, runner: Runner, kind: KeyKind, exact: Artifact | None) -> Sorted:
        """Files of edges, one a partition."""
        step, passes = self.sort(kind, None), list[Step]()
        split = self.split(kind, exact)
        if not runner.is_done(step):
            log = self.sizes.log_partitions(kind)
            step = self.sort(kind, self.split_keys(runner, split, log, f"dedupe/groups-{kind}.json", passes))
        results = runner.run(step)
        runner.discard(split, *passes)
        verified = {
            name: sum(result.counts.extra[name] for result in results) for name in ("compared", "rejected")
        }
        return Sorted([output for result in results for output in result.outputs], verified)

    def split_keys(self, runner: Runner, step: Step, log: int, name: str, passes: list[Step]) -> Artifact:
        """Run a step that splits keys into 2^log partitions, and put together what belongs to one; returns the list of files, written as
        `name`. The steps that put together are appended to `passes`.
        """
        groups = [artifact for result in runner.run(step) for artifact in result.outputs]
        held = by_group.gathered(
            runner,
            step.name,
            groups,
            1 << log,
            self.settings.memory_bytes,
            most_files=MOST_SPLIT_FILES,
            passes=passes,
            in_order=True,
        )
        runner.named.add(name)
        return by_group.write_list(runner.stores.work, name, held)

    def list_documents(self, runner: Runner, documents: Sequence[Artifact]) -> Artifact:
        """The list of the files of components.plan_documents (by_ordinal.py)."""
        of_ranges = grouped(self.blocks, RANGE_DOCUMENTS)
        rows = [
            (chosen[0].first_ordinal, chosen[-1].last_ordinal, file)
            for chosen, file in zip(of_ranges, documents, strict=True)
        ]
        runner.named.add(name := "dedupe/documents.json")
        return by_ordinal.write_list(runner.stores.work, name, rows)

    def list_edges(
        self, runner: Runner, kind: KeyKind, edges: Sequence[Artifact], passes: list[Step]
    ) -> Artifact:
        """The list of files out of which each range of documents reads its edges; where there are more partitions than a task may
        open, what they connected is put together first. The steps that do are appended to `passes`.
        """
        held = by_group.gathered(
            runner,
            f"dedupe.edges-{kind}",
            edges,
            self.ranges.count,
            self.settings.memory_bytes,
            most_files=by_group.MOST_INPUTS,
            passes=passes,
        )
        runner.named.add(name := f"dedupe/edges-{kind}.json")
        return by_group.write_list(runner.stores.work, name, held)

    def split(self, kind: KeyKind, exact: Artifact | None) -> Step:
        """Partition the keys of each group of blocks."""
        log = self.sizes.log_partitions(kind)
        tasks = [
            Task(
                id=f"{number:06d}",
                args={"kind": kind, "log_partitions": log, "wide": self.ranges.wide},
                inputs=[self.lineage],
                reads={"sketches": [block.sketch for block in group if block.sketch is not None]},
                through={"exact": [exact] if exact is not None else []},
                outputs=[("work", f"dedupe/split-{kind}/{number:06d}.cols")],
                weight=sum(block.num_documents for block in group),
                hints={"blocks": group},
            )
            for number, group in enumerate(grouped(self.blocks, self.sizes.group_documents(kind)))
        ]
        return Step(f"dedupe.split-{kind}", VERSION, split, tasks, self.settings, self.lineage, "doc")

    def sort(self, kind: KeyKind, groups: Artifact | None) -> Step:
        """Find the equal keys of each partition. groups: the list of split files."""
        log = self.sizes.log_partitions(kind)
        tasks = [
            Task(
                id=f"{partition:06d}",
                args={
                    "kind": kind,
                    "log_partitions": log,
                    "partition": partition,
                    "documents": self.num_documents,
                    **self.ranges.args,
                },
                inputs=[self.lineage],
                through={"groups": [groups] if groups is not None else [], "blocks": [self.table]},
                outputs=[("work", f"dedupe/sort-{kind}/links-{partition:06d}.cols")],
                weight=max(1, self.num_documents >> log),
                hints={"ranges": self.ranges},
            )
            for partition in range(1 << log)
        ]
        return Step(f"dedupe.sort-{kind}", VERSION, sort, tasks, self.settings, self.lineage, "doc")

    def exact(self, edges: Sequence[Artifact]) -> Step:
        """The first document of each text, a task per range. edges: the list of files; none only to see what is done."""
        tasks = [
            Task(
                id=f"{number:06d}",
                args={"documents": list(self.ranges.bounds(number)), **self.ranges.args},
                inputs=[self.lineage],
                through={"edges": edges},
                outputs=[("work", f"dedupe/exact/{number:06d}.cols")],
                weight=last - first,
                hints={"ranges": self.ranges, "range": number},
            )
            for number in range(self.ranges.count)
            for first, last in [self.ranges.bounds(number)]
        ]
        return Step("dedupe.exact", VERSION, exact, tasks, self.settings, self.lineage, "doc")

    def components(
        self,
        exact: Artifact | None,
        edges: Sequence[Artifact],
        documents: Sequence[Artifact],
        verified: Mapping[str, int] | None = None,
    ) -> Step:
        """Join all edges in one process. How they come about changes nothing, and so is a hint. documents: of
        components.plan_documents. verified: of `Sorted`.
        """
        task = Task(
            id="all",
            args={"documents": self.num_documents},
            inputs=[self.lineage],
            through={
                "blocks": [self.table],
                "exact": [exact] if exact is not None else [],
                "edges": edges,
                "documents": documents,
            },
            outputs=[("work", components.NAME)],
            weight=max(1, self.num_documents),
            hints={"ranges": self.ranges, "verified": verified},
        )
        return Step("dedupe.components", VERSION, join, [task], self.settings, self.lineage, "doc")


def list_ranges(runner: Runner, name: str, ranges: Ranges, files: Sequence[Artifact]) -> Artifact:
    """Write the list of files of ranges of documents (by_ordinal.py)."""
    runner.named.add(name)
    rows = [(*ranges.bounds(number), file) for number, file in enumerate(files)]
    return by_ordinal.write_list(runner.stores.work, name, rows)


# Work functions ---------------------------------------------------------------------------------------------


def split(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Partition the keys of one group of blocks by their highest bits."""
    blocks: Sequence[Block] = task.hints["blocks"]
    is_first = None
    if task.args["kind"] == "bands":
        first_copies = Chosen(task.through["exact"][0], "root")
        is_first = first_copies.rows(files, blocks[0].first_ordinal, blocks[-1].last_ordinal)
    dtype = dtype_of(wide=task.args["wide"])
    group_keys, bounds = keys.partitioned(
        files, blocks, settings, task.args["kind"], task.args["log_partitions"], is_first, dtype
    )
    keys.write_group(files, task.outputs[0][1], group_keys, bounds)
    return Counts()


def sort(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Find the equal keys of one partition, over all groups. extra: pairs `compared` and `rejected` of a verification."""
    kind, partition, log = task.args["kind"], task.args["partition"], task.args["log_partitions"]
    ranges: Ranges = task.hints["ranges"]
    [groups] = task.through["groups"]
    limit = max(1, settings.memory_bytes // 2 // SORT_BYTES[kind])
    chunks = keys.partition_chunks(files, groups, partition, limit, task.args["documents"], ranges.dtype)
    edges = linker(task, settings, files, kind, log, ranges.dtype).link(chunks, partition)
    by_group.write(files, task.outputs[0][1], [edges.by_range(ranges)])
    advance(task.weight)
    return Counts(extra={"compared": edges.compared, "rejected": edges.rejected})


def exact(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Find the first exact duplicate of each document of a range."""
    ranges: Ranges = task.hints["ranges"]
    number, (first, last) = task.hints["range"], task.args["documents"]
    pieces = by_group.of_group(files, task.through["edges"][0], number + 1)
    parts = (links.Links.of_piece(piece, ranges, f"An edge of dedupe.exact {task.id}") for piece in pieces)
    roots = np.arange(first, last, dtype=ranges.dtype)
    known = links.exact_roots(parts, roots, first)
    files.write_columns(task.outputs[0][1], {"root": roots, "known": known})
    advance(task.weight)
    return Counts()


def read_exact(files: TaskFiles, listed: Artifact, ranges: Ranges) -> tuple[Ordinals, Ordinals]:
    """The first document of each text, (N,), and the documents that an index knows, (u,), of all ranges. Raises DataError for a
    document that there is not.
    """
    roots = ByOrdinal(files, listed)["root"].copy()
    held = by_group.read_list(files, listed)
    known = [files.columns(file.file)["known"] for file in held]
    for ordinals in (roots, *known):
        keys.check_ordinals(ordinals, ranges.num_documents, listed.name)
    return roots, np.concatenate([np.empty(0, ranges.dtype), *known])


def join(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Join all edges to components."""
    num_documents, ranges = task.args["documents"], task.hints["ranges"]
    verified = dict(task.hints["verified"] or {"compared": 0, "rejected": 0})
    if not task.through["exact"]:
        blocks = block_table.read_table(files, task.through["blocks"][0])
        exact_links = _link_in_one_go(task, settings, files, blocks, "exact", None)
        roots = np.arange(num_documents, dtype=np.uint32)
        known = links.exact_roots([exact_links], roots, 0)
        has_bands = "bands" in settings.key_kinds
        parts = iter([_link_in_one_go(task, settings, files, blocks, "bands", roots)] if has_bands else [])
    else:
        roots, known = read_exact(files, task.through["exact"][0], ranges)
        parts = (
            links.Links.of_piece(by_group.read_all(files.columns(file)), ranges, file.name)
            for file in task.through["edges"]
        )
    parent = roots.copy()
    known_parts, nominated = [known], [np.empty(0, np.int64)]
    for edges in parts:
        links.unite(parent, edges)
        known_parts += edges.known
        nominated += [np.unique(pairs.document) for pairs in edges.in_index]
        verified["compared"] += edges.compared
        verified["rejected"] += edges.rejected
    union_find.flatten(parent)
    united = components.Components(roots, parent, np.unique(np.concatenate(known_parts)))
    num_groups = components.write(
        files, task.through["documents"], united, np.concatenate(nominated), settings.threads
    )
    advance(task.weight)
    return Counts(extra={"groups": num_groups, **verified})


def _link_in_one_go(
    task: Task,
    settings: ClusterSettings,
    files: TaskFiles,
    blocks: Sequence[Block],
    kind: KeyKind,
    roots: Ordinals | None,
) -> links.Links:
    is_first = None if roots is None else roots == np.arange(len(roots), dtype=roots.dtype)
    all_keys, _ = keys.partitioned(files, blocks, settings, kind, 0, is_first, dtype_of(wide=False))
    of_all = linker(task, settings, files, kind, 0, np.dtype(np.uint32))
    return of_all.link(iter([all_keys]), 0)


def linker(
    task: Task,
    settings: ClusterSettings,
    files: TaskFiles,
    kind: KeyKind,
    log_partitions: int,
    dtype: np.dtype[Any],
) -> links.Linker:
    """What makes edges of the keys of a partition. dtype: of ordinals."""
    verifier = None
    if settings.dedupe.verify == "signature" and kind == "bands":
        [table] = task.through["blocks"]
        verifier = Verifier(files, block_table.read_table(files, table), settings)
    nominates = settings.by_text and kind == "bands"
    return links.Linker(kind, log_partitions, dtype, verifier, settings.index, nominates)
