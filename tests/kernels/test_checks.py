"""The scanning kernels against their plain twins, on rows that are right but for a few random cells."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.kernels import checks
from tests.reference.checks import sample_faults, vsl_faults

VOCABULARY, EOS = 20, 0
CELLS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 100), st.integers(-2, VOCABULARY + 1)), max_size=4
)


def stream(seed: int, count: int) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).astype(np.int32)


def rows_of(tokens: npt.NDArray[np.int32], length: int) -> npt.NDArray[np.int32]:
    labels = len(tokens) - 1
    rows = np.zeros((-(-labels // length), 3, length), np.int32)
    for i in range(len(rows)):
        piece = tokens[i * length : (i + 1) * length + 1]
        rows[i, 0, : len(piece) - 1], rows[i, 1, : len(piece) - 1], rows[i, 2, : len(piece) - 1] = (
            piece[:-1],
            1,
            piece[1:],
        )
    return rows


def scan(
    rows: npt.NDArray[np.int32], order: npt.NDArray[np.int64], total: int, bucket: int
) -> tuple[npt.NDArray[np.uint64], ...]:
    ends, borders = np.zeros(64, np.uint64), np.zeros(64, np.uint64)
    result = checks.scan_samples(
        rows, order, total, checks.Vocabulary(VOCABULARY, EOS), checks.Prints(ends, borders, bucket)
    )
    return ends, borders, *(part.astype(np.uint64) for part in (result.first_bad, result.real, result.eos))


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 9), count=st.integers(2, 60), cells=CELLS)
def test_sample_rows(seed: int, length: int, count: int, cells: list[tuple[int, int, int]]) -> None:
    rows = rows_of(stream(seed, count), length)
    for plane, place, value in cells:
        rows[place % len(rows), plane % 3, place % length] = value
    _, _, bad, real, eos = scan(rows, np.full(len(rows), -1), len(rows), 1)
    assert bad.astype(np.int64).tolist() == [sample_faults(row, VOCABULARY) for row in rows]
    assert real.tolist() == (rows[:, 1] == 1).sum(axis=1).tolist()
    assert eos.tolist() == ((rows[:, 1] == 1) & (rows[:, 0] == EOS)).sum(axis=1).tolist()


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    length=st.integers(1, 9),
    count=st.integers(2, 60),
    bucket=st.integers(1, 5),
    data=st.data(),
)
def test_prints_vanish_for_the_stream_in_any_order_and_only_for_it(
    seed: int, length: int, count: int, bucket: int, data: st.DataObject
) -> None:
    tokens = stream(seed, count)
    rows = rows_of(tokens, length)
    order = np.random.default_rng(seed).permutation(len(rows)).astype(np.int64)
    ends, borders, *_ = scan(rows[order], order, len(rows), bucket)
    positions = np.flatnonzero(tokens == EOS).astype(np.uint64)
    checks.subtract_positions(positions, len(rows) * length, checks.Prints(ends, ends, bucket * length))
    assert not ends.any()
    assert not borders.any()

    # A stream position may be the first input of one row, the last label of the row before, or both in one.
    row = data.draw(st.integers(0, len(rows) - 1))
    position = data.draw(st.integers(0, int(rows[row, 1].sum()) - 1))
    wrong = rows.copy()
    wrong[row, 0, position] = (
        wrong[row, 0, position] + 1 + data.draw(st.integers(0, VOCABULARY - 2))
    ) % VOCABULARY
    ends, borders, *_ = scan(wrong[order], order, len(rows), bucket)
    checks.subtract_positions(positions, len(rows) * length, checks.Prints(ends, ends, bucket * length))
    assert ends.any() == ((wrong[row, 0, position] == EOS) != (rows[row, 0, position] == EOS))
    assert borders.any() == (position == 0 and row > 0)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    parts=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    padding=st.integers(0, 4),
    cells=CELLS,
)
def test_vsl_rows(seed: int, parts: list[int], padding: int, cells: list[tuple[int, int, int]]) -> None:
    length = sum(parts) + padding
    row = np.zeros((1, 5, length), np.int32)
    tokens = np.random.default_rng(seed).integers(1, VOCABULARY, length + 1)
    column = 0
    for part in parts:
        here = slice(column, column + part)
        row[0, 0, here], row[0, 1, here], row[0, 2, here] = (
            tokens[here],
            1,
            tokens[column + 1 : column + part + 1],
        )
        row[0, 2, column + part - 1] = EOS
        row[0, 3, here], row[0, 4, here] = np.arange(part)[::-1], np.arange(part)
        column += part
    for plane, place, value in cells:
        row[0, plane, place % length] = value
    bad, real, eos, used = checks.scan_vsl(row, checks.Vocabulary(VOCABULARY, EOS))
    assert bad[0].tolist() == vsl_faults(row[0], VOCABULARY, EOS)
    if not cells:
        assert (bad < 0).all()
        assert (int(real[0]), int(eos[0]), int(used[0])) == (sum(parts), len(parts), sum(parts))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_a_stream_in_pieces(dtype: type[np.generic]) -> None:
    tokens = stream(4, 500).astype(dtype)
    ends = np.zeros(8, np.uint64)
    vocabulary, prints = checks.Vocabulary(VOCABULARY, EOS), checks.Prints(ends, ends, 63)
    found = [checks.scan_stream(tokens[a : a + 70], a, vocabulary, prints) for a in range(0, 500, 70)]
    assert [bad for bad, _ in found] == [-1] * len(found)
    assert sum(eos for _, eos in found) == (tokens == EOS).sum()
    checks.subtract_positions(np.flatnonzero(tokens == EOS).astype(np.uint64), 500, prints)
    assert not ends.any()
    tokens[33] = VOCABULARY
    assert checks.scan_stream(tokens, 0, vocabulary, prints)[0] == 33


@pytest.mark.parametrize("dtype", [">i4", "<u8", "<i2"])
def test_any_integers_in_any_byte_order(dtype: str) -> None:
    rows = rows_of(stream(3, 30), 4)
    order = np.arange(len(rows))
    for one, two in zip(
        scan(rows.astype(dtype), order, len(rows), 1), scan(rows, order, len(rows), 1), strict=True
    ):
        assert np.array_equal(one, two)


def test_nothing_is_written_outside_the_prints() -> None:
    """Numbers that would index outside are refused before compiled code, which checks nothing, sees them."""
    rows = rows_of(stream(3, 30), 4)
    vocabulary, ends = checks.Vocabulary(VOCABULARY, EOS), np.zeros(8, np.uint64)
    prints = checks.Prints(ends, ends, 1)
    for order in (np.full(len(rows), len(rows)), np.full(len(rows), -2), np.full(len(rows), 2**62)):
        with pytest.raises(DataError, match="sample of row 0"):
            checks.scan_samples(rows, order, len(rows), vocabulary, prints)
    with pytest.raises(ValueError, match="9 samples"):
        checks.scan_samples(rows, np.arange(len(rows)), 9, vocabulary, prints)
    with pytest.raises(ValueError, match="numbers of samples"):
        checks.scan_samples(rows, np.arange(3), 8, vocabulary, prints)
    with pytest.raises(ValueError, match="integers of shape"):
        checks.scan_samples(rows[:, :2], np.arange(len(rows)), 8, vocabulary, prints)
    with pytest.raises(ValueError, match="integers of shape"):
        checks.scan_vsl(rows, vocabulary)
    with pytest.raises(DataError, match="Position"):
        checks.scan_stream(np.zeros(5, np.uint16), 4, vocabulary, prints)
    for position in (9, 2**63):
        with pytest.raises(DataError, match="End of document"):
            checks.subtract_positions(np.array([position], np.uint64), 8, prints)
    assert not ends.any()
