"""The steps of deduplication, in order. All are pure functions of named files; how they are cut depends on
the memory, what comes out never does.

    split-exact   exact hashes, partitioned by range               |  all of this at once, in memory, if it fits:
    sort-exact    equal hashes -> edges                            |  the same bytes
    exact         edges -> the first document of each text         |
    split-bands   band keys of first documents, partitioned        |
    sort-bands    equal keys -> edges (each to its bucket's first) |
    documents     lengths and scores of documents, in few files
    components    edges -> components, put into groups (components.py)
    members       who is in a component (stages/members.py)
    decide        which members of a group stay, and why others go (deciding.py, removals.py)
    fates         decisions -> fates of all documents (clusters.py)
    cluster       fates -> clusters of a range of blocks
    table         clusters.parquet, removals.parquet

Documents sharing a band are connected (design, section 5). Exact duplicates are found first and only the
first of each text reaches the bands. The steps hold what Run.memory_per_worker allows; for those that join (`exact`,
`components`, `fates`), one process each, a few bytes a document. Where texts are compared, text_steps.py has what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from btlm_data import blocks as block_table
from btlm_data import by_group
from btlm_data.advance import advance
from btlm_data.blocks import Block, grouped
from btlm_data.dedupe import components, keys, links
from btlm_data.dedupe.settings import ClusterSettings, KeyKind
from btlm_data.dedupe.sizes import SORT_BYTES, Sizes
from btlm_data.dedupe.verify import Verifier
from btlm_data.engine.runner import Runner
from btlm_data.kernels import union_find
from btlm_data.task import Artifact, Counts, Step, StoreName, Task
from btlm_data.task_files import TaskFiles, write_list

VERSION = 8


class Joined(msgspec.Struct, frozen=True):
    """Components of documents. extra: `groups`, and of a verification the pairs `compared` and `rejected`. keys: sorted, for
    an index. edges: of bands. outputs: of the step.
    """

    components: Artifact
    extra: Mapping[str, Any]
    keys: list[Artifact]
    edges: Sequence[Artifact]
    outputs: Sequence[Artifact]

    @property
    def num_groups(self) -> int:
        """Groups that the documents in components of two or more are in."""
        groups: int = self.extra["groups"]
        return groups


class Steps(msgspec.Struct, frozen=True):
    """The steps over one list of blocks; which groups and partitions there are follows from the memory.

    lineage: of the blocks and of the settings that decide the fates. table: of the blocks (blocks.py).
    """

    blocks: Sequence[Block]
    table: Artifact
    settings: ClusterSettings
    lineage: str
    keeps_keys: bool  # sorted keys are written for an index

    @property
    def num_documents(self) -> int:
        """Documents of all blocks."""
        return self.blocks[-1].last_ordinal if self.blocks else 0

    @property
    def sizes(self) -> Sizes:
        """How the keys are cut."""
        return Sizes(self.num_documents, self.settings)

    def run(self, runner: Runner) -> Joined:
        """Join what the settings connect: texts, or texts and what shares a band."""
        final = self.components((), (), ())
        keys: list[Artifact] = []
        in_memory = self.sizes.fits_in_memory
        if not in_memory and (self.keeps_keys or not runner.is_done(final)):
            exact = self.run_exact(runner, keys)
            bands: Sequence[Artifact] = ()
            if "bands" in self.settings.key_kinds:
                bands = self.run_sort(runner, "bands", exact, keys)
            return self.run_components(runner, [exact], bands, keys)
        joined = self.run_components(runner, (), (), keys)
        if in_memory:
            names = {f"{components.FOLDER}/{kind}-000000.cols" for kind in self.settings.key_kinds}
            keys += [output for output in joined.outputs if output.name in names]
        return joined

    def run_components(
        self, runner: Runner, exact: Sequence[Artifact], edges: Sequence[Artifact], keys: list[Artifact]
    ) -> Joined:
        """Join the edges. The lengths of documents that it needs are read by tasks of their own first."""
        step = self.components(exact, edges, ())
        if not runner.is_done(step):
            measuring = components.plan_documents(self.blocks, self.settings, self.lineage)
            documents = [result.outputs[0] for result in runner.run(measuring)]
            [result] = runner.run(self.components(exact, edges, documents))
            runner.discard(measuring)
        else:
            [result] = runner.run(step)
        [joined] = [output for output in result.outputs if output.name == components.NAME]
        return Joined(joined, result.counts.extra, keys, edges, result.outputs)

    def run_exact(self, runner: Runner, keys: list[Artifact]) -> Artifact:
        """The first document of each text; sorted keys are appended to `keys`."""
        step = self.exact(())
        if self.keeps_keys or not runner.is_done(step):
            step = self.exact(self.run_sort(runner, "exact", None, keys))
        [result] = runner.run(step)
        return result.outputs[0]

    def run_sort(
        self, runner: Runner, kind: KeyKind, exact: Artifact | None, keys: list[Artifact]
    ) -> list[Artifact]:
        """Files of edges, one a partition; sorted keys are appended to `keys`."""
        step = self.sort(kind, None)
        split = self.split(kind, exact)
        if not runner.is_done(step):
            groups = [artifact for result in runner.run(split) for artifact in result.outputs]
            runner.named.add(name := f"dedupe/groups-{kind}.json")
            step = self.sort(kind, write_list(runner.stores.work, name, groups))
        outputs = [output for result in runner.run(step) for output in result.outputs]
        runner.discard(split)
        keys += [output for output in outputs if "/links-" not in output.name]
        return [output for output in outputs if "/links-" in output.name]

    def split(self, kind: KeyKind, exact: Artifact | None) -> Step:
        """Partition the keys of each group of blocks."""
        log = self.sizes.log_partitions(kind)
        tasks = [
            Task(
                id=f"{number:06d}",
                args={"kind": kind, "log_partitions": log},
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
        tasks = []
        for partition in range(1 << log):
            outputs: list[tuple[StoreName, str]] = [
                ("work", f"dedupe/sort-{kind}/links-{partition:06d}.cols")
            ]
            if self.keeps_keys:
                outputs.append(("work", f"dedupe/sort-{kind}/{kind}-{partition:06d}.cols"))
            tasks.append(
                Task(
                    id=f"{partition:06d}",
                    args={
                        "kind": kind,
                        "log_partitions": log,
                        "partition": partition,
                        "documents": self.num_documents,
                    },
                    inputs=[self.lineage],
                    through={"groups": [groups] if groups is not None else [], "blocks": [self.table]},
                    outputs=outputs,
                    weight=max(1, self.num_documents >> log),
                    hints={
                        "keeps_keys": self.keeps_keys,
                        "log_range": self.sizes.log_range
                        if self.settings.by_text and kind == "bands"
                        else None,
                    },
                )
            )
        return Step(f"dedupe.sort-{kind}", VERSION, sort, tasks, self.settings, self.lineage, "doc")

    def exact(self, edges: Sequence[Artifact]) -> Step:
        """Join the edges between exact duplicates."""
        task = Task(
            id="all",
            args={"documents": self.num_documents},
            inputs=[self.lineage],
            through={"edges": edges},
            outputs=[("work", "dedupe/exact/all.cols")],
            weight=max(1, self.num_documents),
        )
        return Step("dedupe.exact", VERSION, exact, [task], self.settings, self.lineage, "doc")

    def components(
        self, exact: Sequence[Artifact], edges: Sequence[Artifact], documents: Sequence[Artifact]
    ) -> Step:
        """Join all edges. How they come about changes nothing, and so is a hint. documents: of components.plan_documents."""
        outputs: list[tuple[StoreName, str]] = [("work", components.NAME)]
        if self.keeps_keys and self.sizes.fits_in_memory and not self.settings.by_text:
            outputs += [
                ("work", f"{components.FOLDER}/{kind}-000000.cols") for kind in self.settings.key_kinds
            ]
        task = Task(
            id="all",
            args={"documents": self.num_documents},
            inputs=[self.lineage],
            through={"blocks": [self.table], "exact": exact, "edges": edges, "documents": documents},
            outputs=outputs,
            weight=max(1, self.num_documents),
            hints={"in_memory": not exact, "keeps_keys": self.keeps_keys},
        )
        return Step("dedupe.components", VERSION, join, [task], self.settings, self.lineage, "doc")


# Work functions ---------------------------------------------------------------------------------------------


def split(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Partition the keys of one group of blocks by their highest bits."""
    blocks: Sequence[Block] = task.hints["blocks"]
    first_copies = None
    if task.args["kind"] == "bands":
        [exact_file] = task.through["exact"]
        first, last = blocks[0].first_ordinal, blocks[-1].last_ordinal
        first_copies = files.columns(exact_file).rows("root", first, last)
    group_keys, bounds = keys.partitioned(
        files, blocks, settings, task.args["kind"], task.args["log_partitions"], first_copies
    )
    keys.write_group(files, task.outputs[0][1], group_keys, bounds)
    return Counts()


def sort(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Find the equal keys of one partition, over all groups."""
    kind, partition, log = task.args["kind"], task.args["partition"], task.args["log_partitions"]
    [groups] = task.through["groups"]
    limit = max(1, settings.memory_bytes // 2 // SORT_BYTES[kind])
    chunks = keys.partition_chunks(files, files.read_list(groups), partition, limit, task.args["documents"])
    linker = _linker(task, settings, files, kind, log)
    edges = linker.link(chunks, partition)
    if task.hints["log_range"] is None:
        edges.write(files, task.outputs[0][1])
    else:
        by_group.write(files, task.outputs[0][1], [edges.pairs_by_range(task.hints["log_range"])])
    if edges.sorted_keys is not None:
        links.write_index_keys(
            files, task.outputs[1][1], edges.sorted_keys, kind, log, with_ordinals=settings.by_text
        )
    advance(task.weight)
    return Counts()


def exact(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Find each document's first exact duplicate."""
    num_documents = task.args["documents"]
    parts = (links.Links.read(files, file, num_documents) for file in task.through["edges"])
    roots, known = links.exact_roots(parts, num_documents)
    files.write_columns(task.outputs[0][1], {"root": roots, "known": known})
    advance(task.weight)
    return Counts()


def join(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Join all edges to components."""
    num_documents = task.args["documents"]
    if task.hints["in_memory"]:
        blocks = block_table.read_table(files, task.through["blocks"][0])
        exact_links = _link_in_one_go(task, settings, files, blocks, "exact", None)
        roots, known = links.exact_roots([exact_links], num_documents)
        has_bands = "bands" in settings.key_kinds
        parts = iter([_link_in_one_go(task, settings, files, blocks, "bands", roots)] if has_bands else [])
    else:
        [exact_file] = task.through["exact"]
        opened = files.columns(exact_file)
        roots, known = opened["root"], opened["known"]
        keys.check_ordinals(roots, num_documents, exact_file.name)
        keys.check_ordinals(known, num_documents, exact_file.name)
        parts = (_read_edges(files, file, settings, num_documents) for file in task.through["edges"])
    parent = roots.copy()
    compared = rejected = 0
    known_parts, nominated = [roots[known] if settings.by_text else known], [np.empty(0, np.uint32)]
    for edges in parts:
        links.unite(parent, edges)
        known_parts += edges.known
        nominated += [np.unique(pairs.document) for pairs in edges.in_index]
        compared, rejected = compared + edges.compared, rejected + edges.rejected
    union_find.flatten(parent)
    united = components.Components(roots, parent, np.unique(np.concatenate(known_parts)))
    num_groups = components.write(
        files, task.through["documents"], united, np.concatenate(nominated), settings.threads
    )
    advance(task.weight)
    return Counts(extra={"groups": num_groups, "compared": compared, "rejected": rejected})


def _read_edges(
    files: TaskFiles, file: Artifact, settings: ClusterSettings, num_documents: int
) -> links.Links:
    """What a partition of bands has connected, or nominated."""
    if not settings.by_text:
        return links.Links.read(files, file, num_documents)
    return links.Links.of_piece(by_group.read_all(files.columns(file)), 0, num_documents, file.name)


def _link_in_one_go(
    task: Task,
    settings: ClusterSettings,
    files: TaskFiles,
    blocks: Sequence[Block],
    kind: KeyKind,
    first_copies: links.UInt32Array | None,
) -> links.Links:
    all_keys, _ = keys.partitioned(files, blocks, settings, kind, 0, first_copies)
    edges = _linker(task, settings, files, kind, 0).link(iter([all_keys]), 0)
    if edges.sorted_keys is not None:
        links.write_index_keys(
            files, f"{components.FOLDER}/{kind}-000000.cols", edges.sorted_keys, kind, 0, with_ordinals=False
        )
    return edges


def _linker(
    task: Task, settings: ClusterSettings, files: TaskFiles, kind: KeyKind, log_partitions: int
) -> links.Linker:
    verifier = None
    if settings.dedupe.verify == "signature" and kind == "bands":
        [table] = task.through["blocks"]
        verifier = Verifier(files, block_table.read_table(files, table), settings)
    nominates = settings.by_text and kind == "bands"
    return links.Linker(
        kind, log_partitions, verifier, settings.index, bool(task.hints["keeps_keys"]), nominates
    )
