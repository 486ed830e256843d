"""Runs: tokens of many blocks laid down in the stream's order, so that a stretch of the stream is together in
few files.

For formats whose tasks read a stretch of the stream, and no pieces of it (pieces.py). A block holds documents from all over the stream. While all blocks together fit the page cache, a stretch
takes its documents out of them one by one. Beyond that the tokens are moved first, as an external radix sort
moves them:

    shuffle.scatter    blocks, as many as memory holds           -> a run of each stream, over the whole of
                                                                 its keys
    shuffle.merge-2    one range of keys, out of as many runs    -> a run over that range
    shuffle.merge-3    a range of that range, ...

Each reads pieces of several megabytes, and each makes the pieces that the next reader finds FANOUT times as
long; so the number of times that a token is moved grows with the logarithm of the corpus. What is moved how
often follows from the amount and the memory; the order, and so every byte of the dataset, does not.

    shuffle/scatter/GROUP.cols, shuffle/merge-N/STREAM-RANGE-BATCH.cols
        per stream s `s/records` (n, 32) uint8: RECORD each, in the order of their keys; meta: `edges`, per
        stream the rows at which each bucket from `first` on begins, and the end
    .../NAME-STREAM.tokens   `tokens` (T,): documents in that order, one more token after each
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from btlm_data.errors import DataError
from btlm_data.formats.columns import Columns
from btlm_data.formats.shard_formats import get_format
from btlm_data.recipe.models import Settings
from btlm_data.storage import page_cache
from btlm_data.task import Artifact
from btlm_data.task_files import TaskFiles

# A document in a stream. start: of its tokens in the block or run that `block` numbers.
RECORD = np.dtype([("key", "<u8"), ("start", "<u8"), ("ordinal", "<u8"), ("block", "<u4"), ("length", "<u4")])
Records = npt.NDArray[Any]

_PIECE_BYTES = 4 * 2**20  # of one run that one merge reads
LEAST_PIECE = 2**20  # of one run that a stretch of the stream reads
_STRETCH_BYTES = 64 * 2**20  # of the stream that one later task reads


class Moves(NamedTuple):
    """How often tokens are moved, and in what amounts. passes: 0 where they stay in their blocks.

    run_bytes: of tokens in one run. fanout: ranges into which each merge divides its own.
    """

    passes: int
    run_bytes: int
    fanout: int

    @staticmethod
    def plan(token_bytes: int, memory: int) -> Moves:
        """For so many bytes of tokens in all. memory: of one worker."""
        run_bytes = max(1, memory * 2 // 5)
        fanout = max(2, run_bytes // _PIECE_BYTES)
        if page_cache.fits(token_bytes):
            return Moves(0, run_bytes, fanout)
        passes, span = 1, token_bytes
        while _STRETCH_BYTES * run_bytes < LEAST_PIECE * span and span > run_bytes:
            passes, span = passes + 1, -(-span // fanout)
        return Moves(passes, run_bytes, fanout)


def moves_of(settings: Settings, token_bytes: int, memory: int) -> Moves:
    """How the tokens of a recipe are moved; not at all where its format takes pieces (pieces.py). memory: of one worker."""
    moves = Moves.plan(token_bytes, memory)
    return moves._replace(passes=0) if get_format(settings.format).takes_pieces else moves


class Run(NamedTuple):
    """One run (or, where nothing is moved, the records of a group of blocks). tokens: None in that case.

    first, last: buckets [first, last) that it has.
    """

    records: Artifact
    tokens: Artifact | None
    first: int
    last: int


def write(
    files: TaskFiles,
    name: str,
    streams: Mapping[str, tuple[Records, npt.NDArray[Any]]],
    first: int,
    more: Mapping[str, npt.NDArray[Any]] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write the records of some streams. streams: name -> records in order, rows at which each bucket begins,
    and the end. Records are (n,) of one structured dtype, bounds (buckets + 1,) int64. more, meta: what else
    the file has.
    """
    arrays = {
        f"{stream}/records": records.view(np.uint8).reshape(-1, records.dtype.itemsize)
        for stream, (records, _) in streams.items()
    }
    edges = {stream: bounds.tolist() for stream, (_, bounds) in streams.items()}
    files.write_columns(name, arrays | dict(more or {}), {"first": first, "edges": edges, **(meta or {})})


def read(opened: Columns, stream: str, first: int, last: int, dtype: np.dtype[Any] = RECORD) -> Records:
    """Records of a stream in the buckets [first, last), (n,) of dtype. Raises DataError for buckets that the
    file has not.
    """
    edges, base = opened.meta["edges"][stream], int(opened.meta["first"])
    if not base <= first <= last < base + len(edges):
        raise DataError(
            f"A file of stream {stream} has no buckets {first} to {last}. Rerun the same command."
        )
    rows = opened.rows(f"{stream}/records", int(edges[first - base]), int(edges[last - base]))
    return np.ascontiguousarray(rows).reshape(-1).view(dtype)


def in_order(parts: Sequence[Records]) -> tuple[Records, npt.NDArray[np.int64]]:
    """Records of all parts by key (equal keys in the order of the parts), and which part each is from.
    Returns (n,) of RECORD and (n,) int64.
    """
    in_key_order, order = ordered(parts, RECORD)
    origin = (
        np.repeat(np.arange(len(parts)), [len(part) for part in parts]) if parts else np.empty(0, np.int64)
    )
    return in_key_order, origin[order]


def ordered(parts: Sequence[Records], dtype: np.dtype[Any]) -> tuple[Records, npt.NDArray[np.int64]]:
    """Records of all parts by key (equal keys in the order of the parts), and the position of each among
    them all. Returns (n,) of dtype and (n,) int64.
    """
    joined = np.concatenate([np.empty(0, dtype), *parts])
    order = np.argsort(joined["key"], kind="stable")
    return joined[order], order


def lay_down(
    sources: Sequence[npt.NDArray[Any]], records: Records, origin: npt.NDArray[np.int64], dtype: str
) -> npt.NDArray[Any]:
    """Tokens of the records in their order, each followed by one more token; the records then say where
    theirs begin.

    sources: tokens by origin. Raises DataError if a record is outside its source. sources: (t,) arrays of one
    token dtype; origin: (n,) int64; returns (tokens,) of `dtype`.
    """
    from btlm_data.kernels.packing import place_documents

    length = records["length"].astype(np.int64)
    starts = np.cumsum(length + 1) - length - 1
    out = np.zeros(int((length + 1).sum()), dtype)
    by_origin = np.argsort(origin, kind="stable")
    bounds = np.searchsorted(origin[by_origin], np.arange(len(sources) + 1))
    for number, tokens in enumerate(sources):
        rows = by_origin[bounds[number] : bounds[number + 1]]
        if len(rows):
            begin = records["start"][rows].astype(np.int64)
            place_documents(tokens, begin, length[rows], starts[rows], out, 0)
    records["start"] = starts
    return out


def move(
    files: TaskFiles,
    name: str,
    stream: str,
    number: int,
    sources: Sequence[npt.NDArray[Any]],
    records: Records,
    origin: npt.NDArray[np.int64],
) -> None:
    """Move the tokens of the records into one file, in their order; the records then speak of it, as run
    `number`. sources: (t,) arrays of one token dtype; origin: (n,) int64.
    """
    dtype = sources[0].dtype.name if sources else "uint16"
    laid = lay_down(sources, records, origin, dtype)
    records["block"] = number
    files.write_columns(tokens_name(name, stream), {"tokens": laid})


def tokens_name(name: str, stream: str) -> str:
    """Name of the file of tokens beside a file of records."""
    return f"{name.removesuffix('.cols')}-{stream}.tokens"
