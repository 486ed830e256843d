"""Texts to tokens, as part of the one pass over the text (docs/decisions/0001).

Tokenizing before deduplication costs tokens that are thrown away (as many as there are duplicates), and saves
decompressing, parsing and normalising everything twice (and, for a remote source, fetching it twice).

balance documents in = out; tokens = lengths + one EOS each (counted by stages/shuffle.py, which knows who
stays)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data import seeding
from btlm_data.errors import DataError
from btlm_data.estimate import Estimate, Workload
from btlm_data.recipe.models import Settings
from btlm_data.tokenizer import TokenizerSpec


def estimate(workload: Workload) -> list[Estimate]:
    """Nothing beyond what `read` takes, in whose pass the tokens are made."""
    return [Estimate("tokenize", tasks=0, documents=workload.volume.documents)]


def encode(
    texts: Sequence[str],
    keys: npt.NDArray[np.uint64],
    spec: TokenizerSpec,
    settings: Settings,
    file_name: str,
) -> dict[str, npt.NDArray[Any]]:
    """Columns of .tokens: `starts` (n,) uint64, `lengths` (n,) uint32, `tokens` (T,) uint16 or uint32.

    keys: (n,) uint64, the documents' identities. Tokens are in the shuffle's order, so that a bucket of the
    shuffle is together; `starts` says where, regardless of the seed. file_name: for the message of a failed
    check. Raises DataError if a verified tokenization differs.
    """
    tokenizer = spec.load()
    order = np.arange(len(texts))
    if settings.shuffle != "none":
        shuffled = seeding.mix64(keys, seeding.salt(settings.seed, "shuffle"))
        order = np.argsort(shuffled, kind="stable")
    ordered = [texts[i] for i in order.tolist()]
    ids, bounds = tokenizer.encode_batch(ordered)
    every = settings.tokenizer.verify_every
    if every:
        chosen = seeding.mix64(keys[order], seeding.salt(0, "verify")) % np.uint64(every) == 0
        for i in np.flatnonzero(chosen).tolist():
            expected, _ = tokenizer.encode_reference([ordered[i]])
            if not np.array_equal(expected, ids[bounds[i] : bounds[i + 1]]):
                raise DataError(
                    f"The fast tokenizer backend {tokenizer.backend} and `tokenizers` differ on a document of {file_name} "
                    f"that begins {ordered[i][:60]!r}. The run stopped before any wrong token was used. "
                    "Run again with --set tokenizer.backend=reference, and report the document."
                )
    starts, lengths = np.empty(len(texts), np.uint64), np.empty(len(texts), np.uint32)
    starts[order] = bounds[:-1]
    lengths[order] = np.diff(bounds)
    return {"starts": starts, "lengths": lengths, "tokens": ids}
