"""Find passages of text in rows of tokens without decoding them: by the tokens that can cover one byte of a
passage.

A passage is looked for through an *anchor*, one of its bytes: wherever the passage is, some token covers that
byte, and only few tokens of a vocabulary can. Each token of the rows costs one look into a table; only where
it may cover an anchor are its neighbours' bytes compared. Plain twin: tests/reference/passages.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.kernels.compiling import jit

Int64Array = npt.NDArray[np.int64]
_DIFFERS = -(2**62)  # instead of a position: the tokens hold another text
FOUND, CUT = (
    0,
    1,
)  # the whole passage is in the row; what is in the row fits, and the row ends before the passage


class Needles(NamedTuple):
    """Passages to look for, and the tokens that can cover their anchors.

    data, ends: the passages' bytes, end to end. first (vocabulary + 1,), query, offset: token t may be at
    offset[k] of passage query[k] (where its first byte is; negative: before the passage) for k in [first[t],
    first[t + 1]). token_data, token_ends: the bytes of tokens. barrier: the token that ends documents.
    """

    data: npt.NDArray[np.uint8]
    ends: Int64Array
    first: Int64Array
    query: Int64Array
    offset: Int64Array
    token_data: npt.NDArray[np.uint8]
    token_ends: Int64Array
    barrier: int


class Hits(NamedTuple):
    """Where passages stand, (k,) each. query; row; token: the one at the anchor, and offset: where in the
    passage it begins; begin, end: the tokens [begin, end) of the row that hold what of the passage is in it;
    state: FOUND or CUT.
    """

    query: Int64Array
    row: Int64Array
    token: Int64Array
    offset: Int64Array
    begin: Int64Array
    end: Int64Array
    state: Int64Array


def needles(
    passages: Sequence[bytes],
    token_data: npt.NDArray[np.uint8],
    token_ends: Int64Array,
    barrier: int,
    counts: Int64Array | None = None,
) -> Needles:
    """Prepare to look for passages. Raises ValueError for an empty one. token_data: (bytes,) uint8;
    token_ends: (vocabulary,) int64. counts: (vocabulary,) how often each token was seen in some of the rows,
    so that anchors are chosen which few tokens of the rows can cover; without it, those that few tokens of the vocabulary can.
    """
    weights = np.ones(len(token_ends)) if counts is None else counts + 0.01
    if not all(passages):
        raise ValueError("an empty passage matches everywhere")
    data = np.frombuffer(b"".join(passages), np.uint8)
    ends = np.cumsum(np.fromiter(map(len, passages), np.int64, len(passages)))
    tokens, queries, offsets = [], [], []
    starts = ends - np.diff(np.concatenate([np.zeros(1, np.int64), ends]))
    for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        passage = data[start:end]
        best: tuple[Int64Array, Int64Array] | None = None
        fewest = np.inf
        for anchor in _anchors(len(passage)):
            covering = _covering(passage, anchor, token_data, token_ends)
            if (expected := float(weights[covering[0]].sum())) < fewest:
                best, fewest = covering, expected
        assert best is not None
        tokens.append(best[0])
        offsets.append(best[1])
        queries.append(np.full(len(best[0]), number, np.int64))
    token, query, offset = (np.concatenate(parts) for parts in (tokens, queries, offsets))
    order = np.argsort(token, kind="stable")
    first = np.searchsorted(token[order], np.arange(len(token_ends) + 1)).astype(np.int64)
    return Needles(data, ends, first, query[order], offset[order], token_data, token_ends, barrier)


def _anchors(length: int) -> list[int]:
    """Bytes of a passage that may be its anchor: some, and not at its ends, where more tokens fit."""
    first, last = min(6, (length - 1) // 2), max(length - 7, length // 2)
    return sorted({first + (last - first) * k // 6 for k in range(7)})


@jit
def _covering(
    passage: npt.NDArray[np.uint8],
    anchor: int,
    token_data: npt.NDArray[np.uint8],
    token_ends: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(token, offset) of every way in which a token can cover the anchor and fit the passage."""
    tokens, offsets = [np.int64(0) for _ in range(0)], [np.int64(0) for _ in range(0)]
    begin = np.int64(0)
    for token in range(len(token_ends)):
        end = token_ends[token]
        for j in range(end - begin):
            offset = anchor - j
            fits = True
            for x in range(end - begin):
                at = offset + x
                if 0 <= at < len(passage) and token_data[begin + x] != passage[at]:
                    fits = False
                    break
            if fits:
                tokens.append(np.int64(token))
                offsets.append(np.int64(offset))
        begin = end
    return np.array(tokens, np.int64), np.array(offsets, np.int64)


def find(
    rows: npt.NDArray[Any],
    real: Int64Array,
    breaks: npt.NDArray[np.bool_],
    sought: Needles,
    *,
    first_of_row: bool = False,
) -> Hits:
    """Every place of the passages in rows of tokens.

    rows: (n, L) ids; real: (n,) how many positions of each are tokens. breaks: (n, L), or (0, 0) where there
    are none: True where another document (or another part of one) begins, so that what is before is not read
    on into. A passage never goes across the barrier token. first_of_row: go on to the next row where one
    has shown a passage whole. Raises DataError for an id that is not in the vocabulary. Ids of any integer
    dtype.
    """
    if rows.ndim != 2 or len(real) != len(rows) or (len(real) and int(real.max()) > rows.shape[1]):
        raise ValueError(f"rows of shape {rows.shape}, real of shape {real.shape}")
    if breaks.size and breaks.shape != rows.shape:
        raise ValueError(f"breaks of shape {breaks.shape}, rows of shape {rows.shape}")
    covers = np.diff(sought.first) > 0
    room = 1024
    while True:
        out = np.empty((room, len(Hits._fields)), np.int64)
        count = _find(
            rows, real, breaks, sought.data, sought.ends, sought.first, sought.query, sought.offset,
            sought.token_data, sought.token_ends, sought.barrier, covers, first_of_row, out,
        )  # fmt: skip
        if count == -1:
            raise DataError(
                "A shard holds an id that is not in the tokenizer's vocabulary. Run `btlm-data verify`."
            )
        if count <= room:
            return Hits(*(np.ascontiguousarray(out[:count, column]) for column in range(out.shape[1])))
        room = count


@jit
def _next(ids: npt.NDArray[Any], t: int, stop: int, covers: npt.NDArray[np.bool_]) -> int:
    """The first position from t on whose token may cover an anchor; `stop` if there is none, -1 if an id
    before it is not in the vocabulary.
    """
    vocabulary = np.uint64(len(covers))
    while t < stop:
        token = np.uint64(np.int64(ids[t]))  # of a negative one, more than any vocabulary
        if token >= vocabulary:
            return -1
        if covers[token]:
            return t
        t += 1
    return stop


@jit
def _find(
    rows: npt.NDArray[Any],
    real: npt.NDArray[np.int64],
    breaks: npt.NDArray[np.bool_],
    data: npt.NDArray[np.uint8],
    ends: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    query: npt.NDArray[np.int64],
    offset: npt.NDArray[np.int64],
    token_data: npt.NDArray[np.uint8],
    token_ends: npt.NDArray[np.int64],
    barrier: int,
    covers: npt.NDArray[np.bool_],
    first_of_row: bool,
    out: npt.NDArray[np.int64],
) -> int:
    count = 0
    for row in range(len(rows)):
        ids = rows[row]
        row_breaks = breaks[row] if breaks.size > 0 else breaks.ravel()
        t = _next(ids, 0, real[row], covers)
        while 0 <= t < real[row]:
            token = np.int64(ids[t])
            is_whole = False
            for k in range(first[token], first[token + 1]):
                q = query[k]
                begin_q = ends[q - 1] if q > 0 else np.int64(0)
                passage = data[begin_q : ends[q]]
                left = _before(ids, t, row_breaks, passage, offset[k], token_data, token_ends, barrier)
                if left == _DIFFERS:
                    continue
                size = token_ends[token] - (token_ends[token - 1] if token > 0 else np.int64(0))
                right = _behind(
                    ids, t, real[row], row_breaks, passage, offset[k] + size, token_data, token_ends, barrier
                )
                if right == _DIFFERS:
                    continue
                is_cut = left < 0 or right < 0
                is_whole |= not is_cut
                if count < len(out):
                    out[count, 0], out[count, 1], out[count, 2], out[count, 3] = q, row, t, offset[k]
                    out[count, 4] = left if left >= 0 else -1 - left
                    out[count, 5] = right if right >= 0 else -1 - right
                    out[count, 6] = np.int64(is_cut)
                count += 1
            if first_of_row and is_whole:
                break
            t = _next(ids, t + 1, real[row], covers)
        if t < 0:
            return -1
    return count


@jit
def _before(
    ids: npt.NDArray[Any],
    t: int,
    breaks: npt.NDArray[np.bool_],
    passage: npt.NDArray[np.uint8],
    at: int,
    token_data: npt.NDArray[np.uint8],
    token_ends: npt.NDArray[np.int64],
    barrier: int,
) -> int:
    """The first of the tokens up to t that hold the passage's first `at` bytes, and whatever is before them;
    -1 less that token where the row, or what belongs together, begins before they do; _DIFFERS.
    """
    left = t
    while at > 0:
        if left == 0 or (len(breaks) > 0 and breaks[left]):
            return -1 - left
        left -= 1
        token = np.int64(ids[left])
        if token == barrier or token < 0 or token >= len(token_ends):
            return _DIFFERS
        begin = token_ends[token - 1] if token > 0 else np.int64(0)
        width = token_ends[token] - begin
        if width == 0:
            return _DIFFERS
        for x in range(min(width, at)):
            if token_data[begin + width - 1 - x] != passage[at - 1 - x]:
                return _DIFFERS
        at -= min(width, at)
    return left


@jit
def _behind(
    ids: npt.NDArray[Any],
    t: int,
    stop: int,
    breaks: npt.NDArray[np.bool_],
    passage: npt.NDArray[np.uint8],
    at: int,
    token_data: npt.NDArray[np.uint8],
    token_ends: npt.NDArray[np.int64],
    barrier: int,
) -> int:
    """One past the last of the tokens behind t that hold the passage's bytes from `at` on; -1 less that where
    the row, or what belongs together, ends before they do; _DIFFERS.
    """
    right = t + 1
    while at < len(passage):
        if right >= stop or (len(breaks) > 0 and breaks[right]):
            return -1 - right
        token = np.int64(ids[right])
        if token == barrier or token < 0 or token >= len(token_ends):
            return _DIFFERS
        begin = token_ends[token - 1] if token > 0 else np.int64(0)
        width = token_ends[token] - begin
        if width == 0:
            return _DIFFERS
        take = min(width, len(passage) - at)
        for x in range(take):
            if token_data[begin + x] != passage[at + x]:
                return _DIFFERS
        at += take
        right += 1
    return right
