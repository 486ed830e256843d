"""How often a mix has each document: its source's epochs times those for its number of copies, and a draw for the
fraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data import seeding
from btlm_data.recipe.mix import MixSettings
from btlm_data.task import Artifact, Task
from btlm_data.task_files import TaskFiles

Int64Array = npt.NDArray[np.int64]
REPEATED = "repeated_by_mix"


class Mixing:
    """One mix over the documents of one block. sources: names, by the codes of the block. stands_for: (n,) documents
    of the source that each stands for; None where `by_copies` is not used.
    """

    def __init__(self, mix: MixSettings, sources: Sequence[str], stands_for: npt.NDArray[Any] | None) -> None:
        assert stands_for is not None or not mix.by_copies
        self._by_source = np.array([mix.epochs.get(name, 1.0) for name in sources])
        self._stands_for = stands_for
        self._lows = np.array([part.low for part, _ in mix.ranges], np.int64)
        self._highs = np.array(
            [2**62 if part.high is None else part.high for part, _ in mix.ranges] + [0], np.int64
        )
        self._by_range = np.array([*(epochs for _, epochs in mix.ranges), 1.0])
        # In the ledger: what a repetition is called, by the document's range.
        self.reasons = [*(f"{REPEATED}_{part.label}" for part, _ in mix.ranges), REPEATED]

    def range_of(self, rows: Int64Array) -> Int64Array:
        """The number in `reasons` of each document's range of copies. rows: (m,) numbers in the block."""
        if self._stands_for is None:
            return np.zeros(len(rows), np.int64)
        copies = self._stands_for[rows].astype(np.int64)
        number = np.searchsorted(self._lows, copies, side="right") - 1
        outside = (number < 0) | (copies > self._highs[number])
        return np.where(outside, len(self._lows), number).astype(np.int64)

    def repeats(
        self, rows: Int64Array, codes: npt.NDArray[Any], keys: npt.NDArray[np.uint64], seed: int
    ) -> Int64Array:
        """How often each document is in the stream, (m,) int64. rows: (m,) int64, numbers in the block; codes: (m,), of
        their sources; keys: (m,) uint64, of the documents (seeding.document_keys).
        """
        epochs = self._by_source[codes] * self._by_range[self.range_of(rows)]
        whole = np.floor(epochs)
        is_more = seeding.unit_interval(keys, seed, "mix") < epochs - whole
        repeats: Int64Array = (whole + is_more).astype(np.int64)
        return repeats


def reads(mix: MixSettings, copies: Artifact | None) -> dict[str, Sequence[Artifact]]:
    """What a task reads for the mix besides its blocks. copies: clusters.cols; None where nothing was deduplicated."""
    if not mix.by_copies:
        return {}
    assert copies is not None, "the recipe refuses by_copies without deduplication"
    return {"copies": [copies]}


def stands_for(task: Task, files: TaskFiles, first: int, last: int) -> npt.NDArray[np.uint32] | None:
    """How many documents of the source those with ordinals [first, last) stand for, (n,) uint32; None where the mix does not ask."""
    if "copies" not in task.reads:
        return None
    counted: npt.NDArray[np.uint32] = files.columns(task.reads["copies"][0]).rows("copies", first, last)
    return counted
