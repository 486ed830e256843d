"""A token stream as an index, and any stretch or sample of it as tokens, from whichever blocks hold them.

A stream is (set, split): without shares every set has the same documents, so there is one stream a split (set
0); with shares each document belongs to one set. Its tokens are `doc_1 EOS doc_2 EOS ...`; stages/shuffle.py
makes the index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.fingerprint import digest
from btlm_data.formats.columns import Columns
from btlm_data.recipe.models import Settings
from btlm_data.task import Artifact
from btlm_data.task_files import TaskFiles

Int64Array = npt.NDArray[np.int64]
ORDER_VERSION = 3  # increased whenever the steps that order documents write otherwise
_NEAR = 8192  # tokens between documents that are read with them


class Stream(msgspec.Struct, frozen=True):
    """One token stream: the documents of a set in a split."""

    set_index: int
    split: str

    @property
    def name(self) -> str:
        """For file and column names."""
        return f"{self.set_index}-{self.split}"


class StreamSettings(msgspec.Struct, frozen=True):
    """What decides the streams."""

    settings: Settings
    splits: tuple[str, ...]  # the splits that can have documents

    @property
    def streams(self) -> list[Stream]:
        """Every stream, sets outermost."""
        divided = any(part.share is not None for part in self.settings.seq_len)
        return [
            Stream(s, split)
            for s in range(len(self.settings.seq_len) if divided else 1)
            for split in self.splits
        ]

    def of_set(self, set_index: int) -> int:
        """The set whose stream a prepared length reads: its own with shares, else the common one."""
        return set_index if self.settings.seq_len[set_index].share is not None else 0

    @property
    def digest(self) -> str:
        """Of what decides which documents stand where."""
        s = self.settings
        shares = [part.share for part in s.seq_len] if any(part.share for part in s.seq_len) else None
        return digest(
            ORDER_VERSION,
            s.shuffle != "none",
            s.seed,
            s.mix.model_dump(mode="json"),
            shares,
            list(self.splits),
        )


class Bucket(NamedTuple):
    """The index of one stretch of a stream. start: its first token's position in the stream.

    content: checksum of what it says of the stream, wherever the tokens are.
    """

    file: Artifact
    start: int
    num_tokens: int
    num_documents: int
    content: str


class PhaseAmount(NamedTuple):
    """What a phase of a mix by budget has of a source, and how many tokens were asked for."""

    documents: int
    tokens: int
    asked: int


PhaseAmounts = dict[str, PhaseAmount]  # by source


class StreamIndex(msgspec.Struct, frozen=True):
    """The whole index of one stream, as the driver knows it: its buckets in order. tokens: the list of files
    of tokens. phases: of a mix by budget, in order.
    """

    stream: Stream
    buckets: tuple[Bucket, ...]
    tokens: Artifact
    phases: tuple[PhaseAmounts, ...] = ()

    @property
    def borders(self) -> tuple[int, ...]:
        """Where phases end, in tokens of the stream; () where there is one at most."""
        sizes = [sum(amount.tokens for amount in phase.values()) for phase in self.phases]
        return tuple(accumulate(sizes)) if len(sizes) > 1 else ()

    @property
    def num_tokens(self) -> int:
        """Tokens of the stream, EOS included."""
        return sum(bucket.num_tokens for bucket in self.buckets)

    @property
    def num_documents(self) -> int:
        """Documents of the stream (a repeated one counts each time)."""
        return sum(bucket.num_documents for bucket in self.buckets)

    def overlapping(self, start: int, stop: int) -> list[Bucket]:
        """The buckets that hold tokens [start, stop)."""
        return [b for b in self.buckets if b.num_tokens and b.start < stop and b.start + b.num_tokens > start]


class StreamReader(msgspec.Struct, frozen=True):
    """Tokens of a stream, for one task. buckets: those that the task names. listed: the list of files of
    tokens. dtype: of the tokens.
    """

    files: TaskFiles
    listed: Artifact
    buckets: Sequence[Bucket]
    dtype: str
    eos_id: int

    def stretch(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Tokens [start, stop) of the stream, (stop - start,). The dtype is that of the tokens."""
        from btlm_data.kernels.packing import place_documents

        out = np.empty(stop - start, self.dtype)
        names = ("block", "start", "length", "offset")
        parts: list[list[Int64Array]] = [[np.empty(0, np.int64)] * len(names)]
        for bucket in self.buckets:
            index = self.files.columns(bucket.file)
            first, last = documents_between(index, bucket.start, start, stop)
            part = [index.rows(name, first, last).astype(np.int64) for name in names]
            part[-1] += bucket.start - start
            parts.append(part)
        # All buckets together, so that what a file has of the stretch is read at once.
        block, begin, length, position = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((begin, block))
        for number, rows in _by_block(block, order):
            tokens, first_token = self._tokens(number, begin[rows], length[rows])
            place_documents(tokens, begin[rows] - first_token, length[rows], position[rows], out, self.eos_id)
        return out

    def _tokens(self, number: int, begin: Int64Array, length: Int64Array) -> tuple[npt.NDArray[Any], int]:
        """Tokens of a file with these documents in them, and the number of the first of these tokens in the
        file.

        Where the documents are side by side, as they are where nothing was shuffled, only that part is read.
        """
        opened = self._opened(number)
        low, high = int(begin.min()), int((begin + length).max())
        if low >= 0 and high - low <= 2 * int(length.sum()) + _NEAR:
            return opened.rows("tokens", low, high), low
        return opened.scattered("tokens", begin, length), 0

    def samples(self, samples: Int64Array, length: int, total: int) -> npt.NDArray[Any]:
        """Samples anywhere in a stream of `total` tokens, (m, L+1); 0 after the end.

        Row r is stream[samples[r]*L : samples[r]*L + L + 1]. Touches every block, each once, at as many
        places as there are samples: for streams that are in memory (the page cache). samples: (m,) int64; the
        dtype of the result is that of the tokens.
        """
        from btlm_data.kernels.packing import place_documents

        out = np.zeros(len(samples) * (length + 1), self.dtype)
        block, begin, size, offset = self._whole_index()
        start = samples * length
        first = np.maximum(np.searchsorted(offset, start, side="right") - 1, 0)
        counts = np.searchsorted(offset, np.minimum(start + length + 1, total), side="left") - first
        row = np.repeat(np.arange(len(samples)), counts)
        document = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts - first, counts)
        row_start = row * (length + 1)
        position = offset[document] - start[row] + row_start
        order = np.argsort(block[document], kind="stable")
        for number, chosen in _by_block(block[document], order):
            documents = document[chosen]
            borders = row_start[chosen]
            # Of a long document only the tokens between the row's borders are looked at.
            before = np.maximum(borders - position[chosen], 0)
            after = np.minimum(position[chosen] + size[documents], borders + length + 1) - position[chosen]
            used = np.maximum(np.minimum(after, size[documents]) - before, 0)
            opened = self._opened(number)
            _check_extents(opened, begin[documents], size[documents], number)
            tokens = opened.scattered("tokens", begin[documents] + np.where(used > 0, before, 0), used)
            place_documents(
                tokens,
                begin[documents],
                size[documents],
                position[chosen],
                out,
                self.eos_id,
                borders,
                borders + length + 1,
            )
        return out.reshape(len(samples), length + 1)

    def _whole_index(self) -> tuple[Int64Array, ...]:
        """Block, start, length and stream offset of every document of the buckets, each (n,) int64."""

        def make() -> tuple[Int64Array, ...]:
            opened = [(self.files.columns(bucket.file), bucket.start) for bucket in self.buckets]
            joined = [
                np.concatenate([index[name].astype(np.int64) for index, _ in opened])
                for name in ("block", "start", "length")
            ]
            return *joined, np.concatenate(
                [index["offset"].astype(np.int64) + start for index, start in opened]
            )

        key = ("stream", *((bucket.file.checksum, bucket.start) for bucket in self.buckets))
        return self.files.kept(key, make)

    def _opened(self, number: int) -> Columns:
        token_files = self.files.read_list(self.listed)
        if not 0 <= number < len(token_files):
            raise DataError(
                f"The index of a stream names file {number} of tokens, and there are {len(token_files)}."
            )
        return self.files.columns(token_files[number])


def _check_extents(opened: Columns, begin: Int64Array, size: Int64Array, number: int) -> None:
    """Raise DataError if a document of the index is outside its block's tokens."""
    (num_tokens,) = opened.shape("tokens")
    if len(begin) and (int(begin.min()) < 0 or int((begin + size).max()) > num_tokens):
        raise DataError(
            f"The index of a stream names tokens beyond the {num_tokens:,} of block {number}. "
            "Remove the work folder and rerun the same command."
        )


def _by_block(block: npt.NDArray[Any], order: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """(block number, rows) in the given order of rows, which must be sorted by block."""
    if len(order):
        for rows in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
            yield int(block[rows[0]]), rows


def documents_between(index: Columns, bucket_start: int, start: int, stop: int) -> tuple[int, int]:
    """Rows [first, last) of a bucket's index whose documents (EOS included) have tokens in [start, stop) of
    the stream.
    """
    offset = index["offset"]
    first = int(np.searchsorted(offset, max(0, start - bucket_start), side="right")) - 1
    last = int(np.searchsorted(offset, max(0, stop - bucket_start), side="left"))
    return max(0, first), last
