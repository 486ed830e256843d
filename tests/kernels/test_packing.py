"""Streams and bins against their plain twins, and the properties each is for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.kernels import packing
from tests.reference import packing as plain

EOS = 7


# The stream -------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(8, 60000), max_size=12), max_size=8), st.randoms(), st.data())
def test_any_range_of_a_stream(documents: list[list[int]], random: object, data: st.DataObject) -> None:
    places = np.concatenate([[0], np.cumsum([len(tokens) + 1 for tokens in documents])]).astype(np.int64)
    start = data.draw(st.integers(0, int(places[-1])))
    stop = data.draw(st.integers(start, int(places[-1])))
    staged = data.draw(
        st.permutations(range(len(documents)))
    )  # documents stand in another order in the staging file
    tokens = np.array([token for d in staged for token in documents[d]], np.uint16)
    lengths = np.array([len(documents[d]) for d in staged], np.int64)
    source = np.cumsum(lengths) - lengths
    out = np.full(stop - start, 1, np.uint16)
    packing.place_documents(tokens, source, lengths, places[list(staged)] - start, out, EOS)
    assert out.tolist() == plain.place_documents(documents, places[:-1].tolist(), start, stop, EOS, 1)


# Bins -------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 300), st.data(), st.integers(0, 5))
def test_rows_equal_the_plain_twins(seq_len: int, data: st.DataObject, max_pieces: int) -> None:
    lengths = data.draw(st.lists(st.integers(1, seq_len), max_size=60))
    rows, columns, num_rows = packing.best_fit_decreasing(np.array(lengths, np.int64), seq_len, max_pieces)
    assert rows.tolist() == plain.best_fit_decreasing(lengths, seq_len, max_pieces)
    assert num_rows == len(set(rows.tolist()))
    taken = np.zeros((num_rows, seq_len), int)
    for row, column, length in zip(rows, columns, lengths, strict=True):
        taken[row, column : column + length] += 1
    assert taken.max(initial=0) <= 1
    assert taken.sum() == sum(lengths)  # nothing reaches beyond a row
    if max_pieces:
        assert np.bincount(rows, minlength=1).max(initial=0) <= max_pieces


@pytest.mark.parametrize("seq_len", [63, 64, 4095, 4096, 5000, 9000])
def test_search_over_many_words_of_room(seq_len: int) -> None:
    lengths = np.random.default_rng(seq_len).integers(1, seq_len + 1, 400)
    lengths[::3] = lengths[::3] // 50 + 1
    assert packing.best_fit_decreasing(lengths, seq_len)[0].tolist() == plain.best_fit_decreasing(
        lengths.tolist(), seq_len, 0
    )


def fill(documents: list[list[int]], seq_len: int, max_documents: int = 0) -> npt.NDArray[np.int32]:
    """Documents as VSL planes, the way a stage does it."""
    lengths = np.array([len(tokens) for tokens in documents], np.int64)
    pieces = packing.pack_documents(lengths, seq_len, max_documents)
    tokens = np.array([token for document in documents for token in document], np.uint16)
    planes = np.zeros((pieces.num_rows, 5, seq_len), np.int32)
    source = (np.cumsum(lengths) - lengths)[pieces.document] + pieces.start
    ends = pieces.start + pieces.length == lengths[pieces.document]
    packing.fill_vsl(tokens, source, pieces.length, ends, pieces.row, pieces.column, EOS, planes)
    return planes


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(8, 60000), max_size=40), max_size=12), st.integers(1, 17), st.integers(0, 4)
)
def test_every_piece_comes_back_exactly(documents: list[list[int]], seq_len: int, max_documents: int) -> None:
    planes = fill(documents, seq_len, max_documents)
    found = []
    for row in planes:
        column = 0
        while column < seq_len and row[1, column] == 1:
            size = row[3, column] + 1
            assert row[1, column : column + size].all()
            found.append(list(zip(*row[[0, 2, 3, 4], column : column + size].tolist(), strict=True)))
            column += size
        assert not row[:, column:].any()  # padding is zero in all planes, and only at the end
    assert sorted(found) == sorted(plain.vsl_samples(documents, seq_len, EOS))


def test_no_token_is_lost_or_repeated_as_a_label() -> None:
    rng = np.random.default_rng(0)
    documents = [
        rng.integers(8, 60000, size).tolist() for size in (0, 1, 2, 31, 32, 33, 64, 65, 1000, 100_000)
    ]
    planes = fill(documents, 32)
    labels = planes[:, 2][planes[:, 1] == 1]
    expected = [token for document in documents if document for token in [*document[1:], EOS]]
    assert sorted(labels.tolist()) == sorted(expected)


def test_a_documents_last_label_is_eos_never_the_neighbours_token() -> None:
    planes = fill([[10, 11, 12], [20, 21], [30]], 6)
    assert planes.tolist() == [
        [
            [10, 11, 12, 20, 21, 30],
            [1, 1, 1, 1, 1, 1],
            [11, 12, EOS, 21, EOS, EOS],
            [2, 1, 0, 1, 0, 0],
            [0, 1, 2, 0, 1, 0],
        ]
    ]


def test_real_lengths_fill_99_percent() -> None:
    """Lengths (in tokens) of the sample corpus' documents would be too few: a log-normal of the same spread
    as web text's.
    """
    lengths = np.minimum(np.random.default_rng(3).lognormal(6.5, 1.2, 5000).astype(np.int64) + 40, 200_000)
    for seq_len in (2048, 8192):
        pieces = packing.pack_documents(lengths, seq_len)
        assert pieces.length.sum() == lengths.sum()
        assert lengths.sum() / (pieces.num_rows * seq_len) >= 0.99


@pytest.mark.bench
def test_speed() -> None:
    """A million pieces in a second or so: the search must not grow with the number of open rows."""
    import time

    lengths = np.random.default_rng(4).integers(1, 2049, 1_000_000)
    packing.best_fit_decreasing(lengths[:10], 2048)
    start = time.process_time()
    packing.best_fit_decreasing(lengths, 2048)
    assert time.process_time() - start < 2


# What is not in range ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("source", [-1, 5]),
        ("source", [0, 98]),
        ("source", [0, 2**63 - 1]),
        ("lengths", [4, -1]),
        ("lengths", [4, 2**62]),
        ("lengths", [4, 4, 4]),
        ("place", [0, 2**62]),
        ("first", [-1, 0]),
        ("first", [0, 21]),
        ("stop", [20, 21]),
        ("stop", [-(2**62), 20]),
    ],
)
def test_a_document_outside_its_arrays_is_refused(name: str, values: list[int]) -> None:
    arguments = {"source": [0, 4], "lengths": [4, 4], "place": [0, 5], "first": [0, 0], "stop": [20, 20]}
    arrays = {key: np.array(value, np.int64) for key, value in (arguments | {name: values}).items()}
    out = np.full(20, 9, np.uint16)
    with pytest.raises(DataError):
        packing.place_documents(
            np.arange(100, dtype=np.uint16), arrays["source"], arrays["lengths"], arrays["place"], out, EOS,
            arrays["first"], arrays["stop"],
        )  # fmt: skip
    assert (out == 9).all()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("source", [-1, 5]),
        ("source", [0, 97]),
        ("source", [0, 2**63 - 1]),
        ("length", [0, 4]),
        ("length", [9, 4]),
        ("length", [2**63 - 1, 4]),
        ("row", [0, 3]),
        ("row", [-1, 0]),
        ("column", [0, 5]),
        ("column", [0, 2**63 - 1]),
        ("column", [-1, 4]),
    ],
)
def test_a_piece_outside_its_arrays_is_refused(name: str, values: list[int]) -> None:
    arguments = {"source": [0, 4], "length": [4, 4], "row": [0, 2], "column": [0, 4]}
    arrays = {key: np.array(value, np.int64) for key, value in (arguments | {name: values}).items()}
    planes = np.zeros((3, 5, 8), np.int32)
    with pytest.raises(DataError):
        packing.fill_vsl(
            np.arange(100, dtype=np.uint16), arrays["source"], arrays["length"], np.array([True, False]),
            arrays["row"], arrays["column"], EOS, planes,
        )  # fmt: skip
    assert not planes.any()


def test_other_values_out_of_range() -> None:
    with pytest.raises(DataError, match="Length of document 1"):
        packing.pack_documents(np.array([3, -1]), 8)
    for lengths in ([3, 0], [3, 9], [3, 2**62]):
        with pytest.raises(DataError, match="of piece 1"):
            packing.best_fit_decreasing(np.array(lengths), 8)
