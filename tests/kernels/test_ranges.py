"""Damaged arrays are refused: no kernel reads or writes outside its arrays, and none runs for ever."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.kernels import buckets, minhash, normalisation, union_find, word_ngrams
from btlm_data.kernels.ranges import check_below, check_offsets, check_same_length, check_stretches

REFUSED = (DataError, ValueError)
far = st.one_of(st.integers(0, 6), st.integers(0, 2**32 - 1))
signed = st.one_of(st.integers(-3, 40), st.integers(-(2**62), 2**62))


def test_checks_name_what_is_wrong() -> None:
    check_below(np.array([], np.int64), 0, "Value")
    check_below(np.array([0, 2], np.uint64), 3, "Value")
    check_offsets(np.array([0, 0, 5]), 5, "Offsets")
    check_stretches(np.array([0, 2]), np.array([0, 5]), 5, "Stretch")
    with pytest.raises(DataError, match=r"Value 1 is 18446744073709551615, outside the range from 0 to 2"):
        check_below(np.array([0, 2**64 - 1], np.uint64), 3, "Value")
    with pytest.raises(DataError, match=r"Value 0 is -1"):
        check_below(np.array([-1, 0], np.int64), 3, "Value")
    with pytest.raises(DataError, match=r"Offsets decrease from 4 to 3 at 2"):
        check_offsets(np.array([0, 4, 3]), 5, "Offsets")
    with pytest.raises(DataError, match=r"Offsets are empty"):
        check_offsets(np.array([], np.int64), 5, "Offsets")
    with pytest.raises(DataError, match=r"Stretch 1 starts at 3 and stops before, at 2"):
        check_stretches(np.array([0, 3]), np.array([0, 2]), 5, "Stretch")
    with pytest.raises(DataError, match=r"Things have 1, 2 items"):
        check_same_length("Things", np.zeros(1), np.zeros(2))


@settings(deadline=None)
@given(st.lists(far, max_size=8), st.lists(st.tuples(far, far), max_size=8))
def test_components_of_anything(parents: list[int], pairs: list[tuple[int, int]]) -> None:
    parent = np.array(parents, np.uint32)
    first, other = np.array(pairs, np.uint32).reshape(-1, 2).T.copy()
    with contextlib.suppress(*REFUSED):
        union_find.unite(parent, first, other)
        union_find.flatten(parent)
        assert (parent <= np.arange(len(parent))).all()


def test_damaged_components_are_named() -> None:
    two = np.array([0, 1], np.uint32)
    with pytest.raises(DataError, match=r"pair of documents 0 and 2 does not fit 2 documents"):
        union_find.unite(two, np.array([0], np.uint32), np.array([2], np.uint32))
    circle = np.array([1, 0], np.uint32)  # a walk along it never ended
    with pytest.raises(DataError, match="does not fit 2 documents, or their components are damaged"):
        union_find.unite(circle, np.array([0], np.uint32), np.array([1], np.uint32))
    with pytest.raises(DataError, match="document 0 hangs on 7"):
        union_find.flatten(np.array([7, 1], np.uint32))


@settings(deadline=None)
@given(
    keys=st.lists(st.integers(0, 2**64 - 1), max_size=6),
    log=st.integers(-1, 4),
    cursors=st.lists(signed, max_size=20),
    room=st.integers(0, 6),
    lengths=st.tuples(st.integers(0, 7), st.integers(0, 7)),
)
def test_scattering_anything(
    keys: list[int], log: int, cursors: list[int], room: int, lengths: tuple[int, int]
) -> None:
    columns = np.array(keys, np.uint64).reshape(-1, 1)
    low, chosen = np.zeros(lengths[0], np.uint64), np.ones(lengths[1], np.bool_)
    guard = 77
    out = [np.full(room + 2, guard, kind) for kind in (np.uint64, np.uint64, np.uint32)]
    inner: Any = [column[1:-1] for column in out]
    with contextlib.suppress(*REFUSED):
        buckets.count_partitions(columns, chosen, log, np.array(cursors, np.int64))
    with contextlib.suppress(*REFUSED):
        buckets.scatter(columns, low, chosen, 0, log, np.array(cursors, np.int64), *inner)
    assert all(column[0] == column[-1] == guard for column in out)


def test_more_keys_than_were_counted_are_named() -> None:
    keys, none, marks = np.zeros((3, 1), np.uint64), np.empty(0, np.uint64), np.ones(3, np.bool_)
    outs = np.zeros(2, np.uint64), none, np.zeros(2, np.uint32)
    with pytest.raises(DataError, match="more keys than were counted"):
        buckets.scatter(keys, none, marks, 0, 0, np.zeros(1, np.int64), *outs)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=8),
    st.integers(0, 2**20),
    st.integers(0, 8),
    st.integers(0, 8),
)
def test_runs_of_anything(packed: list[int], mask: int, num_keys: int, num_low: int) -> None:
    order, keys, low = (
        np.array(packed, np.uint64),
        np.zeros(num_keys, np.uint64),
        np.zeros(num_low, np.uint64),
    )
    with contextlib.suppress(*REFUSED):
        buckets.equal_runs(order, mask, keys, low)


@settings(deadline=None)
@given(st.lists(signed, max_size=6), st.lists(signed, max_size=6), st.integers(0, 6))
def test_edges_of_anything(members: list[int], starts: list[int], num_ordinals: int) -> None:
    ordinals = np.arange(num_ordinals, dtype=np.uint32)
    with contextlib.suppress(*REFUSED):
        first, other = buckets.star_edges(np.array(members, np.int64), np.array(starts, np.int64), ordinals)
        assert len(first) == len(other) == len(members) - len(starts) + 1


def test_leaders_of_other_shapes() -> None:
    leaders = buckets.Leaders(4, 2)
    two, marks = np.zeros(2, np.uint32), np.ones(2, np.bool_)
    for shape in ((2, 5), (3, 4), (1, 4)):
        with pytest.raises(ValueError, match="expected 4 permutations"):
            leaders.attach(np.zeros(shape, np.uint32), two, marks)
    with pytest.raises(ValueError, match="expected 4 permutations"):
        leaders.attach(np.zeros((2, 4), np.uint32), two, marks[:1])


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([b"\xf0", b"\xe0", b"\xc8", b"\x80", b"\xff", b"a", b"\xc8\xba", b" ", b"\xc4\xb0"]),
        max_size=40,
    ),
    st.lists(signed, max_size=5),
)
def test_text_that_is_not_utf8_and_offsets_of_anything(pieces: list[bytes], offsets: list[int]) -> None:
    utf8 = np.frombuffer(b"".join(pieces), np.uint8)
    each = np.concatenate(([0], np.cumsum([len(piece) for piece in pieces], dtype=np.int64)))
    for bounds in (each, np.array(offsets, np.int64), np.array([0, *sorted(abs(o) for o in offsets)])):
        with contextlib.suppress(*REFUSED):
            n = normalisation.normalise(None, utf8, bounds)
            assert len(n.utf8) <= len(utf8) + len(utf8) // 2
            minhash.signatures(n, 4)
            minhash.signatures(n, 4, scheme="legacy")
            minhash.exact_hashes(n.utf8, n.offsets)
        with contextlib.suppress(*REFUSED):
            word_ngrams.word_ngrams(utf8, bounds)


@settings(deadline=None)
@given(st.lists(signed, max_size=5), st.lists(signed, max_size=5))
def test_sketches_of_anything(offsets: list[int], num_chars: list[int]) -> None:
    n = normalisation.Normalised(
        np.zeros(20, np.uint8), np.array(offsets, np.int64), np.array(num_chars, np.int64)
    )
    for scheme in ("affine32", "legacy"):
        with contextlib.suppress(*REFUSED):
            minhash.signatures(n, 4, scheme=scheme)
