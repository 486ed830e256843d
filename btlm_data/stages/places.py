"""Which documents of a block are in a stream, and how often: by their fates, the shares of sets, and the mix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from btlm_data import seeding
from btlm_data.fates import Fate
from btlm_data.formats.columns import Columns
from btlm_data.mix_plan import Mixing
from btlm_data.splits import SPLITS
from btlm_data.stages.mixing import BlockMix
from btlm_data.stages.stream import Stream, StreamSettings


class StreamPlaces(NamedTuple):
    """The kept documents of a block in a stream's split, (n,) each: their numbers, whether the set has them,
    how often the mix has them in each phase (n, phases); what the ledger calls their repetitions, as numbers of
    `reasons`.
    """

    candidates: npt.NDArray[np.int64]
    member: npt.NDArray[np.bool_]
    by_phase: npt.NDArray[np.int64]
    reason: npt.NDArray[np.int64]
    reasons: Sequence[str]

    @property
    def copies(self) -> npt.NDArray[np.int64]:
        """How often the mix has each document, (n,)."""
        copies: npt.NDArray[np.int64] = self.by_phase.sum(axis=1)
        return copies


def candidates_of(
    docs: Columns,
    fate: npt.NDArray[np.uint8],
    split: npt.NDArray[np.uint8],
    stream: Stream,
    settings: StreamSettings,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The kept documents of a block in a stream's split, and whether its set has them, (n,) each. fate, split:
    (documents,) uint8.
    """
    s = settings.settings
    candidates = np.flatnonzero((fate == Fate.KEPT) & (split == SPLITS.index(stream.split)))
    if s.seq_len[stream.set_index].share is None:
        return candidates, np.ones(len(candidates), bool)
    position = seeding.unit_interval(docs["key"][candidates], s.seed, "sets")
    edges = np.cumsum([0.0] + [part.share or 0.0 for part in s.seq_len])
    upper = edges[stream.set_index + 1] if edges[stream.set_index + 1] < 1 - 1e-9 else 2.0
    return candidates, (position >= edges[stream.set_index]) & (position < upper)


def places_of(
    docs: Columns,
    fate: npt.NDArray[np.uint8],
    split: npt.NDArray[np.uint8],
    of_mix: BlockMix,
    stream: Stream,
    settings: StreamSettings,
) -> StreamPlaces:
    """Which documents of a block are in `stream`, and how often. fate, split: (documents,) uint8."""
    s = settings.settings
    candidates, member = candidates_of(docs, fate, split, stream, settings)
    mix = Mixing(s.mix, docs.meta["sources"], of_mix.stands_for, of_mix.borders.get(stream.name))
    by_phase = np.ones((len(candidates), 1), np.int64)
    if stream.split == "train" and s.mix.is_used:
        chosen = candidates[member]
        by_phase = np.zeros((len(candidates), len(s.mix.phases)), np.int64)
        by_phase[member] = mix.copies(chosen, docs["source"][chosen], docs["key"][chosen], s.seed)
    return StreamPlaces(candidates, member, by_phase, mix.range_of(candidates), mix.reasons)
