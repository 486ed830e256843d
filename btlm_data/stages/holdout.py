"""Decide each document's split and final fate: the source's own validation and test, or drawn ones;
decontamination.

    draw     a range of blocks   splits, fates; hashes of holdout documents where equal texts must go
    hashes   whole               these hashes of all ranges, sorted    | only where equal texts are found by
    equal    a range of blocks   train documents of one of them go     | SHA-256

reads   dedupe/fates (where there was deduplication), every block's .docs, .contamination hits
writes  holdout/draw/RANGE.cols or holdout/equal/RANGE.cols: `fate` (n,) uint8 (fates.py) and `split` (n,) uint8 (index into
        SPLITS) by ordinal, and holdout/fates.json, their list (by_ordinal.py); of `draw` also `hashes` (h,) of 32 bytes, as has
        holdout/hashes/hashes.cols, sorted
balance in = dropped + moved + out, per split and source (counted by stages/shuffle.py)

A draw hashes the document's *text* with the seed, so that equal texts always land on the same side. Without
deduplication of train against holdout, equality is decided by the SHA-256 of the cleaned text, as
SlimPajama's scripts do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from btlm_data import by_ordinal, seeding
from btlm_data.advance import advance
from btlm_data.blocks import RANGE_DOCUMENTS, Block, grouped
from btlm_data.by_ordinal import ByOrdinal
from btlm_data.engine.runner import Runner
from btlm_data.estimate import Estimate, Workload
from btlm_data.fates import Fate
from btlm_data.fingerprint import digest
from btlm_data.recipe.models import HoldoutSettings
from btlm_data.splits import SPLITS
from btlm_data.stages import decontaminate, read
from btlm_data.task import Artifact, Counts, Step, Task, TaskResult
from btlm_data.task_files import TaskFiles

VERSION = 3
FATES = "holdout/fates.json"


class HoldoutWork(msgspec.Struct, frozen=True):
    """What the stage needs besides the blocks."""

    holdout: HoldoutSettings
    seed: int
    draws: bool  # whether this source's validation and test are drawn
    by_sha256: bool  # the blocks have `sha256`: remove train documents that equal a holdout document, if there is one
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
    compares = read.needs_sha256(settings)
    per_document = (settings.dedupe.method != "none") + 32 * compares + 16 * (draws and not compares)
    per_document += 4 * (workload.evaluation_bytes > 0)
    ranges = -(-documents // RANGE_DOCUMENTS)
    has_holdout = compares and (draws or workload.splits > 1)
    held = rates.process_bytes + 3 * min(documents, RANGE_DOCUMENTS)

    def of_ranges(name: str, seconds: float) -> Estimate:
        return Estimate(
            name,
            tasks=ranges,
            documents=documents,
            read_bytes=per_document * documents,
            reads=workload.blocks * (per_document > 1),
            work_bytes=2 * documents,
            memory_bytes=held,
            cpu_seconds=ranges * rates.task + seconds * documents,
        )

    steps = [of_ranges("holdout.draw", rates.holdout_document)]
    if has_holdout:
        steps.append(Estimate("holdout.hashes", tasks=1, memory_bytes=held, cpu_seconds=rates.task))
        steps.append(of_ranges("holdout.equal", rates.sha256_document))
    return [*steps, *decontaminate.estimate_report(workload)]


def run(
    step: Callable[[Step], list[TaskResult]],
    runner: Runner,
    blocks: Sequence[Block],
    dedupe_fates: Artifact | None,
    settings: HoldoutWork,
) -> Artifact:
    """Decide about all documents; returns the list of files with `fate` and `split` (by_ordinal.py). step: runs a step.
    dedupe_fates: list of files with `fate`.
    """
    has_holdout = settings.draws or any(block.split != "train" for block in blocks)
    settings = replace(settings, by_sha256=settings.by_sha256 and has_holdout)
    parts = [result.outputs[0] for result in step(plan_draw(blocks, dedupe_fates, settings))]
    if settings.by_sha256:
        whole = Task("all", reads={"parts": parts}, outputs=[("work", "holdout/hashes/hashes.cols")])
        [hashes] = step(Step("holdout.hashes", VERSION, merge_hashes, [whole], None, settings.digest, "task"))
        parts = [result.outputs[0] for result in step(plan_equal(blocks, parts, hashes.outputs[0], settings))]
    ranges = zip(grouped(blocks, RANGE_DOCUMENTS), parts, strict=True)
    runner.named.add(FATES)
    return by_ordinal.write_list(
        runner.stores.work,
        FATES,
        [(chosen[0].first_ordinal, chosen[-1].last_ordinal, part) for chosen, part in ranges],
    )


def plan_draw(blocks: Sequence[Block], dedupe_fates: Artifact | None, settings: HoldoutWork) -> Step:
    """A task per range of blocks."""
    by_exact_hash = settings.draws and not settings.by_sha256
    tasks = [
        Task(
            id=f"{number:06d}",
            args={"blocks": [[block.split, block.first_ordinal, block.num_documents] for block in chosen]},
            reads={
                "docs": [block.docs for block in chosen],
                "sketches": [b.sketch for b in chosen if b.sketch is not None] if by_exact_hash else [],
                "hits": _hits(chosen) if settings.contamination and not settings.by_sha256 else [],
                "dedupe": [dedupe_fates] if dedupe_fates is not None else [],
            },
            outputs=[("work", f"holdout/draw/{number:06d}.cols")],
            weight=max(1, sum(block.num_documents for block in chosen)),
            hints={"blocks": chosen},
        )
        for number, chosen in enumerate(grouped(blocks, RANGE_DOCUMENTS))
    ]
    return Step("holdout.draw", VERSION, draw, tasks, settings, settings.digest, "doc")


def draw(task: Task, settings: HoldoutWork, files: TaskFiles) -> Counts:
    """Splits and fates of a range."""
    blocks: Sequence[Block] = task.hints["blocks"]
    base, total = _ordinals(blocks)
    fate = np.zeros(total, np.uint8)
    if task.reads["dedupe"]:
        fate[:] = ByOrdinal(files, task.reads["dedupe"][0]).rows("fate", base, base + total)
    split = np.empty(total, np.uint8)
    hashes = [np.empty(0, "S32")]
    for block in blocks:
        rows = _rows(block, base)
        split[rows] = SPLITS.index(block.split)
        if settings.draws and block.split == "train":
            chance = seeding.unit_interval(_content(block, files), settings.seed, "holdout")
            edge = settings.holdout.fraction
            is_kept = fate[rows] == Fate.KEPT
            split[rows][is_kept & (chance < edge)] = SPLITS.index("validation")
            is_test = (chance >= edge) & (chance < edge + settings.holdout.test_fraction)
            split[rows][is_kept & is_test] = SPLITS.index("test")
        if settings.by_sha256:
            is_holdout = (split[rows] > 0) & (fate[rows] == Fate.KEPT)
            if is_holdout.any():
                hashes.append(_sha256(block, files)[is_holdout])
        elif settings.contamination and not settings.holdout.report_only:
            _remove_contaminated(block, files, fate[rows], split[rows])
        advance(block.num_documents)
    known = np.unique(np.concatenate(hashes))
    files.write_columns(task.outputs[0][1], {"fate": fate, "split": split, "hashes": known})
    return Counts()


def merge_hashes(task: Task, settings: None, files: TaskFiles) -> Counts:
    """The hashes of all ranges, 32 bytes for each holdout document."""
    hashes = np.unique(
        np.concatenate([np.empty(0, "S32"), *(files.columns(part)["hashes"] for part in task.reads["parts"])])
    )
    files.write_columns(task.outputs[0][1], {"hashes": hashes})
    advance(task.weight)
    return Counts()


def plan_equal(
    blocks: Sequence[Block], drawn: Sequence[Artifact], hashes: Artifact, settings: HoldoutWork
) -> Step:
    """A task per range of blocks. drawn: the ranges' files of `draw`."""
    tasks = [
        Task(
            id=f"{number:06d}",
            reads={
                "docs": [block.docs for block in chosen],
                "hits": _hits(chosen) if settings.contamination else [],
                "drawn": [part],
                "hashes": [hashes],
            },
            outputs=[("work", f"holdout/equal/{number:06d}.cols")],
            weight=max(1, sum(block.num_documents for block in chosen)),
            hints={"blocks": chosen},
        )
        for number, (chosen, part) in enumerate(zip(grouped(blocks, RANGE_DOCUMENTS), drawn, strict=True))
    ]
    return Step("holdout.equal", VERSION, remove_equal, tasks, settings, settings.digest, "doc")


def remove_equal(task: Task, settings: HoldoutWork, files: TaskFiles) -> Counts:
    """Drop train documents of a range whose SHA-256 is a holdout document's. Holds 32 bytes per holdout document."""
    blocks: Sequence[Block] = task.hints["blocks"]
    base, _ = _ordinals(blocks)
    drawn = files.columns(task.reads["drawn"][0])
    fate, split = drawn["fate"].copy(), drawn["split"]
    hashes = files.columns(task.reads["hashes"][0])["hashes"]
    for block in blocks:
        rows = _rows(block, base)
        is_train = (split[rows] == 0) & (fate[rows] == Fate.KEPT)
        if len(hashes) and is_train.any():
            fate[rows][is_train & np.isin(_sha256(block, files), hashes)] = Fate.EQUALS_HOLDOUT
        if settings.contamination and not settings.holdout.report_only:
            _remove_contaminated(block, files, fate[rows], split[rows])
        advance(block.num_documents)
    files.write_columns(task.outputs[0][1], {"fate": fate, "split": split})
    return Counts()


def _ordinals(blocks: Sequence[Block]) -> tuple[int, int]:
    """The first document of a range, and how many there are."""
    return (blocks[0].first_ordinal, blocks[-1].last_ordinal - blocks[0].first_ordinal) if blocks else (0, 0)


def _rows(block: Block, base: int) -> slice:
    return slice(block.first_ordinal - base, block.last_ordinal - base)


def _hits(blocks: Sequence[Block]) -> list[Artifact]:
    return [block.contamination for block in blocks if block.contamination is not None]


def _remove_contaminated(
    block: Block, files: TaskFiles, fate: npt.NDArray[np.uint8], split: npt.NDArray[np.uint8]
) -> None:
    """Drop a block's train documents that share an n-gram with an evaluation set. fate: written to."""
    assert block.contamination is not None
    is_hit = files.columns(block.contamination)["hits"] > 0
    fate[is_hit & (split == 0) & (fate == Fate.KEPT)] = Fate.CONTAMINATED


def _content(block: Block, files: TaskFiles) -> npt.NDArray[np.uint64]:
    """64 bits of each document's text hash, (n,) uint64."""
    docs = files.columns(block.docs)
    if "sha256" in docs:
        return np.ascontiguousarray(docs["sha256"][:, :8]).view("<u8").reshape(-1)
    assert block.sketch is not None
    return files.columns(block.sketch)["exact"][:, 0].copy()


def _sha256(block: Block, files: TaskFiles) -> npt.NDArray[np.bytes_]:
    return np.ascontiguousarray(files.columns(block.docs)["sha256"]).view("S32").reshape(-1)
