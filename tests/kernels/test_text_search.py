"""The search over tokens against Python's own search in bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btlm_data.errors import DataError
from btlm_data.kernels.text_search import find_text

TABLE = [b"", b"a", b"b", b"ab", b"aab", b" ", b"\xc3", b"\xa9"]  # 0 ends a document
BLOB = np.frombuffer(b"".join(TABLE), np.uint8)
STARTS = np.cumsum([0, *map(len, TABLE)])


def plain(row: list[int], pattern: bytes) -> int:
    """The position of the token in which the first occurrence ends."""
    text, position_of = b"", []
    for position, token in enumerate(row):
        piece = TABLE[token] or b"\xff"  # a byte that no pattern has
        text += piece
        position_of += [position] * len(piece)
    place = text.find(pattern)
    return -1 if place < 0 else position_of[place + len(pattern) - 1]


@settings(deadline=None)
@given(
    st.integers(1, 12).flatmap(
        lambda length: st.lists(
            st.lists(st.integers(0, 7), min_size=length, max_size=length), min_size=1, max_size=6
        )
    ),
    st.lists(st.sampled_from(TABLE[1:]), min_size=1, max_size=5).map(b"".join),
)
def test_it_finds_what_python_finds(rows: list[list[int]], pattern: bytes) -> None:
    found = find_text(np.array(rows, np.int32), BLOB, STARTS, pattern)
    assert found.tolist() == [plain(row, pattern) for row in rows]


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="token 1 is 8"):
        find_text(np.array([[1, 8]], np.int32), BLOB, STARTS, b"a")
    with pytest.raises(DataError, match="token 0 is -1"):
        find_text(np.array([[-1]], np.int32), BLOB, STARTS, b"a")
    with pytest.raises(ValueError, match="everywhere"):
        find_text(np.array([[1]], np.int32), BLOB, STARTS, b"")
