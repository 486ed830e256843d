"""What deduplication knows of a document before it compares texts. Documents that are read, and those of a finished
dataset that later ones are compared with, are sketched here alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data.kernels import minhash
from btlm_data.kernels.normalisation import Normalised
from btlm_data.recipe.models import DedupeSettings


def sketch(
    normalised: Normalised, kept: npt.NDArray[np.int64], dedupe: DedupeSettings, *, with_signatures: bool
) -> dict[str, npt.NDArray[Any]]:
    """Columns of the documents at `kept` (k,): `exact` (k, 2) uint64; with MinHash `bands` (k, B) uint64 and, where
    asked for, `signatures` (k, P) uint32.
    """
    columns: dict[str, npt.NDArray[Any]] = {
        "exact": minhash.exact_hashes(normalised.utf8, normalised.offsets)[kept]
    }
    if dedupe.method == "minhash":
        shingle = minhash.Shingle.of(dedupe.shingle, dedupe.shingle_size)
        signatures = minhash.signatures(normalised, dedupe.num_perm, scheme=dedupe.scheme, shingle=shingle)
        columns["bands"] = minhash.band_keys(signatures, dedupe.bands, dedupe.rows)[kept]
        if with_signatures:
            columns["signatures"] = signatures[kept]
    return columns
