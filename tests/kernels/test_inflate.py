"""Rows of token ids inflated many at a time, against zlib."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.kernels import deflate
from btlm_data.kernels.inflate import MARGIN, inflate_beginnings
from tests.kernels.test_deflate import planes_of, token_rows


def beginnings(
    streams: Sequence[bytes], num_bytes: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    stored = np.frombuffer(b"".join(streams) + b"\xff" * MARGIN, np.uint8)
    sizes = np.array([len(stream) for stream in streams], np.int64)
    return inflate_beginnings(stored, np.cumsum(sizes) - sizes, sizes, num_bytes)


def streams_of(stored: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> list[bytes]:
    return [stored[a:b].tobytes() for a, b in itertools.pairwise(offsets)]


@settings(max_examples=100, deadline=None)
@given(token_rows(extra=1), st.data())
def test_rows_of_our_own_are_read_to_any_length(rows: npt.NDArray[Any], data: st.DataObject) -> None:
    streams = streams_of(*deflate.deflate_samples(rows))
    whole = 12 * (rows.shape[1] - 1)
    num_bytes = data.draw(st.one_of(st.just(whole), st.just(whole // 3), st.integers(1, whole)))
    # Rows of two calls, so that the tables are made anew between them.
    other = streams_of(*deflate.deflate_samples(rows[::-1] // 2))
    out, is_done = beginnings(streams + other + streams[:1], num_bytes)
    assert is_done.all()
    expected = [planes_of(row) for row in [*rows, *(rows[::-1] // 2), rows[0]]]
    assert [row.tobytes() for row in out] == [planes[:num_bytes] for planes in expected]


@settings(max_examples=100, deadline=None)
@given(token_rows(extra=0), st.integers(0, 9), st.sampled_from([2, 4]))
def test_what_others_compressed_is_read_right_or_left_alone(
    rows: npt.NDArray[Any], level: int, width: int
) -> None:
    contents = [row.astype(f"<u{width}").tobytes() for row in rows]
    out, is_done = beginnings([zlib.compress(content, level) for content in contents], len(contents[0]))
    for row, done, content in zip(out, is_done, contents, strict=True):
        assert not done or row.tobytes() == content


def test_the_default_compressor_of_h5py_is_read_where_its_codes_are_short() -> None:
    """So that the test above cannot pass by leaving everything alone."""
    rows = np.random.default_rng(0).integers(0, 50, (3, 2000), dtype=np.uint32)
    _, is_done = beginnings([zlib.compress(row.tobytes(), 4) for row in rows], 8000)
    assert is_done.all()


@settings(max_examples=200, deadline=None)
@given(token_rows(extra=1), st.data())
def test_a_damaged_stream_is_left_alone_or_read_as_zlib_reads_it(
    rows: npt.NDArray[Any], data: st.DataObject
) -> None:
    [stream, *_] = streams_of(*deflate.deflate_samples(rows))
    damaged = bytearray(stream)
    for _ in range(data.draw(st.integers(1, 3))):
        # Most of the damage in the header, where tables are described.
        at = data.draw(st.integers(0, min(len(stream), data.draw(st.sampled_from([120, 1 << 20]))) - 1))
        damaged[at] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    num_bytes = 4 * (rows.shape[1] - 1)
    out, is_done = beginnings([bytes(damaged)], num_bytes)
    if is_done[0]:
        assert out[0].tobytes() == zlib.decompressobj().decompress(bytes(damaged), num_bytes)


def test_streams_outside_their_bytes_are_refused() -> None:
    stored = np.zeros(100, np.uint8)
    for begin, size in ((-1, 5), (0, 100), (93, 0), (0, -1)):
        with pytest.raises(ValueError, match="outside the 100 bytes"):
            inflate_beginnings(stored, np.array([begin]), np.array([size]), 16)


def test_nothing_is_read_from_nothing() -> None:
    out, is_done = beginnings([b"", b"x"], 16)
    assert out.shape == (2, 16)
    assert not is_done.any()
    assert beginnings([], 16)[0].shape == (0, 16)
