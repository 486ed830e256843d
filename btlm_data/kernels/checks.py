"""Read tokens once and say where they break the rules of their layout. Numba kernels; callers check dtypes and shapes.

Two kinds of answer come back: per row, the first position that breaks each rule (SAMPLE_RULES, VSL_RULES), and *prints*:
sums of 64-bit hashes in buckets, by which facts that lie in different files are compared without holding either side in
memory. A print is zero where each fact was added on one side and subtracted on the other; 2^-64 is the chance of a zero
in spite of a difference. Plain twins of every kernel are in tests/reference/checks.py.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

_jit = numba.njit(cache=True, nogil=True)

# Rules a row can break, by their column in the result.
MASK_VALUE, MASK_ORDER, PADDING, SHIFT, TOKEN = range(5)
SAMPLE_RULES = 5
SPAN, POSITION, CROSSING = range(5, 8)  # vsl only
VSL_RULES = 8

INPUTS, MASK, LABELS, SPANS, POSITIONS = range(5)  # planes


@_jit
def _mix(value: np.uint64) -> np.uint64:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014)."""
    z = value + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


@_jit
def scan_samples(
    rows: npt.NDArray[Any],
    order: npt.NDArray[np.int64],
    num_samples: int,
    bucket_samples: int,
    vocab_size: int,
    eos_id: int,
    ends: npt.NDArray[np.uint64],
    borders: npt.NDArray[np.uint64],
    first_bad: npt.NDArray[np.int64],
    real: npt.NDArray[np.int64],
    eos: npt.NDArray[np.int64],
) -> None:
    """Check sample rows (n, 3, L) of any integer dtype and add what must match elsewhere to the prints.

    order (n,): each row's number in the stream of num_samples samples, or -1 where that is unknown (nothing is then added).
    first_bad (n, SAMPLE_RULES) int64 out: plane * L + position of the first break of each rule, -1 if none. MASK_ORDER is a
    1 after a 0; PADDING a value other than 0 where the mask is 0; SHIFT a label other than the next input where both
    positions are real; TOKEN an id outside [0, vocab_size) on a real position. real, eos (n,) out: positions with mask 1, and
    real inputs that are eos_id. Bucket i // bucket_samples of `ends` gains every real input's stream position that is EOS (and
    the stream's very last label); that of `borders` gains (i, first input of sample i) and loses (i + 1, last label of i).
    """
    length = rows.shape[2]
    for r in range(len(rows)):
        for rule in range(SAMPLE_RULES):
            first_bad[r, rule] = -1
        real[r] = eos[r] = 0
        i = order[r]
        last_label = np.int64(-1)
        for t in range(length):
            token, mask, label = np.int64(rows[r, 0, t]), np.int64(rows[r, 1, t]), np.int64(rows[r, 2, t])
            if mask == 1:
                if real[r] != t and first_bad[r, MASK_ORDER] < 0:
                    first_bad[r, MASK_ORDER] = length + t
                real[r] += 1
                last_label = label
                if (token < 0 or token >= vocab_size or label < 0 or label >= vocab_size) and first_bad[
                    r, TOKEN
                ] < 0:
                    first_bad[r, TOKEN] = t if token < 0 or token >= vocab_size else 2 * length + t
                following = t + 1 < length and rows[r, 1, t + 1] == 1
                if following and label != rows[r, 0, t + 1] and first_bad[r, SHIFT] < 0:
                    first_bad[r, SHIFT] = 2 * length + t
                if token == eos_id:
                    eos[r] += 1
                    if i >= 0:
                        ends[i // bucket_samples] += _mix(np.uint64(i * length + t))
            else:
                if mask != 0 and first_bad[r, MASK_VALUE] < 0:
                    first_bad[r, MASK_VALUE] = length + t
                if (token != 0 or label != 0) and first_bad[r, PADDING] < 0:
                    first_bad[r, PADDING] = t if token != 0 else 2 * length + t
        if i < 0 or real[r] == 0:
            continue
        if i > 0:
            borders[i // bucket_samples] += _mix(_mix(np.uint64(i)) + np.uint64(rows[r, 0, 0]))
        if i + 1 < num_samples:
            borders[(i + 1) // bucket_samples] -= _mix(_mix(np.uint64(i + 1)) + np.uint64(last_label))
        elif last_label == eos_id:
            ends[i // bucket_samples] += _mix(np.uint64(i * length + real[r]))


@_jit
def scan_vsl(
    rows: npt.NDArray[Any],
    vocab_size: int,
    eos_id: int,
    first_bad: npt.NDArray[np.int64],
    real: npt.NDArray[np.int64],
    eos: npt.NDArray[np.int64],
    used: npt.NDArray[np.int64],
) -> None:
    """Check VSL rows (n, 5, L). first_bad (n, VSL_RULES), real, eos as for `scan_samples`; used (n,) out: positions in documents.

    A part of a document runs from position id 0 to attention span 0: ids go up by one and spans down by one (POSITION, SPAN). What
    follows the last masked or numbered position is padding. MASK_ORDER: a 0 before that. CROSSING: an input that is EOS and is
    trained to predict what follows. Here eos counts real *labels*: in our layout no document's EOS is anybody's input.
    """
    length = rows.shape[2]
    for r in range(len(rows)):
        for rule in range(VSL_RULES):
            first_bad[r, rule] = -1
        real[r] = eos[r] = 0
        extent = length
        while (
            extent > 0
            and rows[r, 1, extent - 1] == 0
            and rows[r, 3, extent - 1] == 0
            and rows[r, 4, extent - 1] == 0
        ):
            extent -= 1
        used[r] = extent
        for t in range(length):
            token, mask, label = np.int64(rows[r, 0, t]), np.int64(rows[r, 1, t]), np.int64(rows[r, 2, t])
            span, position = np.int64(rows[r, 3, t]), np.int64(rows[r, 4, t])
            if mask != 0 and mask != 1 and first_bad[r, MASK_VALUE] < 0:
                first_bad[r, MASK_VALUE] = length + t
            if t >= extent:
                if (token != 0 or label != 0) and first_bad[r, PADDING] < 0:
                    first_bad[r, PADDING] = t if token != 0 else 2 * length + t
                continue
            if mask == 0 and first_bad[r, MASK_ORDER] < 0:
                first_bad[r, MASK_ORDER] = length + t
            if (token < 0 or token >= vocab_size or label < 0 or label >= vocab_size) and first_bad[
                r, TOKEN
            ] < 0:
                first_bad[r, TOKEN] = t if token < 0 or token >= vocab_size else 2 * length + t
            begins = t == 0 or rows[r, 3, t - 1] == 0
            wanted = np.int64(0) if begins else np.int64(rows[r, 4, t - 1]) + 1
            if position != wanted and first_bad[r, POSITION] < 0:
                first_bad[r, POSITION] = 4 * length + t
            wrong_span = (
                span < 0 or t + span >= extent or (not begins and span != np.int64(rows[r, 3, t - 1]) - 1)
            )
            if wrong_span and first_bad[r, SPAN] < 0:
                first_bad[r, SPAN] = 3 * length + t
            if mask == 1:
                real[r] += 1
                eos[r] += label == eos_id
                if span > 0 and t + 1 < length and label != rows[r, 0, t + 1] and first_bad[r, SHIFT] < 0:
                    first_bad[r, SHIFT] = 2 * length + t
                if token == eos_id and first_bad[r, CROSSING] < 0:
                    first_bad[r, CROSSING] = length + t


@_jit
def scan_stream(
    tokens: npt.NDArray[Any],
    start: int,
    bucket_tokens: int,
    vocab_size: int,
    eos_id: int,
    ends: npt.NDArray[np.uint64],
) -> tuple[int, int]:
    """Check a stretch of a stream whose first token is at position `start`; (first index outside the vocabulary or -1, EOS tokens)."""
    bad, eos = -1, 0
    for t in range(len(tokens)):
        token = np.int64(tokens[t])
        if (token < 0 or token >= vocab_size) and bad < 0:
            bad = t
        if token == eos_id:
            eos += 1
            ends[(start + t) // bucket_tokens] += _mix(np.uint64(start + t))
    return bad, eos


@_jit
def subtract_positions(
    positions: npt.NDArray[np.uint64], bucket_tokens: int, num_inputs: int, ends: npt.NDArray[np.uint64]
) -> None:
    """Take stream positions out of the print that `scan_samples` or `scan_stream` added them to.

    num_inputs: positions that are somebody's input. The one behind them, the stream's last label, is in the last input's bucket.
    """
    for k in range(len(positions)):
        ends[min(positions[k], np.uint64(num_inputs - 1)) // np.uint64(bucket_tokens)] -= _mix(positions[k])
