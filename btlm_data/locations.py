"""The locations of the files of a run: the stores of its work folder, dataset folder and, if requested, of
its texts and of an index of deduplication.
"""

from __future__ import annotations

import msgspec

from btlm_data.storage import Store, open_store
from btlm_data.task import StoreName


class Locations(msgspec.Struct, frozen=True):
    """Absolute folders or URLs, from which any process on any machine that can reach them opens the same
    stores.
    """

    work: str
    out: str
    text: str | None = None
    index: str | None = None

    def open(self) -> Stores:
        """Open them in this process."""
        text, index = (open_store(url) if url else None for url in (self.text, self.index))
        return Stores(open_store(self.work), open_store(self.out), text, index)


class Stores(msgspec.Struct, frozen=True):
    """The opened stores of a run."""

    work: Store
    out: Store
    text: Store | None = None
    index: Store | None = None

    def reach(self) -> None:
        """Raise OutputError where a remote store does not answer, before anything waits for it."""
        stores = (self.work, self.out, self.text, self.index)
        for store in {id(store): store for store in stores if store is not None}.values():
            store.reach()

    def __getitem__(self, name: StoreName) -> Store:
        store: Store | None = getattr(self, name)
        assert store is not None, f"this run has no {name} folder"
        return store
