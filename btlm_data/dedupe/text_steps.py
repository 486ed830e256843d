"""The steps of deduplication by text (`dedupe.verify: text`): what shares a band is nominated, its text
decides.

exact, sort-bands     as steps.py has them; edges are pairs to compare
components            pairs -> components, put into groups                         whole
edges-bands-N         pairs, by range of documents, where partitions are many      a range of ranges (by_group.py)
pairs, pairs-N        pairs, by group                                              a range of documents, of groups (by_group.py)
members, members-N    places and texts of the documents in components              a part of the source (stages/members.py), a
                                                                                   range of groups (by_group.py)
compare               a group's pairs compared                                     a group

What follows is as steps.py has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from btlm_data import by_group
from btlm_data.dedupe import compare
from btlm_data.dedupe.steps import VERSION, Joined, Steps
from btlm_data.engine.runner import Runner
from btlm_data.task import Artifact, Step, Task

# Plans the step that writes the members: (components, with texts).
MembersPlanner = Callable[[Artifact, bool], Step]
# Plans the step that writes the texts that stay, for an index: (list of files, clusters.py).
KeptTextsPlanner = Callable[[Artifact], Step]


class Compared(msgspec.Struct, frozen=True):
    """What the steps leave. members, pairs: lists of files (by_group.py). compared: of each group. amounts: pairs compared, similar, and not
    compared.
    """

    joined: Joined
    members: Artifact
    pairs: Artifact
    compared: Sequence[Artifact]
    amounts: Mapping[str, int]


class TextSteps(msgspec.Struct, frozen=True):
    """The steps over one list of blocks."""

    steps: Steps
    plan_members: MembersPlanner

    def run(self, runner: Runner) -> Compared:
        """Run what is needed."""
        exact = self.steps.run_exact(runner)
        edges = self.steps.run_sort(runner, "bands", exact)
        joined = self.steps.run_components(runner, exact, edges)
        memory, groups = self.steps.settings.memory_bytes, joined.num_groups
        pairs = self._run_pairs(runner, joined, edges.edges)
        members = list_by_group(runner, self.plan_members(joined.components, True), groups, memory)
        results = runner.run(self._compare(joined, members, pairs))
        amounts = {
            key: sum(r.counts.extra[key] for r in results) for key in ("compared", "similar", "not_compared")
        }
        return Compared(joined, members, pairs, [r.outputs[0] for r in results], amounts)

    def _run_pairs(self, runner: Runner, joined: Joined, edges: Sequence[Artifact]) -> Artifact:
        """The pairs of each group. Where there are more partitions than a task may open, what these nominated is put together first,
        by ranges of documents.
        """
        memory, passes = self.steps.settings.memory_bytes, list[Step]()
        step = self._pairs(joined, [])
        if not runner.is_done(step):
            step = self._pairs(joined, [self.steps.list_edges(runner, "bands", edges, passes)])
        pairs = list_by_group(runner, step, joined.num_groups, memory)
        runner.discard(*passes)
        return pairs

    def _pairs(self, joined: Joined, edges: Sequence[Artifact]) -> Step:
        """edges: the list of files of ranges; none only to see what is done."""
        steps = self.steps
        ranges = steps.ranges
        tasks = [
            Task(
                id=f"{number:06d}",
                args={"documents": list(ranges.bounds(number)), **ranges.args},
                inputs=[steps.lineage],
                through={"components": [joined.components], "edges": edges},
                weight=last - first,
                hints={"ranges": ranges, "range": number},
            )
            for number in range(ranges.count)
            for first, last in [ranges.bounds(number)]
        ]
        return Step(
            "dedupe.pairs", VERSION, compare.pairs_by_group, tasks, steps.settings, steps.lineage, "doc"
        )

    def _compare(self, joined: Joined, members: Artifact, pairs: Artifact) -> Step:
        tasks = [
            Task(
                id=f"{group:06d}",
                args={"group": group},
                inputs=[self.steps.lineage],
                through={"members": [members], "pairs": [pairs]},
                outputs=[("work", f"dedupe/compare/{group:06d}.cols")],
            )
            for group in range(1, joined.num_groups + 1)
        ]
        return Step(
            "dedupe.compare", VERSION, compare.compare, tasks, self.steps.settings, self.steps.lineage, "task"
        )


def list_by_group(runner: Runner, step: Step, num_groups: int, memory: int) -> Artifact:
    """Run a step that writes rows by group, and put together what belongs to a group; returns the list of files. memory: of
    one worker.
    """
    written = [artifact for result in runner.run(step) for artifact in result.outputs]
    held = by_group.gathered(runner, step.name, written, num_groups, memory)
    runner.named.add(name := f"{step.folder}.json")
    return by_group.write_list(runner.stores.work, name, held)
