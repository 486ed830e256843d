"""The steps of deduplication by text (`dedupe.verify: text`): what shares a band is nominated, its text
decides.

exact, sort-bands     as steps.py has them; edges are pairs to compare
components            pairs -> components, put into groups                         whole
pairs                 a partition's pairs, by group                                a partition
members               places and texts of the documents in components              a part of the source (stages/members.py)
compare               a group's pairs compared, and decided                        a group
cluster               decisions -> fates, clusters.parquet                         whole
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from btlm_data import blocks as block_table
from btlm_data.advance import advance
from btlm_data.blocks import Block
from btlm_data.dedupe import clusters, compare, components, keys, links
from btlm_data.dedupe.settings import ClusterSettings
from btlm_data.dedupe.steps import VERSION, Steps
from btlm_data.engine.runner import Runner
from btlm_data.kernels import union_find
from btlm_data.task import Artifact, Counts, Step, Task, TaskResult
from btlm_data.task_files import TaskFiles, write_list

COMPONENTS = f"dedupe/components/{components.NAME}"
# Plans the step that writes the members: (components, number of groups, with texts).
MembersPlanner = Callable[[Artifact, int, bool], Step]
# Plans the step that writes the texts that stay, for an index: (components, fates).
KeptTextsPlanner = Callable[[Artifact, Artifact], Step]


@dataclass(frozen=True)
class Compared:
    """What the steps leave. members, pairs: lists of files. compared: decisions of each group. keys: sorted,
    for an index.
    """

    cluster: TaskResult
    components: Artifact
    members: Artifact
    pairs: Artifact
    compared: Sequence[Artifact]
    keys: Sequence[Artifact]


@dataclass(frozen=True)
class TextSteps:
    """The steps over one list of blocks."""

    steps: Steps
    plan_members: MembersPlanner

    def run(self, runner: Runner) -> Compared:
        """Run what is needed."""
        sorted_keys: list[Artifact] = []
        exact = self.steps.run_exact(runner, sorted_keys)
        edges = self.steps.run_sort(runner, "bands", exact, sorted_keys)
        [result] = runner.run(self._components(exact, edges))
        joined, num_groups = result.outputs[0], result.counts.extra["groups"]
        pairs = [r.outputs[0] for r in runner.run(self._pairs(joined, num_groups, edges))]
        members = list_members(runner, self.plan_members(joined, num_groups, True))
        runner.named.add(name := "dedupe/pairs.json")
        pairs_list = write_list(runner.stores.work, name, pairs)
        results = runner.run(self._compare(joined, num_groups, members, pairs_list))
        compared = [r.outputs[0] for r in results]
        [done] = runner.run(self._cluster(joined, compared))
        summary = done.counts.extra["summary"]
        summary["compared_pairs"] = {
            key: sum(r.counts.extra[key] for r in results) for key in ("compared", "similar", "not_compared")
        }
        return Compared(done, joined, members, pairs_list, compared, sorted_keys)

    def _components(self, exact: Artifact, edges: Sequence[Artifact]) -> Step:
        steps = self.steps
        task = Task(
            id="all",
            args={"documents": steps.num_documents},
            inputs=[steps.lineage],
            through={"blocks": [steps.table], "exact": [exact], "edges": edges},
            outputs=[("work", COMPONENTS)],
            weight=max(1, steps.num_documents),
        )
        return Step("dedupe.components", VERSION, join, [task], steps.settings, steps.lineage, "doc")

    def _pairs(self, joined: Artifact, num_groups: int, edges: Sequence[Artifact]) -> Step:
        steps = self.steps
        tasks = [
            Task(
                id=f"{number:06d}",
                args={  # `number` is a partition of so many: with another memory it has other pairs
                    "documents": steps.num_documents,
                    "groups": num_groups,
                    "partition": number,
                    "partitions": len(edges),
                },
                inputs=[steps.lineage],
                through={"components": [joined], "edges": [artifact]},
                outputs=[("work", f"dedupe/pairs/{number:06d}.cols")],
                weight=max(1, steps.num_documents // len(edges)),
            )
            for number, artifact in enumerate(edges)
        ]
        return Step("dedupe.pairs", VERSION, compare.split_pairs, tasks, steps.settings, steps.lineage, "doc")

    def _compare(self, joined: Artifact, num_groups: int, members: Artifact, pairs: Artifact) -> Step:
        tasks = [
            Task(
                id=f"{group:06d}",
                args={"group": group},
                inputs=[self.steps.lineage],
                through={"members": [members], "pairs": [pairs]},
                outputs=[("work", f"dedupe/compare/{group:06d}.cols")],
            )
            for group in range(1, num_groups + 1)
        ]
        return Step(
            "dedupe.compare", VERSION, compare.compare, tasks, self.steps.settings, self.steps.lineage, "task"
        )

    def _cluster(self, joined: Artifact, compared: Sequence[Artifact]) -> Step:
        steps = self.steps
        names = (clusters.FATES, clusters.CLUSTERS, clusters.TABLE, clusters.REMOVED)
        task = Task(
            id="all",
            args={"documents": steps.num_documents},
            inputs=[steps.lineage],
            through={"blocks": [steps.table], "components": [joined], "compared": compared},
            outputs=[("work", name) for name in names],
            weight=max(1, steps.num_documents),
        )
        return Step("dedupe.cluster", VERSION, cluster, [task], steps.settings, steps.lineage, "doc")


def list_members(runner: Runner, step: Step) -> Artifact:
    """Write the members; returns the list of their files."""
    artifacts = [artifact for result in runner.run(step) for artifact in result.outputs]
    runner.named.add(name := "dedupe/members.json")
    return write_list(runner.stores.work, name, artifacts)


def join(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Join the pairs to components."""
    num_documents = task.args["documents"]
    blocks: Sequence[Block] = block_table.read_table(files, task.through["blocks"][0])
    [exact] = task.through["exact"]
    opened = files.columns(exact)
    roots, known = opened["root"], opened["known"]
    keys.check_ordinals(roots, num_documents, exact.name)
    keys.check_ordinals(known, num_documents, exact.name)
    parent = roots.copy()
    nominated = [np.empty(0, np.uint32)]
    for artifact in task.through["edges"]:
        edges = links.Links.read(files, artifact, num_documents)
        links.unite(parent, edges)
        nominated += [np.unique(pairs.document) for pairs in edges.in_index]
    union_find.flatten(parent)
    united = clusters.Components(roots, parent, np.unique(roots[known]))
    num_groups = components.write(
        files, task.outputs[0][1], blocks, settings.dedupe, united, np.concatenate(nominated)
    )
    advance(num_documents)
    return Counts(extra={"groups": num_groups})


def cluster(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Decisions about texts become fates of documents."""
    num_documents = task.args["documents"]
    blocks = block_table.read_table(files, task.through["blocks"][0])
    joined = files.columns(task.through["components"][0])
    anchors = np.full(num_documents, clusters.NOT_IN_RUN, np.uint32)
    known = [joined["known"]]
    for artifact in task.through["compared"]:
        compared = files.columns(artifact)
        gone, anchor = compared["gone"], compared["anchor"]
        is_here = anchor != clusters.NOT_IN_RUN
        for ordinals in (gone, anchor[is_here]):
            keys.check_ordinals(ordinals, num_documents, artifact.name)
        anchors[gone] = anchor
        known.append(gone[~is_here])
    united = clusters.Components(joined["root"], joined["cluster"], np.concatenate(known))
    decider = clusters.by_texts(blocks, settings.dedupe, united, joined["best"], anchors)
    return clusters.decide(files, blocks, decider)
