from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.kernels import passages
from tests.reference import passages as plain

VOCABULARY = [b"", b"a", b"b", b"ab", b"ba", b"aab", b"bbbb", b"c"]  # token 0 ends documents
ENDS = np.cumsum([len(token) for token in VOCABULARY])
DATA = np.frombuffer(b"".join(VOCABULARY), np.uint8)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 7), min_size=12, max_size=12), min_size=1, max_size=4),
    st.lists(st.text("abc", min_size=1, max_size=30), min_size=1, max_size=4),
    st.none() | st.lists(st.integers(0, 9), min_size=8, max_size=8),
)
def test_every_place_is_found_and_no_other(
    rows: list[list[int]], texts: list[str], counts: list[int] | None
) -> None:
    """Whatever anchors are chosen: by counts of tokens, or without."""
    wanted = [text.encode() for text in texts]
    sought = passages.needles(wanted, DATA, ENDS, 0, None if counts is None else np.array(counts))
    hits = passages.find(np.array(rows, np.int32), np.full(len(rows), 12), np.zeros((0, 0), np.bool_), sought)
    whole = hits.state == passages.FOUND
    fields = (hits.query, hits.row, hits.begin, hits.end)
    found = list(zip(*(values[whole].tolist() for values in fields), strict=True))
    assert set(found) == plain.find(rows, VOCABULARY, wanted, 0)
    # One hit is one place: the same tokens may hold a passage twice ("a" in "aab"), but not the same bytes.
    places = list(zip(*(v[whole].tolist() for v in (*fields, hits.token, hits.offset)), strict=True))
    assert len(places) == len(set(places))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 7), min_size=12, max_size=12), min_size=1, max_size=4),
    st.text("abc", min_size=1, max_size=9),
)
def test_only_the_first_place_of_a_row(rows: list[list[int]], text: str) -> None:
    sought = passages.needles([text.encode()], DATA, ENDS, 0)
    real, none = np.full(len(rows), 12), np.zeros((0, 0), np.bool_)
    hits = passages.find(np.array(rows, np.int32), real, none, sought, first_of_row=True)
    whole = hits.state == passages.FOUND
    first: dict[int, int] = {}
    for row, begin in zip(hits.row[whole].tolist(), hits.begin[whole].tolist(), strict=True):
        first.setdefault(row, begin)
    expected: dict[int, int] = {}
    for _, row, begin, _ in sorted(plain.find(rows, VOCABULARY, [text.encode()], 0)):
        expected.setdefault(row, begin)
    assert first == expected


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=8, max_size=30),
    st.integers(1, 29),
    st.text("abc", min_size=2, max_size=12),
)
def test_a_passage_over_the_border_of_two_rows_is_told_as_cut(ids: list[int], border: int, text: str) -> None:
    border = min(border, len(ids) - 1)
    sought = passages.needles([text.encode()], DATA, ENDS, 0)
    none = np.zeros((0, 0), np.bool_)
    for start, stop, across in ((0, border, 1), (border, len(ids), -1)):
        part = np.array([ids[start:stop]], np.int32)
        hits = passages.find(part, np.array([stop - start]), none, sought)
        cut = {int(t) + start for t in hits.token[hits.state == passages.CUT]}
        whole = passages.find(np.array([ids], np.int32), np.array([len(ids)]), none, sought)
        # Every place in the whole row that has its anchor in this part is found, or told as cut.
        for k in np.flatnonzero(whole.state == passages.FOUND):
            token = int(whole.token[k])
            if start <= token < stop:
                inside = start <= whole.begin[k] and whole.end[k] <= stop
                assert inside or token in cut, across


def test_breaks_and_padding_and_foreign_ids() -> None:
    sought = passages.needles([b"abab"], DATA, ENDS, 0)
    rows = np.array([[3, 3, 3, 3]], np.uint16)
    none = np.zeros((0, 0), np.bool_)
    assert len(passages.find(rows, np.array([4]), none, sought).query) == 4  # the outer two are cut
    assert (passages.find(rows, np.array([2]), none, sought).state == passages.FOUND).sum() == 1
    breaks = np.array([[True, False, True, False]])
    hits = passages.find(rows, np.array([4]), breaks, sought)
    assert (hits.state == passages.FOUND).sum() == 2
    with pytest.raises(DataError, match="vocabulary"):
        passages.find(np.array([[99]], np.int32), np.array([1]), none, sought)
    with pytest.raises(ValueError, match="rows of shape"):
        passages.find(rows, np.array([5]), none, sought)
    with pytest.raises(ValueError, match="empty"):
        passages.needles([b""], DATA, ENDS, 0)


def test_a_passage_is_looked_for_by_a_byte_that_rare_tokens_cover() -> None:
    counts = np.array([5, 100, 100, 100, 100, 0, 0, 1])
    sought = passages.needles([b"abababcabababab"], DATA, ENDS, 0, counts)
    assert set(np.flatnonzero(np.diff(sought.first))) == {7}, "c"
