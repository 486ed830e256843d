"""A small stream that is in memory, as formats see it: for measuring how long a format takes and how large it
is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.formats.columns import Columns
from btlm_data.formats.shard_formats.base import Int64Array


class SampleStream(msgspec.Struct, frozen=True):
    """StreamAccess to `tokens` (T,), documents with an EOS each. starts, lengths (n,): of each, without its
    EOS.

    The stream is its own one block.
    """

    tokens: npt.NDArray[Any]
    starts: Int64Array
    lengths: Int64Array

    @staticmethod
    def of(blocks: Sequence[Columns], eos_id: int) -> SampleStream:
        """All documents of some .tokens files (blocks.py), in source order."""
        from btlm_data.kernels.packing import place_documents

        lengths = [block["lengths"].astype(np.int64) for block in blocks] or [np.empty(0, np.int64)]
        joined = np.concatenate(lengths)
        starts = np.cumsum(joined + 1) - joined - 1
        dtype = blocks[0]["tokens"].dtype if blocks else np.dtype(np.uint16)
        tokens = np.empty(int((joined + 1).sum()), dtype)
        first = 0
        for block, sizes in zip(blocks, lengths, strict=False):
            document_starts = starts[first : first + len(sizes)]
            place_documents(
                block["tokens"], block["starts"].astype(np.int64), sizes, document_starts, tokens, eos_id
            )
            first += len(sizes)
        return SampleStream(tokens, starts, joined)

    def stretch(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Tokens [start, stop), (stop - start,). The dtype is that of the tokens."""
        return self.tokens[start:stop]

    def samples(self, samples: Int64Array, length: int, total: int) -> npt.NDArray[Any]:
        """Row r is stream[samples[r]*L : samples[r]*L + L + 1], 0 after the end, (m, L+1). samples: (m,)
        int64; the dtype of the result is that of the tokens.
        """
        positions = samples[:, None] * length + np.arange(length + 1)
        return np.where(positions < total, self.tokens[np.minimum(positions, total - 1)], 0).astype(
            self.tokens.dtype
        )

    def documents(self, start: int, stop: int) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Block, first token in the block, and length of the documents that begin in [start, stop). Each is
        (n,) int64.
        """
        first, last = np.searchsorted(self.starts, [start, stop]).tolist()
        starts = self.starts[first:last]
        return np.zeros(len(starts), np.int64), starts, self.lengths[first:last]

    def tokens_of_block(self, block: int, starts: Int64Array, lengths: Int64Array) -> npt.NDArray[Any]:
        """All tokens. Returns (tokens,) in the dtype of the tokens."""
        return self.tokens


class PackedColumns(msgspec.Struct, frozen=True):
    """What `ShardFormat.pack` made, without a file."""

    columns: Mapping[str, npt.NDArray[Any]]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.columns[name]

    def rows(self, name: str, first: int, last: int) -> npt.NDArray[Any]:
        """Entries [first, last) of a column. Returns (last - first, ...) in the dtype of the column."""
        return self.columns[name][first:last]
