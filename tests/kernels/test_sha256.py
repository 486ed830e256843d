"""Two sums at a time are those of hashlib, whatever the pieces are in which the bytes come."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from btlm_data.kernels import processor, sha256

PAIRS = [
    pytest.param(
        sha256.Kernels,
        marks=pytest.mark.skipif(
            not sha256.has_instructions(), reason="this processor has no instructions for SHA-256"
        ),
    ),
    sha256.Library,
]
sizes = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=8)


@pytest.mark.parametrize("kind", PAIRS)
@given(sizes, st.integers(0, 2**32))
@example([], 0)
@example([(55, 56), (9, 8), (64, 0), (0, 128)], 1)
@example([(63, 1), (1, 63), (129, 5000)], 2)
def test_sums_are_those_of_hashlib(kind: type[sha256.Pair], pieces: list[tuple[int, int]], seed: int) -> None:
    drawn, pair = random.Random(seed), kind()
    expected = hashlib.sha256(), hashlib.sha256()
    for size, other in pieces:
        first, second = drawn.randbytes(size), bytearray(drawn.randbytes(other))
        pair.update(first, memoryview(second))
        expected[0].update(first)
        expected[1].update(second)
        second[:] = bytes(other)  # what was added may change
    assert pair.hexdigests() == (expected[0].hexdigest(), expected[1].hexdigest())


@given(st.lists(st.binary(max_size=200), max_size=9), st.lists(st.binary(max_size=200), max_size=9))
@example([], [])
@example([b"a" * 64], [])
def test_streams_side_by_side_in_pieces_that_are_reused(first: list[bytes], second: list[bytes]) -> None:
    def pieces(parts: list[bytes]) -> Iterator[memoryview]:
        buffer = bytearray(200)
        for part in parts:
            buffer[: len(part)] = part
            yield memoryview(buffer)[: len(part)]
            buffer[:] = bytes(200)

    expected = tuple(hashlib.sha256(b"".join(parts)).hexdigest() for parts in (first, second))
    assert sha256.sums_of(pieces(first), pieces(second)) == expected


def test_the_instructions_are_used_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sha256.Kernels if sha256.has_instructions() else sha256.Library
    assert type(sha256.sha256_pair()) is expected
    monkeypatch.setattr(processor, "_own_features", lambda: {"sha": False, "sse4.1": True})
    assert type(sha256.sha256_pair()) is sha256.Library
    monkeypatch.setattr(processor, "_own_features", lambda: {"sha": True, "sse4.1": True})
    assert type(sha256.sha256_pair()) is sha256.Kernels
    monkeypatch.setattr("numba.core.config.CPU_NAME", "generic")
    assert type(sha256.sha256_pair()) is sha256.Library
