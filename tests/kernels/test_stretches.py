"""Stretches of bytes copied at once, against slices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.kernels import stretches


@settings(deadline=None)
@given(st.binary(max_size=50), st.data())
def test_copied_stretches_are_slices(source: bytes, data: st.DataObject) -> None:
    place = st.integers(0, len(source))
    extents = [sorted(pair) for pair in data.draw(st.lists(st.tuples(place, place), max_size=6))]
    bounds = np.array(extents, np.int64).reshape(-1, 2)
    lengths = bounds[:, 1] - bounds[:, 0]
    out = np.empty(int(lengths.sum()), np.uint8)
    places = np.cumsum(lengths) - lengths
    stretches.copy(np.frombuffer(source, np.uint8), bounds[:, 0], lengths, out, places)
    assert out.tobytes() == b"".join(source[a:b] for a, b in extents)


@pytest.mark.parametrize(
    ("start", "length", "to"), [(-1, 1, 0), (3, 2, 0), (0, 3, 1), (2, -1, 0), (0, 1, -1)]
)
def test_a_stretch_outside_is_refused(start: int, length: int, to: int) -> None:
    out = np.zeros(3, np.uint8)
    with pytest.raises(DataError, match="stretch"):
        stretches.copy(
            np.arange(4, dtype=np.uint8), np.array([start]), np.array([length]), out, np.array([to])
        )
    assert not out.any()
