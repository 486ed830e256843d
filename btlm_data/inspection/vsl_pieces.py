"""Documents in vsl shards: cut at multiples of the row length, and packed in any order, so they are found by
their tokens.

A document of m tokens has m positions (input t[i], label t[i + 1], EOS as the last label) in pieces of
seq_len positions, the last one shorter. Each piece is in one row, where position_ids count from 0.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from btlm_data.inspection.split_stream import SplitStream

_BATCH_BYTES = 1 << 24

IntArray = npt.NDArray[np.int64]


class _Piece(NamedTuple):
    """The bytes of a piece's inputs and labels, int64."""

    inputs: bytes
    labels: bytes


class WantedPieces:
    """Pieces of documents that must be in the shards of one split, each as often as it is requested."""

    def __init__(self, stream: SplitStream, eos_id: int) -> None:
        self._stream, self._eos_id = stream, eos_id
        self._wanted: Counter[_Piece] = Counter()
        self._lengths: dict[int, set[int]] = defaultdict(
            set
        )  # first token -> lengths of pieces that begin with it
        self._names: dict[_Piece, str] = {}

    def add(self, name: str, ids: npt.NDArray[np.integer]) -> None:
        """Ask for all pieces of a document. name: what to call it in a message. ids: (tokens,) of an integer
        dtype.
        """
        whole = np.append(ids.astype(np.int64), self._eos_id)
        for start in range(0, len(ids), self._stream.seq_len):
            stop = min(start + self._stream.seq_len, len(ids))
            piece = _Piece(whole[start:stop].tobytes(), whole[start + 1 : stop + 1].tobytes())
            self._wanted[piece] += 1
            self._lengths[int(whole[start])].add(stop - start)
            self._names.setdefault(piece, f"{name}: its tokens {start:,} to {stop - 1:,}")

    def missing(self) -> list[str]:
        """Read the shards once; which pieces are in no row. Raises DataError if a shard cannot be
        read.
        """
        left = Counter(self._wanted)
        for row in self._rows() if left else ():
            for inputs, labels in self._pieces(row):
                if len(inputs) in self._lengths.get(int(inputs[0]), ()):
                    piece = _Piece(inputs.tobytes(), labels.tobytes())
                    if left[piece]:
                        left[piece] -= 1
        return [f"{self._names[piece]} are in no row" for piece, count in left.items() if count]

    def _rows(self) -> Iterator[npt.NDArray[np.int64]]:
        """Rows of all shards, (5, L)."""
        stream = self._stream
        step = max(1, _BATCH_BYTES // (5 * 8 * stream.seq_len))
        for file in stream.entry.files:
            path = stream.opened.root / stream.split / file.name
            for first in range(0, file.n_examples, step):
                yield from stream.shards.read(path, first, first + step, axes=3).astype(np.int64)

    @staticmethod
    def _pieces(row: npt.NDArray[np.int64]) -> Iterator[tuple[IntArray, IntArray]]:
        """Inputs and labels of the pieces of a row."""
        inputs, mask, labels, _, positions = row
        used = int(np.count_nonzero(mask))
        starts = np.flatnonzero(positions[:used] == 0).tolist()
        for start, stop in zip(starts, [*starts[1:], used], strict=True):
            yield inputs[start:stop], labels[start:stop]
