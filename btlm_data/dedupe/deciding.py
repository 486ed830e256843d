"""Which documents of a group stay, and which one is kept for each that goes.

Whole components are in one group (groups.py), and what becomes of a document follows from its component alone, so
a group's members are all that is needed.
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.dedupe.members import Group
from btlm_data.errors import DataError
from btlm_data.fates import Fate
from btlm_data.formats.columns import Columns
from btlm_data.kernels.compiling import jit
from btlm_data.recipe.models import DedupeSettings
from btlm_data.splits import SPLITS

NOT_IN_RUN = 2**32 - 1  # the row of the document kept for one that an index has
IN_INDEX = -1  # the text that stays for one that an index has (compare.py)
# Flags of a component, at its first member; the last two of a text, at its first member.
_SEVERAL, _HAS_HOLDOUT, _HAS_KNOWN, _TEXT_IN_HOLDOUT, _TEXT_KNOWN = 1, 2, 4, 8, 16
_KEPT, _EXACT_DUPLICATE, _NEAR_DUPLICATE = int(Fate.KEPT), int(Fate.EXACT_DUPLICATE), int(Fate.NEAR_DUPLICATE)
_DUPLICATE_OF_HOLDOUT = int(Fate.DUPLICATE_OF_HOLDOUT)
_NEAR_DUPLICATE_OF_HOLDOUT = int(Fate.NEAR_DUPLICATE_OF_HOLDOUT)
_IN_INDEX = int(Fate.IN_INDEX)
UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Decided(msgspec.Struct, frozen=True):
    """The members of a group by row, (n,) each.

    cluster: row of the first member of its component. fate: uint8 (fates.py). kept: the row of the document kept for it,
    NOT_IN_RUN where an index has that. copies: uint32, how many documents a kept one stands for, itself included. several: in
    a component of two or more. text_stays: the first document of a text of which a copy stays.
    """

    cluster: UInt32Array
    fate: UInt8Array
    kept: UInt32Array
    copies: UInt32Array
    several: BoolArray
    text_stays: BoolArray

    def sizes(self) -> UInt32Array:
        """Documents of each component at the row of its first member, else 0: (n,) uint32."""
        return np.bincount(self.cluster, minlength=len(self.cluster)).astype(np.uint32)


def decide(group: Group, dedupe: DedupeSettings, compared: Columns | None) -> Decided:
    """Decide. compared: of the group's texts (compare.py), None where components decide.

    Raises DataError for members that are not those of one another.
    """
    columns = group.columns
    roots, clusters, best = (rows_of(group, columns[name]) for name in ("root", "cluster", "best"))
    is_train = columns["split"] == SPLITS.index("train")
    is_known = columns["known"]
    count = len(roots)
    flags = np.zeros(count, np.uint8)
    _flag_several(clusters, flags)
    if dedupe.holdout:
        flags[clusters[~is_train]] |= np.uint8(_HAS_HOLDOUT)
        flags[roots[~is_train]] |= np.uint8(_TEXT_IN_HOLDOUT)
    fate, kept = np.empty(count, np.uint8), np.empty(count, np.uint32)
    if compared is None:
        flags[clusters[is_known]] |= np.uint8(_HAS_KNOWN)
        best_of_component = _best_of_components(
            clusters, best, columns["score"], ~is_train if dedupe.holdout else np.zeros(count, np.bool_)
        )
        _fates(is_train, roots, clusters, best_of_component, flags, fate, kept)
    else:
        flags[roots[is_known]] |= np.uint8(_TEXT_KNOWN)
        anchors = np.full(count, NOT_IN_RUN, np.uint32)
        gone, anchor = rows_of(group, compared["gone"]), compared["anchor"]
        is_here = anchor != IN_INDEX
        anchors[gone[is_here]] = rows_of(group, anchor[is_here])
        flags[gone[~is_here]] |= np.uint8(_TEXT_KNOWN)
        _fates_of_texts(is_train, roots, best, flags, anchors, fate, kept)
    copies = np.ones(count, np.uint32)
    _add_copies(fate, kept, copies)
    text_stays = (roots == np.arange(count)) & (fate[best] == _KEPT)
    return Decided(clusters, fate, kept, copies, (flags[clusters] & _SEVERAL) > 0, text_stays)


def rows_of(group: Group, ordinals: Int64Array) -> UInt32Array:
    """Rows of members by their ordinals, (n,) uint32 for (n,) int64. Raises DataError for one that is not in the group."""
    all_ordinals = group.columns["ordinal"]
    rows = np.searchsorted(all_ordinals, ordinals)
    if len(rows) and (int(rows.max()) >= len(all_ordinals) or (all_ordinals[rows] != ordinals).any()):
        raise DataError(
            "The work files of deduplication name members of a group that are not in it. Remove the folder dedupe of the work "
            "folder and rerun the same command."
        )
    return rows.astype(np.uint32)


def _best_of_components(
    clusters: UInt32Array, best: UInt32Array, score: UInt32Array, is_holdout: BoolArray
) -> UInt32Array:
    """The row that stays of each component, at its first row: the first of holdout, else of the highest score."""
    count = len(clusters)
    highest, first_holdout = np.zeros(count, np.uint32), np.full(count, count, np.uint32)
    np.maximum.at(highest, clusters, score)
    out = np.full(count, count, np.uint32)
    is_highest = score == highest[clusters]
    np.minimum.at(out, clusters[is_highest], best[is_highest])
    holdout = np.flatnonzero(is_holdout).astype(np.uint32)
    np.minimum.at(first_holdout, clusters[holdout], holdout)
    return np.where(first_holdout < count, first_holdout, out)


@jit
def _flag_several(clusters: UInt32Array, flags: UInt8Array) -> None:
    for i in range(len(clusters)):
        if clusters[i] != i:
            flags[clusters[i]] |= np.uint8(_SEVERAL)


@jit
def _fates(
    is_train: BoolArray,
    roots: UInt32Array,
    clusters: UInt32Array,
    best: UInt32Array,
    flags: UInt8Array,
    out: UInt8Array,
    out_kept: UInt32Array,
) -> None:
    for i in range(len(out)):
        flag = flags[clusters[i]]
        kept = best[clusters[i]]
        out_kept[i] = kept
        if not is_train[i]:
            out[i] = _KEPT
        elif flag & _HAS_HOLDOUT:
            out[i] = (
                _DUPLICATE_OF_HOLDOUT if flags[roots[i]] & _TEXT_IN_HOLDOUT else _NEAR_DUPLICATE_OF_HOLDOUT
            )
        elif flag & _HAS_KNOWN:
            out[i] = _IN_INDEX
            out_kept[i] = NOT_IN_RUN
        elif kept == i:
            out[i] = _KEPT
        elif roots[i] != i or roots[i] == roots[kept]:
            out[i] = _EXACT_DUPLICATE
        else:
            out[i] = _NEAR_DUPLICATE


@jit
def _fates_of_texts(
    is_train: BoolArray,
    roots: UInt32Array,
    best: UInt32Array,
    flags: UInt8Array,
    anchors: UInt32Array,
    out: UInt8Array,
    out_kept: UInt32Array,
) -> None:
    for i in range(len(out)):
        root = roots[i]
        anchor = anchors[root]
        is_best = best[root] == i
        out_kept[i] = best[root] if anchor == NOT_IN_RUN else best[anchor]
        if not is_train[i]:
            out[i] = _KEPT
        elif flags[root] & _TEXT_IN_HOLDOUT:
            out[i] = _DUPLICATE_OF_HOLDOUT
        elif flags[root] & _TEXT_KNOWN or (anchor != NOT_IN_RUN and flags[anchor] & _TEXT_KNOWN):
            out[i] = _IN_INDEX
            out_kept[i] = NOT_IN_RUN
        elif anchor == NOT_IN_RUN:
            out[i] = _KEPT if is_best else _EXACT_DUPLICATE
        elif flags[anchor] & _TEXT_IN_HOLDOUT:
            out[i] = _NEAR_DUPLICATE_OF_HOLDOUT
        else:
            out[i] = _NEAR_DUPLICATE if is_best else _EXACT_DUPLICATE


@jit
def _add_copies(fate: UInt8Array, kept: UInt32Array, copies: UInt32Array) -> None:
    for i in range(len(fate)):
        if fate[i] != _KEPT and kept[i] != NOT_IN_RUN:
            copies[kept[i]] += np.uint32(1)
