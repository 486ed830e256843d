"""What a format of shards is: how a token stream becomes rows, how rows are written, checked and counted.

A format knows nothing of tasks, stages or folders. The stages (stages/pack.py, stages/shard.py) ask it what
is to be done, hand it the part of the stream that it requested, and give it an open file to write. So a new
format is one file beside this one, one line in __init__.py, and its tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.formats.shard_formats.order import SampleOrder, sample_purpose
from btlm_data.formats.shard_formats.writer import ElementType, ShardInfo, ShardOptions

if TYPE_CHECKING:
    from btlm_data.kernels.checks import Prints, RowChecks, Vocabulary

Int64Array = npt.NDArray[np.int64]


class StreamSize(NamedTuple):
    """A split's token stream in numbers: tokens (each document's and its EOS), documents."""

    tokens: int
    documents: int


class Packing(msgspec.Struct, frozen=True):
    """Everything that decides how one split's stream becomes rows, and rows become files.

    split, seed: of the order of samples, where is_shuffled. samples_per_file: rows of seq_len tokens in one
    shard. max_documents: of one sample (0: any number). dtype: of the stream's tokens. borders: where the phases of
    a mix end, in tokens of the stream; () where there is one.
    """

    seq_len: int
    split: str
    samples_per_file: int
    tail: Literal["pad", "drop"]
    is_shuffled: bool
    seed: int
    max_documents: int
    eos_id: int
    dtype: str
    storage: ShardOptions = msgspec.field(default_factory=ShardOptions)
    borders: tuple[int, ...] = ()

    def order(self, num_samples: int, ends: tuple[int, ...] = ()) -> SampleOrder:
        """The order of samples, where is_shuffled. ends: see SampleOrder."""
        return SampleOrder(num_samples, self.seed, sample_purpose(self.seq_len, self.split), ends)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Packing:
        """Inverse of to_json."""
        borders = tuple(value.get("borders", ()))
        return Packing(**{**value, "storage": ShardOptions(**value["storage"]), "borders": borders})


class Stretch(NamedTuple):
    """A part of the stream that is packed on disk before shards are written. rows: [first, last) where known,
    else 0, 0.

    tokens: [start, stop) of the stream.
    """

    rows: tuple[int, int]
    tokens: tuple[int, int]


class RowPlan(NamedTuple):
    """How many rows a split has (of a stream: tokens), and how many are in one file."""

    rows: int
    rows_per_file: int

    @property
    def num_files(self) -> int:
        """Shards."""
        return -(-self.rows // self.rows_per_file)

    def file_name(self, number: int) -> str:
        """Name of a shard; wide enough that text order is number order."""
        return f"data-{number:0{max(5, len(str(self.num_files - 1)))}d}.h5"

    def rows_of(self, number: int) -> tuple[int, int]:
        """Rows [first, last) of a shard."""
        return number * self.rows_per_file, min((number + 1) * self.rows_per_file, self.rows)


class Balance(NamedTuple):
    """What becomes of a stream's tokens: kept as label positions (of a stream: as tokens), or dropped, by
    reason.
    """

    kept: int
    dropped: Mapping[str, int]


class StreamAccess(Protocol):
    """The stream of a split, for as much of it as was requested."""

    def stretch(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Tokens [start, stop), (stop - start,). The dtype is that of the tokens."""
        ...

    def samples(self, samples: Int64Array, length: int, total: int) -> npt.NDArray[Any]:
        """Row r is stream[samples[r]*L : samples[r]*L + L + 1] of a stream of `total` tokens, 0 after its
        end, (m, L+1). samples: (m,) int64; the dtype of the result is that of the tokens.
        """
        ...

    def documents(self, start: int, stop: int) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Block, first token in the block, and length (without EOS) of the documents that begin in [start,
        stop). Each is (n,) int64.
        """
        ...

    def tokens_of_block(self, block: int, starts: Int64Array, lengths: Int64Array) -> npt.NDArray[Any]:
        """A block's tokens, of which those in [starts[i], starts[i] + lengths[i]) may be looked at. starts,
        lengths: (n,) int64. Returns (tokens,) in the dtype of the tokens.
        """
        ...


# A piece of a document in a row: where it stands, and how many tokens it has.
PIECE = np.dtype([("row", "<u8"), ("column", "<u4"), ("length", "<u4")])


class Pieces(NamedTuple):
    """Documents cut into the pieces that rows have of them, each (p,) int64. document: which of those that were given; start: first
    token of it, counted from the document's; length: tokens, where the EOS is one too; row, column: where it stands in the split.
    """

    document: Int64Array
    start: Int64Array
    length: Int64Array
    row: Int64Array
    column: Int64Array


class PackedPieces(NamedTuple):
    """The pieces that a packed stretch has, each (p,) int64 (ends: bool). block, start: where the first token is; length: tokens of
    the document, behind which one more belongs to the piece: its EOS where it ends there, else its next token; row, column: where
    it stands in the split.
    """

    block: Int64Array
    start: Int64Array
    length: Int64Array
    ends: npt.NDArray[np.bool_]
    row: Int64Array
    column: Int64Array


class PackedFile(Protocol):
    """What `ShardFormat.pack` made of one stretch, by column; or what one file has of a shard: `pieces`
    (p * 16,) uint8, PIECE each, and `tokens` (bytes,) uint8, their tokens one after the other, in the stream's dtype.
    """

    def __getitem__(self, name: str) -> npt.NDArray[Any]: ...

    def rows(self, name: str, first: int, last: int) -> npt.NDArray[Any]:
        """Entries [first, last) of a column; no others are read. Returns (last - first, ...) in the dtype of
        the column.
        """
        ...


class Packed(NamedTuple):
    """What a stretch became: columns to be kept in a file, and how many rows of the split they fill."""

    columns: Mapping[str, npt.NDArray[Any]]
    rows: int


class RowContext(NamedTuple):
    """What is known about rows being checked. first: number of the first of them in its split.

    is_known: whether rows are where the format puts them, so that what different files hold can be
    compared; then order (n,) is each row's number in the stream (None where that is `first` and on), of
    num_samples; num_labels: label positions of the stream. is_ours: whether btlm-data wrote them; other
    writers may mask what they like.
    """

    first: int
    is_known: bool
    order: Int64Array | None
    num_samples: int
    num_labels: int
    is_ours: bool


class RowFaults(NamedTuple):
    """Rows (k,) that break a rule, counted from the first that was checked; codes (k,): plane * L + position
    of each.
    """

    rule: str
    rows: Int64Array
    codes: Int64Array


class Checked(NamedTuple):
    """What checking rows found. num_labels: label positions (tokens of a stream); num_ends: ends of
    documents.
    """

    faults: list[RowFaults]
    num_labels: int
    num_ends: int


class ShardFormat(Protocol):
    """One format.

    name: in recipes and dataset.json. planes: what a row of seq_len positions holds; () where a row is one
    token of the stream itself. rules: what `check` checks, in the order of its result. follows_stream: rows
    hold the stream in an order that is known without reading them. plans_by_packing: how many rows there are
    is known only after `pack`.

    Where the tokens do not fit in memory, documents are cut and their pieces sent to the shards (stages/pieces.py): by `packed_pieces`
    where plans_by_packing, else by `pieces`.
    """

    name: str
    planes: tuple[str, ...]
    rules: tuple[str, ...]
    follows_stream: bool
    plans_by_packing: bool

    def element_type(self, chosen: ElementType, token_dtype: str) -> ElementType:
        """The type of the numbers in shards. chosen: by the recipe. token_dtype: of the stream."""
        ...

    def stretches(self, size: StreamSize, packing: Packing, memory: int) -> list[Stretch]:
        """What `pack` is to do before shards are written, or []. memory: bytes for one task."""
        ...

    def pieces(self, offsets: Int64Array, lengths: Int64Array, size: StreamSize, packing: Packing) -> Pieces:
        """What rows have of some documents. offsets: of each in the stream; lengths: of each without its EOS; (n,) int64."""
        ...

    def packed_pieces(
        self, packed: PackedFile, number: int, size: StreamSize, packing: Packing, packed_rows: Sequence[int]
    ) -> PackedPieces:
        """What rows have of a packed stretch. number: of the stretch; packed_rows: of each."""
        ...

    def num_pieces(self, size: StreamSize, packing: Packing) -> int:
        """About how many pieces a whole stream is cut into."""
        ...

    def packed_bytes(self, size: StreamSize, packing: Packing) -> int:
        """About how many bytes the files that `pack` writes of a whole stream have."""
        ...

    def pack(self, stretch: Stretch, size: StreamSize, packing: Packing, stream: StreamAccess) -> Packed:
        """Pack one stretch."""
        ...

    def plan(self, size: StreamSize, packing: Packing, packed_rows: Sequence[int]) -> RowPlan:
        """How many rows and files the stream becomes. packed_rows: of each stretch, if plans_by_packing."""
        ...

    def phase_rows(self, size: StreamSize, packing: Packing, packed_rows: Sequence[int]) -> tuple[int, ...]:
        """How many rows there are up to each of the packing's borders (of a stream: tokens). packed_rows: as for
        `plan`.
        """
        ...

    def tokens_needed(self, rows: tuple[int, int], size: StreamSize, packing: Packing) -> tuple[int, int]:
        """Tokens [start, stop) of the stream that `write` needs for some rows, where it gets nothing packed."""
        ...

    def write(
        self,
        file: BinaryIO,
        shard: Shard,
        stream: StreamAccess,
        packed: Sequence[PackedFile],
        sent: Iterable[PackedFile] | None = None,
    ) -> ShardInfo:
        """Write one shard into an empty file, open for reading and writing. packed: what `pack` made of the stretches. sent: the
        pieces of the shard, file by file, where these were sent, to be gone through once; then there is nothing else.
        """
        ...

    def balance(self, size: StreamSize, packing: Packing) -> Balance:
        """What becomes of the stream's tokens, for the ledger."""
        ...

    def check(
        self, rows: npt.NDArray[Any], context: RowContext, vocabulary: Vocabulary, prints: Prints
    ) -> Checked:
        """Check rows by the format's rules, and add what other files must match to the prints
        (kernels/checks.py). rows: (n, planes, L) or (n,) of any integer dtype.
        """
        ...


class Shard(msgspec.Struct, frozen=True):
    """One shard to write. plan, size, packing: of its split. packed_rows: as for `ShardFormat.plan`."""

    number: int
    plan: RowPlan
    size: StreamSize
    packing: Packing
    packed_rows: tuple[int, ...] = ()

    @property
    def rows(self) -> tuple[int, int]:
        """Rows [first, last) of the split."""
        return self.plan.rows_of(self.number)


def row_tokens(shard_format: ShardFormat, seq_len: int) -> int:
    """Positions of the stream in one row."""
    return seq_len if shard_format.planes else 1


def row_shape(shard_format: ShardFormat, seq_len: int) -> tuple[int, ...]:
    """Shape of one row of `data`."""
    return (len(shard_format.planes), seq_len) if shard_format.planes else ()


def faults_of(
    result: RowChecks, rules: Sequence[str], skipped: frozenset[str] = frozenset()
) -> list[RowFaults]:
    """The faults of rows by the names of their rules; skipped: rules that do not apply."""
    faults = []
    for number, rule in enumerate(rules):
        rows = np.flatnonzero(result.first_bad[:, number] >= 0)
        if len(rows) and rule not in skipped:
            faults.append(RowFaults(rule, rows, result.first_bad[rows, number]))
    return faults
