"""The format `sample`: (n, 3, L) input_ids, attention_mask, labels; sample i takes stream[i*L : (i+1)*L + 1].

The attention mask is 1 on real positions and serves as the loss mask. Only the stream's last sample can be
padded: 0 in all planes. A shard's samples come from one of two places, with the same bytes: where the stream's
tokens fit in memory (the page cache), the shard takes them from the stream, wherever they stand; else documents
were cut into the pieces that samples have of them, and sent to the shard (pieces.py).

Ledger: tokens in = label positions + 1 (a stream's first token is never a label) + the dropped tail.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from btlm_data.formats.shard_formats import pieces
from btlm_data.formats.shard_formats.base import (
    Balance,
    Checked,
    Int64Array,
    Packed,
    PackedFile,
    PackedPieces,
    Packing,
    Pieces,
    RowContext,
    RowFaults,
    RowPlan,
    Shard,
    StreamAccess,
    StreamSize,
    Stretch,
    faults_of,
)
from btlm_data.formats.shard_formats.order import SampleOrder
from btlm_data.formats.shard_formats.writer import (
    BATCH_UNITS,
    ElementType,
    ShardInfo,
    ShardOptions,
    ShardWriter,
    sample_planes,
)

if TYPE_CHECKING:
    from btlm_data.kernels.checks import Prints, Vocabulary

_OURS = frozenset({"mask order", "padding"})  # rules that other writers need not keep


class SampleFormat:
    """See the module."""

    name = "sample"
    planes = ("input_ids", "attention_mask", "labels")
    rules = ("mask value", "mask order", "padding", "shift", "token")
    follows_stream = True
    plans_by_packing = False

    def element_type(self, chosen: ElementType, token_dtype: str) -> ElementType:
        """The recipe's choice."""
        return chosen

    def stretches(self, size: StreamSize, packing: Packing, memory: int) -> list[Stretch]:
        """None."""
        return []

    def packed_bytes(self, size: StreamSize, packing: Packing) -> int:
        """None."""
        return 0

    def num_pieces(self, size: StreamSize, packing: Packing) -> int:
        """One for each document and each sample."""
        return size.documents + _num_samples(size, packing)

    def pack(self, stretch: Stretch, size: StreamSize, packing: Packing, stream: StreamAccess) -> Packed:
        """Never requested."""
        raise NotImplementedError

    def pieces(self, offsets: Int64Array, lengths: Int64Array, size: StreamSize, packing: Packing) -> Pieces:
        """Documents, cut where samples begin, and where these go. The first token of a sample is the last label of the one before.
        offsets, lengths: (n,) int64.
        """
        cut, _ = pieces.cut(offsets, lengths, packing.seq_len, 1, _num_samples(size, packing))
        if packing.is_shuffled:
            cut = cut._replace(row=self._order(size, packing).rows_of(cut.row).astype(np.int64))
        return cut

    def packed_pieces(
        self, packed: PackedFile, number: int, size: StreamSize, packing: Packing, packed_rows: Sequence[int]
    ) -> PackedPieces:
        """Never requested."""
        raise NotImplementedError

    def plan(self, size: StreamSize, packing: Packing, packed_rows: Sequence[int]) -> RowPlan:
        """One row a sample, the padded one included."""
        return RowPlan(_num_samples(size, packing), packing.samples_per_file)

    def phase_rows(self, size: StreamSize, packing: Packing, packed_rows: Sequence[int]) -> tuple[int, ...]:
        """The sample that a border is in belongs to the phase before it."""
        count = _num_samples(size, packing)
        ends = [min(-(-border // packing.seq_len), count) for border in packing.borders]
        return (*ends[:-1], count) if ends else ()

    def _order(self, size: StreamSize, packing: Packing) -> SampleOrder:
        return packing.order(_num_samples(size, packing), self.phase_rows(size, packing, ()))

    def tokens_needed(self, rows: tuple[int, int], size: StreamSize, packing: Packing) -> tuple[int, int]:
        """Of shuffled samples: any."""
        return (0, size.tokens) if packing.is_shuffled else _tokens_of(rows, size, packing.seq_len)

    def write(
        self,
        file: BinaryIO,
        shard: Shard,
        stream: StreamAccess,
        packed: Sequence[PackedFile],
        sent: Iterable[PackedFile] | None = None,
    ) -> ShardInfo:
        """Write one shard of samples."""
        (first, last), packing = shard.rows, shard.packing
        length, labels = packing.seq_len, shard.size.tokens - 1
        real: Int64Array | None = None
        # Only the stream's last sample can be short, so only its row is looked up.
        last_sample = shard.plan.rows - 1
        short = labels - last_sample * length
        missing = 0
        if short < length:
            row = last_sample
            if packing.is_shuffled:
                row = int(self._order(shard.size, packing).rows_of(np.array([last_sample]))[0])
            if first <= row < last:
                real = np.full(last - first, length, np.int64)
                real[row - first], missing = short, length - short
        if sent is not None:
            num_tokens = (last - first) * (length + 1) - missing
            rows = pieces.put_together(sent, shard.rows, length + 1, num_tokens, packing.dtype)
            rows = rows.reshape(last - first, length + 1)
        elif packing.is_shuffled:
            samples = self._order(shard.size, packing).samples_at(np.arange(first, last))
            rows = stream.samples(samples.astype(np.int64), length, shard.size.tokens)
        else:
            rows = cut_rows(stream.stretch(*_tokens_of(shard.rows, shard.size, length)), last - first, length)
        return write_samples(file, rows, real, packing.storage)

    def balance(self, size: StreamSize, packing: Packing) -> Balance:
        """All tokens but the first are labels; a tail may be dropped."""
        kept = min(size.tokens - 1, _num_samples(size, packing) * packing.seq_len)
        return Balance(kept, {"first_token_is_no_label": 1, "unfilled_tail": size.tokens - 1 - kept})

    def check(
        self, rows: npt.NDArray[Any], context: RowContext, vocabulary: Vocabulary, prints: Prints
    ) -> Checked:
        """Masks, padding, label shift, ids; the prints gain ends of documents and borders of samples. rows:
        (n, 3, L) of any integer dtype.
        """
        from btlm_data.kernels.checks import scan_samples

        length = rows.shape[2]
        order = np.full(len(rows), -1, np.int64)
        if context.is_known:
            order = (
                np.arange(context.first, context.first + len(rows))
                if context.order is None
                else context.order
            )
        result = scan_samples(rows, order, max(1, context.num_samples), vocabulary, prints)
        faults = faults_of(result, self.rules, frozenset() if context.is_ours else _OURS)
        if context.is_known:
            expected = np.clip(context.num_labels - order * length, 0, length)
            wrong = np.flatnonzero(result.real != expected)
            if len(wrong):
                codes = length + np.minimum(result.real, expected)[wrong]
                faults.append(RowFaults("real", wrong, codes))
        return Checked(faults, int(result.real.sum()), int(result.eos.sum()))


def write_samples(
    file: BinaryIO,
    rows: npt.NDArray[Any],
    num_real: npt.NDArray[np.int64] | None = None,
    options: ShardOptions | None = None,
) -> ShardInfo:
    """Write a sample shard into an empty file, open for reading and writing.

    rows: (n, L+1) uint16 or uint32, any strides: the L inputs of a sample and the label of its last position,
    L >= 1. num_real: (n,) how many label positions of each row are real; from there on all three planes are 0
    (all L by default; rows' values there do not matter).
    """
    options = options or ShardOptions()
    n, length = rows.shape[0], rows.shape[1] - 1
    full = np.ones(n, bool) if num_real is None else num_real >= length
    with ShardWriter(file, (n, 3, length), (1, 3, length), options) as writer:
        if writer.is_plain and options.dtype == "int32":
            step = max(1, BATCH_UNITS // (length + 1))
            for start in range(0, n, step):
                writer.add_samples(rows[start : start + step], full[start : start + step], num_real, start)
        else:
            step = max(1, BATCH_UNITS // (3 * length))
            for start in range(0, n, step):
                writer.add(
                    sample_planes(
                        rows[start : start + step],
                        None if num_real is None else num_real[start : start + step],
                    )
                )
    return writer.info(n * length if num_real is None else int(num_real.sum()))


def cut_rows(stream: npt.NDArray[Any], num_rows: int, length: int) -> npt.NDArray[Any]:
    """Row i is stream[i*L : (i+1)*L + 1], (num_rows, L+1), a view where the stream is long enough, else
    padded with 0. The dtype is that of `stream`, (t,).
    """
    needed = num_rows * length + 1
    if len(stream) < needed:
        stream = np.concatenate([stream, np.zeros(needed - len(stream), stream.dtype)])
    return np.lib.stride_tricks.as_strided(
        stream, (num_rows, length + 1), (length * stream.itemsize, stream.itemsize), writeable=False
    )


def _num_samples(size: StreamSize, packing: Packing) -> int:
    labels = max(0, size.tokens - 1)
    return -(-labels // packing.seq_len) if packing.tail == "pad" else labels // packing.seq_len


def _tokens_of(rows: tuple[int, int], size: StreamSize, length: int) -> tuple[int, int]:
    return rows[0] * length, min(rows[1] * length + 1, size.tokens)


FORMAT = SampleFormat()
