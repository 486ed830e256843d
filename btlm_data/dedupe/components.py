"""Components of candidates, and what comparing them needs to know of every document.

components.cols (of dedupe/components, where texts are compared; else of dedupe/cluster), all (N,) by ordinal:
    `root` uint32       the first document of its text
    `cluster` uint32    the first document of its component (whatever the candidates' texts turn out to be)
    `best` uint32       at a text's first document: the copy that stays, if the text stays
    `score` uint32      of its text: HOLDOUT where validation or test has it, else what `keep` says; a higher
                        one comes first
    `group` uint32      see groups.py; 0: alone in its component
    `compared` bool     first document of a text in a component of several texts
and `known` (u,) uint32, first documents of the texts that an index has.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from btlm_data.blocks import Block
from btlm_data.dedupe import groups
from btlm_data.dedupe.clusters import HOLDOUT, Components, best_of
from btlm_data.kernels import buckets
from btlm_data.kernels.compiling import jit
from btlm_data.recipe.models import DedupeSettings
from btlm_data.task_files import TaskFiles

NAME = "components.cols"
UInt32Array = npt.NDArray[np.uint32]


def write(
    files: TaskFiles,
    name: str,
    blocks: Sequence[Block],
    dedupe: DedupeSettings,
    components: Components,
    nominated: UInt32Array,
) -> int:
    """Write components.cols under `name`; returns the number of groups.

    nominated: documents that are compared with some of an index. Memory: 18 bytes a document, some of it
    mapped. nominated: (m,) uint32 ordinals.
    """
    roots, clusters, known = components.roots, components.clusters, components.known
    total = len(roots)
    best, score = best_of(files, blocks, dedupe, buckets.readonly(roots))
    score[known] = HOLDOUT  # as an index has them, they stay
    texts, documents = np.zeros(total, np.uint8), np.zeros(total, np.uint8)
    _count(buckets.readonly(roots), clusters, texts, documents)
    texts[clusters[nominated]] = documents[clusters[nominated]] = 2
    sizes = np.zeros(total, np.uint32)
    for block in blocks:
        ordinals = slice(block.first_ordinal, block.last_ordinal)
        num_bytes = files.columns(block.docs)["num_bytes"].astype(np.int64)
        is_member = documents[clusters[ordinals]] > 1
        is_first = roots[ordinals] == np.arange(block.first_ordinal, block.last_ordinal, dtype=np.uint32)
        has_text = is_member & is_first & (texts[clusters[ordinals]] > 1)
        sizes[ordinals] = np.where(is_member, groups.units(np.where(has_text, num_bytes, 0)), 0)
    del documents
    is_root = roots == np.arange(total, dtype=np.uint32)
    compared = is_root & (texts[clusters] > 1)
    group, num_groups = groups.assign(buckets.readonly(clusters), sizes)
    score = score[roots]
    files.write_columns(
        name,
        {
            "root": roots,
            "cluster": clusters,
            "best": best,
            "score": score,
            "group": group,
            "compared": compared,
            "known": known,
        },
        {"groups": num_groups},
    )
    return num_groups


@jit
def _count(
    roots: UInt32Array, clusters: UInt32Array, texts: npt.NDArray[np.uint8], documents: npt.NDArray[np.uint8]
) -> None:
    """Texts and documents of each component at its first document; 2 stands for more."""
    for i in range(len(roots)):
        c = clusters[i]
        documents[c] = min(documents[c] + 1, 2)
        if roots[i] == i:
            texts[c] = min(texts[c] + 1, 2)
