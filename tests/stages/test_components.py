"""What is written of components: the same with any number of threads, and what a plain twin says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btlm_data.dedupe import components, groups, parts
from btlm_data.dedupe.components import HOLDOUT, Components


class Opened(dict[str, Any]):
    """A columns file."""

    def shape(self, name: str) -> tuple[int, ...]:
        shape: tuple[int, ...] = self[name].shape
        return shape


class Files:
    """The columns files of a task that is not run."""

    def __init__(self, ranges: list[Opened]) -> None:
        self.ranges = ranges
        self.written: dict[str, list[int]] = {}

    def columns(self, artifact: int) -> Opened:
        return self.ranges[artifact]

    def write_columns(self, name: str, arrays: dict[str, Any]) -> None:
        self.written = {key: values.tolist() for key, values in arrays.items()}


@st.composite
def joined(draw: st.DrawFn) -> tuple[Components, np.ndarray, np.ndarray, np.ndarray]:
    """Components, bytes and scores of documents, and those that are compared with an index."""
    n = draw(st.integers(0, 60))
    roots = np.array([draw(st.integers(max(0, i - 8), i)) for i in range(n)], np.uint32)
    for i in range(n):
        roots[i] = roots[roots[i]]
    clusters = roots.copy()
    for i in range(n):  # texts join a component
        if roots[i] == i:
            clusters[i] = clusters[roots[draw(st.integers(max(0, i - 4), i))]]
    clusters = clusters[roots] if n else clusters
    some = st.lists(st.integers(0, n - 1), unique=True, max_size=3) if n else st.just([])
    known, nominated = (np.array(sorted(roots[draw(some)].tolist()), np.uint32) for _ in range(2))
    num_bytes = np.array(draw(st.lists(st.integers(0, 2**32 - 1), min_size=n, max_size=n)), np.uint32)
    scores = np.array(draw(st.lists(st.sampled_from([0, 1, HOLDOUT]), min_size=n, max_size=n)), np.uint32)
    return Components(roots, clusters, np.unique(known)), num_bytes, scores, nominated


def twin(of: Components, num_bytes: Any, scores: Any, nominated: Any) -> dict[str, list[int]]:
    """The arrays, document by document."""
    roots, clusters = of.roots.tolist(), of.clusters.tolist()
    n, known = len(roots), set(of.known.tolist())
    searched = {clusters[i] for i in nominated.tolist()}
    looked_at = searched | {clusters[i] for i in known}
    best, score = list(range(n)), scores.tolist()
    for i in range(n):
        if score[i] > score[roots[i]]:
            best[roots[i]], score[roots[i]] = i, score[i]
    for i in known:
        score[i] = HOLDOUT
    is_text = [roots[i] == i for i in range(n)]
    texts = {c: sum(is_text[i] for i in range(n) if clusters[i] == c) for c in clusters}
    compared = [is_text[i] and (texts[clusters[i]] > 1 or clusters[i] in searched) for i in range(n)]
    is_member = [clusters.count(clusters[i]) > 1 or clusters[i] in looked_at for i in range(n)]
    units = [(int(num_bytes[i]) * compared[i] + 256 + 255) // 256 * is_member[i] for i in range(n)]
    group_of, group, held = {}, 0, 0
    for c in sorted(c for c in set(clusters) if is_member[c]):
        size = min(sum(units[i] for i in range(n) if clusters[i] == c), 2**32 - 1)
        if not group or held + size > groups.GROUP_BYTES // 256:
            group, held = group + 1, 0
        held += size
        group_of[c] = group
    return {
        "root": roots,
        "cluster": clusters,
        "best": [best[root] for root in roots],
        "score": [score[root] for root in roots],
        "group": [group_of.get(c, 0) for c in clusters],
        "compared": compared,
        "known": [i in known for i in range(n)],
        "groups": [group],
    }


@given(joined(), st.integers(1, 7))
def test_any_number_of_threads_writes_what_the_twin_says(
    given_: tuple[Components, Any, Any, Any], threads: int
) -> None:
    of, num_bytes, scores, nominated = given_
    cut = len(of.roots) // 3
    files: Any = Files(
        [
            Opened(num_bytes=num_bytes[:cut], score=scores[:cut]),
            Opened(num_bytes=num_bytes[cut:], score=scores[cut:]),
        ]
    )
    ranges: Any = [0, 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_LEAST", 4)
        count = components.write(files, ranges, of, nominated, threads)
    assert files.written | {"groups": [count]} == twin(of, num_bytes, scores, nominated)
