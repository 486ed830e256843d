"""Large-star and small-star against their twins, over ranges of any size; and that they end with components."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from btlm_data.dedupe import ranges
from btlm_data.dedupe.ranges import Ranges
from btlm_data.errors import DataError
from btlm_data.kernels import stars
from tests.reference import stars as twin

BEYOND = 3 * 2**32  # ordinals that need more than 32 bits begin here


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """Documents, and edges (later, earlier) between them: few or many, trees, paths, stars."""
    count = draw(st.integers(2, 40))
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    edges = draw(st.lists(pairs, max_size=60))
    if draw(st.booleans()):  # a path in any order is the longest way to the first one
        order = draw(st.permutations(range(count)))
        edges += list(pairwise(order))
    return count, [(max(edge), min(edge)) for edge in edges if edge[0] != edge[1]]


class InRanges:
    """Edges in ranges of 2^log documents, numbered from `base` on, moved as the tasks do."""

    def __init__(self, count: int, log: int, base: int) -> None:
        self.ranges = Ranges(base + count, log, wide=True)
        self.first_range = base >> log
        self.numbers = range(self.first_range, self.ranges.count)

    def split(self, ends: Any) -> dict[int, np.ndarray]:
        """Edges (one end, other end) by the range of the one end."""
        one, other = (np.array([end[i] for end in ends], np.int64) for i in (0, 1))
        codes, bounds = stars.by_range(
            one - (self.first_range << self.ranges.log),
            other,
            self.ranges.log,
            self.ranges.bits,
            len(self.numbers),
        )
        return {number: codes[bounds[i] : bounds[i + 1]] for i, number in enumerate(self.numbers)}

    def star(self, edges: Any, *, large: bool) -> tuple[set[tuple[int, int]], int]:
        """What a star makes of the edges, and how many large-star has changed, or lead to several."""
        down, up = self.split(edges), self.split([(b, a) for a, b in edges])
        out, changed = set[tuple[int, int]](), 0
        for number in self.numbers:
            first, last = self.ranges.bounds(number)
            earliest = np.arange(first, last, dtype=np.int64)
            stars.lower(earliest, down[number], self.ranges.bits)
            if large:
                changed += stars.count_others(earliest, down[number], self.ranges.bits)
                later, earlier, others = stars.large_star(earliest, up[number], self.ranges.bits, first)
                changed += others
            else:
                later, earlier = stars.small_star(earliest, down[number], self.ranges.bits, first)
            out |= set(zip(later.tolist(), earlier.tolist(), strict=True))
        return out, changed


@given(graphs(), st.integers(0, 6), st.sampled_from([0, 64, BEYOND]))
def test_stars_are_those_of_the_twins(graph: tuple[int, list[tuple[int, int]]], log: int, base: int) -> None:
    count, edges = graph
    edges = [(a + base, b + base) for a, b in edges]
    moved = InRanges(count, log, base)
    assert moved.star(edges, large=False)[0] == twin.small_star(edges)
    found, changed = moved.star(edges, large=True)
    assert found == twin.large_star(edges)
    assert (changed == 0) == twin.is_done(set(edges))


@given(graphs(), st.integers(0, 6))
def test_they_end_with_the_first_document_of_each_component(
    graph: tuple[int, list[tuple[int, int]]], log: int
) -> None:
    count, edges = graph
    moved, rounds, now, changed = (
        InRanges(count, log, BEYOND),
        0,
        {(a + BEYOND, b + BEYOND) for a, b in edges},
        1,
    )
    while changed:
        now, _ = moved.star(now, large=False)
        after, changed = moved.star(now, large=True)
        now = after if changed else now
        rounds += 1
        assert len(now) <= max(1, len(edges)), "no star makes more edges"
        assert rounds <= 20
    first = dict(now)
    found = [first.get(BEYOND + document, BEYOND + document) - BEYOND for document in range(count)]
    assert found == twin.components(count, edges)


@example((2**32, 1, [(0, 2**32 - 1)]))
@given(
    st.integers(1, 2**40).flatmap(
        lambda count: st.tuples(
            st.just(count),
            st.integers(1, 2**30),
            st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=20),
        )
    )
)
def test_edges_are_one_number_each_and_come_back(drawn: tuple[int, int, list[tuple[int, int]]]) -> None:
    count, most, pairs = drawn
    planned = Ranges.plan(count, most)
    assert planned.wide == (count > ranges.MOST_NARROW)
    assert planned.log + planned.bits <= 64
    assert planned.count < 2**32, "a group has 32 bits"
    assert 1 << planned.log <= max(1, most) or planned.count > 2**30
    edges = [(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]]
    first, other = (np.array([edge[i] for edge in edges], planned.dtype) for i in (0, 1))
    groups, codes = planned.groups_of(other), planned.pack(first, other)
    for number in np.unique(groups).tolist():
        low, high = planned.bounds(number - 1)
        here = groups == number
        assert ((other[here] >= low) & (other[here] < high)).all()
        back = planned.unpack(codes[here], low, "a file")
        for found, expected in zip(back, (first, other), strict=True):
            assert found.dtype == planned.dtype
            assert found.tolist() == expected[here].tolist()


def test_edges_of_no_document_are_refused() -> None:
    planned = Ranges.plan(100, 32)
    bad = [
        (planned.pack(np.array([5], np.uint32), np.array([3], np.uint32)), 96, "later first"),
        (planned.pack(np.array([1], np.uint32), np.array([9], np.uint32)), 96, "beyond all"),
        (np.array([2**63], np.uint64), 0, "beyond the range"),
    ]
    for codes, base, _ in bad[1:]:
        with pytest.raises(DataError, match="not among the 100"):
            planned.unpack(codes, base, "a file")
    with pytest.raises(DataError, match="not in their order"):
        planned.unpack(bad[0][0], 0, "a file")
    earliest = np.arange(32)
    beyond = np.array([40 << planned.bits], np.uint64)
    with pytest.raises(DataError, match="leads beyond"):
        stars.lower(earliest, beyond, planned.bits)
    with pytest.raises(DataError, match="leads beyond"):
        stars.count_others(earliest, beyond, planned.bits)
    with pytest.raises(DataError, match="leads beyond"):
        stars.small_star(earliest, beyond, planned.bits, 0)
    with pytest.raises(DataError, match="leads beyond"):
        stars.large_star(earliest, beyond, planned.bits, 0)
    with pytest.raises(DataError, match="leads beyond"):
        stars.by_range(np.array([200]), np.array([1]), 5, planned.bits, 4)
