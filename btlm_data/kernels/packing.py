"""Where documents go: token streams, and bins.

Lengths and places come from files, so every public function checks them before a numba kernel uses them as
indices: a kernel would write outside its arrays without a word. Plain twins of every kernel are in
tests/reference/packing.py.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_below, check_same_length, check_stretches
from btlm_data.kernels.words import trailing_zeros

_FAR = 2**60  # positions: sums of two of them do not overflow


def place_documents(
    tokens: npt.NDArray[Any],
    src_start: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    dst_start: npt.NDArray[np.int64],
    out: npt.NDArray[Any],
    eos_id: int,
    first: npt.NDArray[np.int64] | None = None,
    stop: npt.NDArray[np.int64] | None = None,
) -> None:
    """Copy documents into `out`, which holds the stream's positions [0, len(out)), each with one EOS after
    its tokens.

    tokens: staging tokens of any unsigned dtype; document d is tokens[src_start[d] : src_start[d] +
    lengths[d]] and its first token belongs at position dst_start[d] of the stream, where its EOS follows at
    dst_start[d] + lengths[d]. dst_start is relative to `out` and may be negative, or a document may end
    after `out`: a document that crosses a border of the range gives only the part within. first, stop: where
    each document has borders of its own, [first[d], stop[d]), for example those of the one sample it is to
    fill. All of them int64, (documents,).

    Raises DataError where a document would be outside `tokens`, or its borders outside `out`.
    """
    count = len(lengths)
    first = np.zeros(count, np.int64) if first is None else first
    stop = np.full(count, len(out), np.int64) if stop is None else stop
    check_same_length("Documents", src_start, lengths, dst_start, first, stop)
    check_below(lengths, len(tokens) + 1, "Length of document")
    check_stretches(src_start, src_start + lengths, len(tokens), "Tokens of document")
    check_below(first, len(out) + 1, "Border of document")
    check_below(stop, len(out) + 1, "Border of document")
    check_below(dst_start + _FAR, 2 * _FAR, "Place of document")
    _place(tokens, src_start, lengths, dst_start, first, stop, out, eos_id)


@jit
def _place(
    tokens: npt.NDArray[Any],
    src_start: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    dst_start: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    stop: npt.NDArray[np.int64],
    out: npt.NDArray[Any],
    eos_id: int,
) -> None:
    for d in range(len(lengths)):
        shift = src_start[d] - dst_start[d]
        for k in range(max(first[d], dst_start[d]), min(dst_start[d] + lengths[d], stop[d])):
            out[k] = tokens[k + shift]
        end = dst_start[d] + lengths[d]
        if first[d] <= end < stop[d]:
            out[end] = eos_id


class Pieces(msgspec.Struct, frozen=True):
    """Documents cut into pieces and placed in samples of L positions; one entry per piece, in order of
    document and start.

    document: which document; start: its position that comes first; length: how many positions, 1 to L; row,
    column: the sample and the position there where the piece starts. num_rows: how many samples that takes.

    A document of m tokens has m label positions: input t[i], label t[i + 1], and EOS as the last label. A
    piece's last label is the next piece's first input, so every token but a document's first is a label
    exactly once, and so is every EOS.
    """

    document: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]
    num_rows: int


def pack_documents(lengths: npt.NDArray[np.int64], seq_len: int, max_documents: int = 0) -> Pieces:
    """Cut documents of `lengths` tokens (EOS not counted) at seq_len positions and pack the pieces, best fit
    decreasing.

    max_documents: at most so many pieces in one sample (0: any number). A document without tokens has no
    position and no piece. Raises DataError for a negative length. lengths: (documents,) int64.
    """
    document, start, length = split_documents(lengths, seq_len)
    row, column, num_rows = best_fit_decreasing(length, seq_len, max_documents)
    return Pieces(document, start, length, row, column, num_rows)


def split_documents(
    lengths: npt.NDArray[np.int64], seq_len: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cut documents into pieces of seq_len positions, the last one shorter: each piece's document, start and
    length. lengths: (documents,) int64; returns three arrays (pieces,) int64.
    """
    check_below(lengths, _FAR, "Length of document")
    counts = -(-lengths // seq_len)
    document = np.repeat(np.arange(len(lengths)), counts)
    start = (np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)) * seq_len
    return document, start, np.minimum(seq_len, lengths[document] - start)


def best_fit_decreasing(
    lengths: npt.NDArray[np.int64], seq_len: int, max_pieces: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """Place pieces of 1 to seq_len positions: each piece's row and its first position there, and the number
    of rows.

    Longest first (equal lengths in order), each into the row with the least room that is enough (of several,
    the one that came to that room last), else into a new row: Johnson, "Near-optimal bin packing algorithms"
    (MIT, 1973). Rows are in order of their longest piece, pieces within a row as they came. At most
    max_pieces in a row (0: any number). Raises DataError for other lengths.
    """
    check_below(lengths - 1, seq_len, "Length less 1 of piece")
    order = np.argsort(-lengths, kind="stable")
    row, column = np.empty(len(lengths), np.int64), np.empty(len(lengths), np.int64)
    num_rows = _best_fit(lengths, order, seq_len, max_pieces or len(lengths), row, column)
    return row, column, int(num_rows)


@jit
def _best_fit(
    lengths: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    seq_len: int,
    max_pieces: int,
    row: npt.NDArray[np.int64],
    column: npt.NDArray[np.int64],
) -> int:
    """Open rows are in one list per room left; two levels of bits say which lists are not empty, so a search
    looks at a few words.
    """
    words = seq_len // 64 + 1
    listed = np.zeros(words, np.uint64)
    listed_words = np.zeros(words // 64 + 1, np.uint64)
    newest = np.full(seq_len + 1, -1, np.int64)
    older = np.empty(len(lengths), np.int64)
    pieces = np.zeros(len(lengths), np.int64)
    every = ~np.uint64(0)
    num_rows = 0
    for k in range(len(order)):
        piece = order[k]
        size = lengths[piece]
        room = -1
        w = size >> 6
        bits = listed[w] & (every << np.uint64(size & 63))
        if bits:
            room = w * 64 + trailing_zeros(bits)
        else:
            v = (w + 1) >> 6
            mask = every << np.uint64((w + 1) & 63)
            while v < len(listed_words):
                bits = listed_words[v] & mask
                if bits:
                    w = v * 64 + trailing_zeros(bits)
                    room = w * 64 + trailing_zeros(listed[w])
                    break
                v += 1
                mask = every
        if room < 0:
            room = seq_len
            r = num_rows
            num_rows += 1
        else:
            r = newest[room]
            newest[room] = older[r]
            if newest[room] < 0:
                listed[room >> 6] &= ~(np.uint64(1) << np.uint64(room & 63))
                if not listed[room >> 6]:
                    listed_words[room >> 12] &= ~(np.uint64(1) << np.uint64((room >> 6) & 63))
        row[piece] = r
        column[piece] = seq_len - room
        pieces[r] += 1
        left = room - size
        if left > 0 and pieces[r] < max_pieces:
            older[r] = newest[left]
            newest[left] = r
            listed[left >> 6] |= np.uint64(1) << np.uint64(left & 63)
            listed_words[left >> 12] |= np.uint64(1) << np.uint64((left >> 6) & 63)
    return num_rows


def fill_vsl(
    tokens: npt.NDArray[Any],
    source: npt.NDArray[np.int64],
    length: npt.NDArray[np.int64],
    ends_document: npt.NDArray[np.bool_],
    row: npt.NDArray[np.int64],
    column: npt.NDArray[np.int64],
    eos_id: int,
    planes: npt.NDArray[np.int32],
) -> None:
    """Write pieces into `planes` (n, 5, L), all zeros before: input_ids, attention_mask, labels,
    attention_span, position_ids.

    Piece p starts at tokens[source[p]], has length[p] positions, and is at planes[row[p], :, column[p]:].
    Its last label is eos_id where ends_document[p], else tokens[source[p] + length[p]]: never another
    document's token. attention_span is the number of the piece's tokens after this one, position_ids count
    from 0 within the piece. Arrays of pieces are (pieces,), int64.

    Raises DataError where a piece would be outside `tokens` or `planes`.
    """
    num_rows, _, seq_len = planes.shape
    check_same_length("Pieces", source, length, ends_document, row, column)
    check_below(length - 1, seq_len, "Length less 1 of piece")
    check_below(row, num_rows, "Sample of piece")
    check_stretches(column, column + length, seq_len, "Positions of piece")
    check_below(source, len(tokens), "Token of piece")
    check_stretches(source, source + length + ~ends_document, len(tokens), "Tokens of piece")
    _fill_vsl(tokens, source, length, ends_document, row, column, eos_id, planes)


@jit
def _fill_vsl(
    tokens: npt.NDArray[Any],
    source: npt.NDArray[np.int64],
    length: npt.NDArray[np.int64],
    ends_document: npt.NDArray[np.bool_],
    row: npt.NDArray[np.int64],
    column: npt.NDArray[np.int64],
    eos_id: int,
    planes: npt.NDArray[np.int32],
) -> None:
    for p in range(len(length)):
        r, c, s, m = row[p], column[p], source[p], length[p]
        for i in range(m):
            planes[r, 0, c + i] = tokens[s + i]
        for i in range(m):
            planes[r, 1, c + i] = 1
        for i in range(m - 1):
            planes[r, 2, c + i] = tokens[s + i + 1]
        planes[r, 2, c + m - 1] = eos_id if ends_document[p] else np.int64(tokens[s + m])
        for i in range(m):
            planes[r, 3, c + i] = m - 1 - i
        for i in range(m):
            planes[r, 4, c + i] = i
