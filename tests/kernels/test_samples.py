"""Samples cut out of a stream and put back: as slices do it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.kernels.samples import cut_samples, place_samples


@settings(deadline=None)  # the first one compiles
@given(st.data())
def test_cutting_and_placing_are_slices(data: st.DataObject) -> None:
    stream = np.arange(1, data.draw(st.integers(1, 60)) + 1).astype(np.uint16)
    width = data.draw(st.integers(1, 9))
    starts = np.array(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)), np.int64)
    out = np.full((len(starts), width), 7, np.uint16)
    cut_samples(stream, starts, out)
    padded = np.concatenate([stream, np.zeros(width, np.uint16)])
    assert out.tolist() == [padded[start : start + width].tolist() for start in starts.tolist()]
    counts = np.minimum(width, len(stream) - starts)
    again, expected = np.zeros_like(stream), np.zeros_like(stream)
    place_samples(out.astype(np.int32), starts, counts, again)
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        expected[start : start + count] = stream[start : start + count]
    assert again.tolist() == expected.tolist()


def test_what_is_outside_the_stream_is_refused() -> None:
    stream, one = np.zeros(10, np.uint16), np.array([1])
    rows = np.zeros((1, 4), np.uint16)
    for start in (-1, 11):
        with pytest.raises(DataError, match="Start of sample 0 is"):
            cut_samples(stream, np.array([start]), rows)
    with pytest.raises(DataError, match="Sample: stop 0 is 11"):
        place_samples(rows, np.array([7]), 4 * one, stream)
    with pytest.raises(DataError, match="Length of sample 0 is 5"):
        place_samples(rows, np.array([0]), 5 * one, stream)
