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
    passages: Sequence[bytes], token_data: npt.NDArray[np.uint8], token_ends: Int64Array, barrier: int
) -> Needles:
    """Prepare to look for passages. Raises ValueError for an empty one. token_data: (bytes,) uint8;
    token_ends: (vocabulary,) int64.
    """
    if not all(passages):
        raise ValueError("an empty passage matches everywhere")
    data = np.frombuffer(b"".join(passages), np.uint8)
    ends = np.cumsum(np.fromiter(map(len, passages), np.int64, len(passages)))
    tokens, queries, offsets = [], [], []
    starts = ends - np.diff(np.concatenate([np.zeros(1, np.int64), ends]))
    for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        passage = data[start:end]
        best: tuple[Int64Array, Int64Array] | None = None
        # The anchor whose tokens are fewest, of some that are in the middle.
        for anchor in _anchors(len(passage)):
            covering = _covering(passage, anchor, token_data, token_ends)
            if best is None or len(covering[0]) < len(best[0]):
                best = covering
        assert best is not None
        tokens.append(best[0])
        offsets.append(best[1])
        queries.append(np.full(len(best[0]), number, np.int64))
    token, query, offset = (np.concatenate(parts) for parts in (tokens, queries, offsets))
    order = np.argsort(token, kind="stable")
    first = np.searchsorted(token[order], np.arange(len(token_ends) + 1)).astype(np.int64)
    return Needles(data, ends, first, query[order], offset[order], token_data, token_ends, barrier)


def _anchors(length: int) -> list[int]:
    middle = length // 2
    return sorted({max(0, min(length - 1, middle + step)) for step in range(-6, 7, 2)})


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


def find(rows: npt.NDArray[Any], real: Int64Array, breaks: npt.NDArray[np.bool_], sought: Needles) -> Hits:
    """Every place of the passages in rows of tokens.

    rows: (n, L) ids; real: (n,) how many positions of each are tokens. breaks: (n, L), or (0, 0) where there
    are none: True where another document (or another part of one) begins, so that what is before is not read
    on into. A passage never goes across the barrier token. Raises DataError for an id that is not in the
    vocabulary. Ids of any integer dtype.
    """
    if rows.ndim != 2 or len(real) != len(rows) or (len(real) and int(real.max()) > rows.shape[1]):
        raise ValueError(f"rows of shape {rows.shape}, real of shape {real.shape}")
    if breaks.size and breaks.shape != rows.shape:
        raise ValueError(f"breaks of shape {breaks.shape}, rows of shape {rows.shape}")
    room = 1024
    while True:
        out = np.empty((room, len(Hits._fields)), np.int64)
        count = _find(
            rows, real, breaks, sought.data, sought.ends, sought.first, sought.query, sought.offset,
            sought.token_data, sought.token_ends, sought.barrier, out,
        )  # fmt: skip
        if count == -1:
            raise DataError(
                "A shard holds an id that is not in the tokenizer's vocabulary. Run `btlm-data verify`."
            )
        if count <= room:
            return Hits(*(np.ascontiguousarray(out[:count, column]) for column in range(out.shape[1])))
        room = count


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
    out: npt.NDArray[np.int64],
) -> int:
    count = 0
    has_breaks = breaks.size > 0
    vocabulary = len(token_ends)
    for row in range(len(rows)):
        ids = rows[row]
        for t in range(real[row]):
            token = np.int64(ids[t])
            if token < 0 or token >= vocabulary:
                return -1
            for k in range(first[token], first[token + 1]):
                q = query[k]
                begin_q = ends[q - 1] if q > 0 else np.int64(0)
                length = ends[q] - begin_q
                size = token_ends[token] - (token_ends[token - 1] if token > 0 else np.int64(0))
                # To the left of the token, then to its right.
                fits, is_cut = True, False
                left, at = t, offset[k]
                while at > 0:
                    if left == 0 or (has_breaks and breaks[row, left]):
                        is_cut = True
                        break
                    left -= 1
                    neighbour = np.int64(ids[left])
                    if neighbour == barrier or neighbour < 0 or neighbour >= vocabulary:
                        fits = False
                        break
                    begin = token_ends[neighbour - 1] if neighbour > 0 else np.int64(0)
                    width = token_ends[neighbour] - begin
                    if width == 0:
                        fits = False
                        break
                    take = min(width, at)
                    for x in range(take):
                        if token_data[begin + width - 1 - x] != data[begin_q + at - 1 - x]:
                            fits = False
                            break
                    if not fits:
                        break
                    at -= take
                if not fits:
                    continue
                right, at = t + 1, offset[k] + size
                while at < length:
                    if right >= real[row] or (has_breaks and breaks[row, right]):
                        is_cut = True
                        break
                    neighbour = np.int64(ids[right])
                    if neighbour == barrier or neighbour < 0 or neighbour >= vocabulary:
                        fits = False
                        break
                    begin = token_ends[neighbour - 1] if neighbour > 0 else np.int64(0)
                    width = token_ends[neighbour] - begin
                    if width == 0:
                        fits = False
                        break
                    take = min(width, length - at)
                    for x in range(take):
                        if token_data[begin + x] != data[begin_q + at + x]:
                            fits = False
                            break
                    if not fits:
                        break
                    at += take
                    right += 1
                if not fits:
                    continue
                if count < len(out):
                    out[count, 0], out[count, 1], out[count, 2], out[count, 3] = q, row, t, offset[k]
                    out[count, 4], out[count, 5], out[count, 6] = left, right, np.int64(is_cut)
                count += 1
    return count
