"""A format that is not ours: (n, 2, L) inputs and labels without a mask; a short last sample is left out.

What a new format takes: this file, and one line in FORMATS (tests/formats/test_new_format.py adds it).
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
)
from btlm_data.formats.shard_formats.writer import ElementType, ShardInfo, ShardWriter

if TYPE_CHECKING:
    from btlm_data.kernels.checks import Prints, Vocabulary


class PairsFormat:
    name = "pairs"
    planes = ("input_ids", "labels")
    rules = ("shift", "token")
    follows_stream = False  # to keep it short: what only all files together show is not checked
    plans_by_packing = False

    def element_type(self, chosen: ElementType, token_dtype: str) -> ElementType:
        return chosen

    def stretches(self, size: StreamSize, packing: Packing, memory: int) -> list[Stretch]:
        return []

    def packed_bytes(self, size: StreamSize, packing: Packing) -> int:
        return 0

    def pack(self, stretch: Stretch, size: StreamSize, packing: Packing, stream: StreamAccess) -> Packed:
        raise NotImplementedError

    def pieces(self, offsets: Int64Array, lengths: Int64Array, size: StreamSize, packing: Packing) -> Pieces:
        plan = self.plan(size, packing, ())
        cut, _ = pieces.cut(offsets, lengths, packing.seq_len, 1, plan.rows)
        if packing.is_shuffled:
            order = packing.order(plan.rows, self.phase_rows(size, packing, ()))
            cut = cut._replace(row=order.rows_of(cut.row).astype(np.int64))
        return cut

    def packed_pieces(
        self, packed: PackedFile, number: int, size: StreamSize, packing: Packing, packed_rows: Sequence[int]
    ) -> PackedPieces:
        raise NotImplementedError

    def num_pieces(self, size: StreamSize, packing: Packing) -> int:
        return size.documents + size.tokens // packing.seq_len

    def plan(self, size: StreamSize, packing: Packing, packed_rows: Sequence[int]) -> RowPlan:
        return RowPlan((size.tokens - 1) // packing.seq_len, packing.samples_per_file)

    def phase_rows(self, size: StreamSize, packing: Packing, packed_rows: Sequence[int]) -> tuple[int, ...]:
        count = self.plan(size, packing, packed_rows).rows
        return tuple(min(-(-border // packing.seq_len), count) for border in packing.borders)

    def tokens_needed(self, rows: tuple[int, int], size: StreamSize, packing: Packing) -> tuple[int, int]:
        return 0, size.tokens

    def write(
        self,
        file: BinaryIO,
        shard: Shard,
        stream: StreamAccess,
        packed: Sequence[PackedFile],
        sent: Iterable[PackedFile] | None = None,
    ) -> ShardInfo:
        (first, last), packing = shard.rows, shard.packing
        length = packing.seq_len
        if sent is not None:
            count = (last - first) * (length + 1)
            tokens = pieces.put_together(sent, shard.rows, length + 1, count, packing.dtype)
            tokens = tokens.reshape(-1, length + 1)
        else:
            samples = np.arange(first, last, dtype=np.int64)
            if packing.is_shuffled:
                ends = self.phase_rows(shard.size, packing, ())
                samples = packing.order(shard.plan.rows, ends).samples_at(samples).astype(np.int64)
            tokens = stream.samples(samples, length, shard.size.tokens)
        shape = (2, packing.seq_len)
        with ShardWriter(file, (last - first, *shape), (1, *shape), packing.storage) as writer:
            writer.add(np.stack([tokens[:, :-1], tokens[:, 1:]], axis=1))
        return writer.info(tokens[:, 1:].size)

    def balance(self, size: StreamSize, packing: Packing) -> Balance:
        kept = (size.tokens - 1) // packing.seq_len * packing.seq_len
        return Balance(kept, {"first_token_is_no_label": 1, "unfilled_tail": size.tokens - 1 - kept})

    def check(
        self, rows: npt.NDArray[Any], place: RowContext, vocabulary: Vocabulary, prints: Prints
    ) -> Checked:
        shifted = (rows[:, 1, :-1] != rows[:, 0, 1:]).any(axis=1)
        outside = (rows >= vocabulary.size).any(axis=(1, 2))
        faults = [
            RowFaults(rule, wrong, np.zeros(len(wrong), np.int64))
            for rule, wrong in (("shift", np.flatnonzero(shifted)), ("token", np.flatnonzero(outside)))
            if len(wrong)
        ]
        return Checked(faults, rows[:, 1].size, int((rows[:, 1] == vocabulary.eos_id).sum()))


FORMAT = PairsFormat()
