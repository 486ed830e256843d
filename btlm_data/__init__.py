"""Raw text corpora to verified, training-ready HDF5 shards.

`prepare(recipe)` prepares a corpus, `open(dataset)` reads one; docs/api.md has examples. The command is
`btlm-data`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from btlm_data.api import PreparedDataset as PreparedDataset
    from btlm_data.api import PreparedSplit as PreparedSplit
    from btlm_data.api import load_recipe as load_recipe
    from btlm_data.api import open as open
    from btlm_data.api import prepare as prepare
    from btlm_data.kernels.minhash import ngram_hash32 as ngram_hash32

_PLACES = {
    "PreparedDataset": "btlm_data.api",
    "PreparedSplit": "btlm_data.api",
    "load_recipe": "btlm_data.api",
    "open": "btlm_data.api",
    "prepare": "btlm_data.api",
    "ngram_hash32": "btlm_data.kernels.minhash",
}
__all__ = ["PreparedDataset", "PreparedSplit", "load_recipe", "ngram_hash32", "open", "prepare"]


def __getattr__(name: str) -> Any:
    """Load what needs numpy or numba only when it is requested: `btlm-data --help` must not wait for it."""
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
