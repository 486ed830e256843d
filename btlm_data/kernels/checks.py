"""Read tokens once and say where they break the rules of their layout.

Two kinds of answer come back: per row, the first position that breaks each rule (SAMPLE_RULES, VSL_RULES),
and *prints*: sums of 64-bit hashes in buckets, by which facts that are in different files are compared
without holding either side in memory. A print is zero where each fact was added on one side and subtracted on
the other; 2^-64 is the chance of a zero in spite of a difference. Plain twins of every kernel are in
tests/reference/checks.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_below

# Rules a row can break, by their column in the result.
MASK_VALUE, MASK_ORDER, PADDING, SHIFT, TOKEN = range(5)
SAMPLE_RULES = 5
SPAN, POSITION, CROSSING = range(5, 8)  # vsl only
VSL_RULES = 8


class Vocabulary(NamedTuple):
    """Ids are [0, size); eos_id ends documents (-1: unknown)."""

    size: int
    eos_id: int


class Prints(NamedTuple):
    """ends, borders: (buckets,) uint64 sums. bucket: how many samples (of a stream: tokens) one bucket stands
    for.
    """

    ends: npt.NDArray[np.uint64]
    borders: npt.NDArray[np.uint64]
    bucket: int


class RowChecks(NamedTuple):
    """What reading rows found, one entry a row, all int64.

    first_bad (n, rules): plane * L + position of the first break of each rule, -1 if none. real: positions
    with mask 1. eos: real inputs (vsl: labels) that are EOS. used: positions in documents (vsl; elsewhere
    those with mask 1).
    """

    first_bad: npt.NDArray[np.int64]
    real: npt.NDArray[np.int64]
    eos: npt.NDArray[np.int64]
    used: npt.NDArray[np.int64]


def _no_checks(num_rows: int, num_rules: int) -> RowChecks:
    empty = (np.zeros(num_rows, np.int64) for _ in range(3))
    return RowChecks(np.full((num_rows, num_rules), -1, np.int64), *empty)


def _native(rows: npt.NDArray[Any], shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
    """`rows`, of the machine's byte order. Raises ValueError where they are no integers or of another shape
    (None: any size).
    """
    fits = rows.ndim == len(shape) and all(b in (None, a) for a, b in zip(rows.shape, shape, strict=True))
    if not fits or rows.dtype.kind not in "iu":
        raise ValueError(f"rows of {rows.dtype} and shape {rows.shape}: integers of shape {shape} are needed")
    return rows.astype(rows.dtype.newbyteorder("="), copy=False)


@jit
def _mix(value: np.uint64) -> np.uint64:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014)."""
    z = value + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def scan_samples(
    rows: npt.NDArray[Any],
    order: npt.NDArray[np.int64],
    num_samples: int,
    vocabulary: Vocabulary,
    prints: Prints,
) -> RowChecks:
    """Check sample rows (n, 3, L) of any integer dtype and add what must match elsewhere to the prints.

    order (n,): each row's number in the stream of num_samples samples, or -1 where that is unknown (nothing
    is then added). Rules: MASK_ORDER is a 1 after a 0; PADDING a value other than 0 where the mask is 0;
    SHIFT a label other than the next input where both positions are real; TOKEN an id outside the vocabulary
    on a real position. Bucket i // prints.bucket of `ends` gains every real input's stream position that is
    EOS (and the stream's very last label); that of `borders` gains (i, first input of sample i) and loses (i
    + 1, last label of i). Raises DataError for a sample outside the stream, ValueError for rows of another
    shape.
    """
    rows = _native(rows, (None, 3, None))
    _check_buckets(order, num_samples, prints)
    if order.shape != (len(rows),):
        raise ValueError(f"{len(rows)} rows and {len(order)} numbers of samples")
    result = _no_checks(len(rows), SAMPLE_RULES)
    _scan_samples(rows, order, num_samples, vocabulary, prints, result)
    return result


def _check_buckets(order: npt.NDArray[np.int64], num_samples: int, prints: Prints) -> None:
    """Every sample of the stream has a bucket, and every number in `order` is a sample's or -1."""
    check_below(order + 1, num_samples + 1, "1 more than the sample of row")
    if num_samples > prints.bucket * min(len(prints.ends), len(prints.borders)):
        raise ValueError(f"{num_samples} samples, {prints.bucket} a bucket, in {len(prints.ends)} buckets")


@jit
def _scan_samples(
    rows: npt.NDArray[Any],
    order: npt.NDArray[np.int64],
    num_samples: int,
    vocabulary: Vocabulary,
    prints: Prints,
    result: RowChecks,
) -> None:
    first_bad, real, eos = result.first_bad, result.real, result.eos
    vocab_size, eos_id = vocabulary.size, vocabulary.eos_id
    ends, borders, bucket_samples = prints.ends, prints.borders, prints.bucket
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


def scan_vsl(rows: npt.NDArray[Any], vocabulary: Vocabulary) -> RowChecks:
    """Check VSL rows (n, 5, L). Raises ValueError for rows of another shape.

    A part of a document runs from position id 0 to attention span 0: ids go up by one and spans down by one
    (POSITION, SPAN). What follows the last masked or numbered position is padding. MASK_ORDER: a 0 before
    that. CROSSING: an input that is EOS and is trained to predict what follows. Here eos counts real
    *labels*: in our layout no document's EOS is anybody's input. rows: any integer dtype.
    """
    rows = _native(rows, (None, 5, None))
    result = _no_checks(len(rows), VSL_RULES)
    _scan_vsl(rows, vocabulary, result)
    return result


@jit
def _scan_vsl(rows: npt.NDArray[Any], vocabulary: Vocabulary, result: RowChecks) -> None:
    first_bad, real, eos, used = result.first_bad, result.real, result.eos, result.used
    vocab_size, eos_id = vocabulary.size, vocabulary.eos_id
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


def scan_stream(
    tokens: npt.NDArray[Any], start: int, vocabulary: Vocabulary, prints: Prints
) -> tuple[int, int]:
    """Check a stretch of a stream whose first token is at position `start`, and add its ends to the prints.

    Returns (first index outside the vocabulary or -1, EOS tokens). Raises DataError for a position without a
    bucket. tokens: (n,) of any integer dtype.
    """
    tokens = _native(tokens, (None,))
    check_below(np.array([start, start + len(tokens) - 1]), prints.bucket * len(prints.ends), "Position")
    bad, eos = _scan_stream(tokens, start, vocabulary, prints)
    return int(bad), int(eos)


@jit
def _scan_stream(
    tokens: npt.NDArray[Any], start: int, vocabulary: Vocabulary, prints: Prints
) -> tuple[int, int]:
    vocab_size, eos_id, ends, bucket_tokens = vocabulary.size, vocabulary.eos_id, prints.ends, prints.bucket
    bad, eos = -1, 0
    for t in range(len(tokens)):
        token = np.int64(tokens[t])
        if (token < 0 or token >= vocab_size) and bad < 0:
            bad = t
        if token == eos_id:
            eos += 1
            ends[(start + t) // bucket_tokens] += _mix(np.uint64(start + t))
    return bad, eos


def subtract_positions(positions: npt.NDArray[np.uint64], num_inputs: int, prints: Prints) -> None:
    """Take stream positions out of the print of ends that `scan_samples` or `scan_stream` added them to.

    prints.bucket: stream positions of a bucket. num_inputs: positions that are some row's input. The one
    after them, the stream's last label, is in the last input's bucket. Raises DataError for a position
    after that. positions: (n,) uint64.
    """
    check_below(positions, num_inputs + 1, "End of document")
    if num_inputs > prints.bucket * len(prints.ends):
        raise ValueError(f"{num_inputs} positions, {prints.bucket} a bucket, in {len(prints.ends)} buckets")
    _subtract_positions(positions, prints.bucket, max(1, num_inputs), prints.ends)


@jit
def _subtract_positions(
    positions: npt.NDArray[np.uint64], bucket_tokens: int, num_inputs: int, ends: npt.NDArray[np.uint64]
) -> None:
    for k in range(len(positions)):
        ends[min(positions[k], np.uint64(num_inputs - 1)) // np.uint64(bucket_tokens)] -= _mix(positions[k])
