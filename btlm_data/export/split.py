"""One split of a prepared dataset, opened for export: its rows, its documents, and its token stream."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.formats import dataset as dataset_json
from btlm_data.formats.shard_formats import get_format
from btlm_data.formats.shard_formats.reader import ShardReader
from btlm_data.storage import Creating, open_store
from btlm_data.storage.digest import sha256_stream

_READ_BYTES = 1 << 24  # of a shard at a time
_VERIFY = "Run `btlm-data verify`, and prepare the dataset again if it fails."


class OpenedSplit(msgspec.Struct, frozen=True):
    """One split of one prepared set. folder: of the set."""

    folder: Path
    name: str
    dataset: dataset_json.Dataset

    @property
    def shown(self) -> str:
        """The split, for messages."""
        return str(self.folder / self.name)

    @property
    def entry(self) -> dataset_json.Split:
        """What dataset.json says of it."""
        return self.dataset.split(self.name)

    @property
    def seq_len(self) -> int:
        """Tokens of a sample."""
        return self.dataset.seq_len

    @property
    def is_stream(self) -> bool:
        """Whether the shards hold the token stream itself (corpus format) instead of samples."""
        return not get_format(self.dataset.format).planes

    @property
    def num_tokens(self) -> int:
        """Tokens of the stream that are in the shards: of samples, their inputs and the last label."""
        labels = self.entry.label_tokens
        return labels if self.is_stream or not labels else labels + 1

    @property
    def num_samples(self) -> int:
        """Samples that hold the stream's tokens, the padded one included."""
        return -(-(self.num_tokens - 1) // self.seq_len)

    def rows(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """(Number of the first row in the split, rows) from all shards in order: (m,) tokens, or (m, 3, L)
        samples.

        Raises DataError where a shard has another shape than dataset.json says, or an id outside the
        vocabulary. The dtype is that of the shards.
        """
        first = 0
        expected = () if self.is_stream else (3, self.seq_len)
        vocabulary = self.dataset.tokenizer.vocab_size
        for file in self.entry.files:
            path = self.folder / self.name / file.name
            self.check_file(file)
            with ShardReader(path) as shard:
                if shard.shape != (file.n_examples, *expected) or shard.dtype.kind not in "iu":
                    raise DataError(
                        f"{path} holds {shard.dtype} of shape {shard.shape}; {dataset_json.FILE_NAME} says "
                        f"{(file.n_examples, *expected)}. {_VERIFY}"
                    )
                for start, rows in shard.pieces(_READ_BYTES):
                    ids = rows if self.is_stream else rows[:, ::2]
                    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
                        raise DataError(
                            f"{path} has an id outside the vocabulary of {vocabulary} in rows {start} to "
                            f"{start + len(rows) - 1}. {_VERIFY}"
                        )
                    yield first, rows
                    first += len(rows)

    def check_file(self, file: dataset_json.StoredFile) -> None:
        """Raise DataError where a file of the split has not the bytes that dataset.json says."""
        name = f"{self.name}/{file.name}"
        with open_store(self.folder).open(name) as opened:
            size = os.fstat(opened.fileno()).st_size
            digest = sha256_stream(opened) if size == file.bytes else None
        of_digest = f" of SHA-256 {digest}" if digest is not None else ""
        if (size, digest) != (file.bytes, file.sha256):
            raise DataError(
                f"{self.folder / name} has {size:,} bytes{of_digest}; {dataset_json.FILE_NAME} says "
                f"{file.bytes:,} bytes of {file.sha256}. It was changed or damaged. {_VERIFY}"
            )

    def whole_inputs(self) -> Iterator[npt.NDArray[Any]]:
        """The inputs of samples without padding, (m, L), in the order of the shards; a stream is cut every L
        tokens. The dtype is that of the shards.
        """
        if not self.is_stream:
            for _, rows in self.rows():
                yield rows[rows[:, 1, -1] == 1, 0]
            return
        rest = np.empty(0, np.int32)
        for _, tokens in self.rows():
            rest = np.concatenate([rest, tokens])
            whole = len(rest) // self.seq_len * self.seq_len
            yield rest[:whole].reshape(-1, self.seq_len)
            rest = rest[whole:]

    def documents(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """(Stream offset, tokens with EOS) of the documents in stream order, as far as the shards hold them,
        both int64.

        Raises DataError where documents.parquet cannot be read, or its documents do not follow each other.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        name = f"{self.name}/{self.entry.documents_file.name}"
        path = self.folder / name
        expected = 0
        try:
            with open_store(self.folder).open(name) as opened, pq.ParquetFile(opened) as file:
                for batch in file.iter_batches(columns=["stream_offset", "tokens"]):
                    offsets, tokens = _columns(batch, expected)
                    expected += int(tokens.sum())
                    inside = offsets < self.num_tokens
                    yield offsets[inside], np.minimum(tokens, self.num_tokens - offsets)[inside]
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read: {error}. {_VERIFY}") from error

    def write_stream(self, creating: Creating, dtype: np.dtype[Any]) -> None:
        """Write the split's stream into a new file: ids of `dtype`, little-endian and nothing else.

        Samples go to their places one by one, so memory does not grow with the stream. Raises DataError where
        rows are missing, or a document does not end with EOS where it should.
        """
        file = creating.file
        if self.is_stream:
            for _, tokens in self.rows():
                file.write(tokens.astype(dtype).tobytes())
        else:
            self._write_samples(creating, dtype)
        file.flush()
        size = file.seek(0, 2)
        if size != self.num_tokens * dtype.itemsize:
            raise DataError(
                f"{self.shown} holds {size // dtype.itemsize} tokens, {dataset_json.FILE_NAME} says "
                f"{self.num_tokens}. {_VERIFY}"
            )
        self._check_ends(creating.path, dtype)

    def _write_samples(self, creating: Creating, dtype: np.dtype[Any]) -> None:
        """Put samples back into stream order: sample i's inputs are stream[i*L : (i+1)*L], the last one's
        last label ends it.
        """
        file, length = creating.file, self.seq_len
        last_real = self.num_tokens - 1 - (self.num_samples - 1) * length
        written = 0
        for first, rows in self.rows():
            samples = self._samples(first, first + len(rows))
            inputs = np.ascontiguousarray(rows[:, 0]).astype(dtype)
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(samples) != 1) + 1):
                file.seek(int(samples[run[0]]) * length * dtype.itemsize)
                if samples[run[-1]] < self.num_samples - 1:
                    file.write(inputs[run[0] : run[-1] + 1].tobytes())
                    continue
                file.write(inputs[run[0] : run[-1]].tobytes())
                file.write(inputs[run[-1], :last_real].tobytes())
                file.write(rows[run[-1], 2, last_real - 1].astype(dtype).tobytes())
            written += len(rows)
        if written != self.num_samples:
            raise DataError(
                f"{self.shown} has {written} rows, its stream takes {self.num_samples}. {_VERIFY}"
            )

    def _samples(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Which samples of the stream are in rows [first, last)."""
        if last > self.num_samples:
            raise DataError(f"{self.shown} has more rows than its {self.num_samples} samples. {_VERIFY}")
        rows = np.arange(first, last)
        order = self.dataset.sample_order(self.name, self.num_samples)
        return rows if order is None else order.samples_at(rows).astype(np.int64)

    def _check_ends(self, path: Path, dtype: np.dtype[Any]) -> None:
        """Raise DataError where a document does not end with EOS in the stream at `path`, which is written in
        full.
        """
        stream = np.memmap(path, dtype, "r")
        eos = self.dataset.tokenizer.eos_id
        for offsets, tokens in self.documents():
            ends = offsets + tokens - 1
            wrong = np.flatnonzero(stream[ends] != eos)
            # What the shards no longer hold of the last document (`tail: drop`) ends without EOS.
            wrong = wrong[ends[wrong] != self.num_tokens - 1]
            if wrong.size:
                raise DataError(
                    f"{self.shown}: no document ends at token {ends[wrong[0]]} of the stream, where "
                    "documents.parquet has one. Run `btlm-data verify`; a dataset that passes was prepared by "
                    "another version: use that to export it."
                )


def _columns(batch: Any, expected: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Stream offsets and tokens with EOS of some rows of documents.parquet, the first of which begins at
    `expected`.

    Raises ValueError where they are not whole numbers, or the documents do not follow each other.
    """
    import pyarrow as pa

    columns = [batch["stream_offset"], batch["tokens"]]
    if any(not pa.types.is_integer(column.type) or column.null_count for column in columns):
        raise ValueError("its offsets and numbers of tokens are not whole numbers")
    offsets, tokens = (column.to_numpy(zero_copy_only=False).astype(np.int64) for column in columns)
    tokens = tokens + 1
    if (tokens < 1).any() or (offsets != np.cumsum(tokens) + (expected - tokens)).any():
        raise ValueError("its documents do not follow each other")
    return offsets, tokens
