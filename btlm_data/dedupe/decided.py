"""What the stage leaves for whoever asks later how other settings would have decided (report.py).

dedupe/decided.json    {"format_version": 3, "settings": of the recipe's `dedupe`, "num_groups", "components", "members",
                       "pairs" (null: no texts were kept): each [name, size, checksum, store], "sources": {name:
                       [documents, bytes]} of train, "index_runs": [[run, [file, ...]], ...]}. It is there
                       only while these files are the stage's last ones.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from btlm_data.errors import DataError
from btlm_data.recipe.models import DedupeSettings
from btlm_data.storage import Store
from btlm_data.task import Artifact, Counts

NAME = "dedupe/decided.json"
_MAX_BYTES = 64 * 2**20


class Decided(msgspec.Struct, frozen=True):
    """sources: documents and bytes of train before deduplication, by source. pairs: None where no texts were kept."""

    settings: DedupeSettings
    num_groups: int
    components: Artifact
    members: Artifact
    pairs: Artifact | None
    sources: dict[str, tuple[int, int]]
    index_runs: tuple[tuple[str, tuple[Artifact, ...]], ...] = ()


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    """The file."""

    format_version: Literal[3]
    settings: dict[str, Any]
    num_groups: int
    components: Artifact
    members: Artifact
    pairs: Artifact | None
    sources: dict[str, tuple[int, int]]
    index_runs: tuple[tuple[str, tuple[Artifact, ...]], ...]


def amounts(counts: Counts) -> dict[str, tuple[int, int]]:
    """Documents and bytes of train that come in, by source, from the stage's cells of the ledger."""
    return {
        source: (amount.documents, amount.bytes)
        for (split, source, cell), amount in counts.cells.items()
        if split == "train" and cell == "in"
    }


def write(work: Store, decided: Decided) -> None:
    """Write decided.json into the work folder."""
    record = _Record(
        3,
        decided.settings.model_dump(mode="json"),
        decided.num_groups,
        decided.components,
        decided.members,
        decided.pairs,
        decided.sources,
        decided.index_runs,
    )
    work.write(NAME, msgspec.json.encode(record, order="deterministic") + b"\n", durable=False)


def read(work: Store) -> Decided | None:
    """Inverse of write; None where there is none. Raises DataError for one that cannot be read."""
    size = work.size(NAME)
    if size is None:
        return None
    try:
        record = msgspec.json.decode(work.read(NAME, 0, min(size, _MAX_BYTES)), type=_Record)
        settings = DedupeSettings.model_validate(record.settings)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{work.shown}/{NAME} cannot be read ({error}). Rerun the command that prepares the dataset with "
            "--stop-after dedupe: the file is made again."
        ) from error
    return Decided(
        settings,
        record.num_groups,
        record.components,
        record.members,
        record.pairs,
        record.sources,
        record.index_runs,
    )
