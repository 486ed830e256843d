"""Find a piece of text in token ids, without making the text.

Each id stands for the bytes that a table gives; the pattern is looked for in their concatenation by the
automaton of Knuth, Morris and Pratt (SIAM J. Comput. 6, 1977), so every byte is seen once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_below, check_offsets


def find_text(
    rows: npt.NDArray[np.int32], blob: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], pattern: bytes
) -> npt.NDArray[np.int64]:
    """Where `pattern` is in each row: (n,) int64, the position of the token in which its first occurrence
    ends, or -1.

    rows: (n, L) int32 ids. blob, starts: the bytes of id i are blob[starts[i]:starts[i + 1]]; an id without
    bytes ends whatever was found so far. Raises DataError for ids outside the table, ValueError for an empty
    pattern.
    """
    if not pattern:
        raise ValueError("an empty text is everywhere")
    if rows.ndim != 2:
        raise DataError(f"rows have {rows.ndim} dimensions, expected 2")
    check_offsets(starts, len(blob), "starts of tokens")
    check_below(rows, len(starts) - 1, "token")
    wanted = np.frombuffer(pattern, np.uint8)
    return _find(np.ascontiguousarray(rows), blob, starts, wanted, _failures(wanted))


def _failures(pattern: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Length of the longest proper prefix of pattern[: i + 1] that is its suffix."""
    lengths = np.zeros(len(pattern), np.int64)
    length = 0
    for i in range(1, len(pattern)):
        while length and pattern[i] != pattern[length]:
            length = int(lengths[length - 1])
        length += int(pattern[i] == pattern[length])
        lengths[i] = length
    return lengths


@jit
def _step(
    state: int,
    begin: int,
    end: int,
    blob: npt.NDArray[np.uint8],
    pattern: npt.NDArray[np.uint8],
    failures: npt.NDArray[np.int64],
) -> int:
    """Letters of the pattern that are matched after bytes [begin, end) of `blob`; all of them once it was
    found.
    """
    if begin == end:
        return 0
    for k in range(begin, end):
        while state > 0 and blob[k] != pattern[state]:
            state = failures[state - 1]
        if blob[k] == pattern[state]:
            state += 1
        if state == len(pattern):
            break
    return state


@jit
def _find(
    rows: npt.NDArray[np.int32],
    blob: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    pattern: npt.NDArray[np.uint8],
    failures: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    # Nearly always nothing is matched yet: what each token does then is looked up.
    afresh = np.empty(len(starts) - 1, np.int64)
    for token in range(len(afresh)):
        afresh[token] = _step(0, starts[token], starts[token + 1], blob, pattern, failures)
    positions = np.full(rows.shape[0], -1, np.int64)
    for row in range(rows.shape[0]):
        state = 0
        for position in range(rows.shape[1]):
            token = rows[row, position]
            if state == 0:
                state = afresh[token]
            else:
                state = _step(state, starts[token], starts[token + 1], blob, pattern, failures)
            if state == len(pattern):
                positions[row] = position
                break
    return positions
