"""Pairs of duplicates: a document that was dropped and the one that was kept for it; and verdicts on them.

Pairs are the rows of removals.parquet, the least alike first: those at the border of what counts as a
duplicate. A person says of each whether it was right to drop it; of verdicts on pairs drawn at random, the
share of right ones estimates the precision.
"""

from __future__ import annotations

import difflib
import math
import re
import threading
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.formats.documents_table import DocumentTable
from btlm_data.inspection.removed_pairs import TABLE

MAX_WORDS = 2500  # of each text that are compared
_STEPS = 1002  # thousandths of similarity from 0 to 1, and one for what was not compared
_COLUMNS = ("reason", "similarity", "cluster") + tuple(
    f"{prefix}{name}"
    for prefix in ("", "kept_")
    for name in ("document", "source", "file", "offset", "bytes")
)
Z = 1.959964  # of a 95 % interval
Verdict = Literal["right", "wrong"]


class PairDocument(msgspec.Struct, frozen=True):
    """A document of a pair, and its position in the source. document: its number there; None where it is not
    known.
    """

    document: int | None
    source: str
    file: str
    offset: int
    bytes: int


class Pair(msgspec.Struct, frozen=True):
    """A removed document and the one kept for it, None where that is in an index of earlier runs.

    similarity: None where the texts were not compared. cluster: number of their cluster.
    """

    removed: PairDocument
    kept: PairDocument | None
    reason: str
    similarity: float | None
    cluster: int


class Pairs:
    """The pairs of one dataset, the least alike first (to a thousandth, then as they are in the table).

    What is kept in memory is how many pairs of each thousandth are in each row group of the table, so at most 4 kB for some ten
    thousand pairs; of the row group that is shown, all. Raises DataError for a damaged table.
    """

    def __init__(self, root: Path) -> None:
        self._table: DocumentTable | None = None
        self._counts = np.zeros((_STEPS, 0), np.int32)
        if (root / TABLE).exists():
            self._table = DocumentTable(root / TABLE, _COLUMNS)
            groups = range(self._table.num_groups)
            counts = [np.bincount(self._steps(group), minlength=_STEPS) for group in groups]
            self._counts = np.array(counts, np.int32).reshape(-1, _STEPS).T.copy()
        self._ends = np.cumsum(self._counts.sum(1, dtype=np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def pair(self, number: int) -> Pair:
        """Pair `number`, from 0 on. Raises DataError for a damaged table."""
        assert self._table is not None
        step = int(np.searchsorted(self._ends, number, side="right"))
        ends = np.cumsum(self._counts[step], dtype=np.int64) + (self._ends[step - 1] if step else 0)
        group = int(np.searchsorted(ends, number, side="right"))
        place = number - int(ends[group] - self._counts[step, group])
        row = int(np.flatnonzero(self._steps(group) == step)[place])
        [values] = self._table.described([self._table.group_rows(group)[0] + row])
        kept = _document(values, "kept_") if values["kept_file"] is not None else None
        return Pair(_document(values, ""), kept, values["reason"], values["similarity"], values["cluster"])

    def _steps(self, group: int) -> npt.NDArray[np.int64]:
        """Thousandths of similarity of a row group's pairs; the last step is of those that were not compared."""
        assert self._table is not None
        column = self._table.arrow(group, ("similarity",)).column("similarity")
        similarity = column.to_numpy(zero_copy_only=False).astype(np.float64)
        steps = np.clip(np.nan_to_num(similarity) * 1000, 0, _STEPS - 2).astype(np.int64)
        return np.where(np.isnan(similarity), _STEPS - 1, steps)


def _document(row: dict[str, Any], prefix: str) -> PairDocument:
    return PairDocument(
        row[f"{prefix}document"],
        row[f"{prefix}source"] or "",
        row[f"{prefix}file"],
        row[f"{prefix}offset"],
        row[f"{prefix}bytes"],
    )


class Verdicts(msgspec.Struct):
    """The verdicts of a person on the pairs of one dataset, by the number of the pair."""

    by_pair: dict[int, Verdict] = msgspec.field(default_factory=dict)
    _lock: threading.Lock = msgspec.field(default_factory=threading.Lock)

    def say(self, pair: int, verdict: Verdict) -> None:
        """Keep a verdict; a second one on the same pair replaces the first."""
        with self._lock:
            self.by_pair[pair] = verdict

    def tally(self) -> dict[str, Any]:
        """Counts, the share of right ones, and its 95 % interval; None where there is no verdict."""
        right = sum(verdict == "right" for verdict in self.by_pair.values())
        total = len(self.by_pair)
        low, high = interval(right, total)
        return {
            "right": right,
            "wrong": total - right,
            "precision": right / total if total else None,
            "low": low if total else None,
            "high": high if total else None,
        }


def interval(successes: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (J. Am. Stat. Assoc. 22, 1927); (0, 1) without any observation."""
    if not total:
        return 0.0, 1.0
    share, spread = successes / total, Z * Z / total
    middle = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def differences(left: str, right: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]], bool]:
    """Both texts in pieces, (piece, whether it differs), by words; and whether all of both was compared."""
    words = [re.findall(r"\S+\s*|\s+", text) for text in (left, right)]
    complete = all(len(side_words) <= MAX_WORDS for side_words in words)
    a, b = (side_words[:MAX_WORDS] for side_words in words)
    matcher = difflib.SequenceMatcher(None, [w.strip() for w in a], [w.strip() for w in b], autojunk=False)
    pieces: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
    for kind, a0, a1, b0, b1 in matcher.get_opcodes():
        for side, part in zip(pieces, ("".join(a[a0:a1]), "".join(b[b0:b1])), strict=True):
            if part:
                side.append((part, kind != "equal"))
    return pieces[0], pieces[1], complete
