"""One split as its shards give it back: its token stream, read through the order in which samples were
shuffled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.formats.dataset import Dataset, Split
from btlm_data.inspection.lookup import destinations
from btlm_data.inspection.opening import Opened, OpenShards
from btlm_data.inspection.scan import BUCKETS


class SplitStream(msgspec.Struct, frozen=True):
    """One split as its shards give it back: every row's place in the stream."""

    opened: Opened
    split: str
    entry: Split
    seq_len: int
    corpus: bool
    num_rows: int
    shards: OpenShards

    @property
    def is_vsl(self) -> bool:
        """Whether documents are cut and packed, so that the shards do not hold the stream as it is."""
        return self.opened.manifest is not None and self.opened.manifest.format == "vsl"

    @property
    def bucket(self) -> int:
        """Rows of a bucket of the prints, as for Job."""
        return max(1, -(-self.num_rows // BUCKETS))

    @property
    def bucket_tokens(self) -> int:
        """Stream positions of a bucket."""
        return self.bucket if self.corpus else self.bucket * self.seq_len

    @property
    def covered(self) -> int:
        """Stream positions that are in the shards, as input or label: all but what an unpadded tail leaves
        out.
        """
        if self.corpus or not self.num_rows:
            return self.num_rows
        return min(self.entry.stream_tokens, self.num_rows * self.seq_len + 1)

    @property
    def num_inputs(self) -> int:
        """Stream positions that are in the shards as input (or at least their room)."""
        return self.num_rows if self.corpus else self.num_rows * self.seq_len

    def locate(self, sample: int) -> tuple[Path, int]:
        """File and row of a sample of the stream (corpus: of a token)."""
        row_numbers = destinations(
            self.opened, self.split, np.array([sample], np.uint64), max(1, self.num_rows)
        )
        row = sample if row_numbers is None else int(row_numbers[0])
        for file in self.entry.files:
            if row < file.n_examples:
                return self.opened.root / self.split / file.name, row
            row -= file.n_examples
        raise AssertionError(f"no row for sample {sample}")

    def read(self, sample: int) -> npt.NDArray[Any]:
        """Planes of a sample of the stream. Returns (planes, L) in the dtype of the shard."""
        path, row = self.locate(sample)
        rows = self.shards.read(path, row, row + 1, axes=3)
        if not len(rows):
            raise DataError(f"{path} has no row {row:,}. Restore it, or prepare the dataset again.")
        return np.asarray(rows[0])

    def tokens(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Ids at stream positions [start, stop), as far as they are in the shards as inputs. Raises
        DataError. Returns (n,) int64.
        """
        stop = min(stop, self.num_inputs)
        if stop <= start:
            return np.empty(0, np.int64)
        if self.corpus:
            return self._corpus_tokens(start, stop)
        first, last = start // self.seq_len, (stop - 1) // self.seq_len
        ids = np.concatenate([self.read(sample)[0] for sample in range(first, last + 1)])
        offset = first * self.seq_len
        return ids[start - offset : stop - offset].astype(np.int64)

    def _corpus_tokens(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        parts = []
        while start < stop:
            path, row = self.locate(start)
            piece = self.shards.read(path, row, row + stop - start, axes=1)
            if not len(piece):
                raise DataError(
                    f"{path} has fewer than {row + 1:,} tokens. Restore it, or prepare the dataset again."
                )
            parts.append(piece.astype(np.int64))
            start += len(piece)
        return np.concatenate(parts)


def stream_of(opened: Opened, manifest: Dataset, split: str, shards: OpenShards) -> SplitStream:
    """The stream of a split. shards: through which its shards are read."""
    entry = manifest.splits[split]
    num_rows = sum(file.n_examples for file in entry.files)
    return SplitStream(opened, split, entry, manifest.seq_len, manifest.format == "corpus", num_rows, shards)
