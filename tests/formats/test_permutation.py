"""The permutation against its plain twin, and the properties that it is for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.formats.shard_formats import permutation
from tests.reference import packing as plain


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.integers(1, 3000), st.integers(15_000, 40_000)), st.integers(-(2**70), 2**70))
def test_every_index_has_one_place(n: int, seed: int) -> None:
    places = permutation.permute_index(np.arange(n, dtype=np.uint64), n, seed)
    assert np.array_equal(np.sort(places), np.arange(n))
    assert np.array_equal(permutation.unpermute_index(places, n, seed), np.arange(n))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2**48), st.integers(0, 2**64 - 1), st.data())
def test_places_equal_the_plain_twins(n: int, seed: int, data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, n - 1), max_size=20))
    places = permutation.permute_index(np.array(index, np.uint64), n, seed)
    assert places.tolist() == [plain.permute_index(i, n, seed) for i in index]
    assert permutation.unpermute_index(places, n, seed).tolist() == index


def test_the_order_never_changes() -> None:
    """Datasets prepared by an earlier version must still be found in the same order: these figures are part
    of the format.
    """
    assert permutation.permute_index(np.arange(8, dtype=np.uint64), 1000, 1).tolist() == [
        324,
        412,
        392,
        948,
        366,
        512,
        806,
        728,
    ]


@pytest.mark.parametrize("n", [200, 4096, 100_000])
def test_the_order_looks_random(n: int) -> None:
    index = np.arange(n, dtype=np.uint64)
    for seed in range(5):
        places = permutation.permute_index(index, n, seed).astype(np.int64)
        # Under a random permutation each of these is within five standard deviations but for one run in a
        # million.
        assert abs(np.corrcoef(np.arange(n), places)[0, 1]) < 5 / np.sqrt(n)
        assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 5 / np.sqrt(n)
        assert (places == np.arange(n)).sum() <= 8  # Poisson with mean 1
        assert (
            np.abs(np.diff(places)) == 1
        ).sum() <= 14  # Poisson with mean 2: neighbours that stay side by side
        # Where the first 1/16 goes, in 16 equal parts of the places: chi-square with 15 degrees of freedom.
        cells = np.bincount(places[: n // 16] * 16 // n, minlength=16)
        expected = (n // 16) / 16
        assert ((cells - expected) ** 2 / expected).sum() < 50


def test_seeds_give_unrelated_orders() -> None:
    n = 10_000
    one, two = (
        permutation.permute_index(np.arange(n, dtype=np.uint64), n, seed).astype(np.int64) for seed in (1, 2)
    )
    assert (one == two).sum() <= 8
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(n)


def test_all_orders_of_three_occur() -> None:
    seen = {
        tuple(permutation.permute_index(np.arange(3, dtype=np.uint64), 3, seed).tolist())
        for seed in range(200)
    }
    assert len(seen) == 6


def test_values_out_of_range() -> None:
    with pytest.raises(DataError, match="Sample 1 is 5"):
        permutation.permute_index(np.array([4, 5], np.uint64), 5, 1)
    with pytest.raises(ValueError, match="a permutation of 0 items"):
        permutation.unpermute_index(np.zeros(0, np.uint64), 0, 1)
