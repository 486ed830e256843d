"""Joining in ranges with ordinals of more than 32 bits, against the twin of joining in one process.

Only the last ranges of a corpus of 1.3 x 10^10 documents are there; the tasks of the others would find nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from btlm_data import by_group, by_ordinal
from btlm_data.dedupe import partitioned
from btlm_data.dedupe.components import HOLDOUT, Components
from btlm_data.dedupe.links import IndexPairs, Links
from btlm_data.dedupe.ranges import Ranges
from btlm_data.dedupe.settings import ClusterSettings
from btlm_data.kernels import union_find
from btlm_data.locations import Locations
from btlm_data.recipe.models import DedupeSettings
from btlm_data.task import Artifact, Counts, Task
from btlm_data.task_files import TaskFiles
from tests.stages.test_components import twin

LOG = 20
FIRST_RANGE = 3 * 2**32 >> LOG
COUNT = 200  # documents that have edges: the last ones of one range, the first ones of the next
BASE = ((FIRST_RANGE + 1) << LOG) - COUNT // 2
RANGES = Ranges(BASE + COUNT, LOG, wide=True)
NUMBERS = (FIRST_RANGE, FIRST_RANGE + 1)
SETTINGS = ClusterSettings(DedupeSettings(), 10**9)


class Steps:
    """Runs the tasks of the two ranges, each with the files of the others."""

    def __init__(self, folder: Path) -> None:
        self.locations = Locations(str(folder), str(folder))

    def task(self, name: str, work: Callable[..., Counts], through: Mapping[str, Sequence[Artifact]]) -> Any:
        """For each range, or each file of whole components, what a step has written, and what it counted."""
        written, counts = [], []
        for number in range(len(through["whole"])) if "whole" in through else NUMBERS:
            of_each = (
                {role: [files[number]] for role, files in through.items()} if "whole" in through else through
            )
            task = Task(
                f"{number:06d}",
                args={} if "whole" in through else {"documents": list(RANGES.bounds(number))},
                through={} if "whole" in through else through,
                reads=of_each if "whole" in through else {},
                outputs=[("work", f"dedupe/{name}/{number:06d}.cols")],
                hints={"ranges": RANGES, "range": number, "step": name, "extra": {}},
            )
            files = TaskFiles(self.locations.open(), task)
            counts.append(work(task, SETTINGS, files))
            written.append(files.written)
        return written, counts

    def listed(self, name: str, written: Sequence[Sequence[Artifact]]) -> Artifact:
        """The list of files by range."""
        held = [by_group.GroupedFile(file, 1, RANGES.count + 1) for files in written for file in files]
        return by_group.write_list(self.locations.open().work, f"{name}.json", held)

    def by_ordinal(self, name: str, columns: Mapping[str, np.ndarray]) -> Artifact:
        """The list of files with columns of the two ranges; columns of the documents that have edges, others are nothing."""
        rows = []
        for number in NUMBERS:
            first, last = RANGES.bounds(number)
            files = TaskFiles(self.locations.open(), Task("made"))
            own = slice(max(first, BASE) - first, None), slice(max(first, BASE) - BASE, last - BASE)
            arrays = {}
            for column, values in columns.items():
                start = np.arange(first, last) if column == "root" else np.zeros(last - first)
                arrays[column] = start.astype(values.dtype)
                arrays[column][own[0]] = values[own[1]]
            if "root" in columns:
                arrays["known"] = np.empty(0, np.int64)
            rows.append((first, last, files.write_columns(f"{name}-{number}.cols", arrays)))
        return by_ordinal.write_list(self.locations.open().work, f"{name}.json", rows)


@pytest.mark.parametrize(("seed", "at_once"), [(0, 10**6), (1, 10**6), (2, 40), (3, 40)])
def test_ordinals_of_more_than_32_bits(
    tmp_path: Path, seed: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitioned, "_members", lambda _: at_once)
    rng = np.random.default_rng(seed)
    steps = Steps(tmp_path)
    roots = np.where(rng.random(COUNT) < 0.3, rng.integers(0, np.arange(COUNT) + 1), np.arange(COUNT))
    for i in range(COUNT):
        roots[i] = roots[roots[i]]
    firsts = np.flatnonzero(roots == np.arange(COUNT))
    ends = np.sort(rng.choice(firsts, (60, 2)), axis=1)
    ends = ends[ends[:, 0] < ends[:, 1]]
    known, nominated = rng.choice(firsts, 3, replace=False), np.unique(rng.choice(firsts, 4))
    score = rng.choice(np.array([0, 1, 5, HOLDOUT], np.uint32), COUNT)
    num_bytes = rng.integers(0, 2**27, COUNT).astype(np.uint32)
    # In one process, with small ordinals.
    parent = roots.astype(np.uint32)
    union_find.unite(parent, ends[:, 0].astype(np.uint32), ends[:, 1].astype(np.uint32))
    union_find.flatten(parent)
    expected = twin(
        Components(roots.astype(np.uint32), parent, np.unique(known).astype(np.uint32)),
        num_bytes,
        score,
        nominated,
    )
    # In ranges, with large ones.
    pairs = IndexPairs(nominated + BASE, np.zeros(len(nominated), np.uint16), nominated + 2**40)
    links = Links([ends[:, 0] + BASE], [ends[:, 1] + BASE], [known + BASE], [pairs])
    made = TaskFiles(steps.locations.open(), Task("made"))
    edges = steps.listed("edges", [[by_group.write(made, "edges.cols", [links.by_range(RANGES)])]])
    exact = steps.by_ordinal("exact", {"root": roots + BASE})
    documents = steps.by_ordinal("documents", {"score": score, "num_bytes": num_bytes})
    through = {"edges": [edges], "exact": [exact]}
    for number in range(20):
        written, _ = steps.task(f"small-{number}", partitioned.small_star, through)
        small = steps.listed(f"small-{number}", written)
        written, counts = steps.task(f"large-{number}", partitioned.large_star, {"edges": [small]})
        if not any(count.extra["changed"] for count in counts):
            break
        through = {"edges": [steps.listed(f"large-{number}", written)]}
    through = {"down": [small], "exact": [exact], "edges": [edges], "documents": [documents]}
    written, _ = steps.task("labels", partitioned.label, through)
    labels = steps.listed("labels", written)
    written, _ = steps.task("whole", partitioned.unite, {"labels": [labels], "documents": [documents]})
    whole = [file for files in written for file in files]
    assert len(whole) == 2 if at_once > COUNT else len(whole) > 3
    numbering = Task(
        "all",
        reads={"whole": whole},
        outputs=[("work", f"dedupe/numbers/{number:06d}.cols") for number in range(len(whole))],
    )
    files = TaskFiles(steps.locations.open(), numbering)
    partitioned.number_groups(numbering, SETTINGS, files)
    written, _ = steps.task("places", partitioned.place, {"whole": whole, "numbers": files.written})
    places = steps.listed("places", written)
    written, counts = steps.task("components", partitioned.write, {"places": [places], "exact": [exact]})
    found = by_ordinal.write_list(
        made.work,
        "found.json",
        [(*RANGES.bounds(n), each[0]) for n, each in zip(NUMBERS, written, strict=True)],
    )
    opened = by_ordinal.ByOrdinal(
        TaskFiles(steps.locations.open(), Task("read", reads={"found": [found]})), found
    )
    columns = {name: opened.rows(name, BASE, BASE + COUNT) for name in expected if name != "groups"}
    in_group = columns["group"] > 0
    for name in ("root", "cluster", "best"):
        assert columns[name].dtype == np.int64
        assert (columns[name] - BASE).tolist() == expected[name], name
    for name in ("group", "compared", "known"):
        assert columns[name].tolist() == expected[name], name
    assert columns["score"][in_group].tolist() == np.array(expected["score"])[in_group].tolist()
    assert [max(count.extra["groups"] for count in counts)] == expected["groups"]
    assert opened.rows("group", FIRST_RANGE << LOG, BASE).max() == 0
