"""Components of candidates, and what deciding about them needs to know of every document.

dedupe/documents/RANGE.cols     of the documents of a range of blocks, (n,): `num_bytes` uint32, `score` uint32: HOLDOUT for
                                a document of validation or test, else what `keep` says; a higher one comes first
dedupe/components/NUMBER.cols, of a range of documents, or of all, (n,) each; ordinals: see ranges.py
    `root`              the first document of its text
    `cluster`           the first document of its component (whatever the candidates' texts turn out to be)
    `best`              the copy of its text that stays, if the text stays
    `score` uint32      of its text; an index's texts have HOLDOUT; means nothing of a document in no group
    `group` uint32      see groups.py; 0: alone in its component, and in no index
    `compared` bool     first document of a text in a component of several texts
    `known` bool        an index has it (where texts are compared: first document of a text that an index has)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.advance import advance
from btlm_data.blocks import RANGE_DOCUMENTS, Block, grouped
from btlm_data.dedupe import groups
from btlm_data.dedupe.parts import Parts
from btlm_data.dedupe.settings import ClusterSettings
from btlm_data.errors import DataError
from btlm_data.kernels import buckets
from btlm_data.kernels.compiling import jit
from btlm_data.kernels.ranges import check_same_length
from btlm_data.recipe.models import DedupeSettings
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles

FOLDER = "dedupe/components"
NAME = f"{FOLDER}/000000.cols"  # of all documents, as one process writes them
VERSION = 1
HOLDOUT = 2**32 - 1  # the score of a holdout document
BoolArray = npt.NDArray[np.bool_]
UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]


class Components(msgspec.Struct, frozen=True):
    """What the edges have joined. roots: (N,) uint32, the first document of each text; clusters: (N,) uint32,
    the first of each component (both flat: every entry is a root); known: documents that an index has.
    """

    roots: UInt32Array
    clusters: UInt32Array
    known: UInt32Array


def plan_documents(blocks: Sequence[Block], settings: ClusterSettings, lineage: str) -> Step:
    """A task per range of blocks."""
    tasks = [
        Task(
            id=f"{number:06d}",
            inputs=[lineage],
            reads={"docs": [block.docs for block in chosen]},
            outputs=[("work", f"dedupe/documents/{number:06d}.cols")],
            weight=max(1, sum(block.num_documents for block in chosen)),
            hints={"blocks": chosen},
        )
        for number, chosen in enumerate(grouped(blocks, RANGE_DOCUMENTS))
    ]
    return Step("dedupe.documents", VERSION, write_documents, tasks, settings, lineage, "doc")


def write_documents(task: Task, settings: ClusterSettings, files: TaskFiles) -> Counts:
    """Lengths and scores of the documents of a range, in one file for the one process that joins."""
    num_bytes, scores = [np.empty(0, np.uint32)], [np.empty(0, np.uint32)]
    for block in task.hints["blocks"]:
        docs = files.columns(block.docs)
        num_bytes.append(docs["num_bytes"])
        check_same_length("Documents of a block", np.empty(block.num_documents), num_bytes[-1])
        if block.split != "train" and settings.dedupe.holdout:
            scores.append(np.full(block.num_documents, HOLDOUT, np.uint32))
        else:
            scores.append(_scores(settings.dedupe, docs["source"], docs.meta["sources"], num_bytes[-1]))
        advance(block.num_documents)
    arrays = {"num_bytes": np.concatenate(num_bytes), "score": np.concatenate(scores)}
    files.write_columns(task.outputs[0][1], arrays)
    return Counts()


def _scores(
    dedupe: DedupeSettings, codes: npt.NDArray[Any], sources: Sequence[str], num_bytes: npt.NDArray[Any]
) -> UInt32Array:
    if dedupe.keep == "longest":
        longest: UInt32Array = np.minimum(num_bytes, HOLDOUT - 1).astype(np.uint32)
        return longest
    if dedupe.keep == "first":
        return np.zeros(len(codes), np.uint32)
    ranks = {name: len(dedupe.source_priority) - rank for rank, name in enumerate(dedupe.source_priority)}
    by_source: UInt32Array = np.array([ranks.get(name, 0) for name in sources], np.uint32)
    scores: UInt32Array = by_source[codes]
    return scores


class Ranked(NamedTuple):
    """What stands beside the components of n documents, (n,) each. best, score, known, compared: as in the file; sizes: uint32, of
    documents in groups, as groups.py counts them, else 0.
    """

    best: UInt32Array
    score: UInt32Array
    known: BoolArray
    compared: BoolArray
    sizes: UInt32Array


def rank(
    components: Components, nominated: npt.NDArray[Any], score: UInt32Array, sizes: UInt32Array, parts: Parts
) -> Ranked:
    """What follows from the components of documents that are numbered from 0 on, which are whole.

    nominated: (m,) of an integer dtype, documents that are compared with some of an index. score: (n,) uint32; sizes: (n,) uint32, bytes; both
    are overwritten. Memory: 12 bytes a document besides.
    """
    roots, clusters = buckets.readonly(components.roots), buckets.readonly(components.clusters)
    total = len(roots)
    best = np.arange(total, dtype=np.uint32)
    parts.run(_keep_best, roots, best, score)
    score[components.known] = HOLDOUT  # as an index has them, they stay
    known = np.zeros(total, np.bool_)
    known[components.known] = True
    texts, in_component = np.zeros(total, np.uint8), np.zeros(total, np.uint8)
    parts.run(_count, roots, clusters, texts, in_component)
    texts[clusters[nominated]] = in_component[clusters[nominated]] = 2
    in_component[clusters[components.known]] = 2  # alone or not, it is decided about, and listed
    compared = np.zeros(total, np.bool_)
    parts.run(_measure, roots, clusters, texts, in_component, sizes, compared)
    del texts, in_component
    parts.run(_spread, roots, best, score)
    return Ranked(best, score, known, compared, sizes)


def write(
    files: TaskFiles,
    documents: Sequence[Artifact],
    components: Components,
    nominated: npt.NDArray[Any],
    threads: int = 1,
) -> int:
    """Write the components of all documents in one file; returns the number of groups.

    documents: files of the ranges, in order. nominated: (m,) of an integer dtype, documents that are compared with some of an index. threads:
    at once, where there are many documents; they change nothing.
    Memory: 24 bytes a document, some of it mapped. Raises DataError where the ranges are not of these documents.
    """
    total = len(components.roots)
    parts = Parts(total, threads)
    score, sizes = np.zeros(total, np.uint32), np.zeros(total, np.uint32)
    for ordinals, opened in _ranges(files, documents, total):
        score[ordinals], sizes[ordinals] = opened["score"], opened["num_bytes"]
    ranked = rank(components, nominated, score, sizes, parts)
    group, num_groups = groups.assign(buckets.readonly(components.clusters), ranked.sizes, parts)
    arrays: dict[str, npt.NDArray[Any]] = {
        "root": components.roots,
        "cluster": components.clusters,
        "best": ranked.best,
        "score": ranked.score,
        "group": group,
        "compared": ranked.compared,
        "known": ranked.known,
    }
    files.write_columns(NAME, arrays)
    return num_groups


def _ranges(files: TaskFiles, documents: Sequence[Artifact], total: int) -> Iterator[tuple[slice, Any]]:
    """The ordinals of each range, and its file."""
    first = 0
    for artifact in documents:
        opened = files.columns(artifact)
        last = first + opened.shape("num_bytes")[0]
        yield slice(first, last), opened
        first = last
    if first != total:
        raise DataError(
            f"The ranges of documents hold {first:,}, and there are {total:,}. Rerun the same command."
        )


@jit
def _keep_best(first: int, last: int, roots: UInt32Array, best: UInt32Array, score: UInt32Array) -> None:
    """The best copy of each text whose first document is one of [first, last), and its score, at that document. best: at first
    each document itself, score: its own.
    """
    for i in range(first, len(roots)):
        root = roots[i]
        if root != i and first <= root < last and score[i] > score[root]:
            best[root], score[root] = i, score[i]


@jit
def _count(
    first: int,
    last: int,
    roots: UInt32Array,
    clusters: UInt32Array,
    texts: UInt8Array,
    documents: UInt8Array,
) -> None:
    """Texts and documents of each component whose first document is one of [first, last), at that document; 2 stands for more."""
    for i in range(first, len(roots)):
        c = clusters[i]
        if first <= c < last:
            documents[c] = min(documents[c] + 1, 2)
            if roots[i] == i:
                texts[c] = min(texts[c] + 1, 2)


@jit
def _measure(
    first: int,
    last: int,
    roots: UInt32Array,
    clusters: UInt32Array,
    texts: UInt8Array,
    documents: UInt8Array,
    sizes: UInt32Array,
    compared: BoolArray,
) -> None:
    """Which of the texts [first, last) are compared, and sizes of what is in a component, as groups.py counts them; 0 of the others.
    The text of a later copy, or of a component of one text, is not needed. sizes: at first bytes.
    """
    for i in range(first, last):
        c = clusters[i]
        compared[i] = roots[i] == i and texts[c] > 1
        sizes[i] = groups.units(sizes[i] if compared[i] else 0) if documents[c] > 1 else 0


@jit
def _spread(first: int, last: int, roots: UInt32Array, best: UInt32Array, score: UInt32Array) -> None:
    """What stands at a text's first document is put at those of its documents that are in [first, last). The first one keeps
    what it has: threads read there, and write elsewhere.
    """
    for i in range(first, last):
        root = roots[i]
        if root != i:
            best[i], score[i] = best[root], score[root]
