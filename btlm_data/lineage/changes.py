"""What taking documents out of a split changes, however it is done (masking.py, removing.py)."""

from __future__ import annotations

import msgspec

from btlm_data.formats import ledger
from btlm_data.formats.dataset import Split
from btlm_data.formats.forgotten import ChangedShard
from btlm_data.lineage.split_view import Extent


class SplitChange(msgspec.Struct, frozen=True):
    """A split after documents were taken out.

    entry: of dataset.json. rows: the whole ledger. shards: those that are not as they were. documents: taken
    out, where they were; masked_labels: of each, label positions that lost their loss. masked: positions that
    lost it, all together.
    """

    entry: Split
    rows: list[ledger.Row]
    shards: list[ChangedShard]
    documents: list[Extent]
    masked_labels: list[int]
    masked: int = 0
