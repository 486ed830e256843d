"""Decide each document's split and final fate: the source's own validation and test, or drawn ones;
decontamination.

reads   dedupe/cluster/fates.cols (where there was deduplication), every block's .docs, .contamination hits
writes  holdout/fates/fates.cols: `fate` (N,) uint8 (fates.py) and `split` (N,) uint8 (index into SPLITS) by
        ordinal
unit    the whole: a few bytes a document, block by block
balance in = dropped + moved + out, per split and source (counted by stages/shuffle.py)

A draw hashes the document's *text* with the seed, so that equal texts always land on the same side. Without
deduplication of train against holdout, equality is decided by the SHA-256 of the cleaned text, as
SlimPajama's scripts do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from btlm_data import seeding
from btlm_data.advance import advance
from btlm_data.blocks import Block
from btlm_data.estimate import Estimate, Workload
from btlm_data.fates import Fate
from btlm_data.fingerprint import digest
from btlm_data.recipe.models import HoldoutSettings
from btlm_data.splits import SPLITS
from btlm_data.stages import clean, decontaminate
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

VERSION = 2


@dataclass(frozen=True)
class HoldoutWork:
    """What the stage needs besides the blocks."""

    holdout: HoldoutSettings
    seed: int
    draws: bool  # whether this source's validation and test are drawn
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


def estimate(workload: Workload) -> list[Estimate]:
    """What deciding splits and fates takes, and the report of documents that share words with an evaluation
    set.
    """
    documents, settings, rates = workload.volume.documents, workload.settings, workload.rates
    draws = settings.holdout.fraction > 0 or settings.holdout.test_fraction > 0
    compares = clean.needs_sha256(settings)
    per_document = (settings.dedupe.method != "none") + 32 * compares + 16 * (draws and not compares)
    per_document += 4 * (workload.evaluation_bytes > 0)
    seconds = rates.holdout_document + rates.sha256_document * compares * (draws or workload.splits > 1)
    fates = Estimate(
        "holdout.fates",
        tasks=1,
        documents=documents,
        read_bytes=per_document * documents,
        reads=workload.blocks * (per_document > 1),
        work_bytes=2 * documents,
        memory_bytes=rates.process_bytes + 3 * documents,
        cpu_seconds=rates.task + seconds * documents,
    )
    return [fates, *decontaminate.estimate_report(workload)]


def plan(blocks: Sequence[Block], dedupe_fates: Artifact | None, settings: HoldoutWork) -> Step:
    """One task. dedupe_fates: columns file with `fate`."""
    by_exact_hash = settings.draws and not settings.by_sha256
    task = Task(
        id="all",
        args={"blocks": [[block.split, block.first_ordinal, block.num_documents] for block in blocks]},
        reads={
            "docs": [block.docs for block in blocks],
            "sketches": [b.sketch for b in blocks if b.sketch is not None] if by_exact_hash else [],
            "hits": [b.contamination for b in blocks if b.contamination is not None]
            if settings.contamination
            else [],
            "dedupe": [dedupe_fates] if dedupe_fates is not None else [],
        },
        outputs=[("work", "holdout/fates/fates.cols")],
        weight=max(1, sum(block.num_documents for block in blocks)),
        hints={"blocks": blocks},
    )
    return Step("holdout.fates", VERSION, work, [task], settings, settings.digest, "doc")


def work(task: Task, settings: HoldoutWork, files: TaskFiles) -> Counts:
    """Write the fates of all documents."""
    blocks: Sequence[Block] = task.hints["blocks"]
    total = blocks[-1].last_ordinal if blocks else 0
    fate = np.zeros(total, np.uint8)
    if task.reads["dedupe"]:
        fate[:] = files.columns(task.reads["dedupe"][0])["fate"]
    split = np.empty(total, np.uint8)
    for block in blocks:
        ordinals = slice(block.first_ordinal, block.last_ordinal)
        split[ordinals] = SPLITS.index(block.split)
        if settings.draws and block.split == "train":
            chance = seeding.unit_interval(_content(block, files), settings.seed, "holdout")
            edge = settings.holdout.fraction
            is_kept = fate[ordinals] == Fate.KEPT
            split[ordinals][is_kept & (chance < edge)] = SPLITS.index("validation")
            is_test = (chance >= edge) & (chance < edge + settings.holdout.test_fraction)
            split[ordinals][is_kept & is_test] = SPLITS.index("test")
        advance(block.num_documents)
    if settings.by_sha256:
        _remove_equal(blocks, files, fate, split)
    if settings.contamination and not settings.holdout.report_only:
        for block in blocks:
            assert block.contamination is not None
            ordinals = slice(block.first_ordinal, block.last_ordinal)
            is_hit = files.columns(block.contamination)["hits"] > 0
            fate[ordinals][is_hit & (split[ordinals] == 0) & (fate[ordinals] == Fate.KEPT)] = (
                Fate.CONTAMINATED
            )
    files.write_columns(task.outputs[0][1], {"fate": fate, "split": split})
    kept_per_split = np.bincount(split[fate == Fate.KEPT], minlength=len(SPLITS)).tolist()
    return Counts(extra={"kept": kept_per_split})


def _content(block: Block, files: TaskFiles) -> npt.NDArray[np.uint64]:
    """64 bits of each document's text hash, (n,) uint64."""
    docs = files.columns(block.docs)
    if "sha256" in docs:
        return np.ascontiguousarray(docs["sha256"][:, :8]).view("<u8").reshape(-1)
    assert block.sketch is not None
    return files.columns(block.sketch)["exact"][:, 0].copy()


def _remove_equal(
    blocks: Sequence[Block], files: TaskFiles, fate: npt.NDArray[np.uint8], split: npt.NDArray[np.uint8]
) -> None:
    """Drop train documents whose SHA-256 is a holdout document's. Holds 32 bytes per holdout document."""
    parts: list[npt.NDArray[np.bytes_]] = []
    for block in blocks:
        ordinals = slice(block.first_ordinal, block.last_ordinal)
        is_holdout = (split[ordinals] > 0) & (fate[ordinals] == Fate.KEPT)
        if is_holdout.any():
            parts.append(_sha256(block, files)[is_holdout])
    if not parts:
        return
    holdout_hashes = np.unique(np.concatenate(parts))
    for block in blocks:
        ordinals = slice(block.first_ordinal, block.last_ordinal)
        is_train = (split[ordinals] == 0) & (fate[ordinals] == Fate.KEPT)
        if is_train.any():
            fate[ordinals][is_train & np.isin(_sha256(block, files), holdout_hashes)] = Fate.EQUALS_HOLDOUT


def _sha256(block: Block, files: TaskFiles) -> npt.NDArray[np.bytes_]:
    return np.ascontiguousarray(files.columns(block.docs)["sha256"]).view("S32").reshape(-1)
