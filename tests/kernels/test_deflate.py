"""The token compressor against zlib's own inflate, which checks the Adler-32 sum as well."""

from __future__ import annotations

import heapq
import itertools
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.kernels import deflate, deflate_codes

LENGTHS = st.one_of(
    st.integers(1, 80),
    st.sampled_from(
        [127, 128, 129, 130, 1000, 2048, 4095, 4096, 4097, 8191, 8192, 8193, 9000]
    ),  # windows and match limits end here
    st.integers(1, 9000),
)


@st.composite
def token_rows(draw: st.DrawFn, extra: int) -> npt.NDArray[Any]:
    """(n, L + extra) rows of ids with few or many repeats, of vocabularies of two ids to 2^32."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    length, n = draw(LENGTHS) + extra, draw(st.integers(1, 4))
    dtype, top = draw(
        st.sampled_from(
            [(np.uint16, 2), (np.uint16, 300), (np.uint16, 50257), (np.uint32, 70000), (np.uint32, 2**32 - 1)]
        )
    )
    ids = rng.integers(0, top, max(2, draw(st.integers(2, 4000))), dtype=np.uint64)
    rows = ids[rng.geometric(draw(st.floats(0.001, 0.9)), (n, length)) % len(ids)].astype(dtype)
    if draw(st.booleans()):  # phrases that come back
        for _ in range(20):
            size = int(rng.integers(1, min(300, length) + 1))
            a, b = rng.integers(0, length - size + 1, 2)
            row, other = rng.integers(0, n, 2)
            rows[row, a : a + size] = rows[other, b : b + size].copy()
    return rows


def inflated(stored: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> list[bytes]:
    assert offsets[0] == 0
    assert offsets[-1] == len(stored)
    return [zlib.decompress(stored[a:b].tobytes()) for a, b in itertools.pairwise(offsets)]


def planes_of(row: npt.NDArray[Any]) -> bytes:
    return np.stack([row[:-1], np.ones(len(row) - 1, row.dtype), row[1:]]).astype("<u4").tobytes()


@settings(max_examples=150, deadline=None)
@given(token_rows(extra=1))
def test_any_inflate_gives_a_samples_three_planes(rows: npt.NDArray[Any]) -> None:
    assert inflated(*deflate.deflate_samples(rows)) == [planes_of(row) for row in rows]


@settings(max_examples=80, deadline=None)
@given(token_rows(extra=0), st.sampled_from([2, 4]), st.integers(0, 9000))
def test_any_inflate_gives_the_units(rows: npt.NDArray[Any], width: int, hint: int) -> None:
    if width == 2:
        rows = rows.astype(np.uint16)
    assert inflated(*deflate.deflate_units(rows, width, hint)) == [
        row.astype(f"<u{width}").tobytes() for row in rows
    ]


@pytest.mark.parametrize("length", range(1, 140))
def test_every_short_length(length: int) -> None:
    rows = np.arange(2 * (length + 1), dtype=np.uint16).reshape(2, -1) % 11 * 257
    assert inflated(*deflate.deflate_samples(rows)) == [planes_of(row) for row in rows]


def test_the_bytes_do_not_depend_on_memory_layout_or_type() -> None:
    stream = np.random.default_rng(0).integers(0, 200, 64 * 50 + 1).astype(np.uint16)
    overlapping = np.lib.stride_tricks.sliding_window_view(stream, 65)[::64]
    stored, offsets = deflate.deflate_samples(overlapping)
    for other in (overlapping.copy(), overlapping.astype(np.uint32), np.asfortranarray(overlapping)):
        again, offsets_again = deflate.deflate_samples(other)
        assert np.array_equal(stored, again)
        assert np.array_equal(offsets, offsets_again)


def test_more_rows_than_are_searched_at_once_and_more_than_places_are_counted_to() -> None:
    rows = (
        np.random.default_rng(1).integers(0, 1000, (40, 9001)).astype(np.uint16)
    )  # 360,000 units: three groups, places wrap at 65,536
    assert inflated(*deflate.deflate_samples(rows)) == [planes_of(row) for row in rows]


def test_labels_cost_next_to_nothing_within_the_window() -> None:
    row = np.random.default_rng(2).integers(0, 50000, (1, 4097)).astype(np.uint16)
    one = deflate.deflate_units(row[:, :-1].copy(), 4)[1][-1]
    three = deflate.deflate_samples(row)[1][-1]
    assert three < 1.03 * one


def test_counters_cost_little_more_than_their_lowest_byte() -> None:
    """attention_span and position_ids: nothing repeats, but the upper bytes stay."""
    counters = np.arange(4 * 2048, dtype=np.uint32).reshape(4, -1) + 70_000
    stored, offsets = deflate.deflate_units(counters, 4, 2047)
    assert inflated(stored, offsets) == [row.astype("<u4").tobytes() for row in counters]
    assert len(stored) < 1.6 * counters.size


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=300), st.integers(9, 15))
def test_huffman_lengths_are_complete_limited_and_optimal(counts: list[int], limit: int) -> None:
    values = np.array(counts)
    lengths = deflate_codes.huffman_lengths(values, limit)
    used = [bits for bits in lengths if bits]
    assert [bits > 0 for bits in lengths] == [count > 0 for count in counts]
    assert max(used, default=0) <= limit
    if len(used) >= 2:
        assert sum(2.0**-bits for bits in used) == 1
    best = textbook_cost(counts)
    unlimited = deflate_codes.huffman_lengths(values, 64)
    assert sum(c * b for c, b in zip(counts, unlimited, strict=True)) == best


def textbook_cost(counts: list[int]) -> int:
    heap = [c for c in counts if c]
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


@given(st.integers(1, 5000))
def test_runs_add_up(quarter: int) -> None:
    lengths = deflate_codes.run_lengths(4 * quarter)
    assert sum(lengths) == 4 * quarter
    assert all(3 <= size <= 258 for size in lengths)
