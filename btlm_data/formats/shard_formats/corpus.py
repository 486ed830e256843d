"""The format `corpus`: the token stream itself, one number a token; one copy serves any sequence length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from btlm_data.formats.shard_formats.base import (
    Balance,
    Checked,
    Packed,
    PackedFile,
    Packing,
    RowFaults,
    RowPlace,
    RowPlan,
    Shard,
    StreamAccess,
    StreamSize,
    Stretch,
)
from btlm_data.formats.shard_formats.writer import ElementType, ShardInfo, write_corpus

if TYPE_CHECKING:
    from btlm_data.kernels.checks import Prints, Vocabulary


class CorpusFormat:
    """See the module."""

    name = "corpus"
    planes = ()
    rules = ("token",)
    follows_stream = True
    plans_by_packing = False

    def element_type(self, chosen: ElementType, token_dtype: str) -> ElementType:
        """The tokens' own type where readers know it."""
        return "uint16" if token_dtype == "uint16" else "int32"

    def stretches(self, size: StreamSize, packing: Packing, memory: int) -> list[Stretch]:
        """None: a shard is a stretch of the stream."""
        return []

    def pack(self, stretch: Stretch, size: StreamSize, packing: Packing, stream: StreamAccess) -> Packed:
        """Never asked for."""
        raise NotImplementedError

    def plan(self, size: StreamSize, packing: Packing, packed_rows: Sequence[int]) -> RowPlan:
        """A row a token; shards end at multiples of samples_per_file sequences."""
        return RowPlan(size.tokens, packing.samples_per_file * packing.seq_len)

    def tokens_needed(self, rows: tuple[int, int], size: StreamSize, packing: Packing) -> tuple[int, int]:
        """The rows themselves."""
        return rows

    def write(
        self, file: BinaryIO, shard: Shard, stream: StreamAccess, packed: Sequence[PackedFile]
    ) -> ShardInfo:
        """Write one shard of the stream."""
        return write_corpus(file, stream.stretch(*shard.rows), None, shard.packing.storage)

    def balance(self, size: StreamSize, packing: Packing) -> Balance:
        """Every token is kept."""
        return Balance(size.tokens, {})

    def check(
        self, rows: npt.NDArray[Any], place: RowPlace, vocabulary: Vocabulary, prints: Prints
    ) -> Checked:
        """Ids; the print of ends gains the ends of documents."""
        from btlm_data.kernels.checks import scan_stream

        if not place.is_known:
            prints = prints._replace(bucket=2**62)  # all in one bucket, which nobody looks at
        bad, ends = scan_stream(rows, place.first, vocabulary, prints)
        faults = [] if bad < 0 else [RowFaults("token", np.array([bad]), np.zeros(1, np.int64))]
        return Checked(faults, len(rows), ends)


FORMAT = CorpusFormat()
