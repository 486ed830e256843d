"""The format `corpus`: the token stream itself, one number a token; one copy serves any sequence length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
from btlm_data.formats.shard_formats.writer import (
    BATCH_UNITS,
    ElementType,
    ShardInfo,
    ShardOptions,
    ShardWriter,
)

if TYPE_CHECKING:
    from btlm_data.kernels.checks import Prints, Vocabulary


CHUNK = 8192  # tokens: a sample of 2,048 touches one or two chunks


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

    def packed_bytes(self, size: StreamSize, packing: Packing) -> int:
        """None."""
        return 0

    def num_pieces(self, size: StreamSize, packing: Packing) -> int:
        """One for each document and each shard that a document runs over."""
        return size.documents + self.plan(size, packing, ()).num_files

    def pack(self, stretch: Stretch, size: StreamSize, packing: Packing, stream: StreamAccess) -> Packed:
        """Never requested."""
        raise NotImplementedError

    def pieces(self, offsets: Int64Array, lengths: Int64Array, size: StreamSize, packing: Packing) -> Pieces:
        """Documents, cut where shards begin: a row is a token. offsets, lengths: (n,) int64."""
        plan = self.plan(size, packing, ())
        cut, begin = pieces.cut(offsets, lengths, plan.rows_per_file, 0, plan.num_files)
        return cut._replace(row=begin, column=np.zeros(len(begin), np.int64))

    def packed_pieces(
        self, packed: PackedFile, number: int, size: StreamSize, packing: Packing, packed_rows: Sequence[int]
    ) -> PackedPieces:
        """Never requested."""
        raise NotImplementedError

    def plan(self, size: StreamSize, packing: Packing, packed_rows: Sequence[int]) -> RowPlan:
        """A row a token; shards end at multiples of samples_per_file sequences."""
        return RowPlan(size.tokens, packing.samples_per_file * packing.seq_len)

    def phase_rows(self, size: StreamSize, packing: Packing, packed_rows: Sequence[int]) -> tuple[int, ...]:
        """The borders themselves: a row is a token."""
        return packing.borders

    def tokens_needed(self, rows: tuple[int, int], size: StreamSize, packing: Packing) -> tuple[int, int]:
        """The rows themselves."""
        return rows

    def write(
        self,
        file: BinaryIO,
        shard: Shard,
        stream: StreamAccess,
        packed: Sequence[PackedFile],
        sent: Iterable[PackedFile] | None = None,
    ) -> ShardInfo:
        """Write one shard of the stream."""
        (first, last), packing = shard.rows, shard.packing
        tokens = (
            pieces.put_together(sent, shard.rows, 1, last - first, packing.dtype)
            if sent is not None
            else stream.stretch(first, last)
        )
        return write_corpus(file, tokens, None, packing.storage)

    def balance(self, size: StreamSize, packing: Packing) -> Balance:
        """Every token is kept."""
        return Balance(size.tokens, {})

    def check(
        self, rows: npt.NDArray[Any], context: RowContext, vocabulary: Vocabulary, prints: Prints
    ) -> Checked:
        """Ids; the print of ends gains the ends of documents. rows: (n,) of any integer dtype."""
        from btlm_data.kernels.checks import scan_stream

        if not context.is_known:
            prints = prints._replace(bucket=2**62)  # all in one bucket, which is not looked at
        bad, ends = scan_stream(rows, context.first, vocabulary, prints)
        faults = [] if bad < 0 else [RowFaults("token", np.array([bad]), np.zeros(1, np.int64))]
        return Checked(faults, len(rows), ends)


def write_corpus(
    file: BinaryIO,
    tokens: npt.NDArray[Any] | Iterable[npt.NDArray[Any]],
    total: int | None = None,
    options: ShardOptions | None = None,
) -> ShardInfo:
    """Write a token stream as a corpus shard into an empty file, open for reading and writing.

    tokens: one 1-D array, or arrays that hold `total` tokens together, in order. tokens: (t,) of an integer
    dtype, or pieces of it in order.
    """
    options = options or ShardOptions(dtype="uint16")
    if isinstance(tokens, np.ndarray):
        total, tokens = len(tokens), [tokens]
    if total is None:
        raise ValueError("`total` tells how many tokens the arrays hold together; give it.")
    chunk = max(1, min(total, CHUNK))
    written = 0
    with ShardWriter(file, (total,), (chunk,), options) as writer:
        for piece in _regrouped(tokens, chunk * (BATCH_UNITS // chunk), np.dtype(options.dtype)):
            written += len(piece)
            if options.compression == "gzip" and len(piece) % chunk:
                # The last chunk is stored whole; what is beyond the dataset is never read.
                piece = np.pad(piece, (0, -len(piece) % chunk))
            writer.add(piece.reshape(-1, chunk) if options.compression == "gzip" else piece)
        if written != total:
            raise ValueError(
                f"the arrays hold {written} tokens, not the announced {total}. Announce what they hold."
            )
    return writer.info(total)


def _regrouped(
    arrays: Iterable[npt.NDArray[Any]], size: int, dtype: np.dtype[Any]
) -> Iterator[npt.NDArray[Any]]:
    """The same elements in pieces of exactly `size`, the last one shorter."""
    piece, filled = np.empty(size, dtype), 0
    for array in arrays:
        taken = 0
        while taken < len(array):
            count = min(size - filled, len(array) - taken)
            piece[filled : filled + count] = array[taken : taken + count]
            taken, filled = taken + count, filled + count
            if filled == size:
                yield piece
                piece, filled = np.empty(size, dtype), 0
    if filled:
        yield piece[:filled]


FORMAT = CorpusFormat()
