"""Load what tasks need before they do anything: kernels, pyarrow, the tokenizer."""

from __future__ import annotations

import contextlib
import functools
import importlib
from typing import Any

from btlm_data.tokenizer.tokenizer import TokenizerSpec, open_tokenizer

_WARM_UP_TEXT = "A first, short TEXT; with enough characters for one n-gram. Καλημέρα"


def warm_up(tokenizer: Any) -> None:
    """Load (the first time: compile) every kernel, and pyarrow, here, so that forked workers have them and none is
    compiled twice.
    """
    load_kernels(tokenizer.dtype)
    tokenizer.encode_batch([_WARM_UP_TEXT])


@functools.cache
def get_ready(spec: TokenizerSpec) -> None:
    """As `warm_up`, once in a process that somebody else started: it makes no other."""
    tokenizer = open_tokenizer(spec)
    load_kernels(tokenizer.dtype, may_fork=False)
    tokenizer.encode_batch([_WARM_UP_TEXT])


def load_kernels(token_dtype: Any, *, may_fork: bool = True) -> None:
    """Run every kernel once, for token IDs of this dtype; what a first run has to compile, on several cores if this process may
    fork.
    """
    from btlm_data.formats.arrow import leave_pandas_out
    from btlm_data.kernels import compiling, deflate, shingles

    leave_pandas_out()
    for name in ("pyarrow.compute", "pyarrow.parquet"):  # which writing tables and lists imports
        importlib.import_module(name)
    # Comparing takes as long to compile as all the others, so these are compiled meanwhile, in this process.
    beside = compiling.compiling_beside(_run_comparing_kernels, shingles._decide)
    with beside if may_fork else contextlib.nullcontext():
        _run_reading_kernels(token_dtype)
        if not compiling.is_compiled(deflate._find):
            _run_later_kernels(token_dtype)
    _run_comparing_kernels()


def _run_reading_kernels(token_dtype: Any) -> None:
    import numpy as np

    from btlm_data.kernels import composition, minhash, normalisation, packing, stretches, token_text

    utf8 = _WARM_UP_TEXT.encode()
    whole = np.array([0, len(utf8)])
    composition.are_composed(np.frombuffer(utf8, np.uint8), whole)
    normalised = normalisation.normalise([_WARM_UP_TEXT], np.frombuffer(utf8, np.uint8), whole)
    minhash.band_keys(minhash.signatures(normalised), 9, 13)
    minhash.exact_hashes(normalised.utf8, normalised.offsets)
    single = np.zeros(1, np.int64)
    stretches.copy(normalised.utf8, single, single, np.empty(1, np.uint8), single)
    table = token_text.Table.of(token_text.TokenBytes(np.zeros(1, np.uint8), np.array([0, 1])))
    ids = np.zeros(1, token_dtype)
    token_text.decode(ids, single, single, table, single)
    packing.place_documents(ids, single, np.ones(1, np.int64), single, np.empty(2, token_dtype), 0)


def _run_comparing_kernels() -> None:
    import numpy as np

    from btlm_data.kernels import shingles

    rules = [shingles.Rule(shingles.JACCARD, 0.8)]
    shingles.decide(
        np.zeros(1, np.uint8), np.array([0, 1]), np.zeros(0, np.int64), np.zeros(2, np.int64), rules
    )


def _run_later_kernels(token_dtype: Any) -> None:
    """Most of what sorts candidates, joins them and writes shards: each worker would compile them for itself."""
    import numpy as np

    from btlm_data.kernels import buckets, deflate, union_find

    deflate.deflate_samples(np.zeros((1, 17), token_dtype))
    keys, ordinals = np.zeros(2, np.uint64), np.arange(2, dtype=np.uint32)
    packed, mask = buckets.sort_order(keys, 0)
    members, starts = buckets.equal_runs(packed, mask, keys, np.empty(0, np.uint64))
    buckets.nominate(members, starts, ordinals, 0)
    first, other = buckets.star_edges(members, starts, ordinals)
    union_find.unite(ordinals, first, other)
    union_find.flatten(ordinals)
