"""The format `corpus`: the token stream itself, one number a token; one copy serves any sequence length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from btlm_data.formats.shard_formats.base import (
    Balance,
    Int64Array,
    Packed,
    PackedFile,
    Packing,
    RowPlan,
    Shard,
    StreamAccess,
    StreamSize,
    Stretch,
)
from btlm_data.formats.shard_formats.writer import ElementType, ShardInfo, write_corpus

if TYPE_CHECKING:
    from btlm_data.kernels.checks import Prints, RowChecks, Vocabulary


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
        self,
        rows: npt.NDArray[Any],
        order: Int64Array,
        num_samples: int,
        vocabulary: Vocabulary,
        prints: Prints,
    ) -> RowChecks:
        """Ids; the print of ends gains the ends of documents. order: of consecutive tokens, -1 where unknown."""
        from btlm_data.kernels.checks import RowChecks, scan_stream

        start = int(order[0]) if len(order) else 0
        if start < 0:  # ends are of no use then, and have room in no bucket
            start, prints = 0, prints._replace(bucket=2**62)
        bad, eos = scan_stream(rows, start, vocabulary, prints)
        first_bad = np.full((len(rows), 1), -1, np.int64)
        if bad >= 0:
            first_bad[bad] = 0
        ones, ends = np.ones(len(rows), np.int64), np.zeros(len(rows), np.int64)
        ends[:1] = eos
        return RowChecks(first_bad, ones, ends, ones)


FORMAT = CorpusFormat()
