"""Signatures of candidates compared before they are linked (`dedupe.verify`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from btlm_data.blocks import Block
from btlm_data.dedupe.index import SignatureReader
from btlm_data.dedupe.settings import ClusterSettings
from btlm_data.kernels import buckets
from btlm_data.task_files import TaskFiles

ROWS = 2**14  # signatures held at once: 8 MB at 128 permutations
INDEX_CANDIDATES = 16  # documents of an index compared for one key
UInt32Array = npt.NDArray[np.uint32]
BoolArray = npt.NDArray[np.bool_]


class Verifier:
    """Signatures of this run, and the leaders of the current bucket."""

    def __init__(self, files: TaskFiles, blocks: Sequence[Block], settings: ClusterSettings) -> None:
        sketches = [block.sketch for block in blocks if block.sketch is not None]
        self.signatures = SignatureReader(
            [block.first_ordinal for block in blocks], lambda number: files.columns(sketches[number])
        )
        self.min_equal_values = settings.min_equal_values
        self.leaders = buckets.Leaders(settings.dedupe.num_perm, self.min_equal_values)
        self._compared = self._rejected = 0  # against an index

    @property
    def compared(self) -> int:
        """Candidate pairs compared."""
        return self.leaders.compared + self._compared

    @property
    def rejected(self) -> int:
        """Of them, pairs below the threshold."""
        return self.leaders.rejected + self._rejected

    def agree(
        self, ordinals: UInt32Array, index_signatures: SignatureReader, index_ordinals: UInt32Array
    ) -> BoolArray:
        """Whether each document is similar enough to the other run's document beside it. (n,), (n,) -> (n,)."""
        out = np.empty(len(ordinals), np.bool_)
        for low in range(0, len(ordinals), ROWS):
            part = slice(low, low + ROWS)
            equal = np.count_nonzero(
                self.signatures.read(ordinals[part]) == index_signatures.read(index_ordinals[part]), axis=1
            )
            out[part] = equal >= self.min_equal_values
        self._compared += len(out)
        self._rejected += int(np.count_nonzero(~out))
        return out
