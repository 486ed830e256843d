"""What every task of deduplication needs to know."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from btlm_data.dedupe.index import IndexKind, IndexReader, Needs
from btlm_data.recipe.models import DedupeSettings

KeyKind = Literal["exact", "bands"]
_EXACT_BYTES, _KEY_BYTES = 16, 12  # of an index: of an exact hash; of a band key and its ordinal
_TEXT_SHARE = 0.4  # of a normalised text, compressed


def _scheme(dedupe: DedupeSettings) -> str:
    """What an index calls the hash functions, and the features where they are not SlimPajama's."""
    if (dedupe.shingle, dedupe.shingle_size) == ("chars", 13):
        return dedupe.scheme
    return f"{dedupe.scheme} of {dedupe.shingle_size} {dedupe.shingle}"


class ClusterSettings(msgspec.Struct, frozen=True):
    """Picklable. memory_bytes (of a worker), workers, memory_alone and threads (of a task that no other can run beside) do not decide the
    outcome. index: the runs to match against.
    """

    dedupe: DedupeSettings
    memory_bytes: int
    index: IndexReader | None = None
    threads: int = 1
    memory_alone: int = 2**40
    workers: int = 1

    @property
    def key_kinds(self) -> tuple[KeyKind, ...]:
        """Exact hashes, then (unless method is exact) bands."""
        return ("exact", "bands") if self.dedupe.method == "minhash" else ("exact",)

    @property
    def index_needs(self) -> Needs:
        """What an index must have kept of every document."""
        if self.dedupe.method != "minhash" or self.dedupe.verify == "none":
            return None
        return "texts" if self.by_text else "signatures"

    @property
    def index_kind(self) -> IndexKind:
        """What an index must agree with."""
        d = self.dedupe
        return (
            IndexKind(_scheme(d), d.bands, d.rows, d.num_perm)
            if d.method == "minhash"
            else IndexKind("exact", 0, 0, 0)
        )

    @property
    def by_text(self) -> bool:
        """Whether the texts of candidates are compared."""
        return self.dedupe.method == "minhash" and self.dedupe.verify == "text"

    @property
    def min_equal_values(self) -> int:
        """Equal values of two signatures that make their estimated similarity reach the threshold."""
        return int(np.ceil(self.dedupe.threshold * self.dedupe.num_perm - 1e-9))

    def index_bytes(self, documents: int, text_bytes: int, *, with_signatures: bool) -> int:
        """What an index keeps of so many documents, about. text_bytes: of their texts."""
        has_bands = "bands" in self.key_kinds
        of_document = _EXACT_BYTES + has_bands * (
            _KEY_BYTES * self.dedupe.bands + 4 * self.dedupe.num_perm * with_signatures
        )
        return of_document * documents + round(_TEXT_SHARE * text_bytes * self.by_text)

    def keys_per_document(self, kind: KeyKind) -> int:
        """Keys of one document."""
        return 1 if kind == "exact" else self.dedupe.bands
