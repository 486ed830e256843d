"""Components and buckets against breadth-first search and dictionaries."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.kernels import buckets, union_find
from tests.reference import clusters as reference

NONE = np.empty(0, np.uint64)


@settings(deadline=None)  # the first example may compile
@given(
    st.integers(1, 60).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))
    )
)
def test_components_have_their_smallest_member_as_root_whatever_the_order(
    case: tuple[int, list[tuple[int, int]]],
) -> None:
    n, edges = case
    expected = reference.components(n, edges)
    for order in (edges, edges[::-1], [(b, a) for a, b in edges]):
        parent = np.arange(n, dtype=np.uint32)
        pairs = np.array(order, np.uint32).reshape(-1, 2)
        half = len(pairs) // 2  # in two calls
        for part in (pairs[:half], pairs[half:]):
            union_find.unite(parent, buckets.readonly(part[:, 0]), buckets.readonly(part[:, 1]))
        union_find.flatten(parent)
        assert parent.tolist() == expected


def test_a_long_chain_costs_no_stack_and_no_square() -> None:
    n = 300_000
    parent = np.arange(n, dtype=np.uint32)
    ordinals = np.arange(n, dtype=np.uint32)
    union_find.unite(parent, buckets.readonly(ordinals[:-1][::-1]), buckets.readonly(ordinals[1:][::-1]))
    union_find.flatten(parent)
    assert not parent.any()


def runs(keys: list[int], low: list[int], shared_bits: int) -> list[list[int]]:
    high = np.array(keys, np.uint64)
    packed, mask = buckets.sort_order(high, shared_bits)
    members, starts = buckets.equal_runs(packed, mask, high, np.array(low, np.uint64))
    return [members[a:b].tolist() for a, b in pairwise(starts)]


# The lowest bits make way for indices, so keys that differ there alone are the hard case.
keys = st.lists(
    st.one_of(st.integers(0, 5), st.integers(0, 5).map(lambda k: k << 40), st.integers(0, 2**60 - 1)),
    max_size=50,
)


@settings(deadline=None)  # the first example may compile
@given(keys)
def test_equal_runs_are_the_equal_keys(values: list[int]) -> None:
    assert sorted(runs(values, [], 0)) == reference.equal_runs(values)
    assert sorted(runs(values, [], 4)) == reference.equal_runs(values)


@settings(deadline=None)  # the first example may compile
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=40))
def test_equal_runs_compare_both_halves_of_a_key(values: list[tuple[int, int]]) -> None:
    assert sorted(runs([a for a, _ in values], [b for _, b in values], 0)) == reference.equal_runs(values)


def test_a_million_equal_keys_are_one_run() -> None:
    """A hot band costs linear work: a square of it would never end."""
    hot = np.full(1_000_000, 0xABCDEF0123456789, np.uint64)
    hot[77] -= np.uint64(1)  # a stranger among the sorted bits
    packed, mask = buckets.sort_order(hot, 0)
    members, starts = buckets.equal_runs(packed, mask, hot, NONE)
    assert starts.tolist() == [0, 999_999]
    assert members[:3].tolist() == [0, 1, 2]
    first, other = buckets.star_edges(members, starts, np.arange(len(hot), dtype=np.uint32))
    assert not first.any()
    assert np.array_equal(other, np.delete(np.arange(1, 1_000_000), 76))


@settings(deadline=None)  # the first example may compile
@given(
    st.lists(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=2), max_size=30),
    st.integers(0, 4),
    st.data(),
)
def test_partitions_hold_every_chosen_key_once_in_order(
    rows: list[list[int]], log: int, data: st.DataObject
) -> None:
    table = np.array(rows, np.uint64).reshape(-1, 2)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), np.bool_)
    counts = np.zeros(1 << log, np.int64)
    buckets.count_partitions(table, chosen, log, counts)
    total = int(counts.sum())
    cursors = np.concatenate(([0], np.cumsum(counts)))[:-1]
    out, ordinals = np.empty(total, np.uint64), np.empty(total, np.uint32)
    buckets.scatter(table, NONE, chosen, 100, log, cursors, out, NONE.copy(), ordinals)
    expected = [(key >> (64 - log), 100 + i, key) for i, row in enumerate(rows) if chosen[i] for key in row]
    expected.sort(key=lambda item: item[0])
    assert list(zip(out.tolist(), ordinals.tolist(), strict=True)) == [(key, i) for _, i, key in expected]


def test_leaders_attach_members_that_agree_and_forget_the_oldest() -> None:
    signatures = np.array([[i, i, i, i] for i in range(20)] + [[0, 0, 0, 0], [19, 19, 19, 5]], np.uint32)
    leaders = buckets.Leaders(4, needed=3)
    begins = np.zeros(22, np.bool_)
    begins[0] = True
    # In two calls, as a bucket may be larger than what is read at once. Sixteen leaders stay, so number 0 is
    # forgotten, 19 is not.
    ordinals = np.arange(22, dtype=np.uint32)
    found = [
        leaders.attach(signatures[part], ordinals[part], begins[part]).tolist()
        for part in (slice(0, 10), slice(10, 22))
    ]
    assert found == [list(range(10)), [*range(10, 20), 20, 19]]
    assert leaders.compared - leaders.rejected == 1
