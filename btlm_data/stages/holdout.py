"""Decide each document's split and final fate: the source's own validation and test, or drawn ones; decontamination.

reads   dedupe/fates.cols (where there was deduplication), every block's .docs, .contamination hits
writes  work/holdout/fates.cols: `fate` (N,) uint8 (stages/fates.py) and `split` (N,) uint8 (index into SPLITS) by ordinal
unit    the whole: a few bytes a document, block by block
balance in = dropped + moved + out, per split and source (counted by stages/streams.py)

A draw hashes the document's *text* with the seed, so that equal texts always land on the same side. Without deduplication
of train against holdout, equality is decided by the SHA-256 of the cleaned text, as SlimPajama's scripts do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from btlm_data import seeding
from btlm_data.advance import advance
from btlm_data.fingerprint import digest
from btlm_data.formats import columns
from btlm_data.recipe.models import HoldoutSettings
from btlm_data.splits import SPLITS
from btlm_data.stages.blocks import Block
from btlm_data.stages.fates import Fate
from btlm_data.stages.streams import FATES
from btlm_data.task import Counts, Task

VERSION = 1


@dataclass(frozen=True)
class HoldoutWork:
    """What the stage needs besides the blocks."""

    holdout: HoldoutSettings
    seed: int
    draws: bool  # whether this source's validation and test are drawn
    dedupe_fates: str | None  # columns file with `fate`, relative to the work folder
    by_sha256: bool  # the blocks have `sha256`: remove train documents that equal a holdout document
    contamination: bool  # the blocks have hits

    @property
    def digest(self) -> str:
        """Of what decides the fates."""
        h = self.holdout
        return digest(
            VERSION,
            h.fraction,
            h.test_fraction,
            self.seed if self.draws else 0,
            self.draws,
            self.by_sha256,
            self.contamination,
            h.report_only,
        )


def plan(blocks: Sequence[Block], lineage: str) -> list[Task]:
    """One task."""
    args = {"blocks": [[b.stem, b.split, b.first_ordinal, b.num_documents] for b in blocks]}
    return [
        Task(
            "all",
            args=args,
            inputs=[lineage],
            outputs=[FATES],
            weight=max(1, sum(b.num_documents for b in blocks)),
        )
    ]


def work(task: Task, settings: HoldoutWork, work_dir: str) -> Counts:
    """Write the fates of all documents."""
    root = Path(work_dir)
    blocks = [Block(*values) for values in task.args["blocks"]]
    total = blocks[-1].last_ordinal if blocks else 0
    fate = np.zeros(total, np.uint8)
    if settings.dedupe_fates is not None:
        fate[:] = columns.read(root / settings.dedupe_fates, ["fate"])["fate"]
    split = np.empty(total, np.uint8)
    for block in blocks:
        here = slice(block.first_ordinal, block.last_ordinal)
        split[here] = SPLITS.index(block.split)
        if settings.draws and block.split == "train":
            chance = seeding.unit_interval(_content(block, root), settings.seed, "holdout")
            edge = settings.holdout.fraction
            kept = fate[here] == Fate.KEPT
            split[here][kept & (chance < edge)] = SPLITS.index("validation")
            split[here][kept & (chance >= edge) & (chance < edge + settings.holdout.test_fraction)] = (
                SPLITS.index("test")
            )
        advance(block.num_documents)
    if settings.by_sha256:
        _remove_equal(blocks, root, fate, split)
    if settings.contamination and not settings.holdout.report_only:
        for block in blocks:
            here = slice(block.first_ordinal, block.last_ordinal)
            hit = columns.read(root / f"{block.stem}.contamination", ["hits"])["hits"] > 0
            fate[here][hit & (split[here] == 0) & (fate[here] == Fate.KEPT)] = Fate.CONTAMINATED
    columns.write(root / task.outputs[0], {"fate": fate, "split": split})
    kept_per_split = np.bincount(split[fate == Fate.KEPT], minlength=len(SPLITS)).tolist()
    return Counts(extra={"kept": kept_per_split})


def _content(block: Block, root: Path) -> npt.NDArray[np.uint64]:
    """64 bits of each document's text hash, (n,)."""
    docs = columns.read(block.docs(root))
    if "sha256" in docs.arrays:
        return np.ascontiguousarray(docs["sha256"][:, :8]).view("<u8").reshape(-1)
    return columns.read(block.sketch(root), ["exact"])["exact"][:, 0].copy()


def _remove_equal(
    blocks: Sequence[Block], root: Path, fate: npt.NDArray[np.uint8], split: npt.NDArray[np.uint8]
) -> None:
    """Drop train documents whose SHA-256 is a holdout document's. Holds 32 bytes per holdout document."""
    held: list[npt.NDArray[np.bytes_]] = []
    for block in blocks:
        here = slice(block.first_ordinal, block.last_ordinal)
        mine = (split[here] > 0) & (fate[here] == Fate.KEPT)
        if mine.any():
            held.append(_sha256(block, root)[mine])
    if not held:
        return
    holdout = np.unique(np.concatenate(held))
    for block in blocks:
        here = slice(block.first_ordinal, block.last_ordinal)
        mine = (split[here] == 0) & (fate[here] == Fate.KEPT)
        if mine.any():
            fate[here][mine & np.isin(_sha256(block, root), holdout)] = Fate.EQUALS_HOLDOUT


def _sha256(block: Block, root: Path) -> npt.NDArray[np.bytes_]:
    return np.ascontiguousarray(columns.read(block.docs(root), ["sha256"])["sha256"]).view("S32").reshape(-1)
