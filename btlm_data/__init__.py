"""Raw text corpora to verified, training-ready HDF5 shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from btlm_data.kernels.minhash import ngram_hash32 as ngram_hash32

__all__ = ["ngram_hash32"]


def __getattr__(name: str) -> Any:
    """Load what needs numba only when it is asked for: `btlm-data --help` must not wait for it."""
    if name == "ngram_hash32":
        from btlm_data.kernels.minhash import ngram_hash32

        return ngram_hash32
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
