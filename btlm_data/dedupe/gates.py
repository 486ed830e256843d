"""When a person must look at what deduplication would remove: a question with evidence, before anything
depends on it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from btlm_data.by_ordinal import ByOrdinal
from btlm_data.dedupe.members import read_group
from btlm_data.errors import SafetyStop
from btlm_data.locations import Stores
from btlm_data.recipe.models import DedupeSettings
from btlm_data.task import Artifact, Task
from btlm_data.task_files import TaskFiles

SHOWN_PAIRS = 10
SHOWN_CHARS = 90
FEW = 1000  # documents: a component that removes fewer is not worth a stop
MIN_DOCUMENTS = 5  # documents: a share of fewer says nothing about a source


def check(
    removed: Mapping[str, Sequence[int]],
    summary: Mapping[str, Any],
    dedupe: DedupeSettings,
    accepted: bool | Sequence[str],
    evidence: Evidence,
) -> None:
    """Raise SafetyStop where a source's train documents would go as no setting expects, unless that is
    accepted.

    removed: source -> bytes that would go, all bytes, documents that would go. accepted: whether everything
    is, or the sources that are.
    """
    if accepted is True:
        return
    named = set(accepted or ())
    questions = [
        question
        for source, (gone, total, documents) in sorted(removed.items())
        if source not in named and total
        for question in [_question(source, gone / total, documents, dedupe)]
        if question is not None
    ]
    sources = [source for source, _ in questions]
    for cluster in summary["largest_clusters"]:
        for source, (gone_documents, documents) in cluster["removed"].items():
            is_much = gone_documents > max(FEW, dedupe.max_component * documents)
            if is_much and source not in named and source not in sources:
                share = gone_documents / documents
                questions.append(
                    (
                        source,
                        f"One component (of document {cluster['cluster']}) would take {share:.1%} of the documents of "
                        f"{source}, more than dedupe.max_component = {dedupe.max_component:.0%}.",
                    )
                )
                sources.append(source)
    if not questions:
        return
    largest = [
        f"  {cluster['documents']:,} documents like the one of {cluster['bytes']:,} bytes at offset "
        f"{cluster['offset']} of {cluster['file']} ({cluster['source']})"
        for cluster in summary["largest_clusters"]
    ]
    names = " ".join(f"--accept-removal-of {shlex.quote(source)}" for source in sources)
    raise SafetyStop(
        "\n".join(
            [
                *(text for _, text in questions),
                f"The largest clusters, all listed in {evidence.table}:",
                *largest,
                *evidence.pairs(sources),
                f"`btlm-data dedupe-report {evidence.work}` says what other thresholds and rules would remove.",
                f"Look at them; if they are right, rerun the same command with --accept-removal, or with {names}.",
            ]
        )
    )


def _question(source: str, share: float, documents: int, dedupe: DedupeSettings) -> tuple[str, str] | None:
    expected = dedupe.expected_removed.get(source)
    if expected is not None:
        low, high = expected
        if low <= share <= high:
            return None
        return source, (
            f"Deduplication would remove {share:.1%} of the bytes of {source}; dedupe.expected_removed says {low:.1%} to "
            f"{high:.1%}."
        )
    if share <= dedupe.max_removed or documents < MIN_DOCUMENTS:
        return None
    return source, (
        f"Deduplication would remove {share:.1%} of the bytes of {source}, more than dedupe.max_removed = "
        f"{dedupe.max_removed:.0%}."
    )


class Evidence:
    """Pairs to show: the least similar ones of the sources in question, with the first words of both texts."""

    def __init__(
        self, stores: Stores, table: Artifact, removals: Artifact, components: Artifact, members: Artifact
    ) -> None:
        """table: clusters.parquet. components, members: lists of files (by_ordinal.py, by_group.py)."""
        self._work, self._removals, self._components, self._members = (
            stores.work,
            removals,
            components,
            members,
        )
        self._files = TaskFiles(stores, Task("evidence", reads={"files": [components, members]}))
        self.work, self.table = stores.work.shown, f"{stores.work.shown}/{table.name}"

    def pairs(self, sources: Sequence[str]) -> list[str]:
        """Lines for the message; none where nothing was compared."""
        import pyarrow.parquet as pq

        with self._work.open(self._removals.name) as file:
            table = pq.ParquetFile(file)
            rows: list[dict[str, Any]] = []
            for group in range(table.metadata.num_row_groups):
                part = table.read_row_group(group)
                similarity = part["similarity"].to_numpy(zero_copy_only=False)
                is_wanted = np.isin(part["source"].to_numpy(zero_copy_only=False), sources) & (similarity < 1)
                order = np.flatnonzero(is_wanted)
                order = order[np.argsort(similarity[order], kind="stable")][:SHOWN_PAIRS]
                rows += part.take(order).to_pylist()
                rows = sorted(rows, key=lambda row: row["similarity"])[:SHOWN_PAIRS]
        if not rows:
            return []
        texts = self._texts({row[key] for row in rows for key in ("document", "kept_document")} - {None})
        lines = [f"The {len(rows)} least similar pairs (texts as they are compared):"]
        for row in rows:
            lines.append(
                f"  similarity {row['similarity']:.3f}: {row['file']} line {row['line'] + 1}"
                + (
                    f", for {row['kept_file']} line {row['kept_line'] + 1}"
                    if row["kept_file"]
                    else ", for one in the index"
                )
            )
            lines += [f"    {texts[row[key]]}" for key in ("document", "kept_document") if row[key] in texts]
        return lines

    def _texts(self, ordinals: set[int]) -> dict[int, str]:
        """The beginnings of normalised texts, by ordinal, of those that were kept."""
        components = ByOrdinal(self._files, self._components)
        by_number: dict[int, list[int]] = {}
        for ordinal in sorted(ordinals):
            by_number.setdefault(int(components.rows("group", ordinal, ordinal + 1)[0]), []).append(ordinal)
        beginnings: dict[int, str] = {}
        by_number.pop(0, None)  # a document that is alone has no text here
        for number, wanted in by_number.items():
            group = read_group(self._files, self._members, number, with_texts=True)
            rows = np.searchsorted(group.columns["ordinal"], wanted)
            for ordinal, text in zip(wanted, group.texts.as_bytes(rows, 4 * SHOWN_CHARS), strict=True):
                if text:
                    beginnings[ordinal] = text.decode(errors="ignore")[:SHOWN_CHARS]
        return beginnings
