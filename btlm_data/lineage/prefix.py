"""What the first samples of a split are made of: tokens of each source in any prefix of the sample order, counted
from documents.parquet and the order of samples; no shard is read.

A training run that reads samples in their order (`shuffle: false`) sees exactly these tokens up to there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data.errors import ConfigError
from btlm_data.formats.arrow import leave_pandas_out
from btlm_data.lineage.datasets import open_dataset
from btlm_data.lineage.split_view import SplitView
from btlm_data.wording import counted

Int64Array = npt.NDArray[np.int64]
_SHOWN = 50
_STEP = 1 << 20  # rows looked up at once


class SourceShare(msgspec.Struct, frozen=True):
    """One source in a prefix. tokens: positions of samples. documents: that have any there (one that a mix repeats
    counts each time). asked: the share that a mix by budget asks for, None for any other.
    """

    tokens: int
    share: float
    documents: int
    asked: float | None


class Prefix(msgspec.Struct, frozen=True):
    """The first `rows` of `of` samples (corpus: tokens) of a split. set: its folder, "" where there is one.
    generation: from 1.
    """

    set: str
    generation: int
    split: str
    rows: int
    of: int
    tokens: int
    sources: dict[str, SourceShare]


def parse_part(text: str) -> float | int:
    """A part of all samples from "10%" (0.1), or how many from "5000". Raises ConfigError."""
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,12})?)\s*(%?)\s*", text)
    if match and match[2] and float(match[1]) <= 100:
        return float(match[1]) / 100
    if match and not match[2] and "." not in match[1]:
        return int(match[1])
    raise ConfigError(
        f"--prefix {text[:80]!r} is no part of the samples. Write for example 10%, or a number."
    )


def prefixes(path: Path, part: float | int, split: str) -> Iterator[Prefix]:
    """The prefix of a split in every prepared set and generation. part: of all samples, or how many. Raises ConfigError where no
    set has the split, DataError where the dataset is not whole.
    """
    has_split = False
    leave_pandas_out()
    for of_set in open_dataset(path):
        if split in of_set.splits:
            has_split = True
            yield prefix_of(of_set.splits[split], part, of_set.name, of_set.generation)
    if not has_split:
        raise ConfigError(f"There is no split {split!r} in {path}. Name another with --split.")


def prefix_of(view: SplitView, part: float | int, set_name: str = "", generation: int = 1) -> Prefix:
    """Of one split. part: of all samples, or how many."""
    rows = int(part * view.num_rows) if isinstance(part, float) else min(part, view.num_rows)
    if view.is_corpus:
        inside = _corpus_counter(rows)
    else:
        inside = _vsl_counter(view, rows) if view.format == "vsl" else _sample_counter(view, rows)
    tokens: dict[str, int] = {}
    documents: dict[str, int] = {}
    for first, columns in view.table.batches(("stream_offset", "tokens", "source")):
        codes, names = columns["source"]
        begin = columns["stream_offset"].astype(np.int64)
        counts = inside(first, begin, begin + columns["tokens"].astype(np.int64) + 1)
        sums = np.bincount(codes, counts, len(names)).astype(np.int64)
        numbers = np.bincount(codes[counts > 0], minlength=len(names))
        for code in np.flatnonzero(numbers).tolist():
            tokens[names[code]] = tokens.get(names[code], 0) + int(sums[code])
            documents[names[code]] = documents.get(names[code], 0) + int(numbers[code])
    total = sum(tokens.values())
    asked = _asked(view, rows)
    sources = {
        name: SourceShare(
            tokens.get(name, 0),
            tokens.get(name, 0) / total if total else 0.0,
            documents.get(name, 0),
            None if asked is None else asked.get(name, 0.0),
        )
        for name in sorted(tokens.keys() | (asked or {}).keys())
    }
    return Prefix(set_name, generation, view.name, rows, view.num_rows, total, sources)


def _corpus_counter(rows: int) -> Any:
    """How many tokens of stretches [begin, end) of the stream are among the first rows; (n,) each."""

    def inside(first: int, begin: Int64Array, end: Int64Array) -> Int64Array:
        return np.minimum(end, rows) - np.minimum(begin, rows)

    return inside


def _sample_counter(view: SplitView, rows: int) -> Any:
    """How many positions of stretches [begin, end) of the stream are inputs in the first rows; (n,) each."""
    length = view.length
    is_chosen = np.zeros(view.num_rows + 1, np.bool_)
    for first in range(0, rows, _STEP):
        is_chosen[view.samples_of(np.arange(first, min(first + _STEP, rows)))] = True

    def inside(first: int, begin: Int64Array, end: Int64Array) -> Int64Array:
        if not len(begin):
            return begin
        low = min(int(begin[0]) // length, view.num_rows)
        chosen = is_chosen[low : int(end[-1]) // length + 1]
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(chosen, dtype=np.int64)])

        def upto(position: Int64Array) -> Int64Array:
            sample = np.minimum(position // length - low, len(chosen))
            partly = np.append(chosen, False)[sample] * (position % length)
            return before[sample] * length + partly

        return upto(np.minimum(end, view.num_labels)) - upto(np.minimum(begin, view.num_labels))

    return inside


def _vsl_counter(view: SplitView, rows: int) -> Any:
    """The same where documents are packed: positions of a document that are in the first rows."""
    pieces = view.pieces()
    is_chosen = pieces.row < rows
    counts = np.bincount(pieces.document[is_chosen], pieces.length[is_chosen], view.table.num_rows).astype(
        np.int64
    )

    def inside(first: int, begin: Int64Array, end: Int64Array) -> Int64Array:
        return counts[first : first + len(begin)]

    return inside


def _asked(view: SplitView, rows: int) -> dict[str, float] | None:
    """The share of each source that a mix by budget asks for in the first rows; None for any other mix."""
    if not view.entry.phases:
        return None
    asked: dict[str, float] = {}
    begin = 0
    for phase in view.entry.phases:
        covered = min(max(rows - begin, 0), phase.rows) / phase.rows if phase.rows else 0.0
        for name, source in phase.sources.items():
            asked[name] = asked.get(name, 0.0) + source.asked * covered
        begin += phase.rows
    total = sum(asked.values())
    return {name: tokens / total if total else 0.0 for name, tokens in asked.items()}


def lines(prefix: Prefix) -> Iterator[str]:
    """A prefix for people."""
    where = f"{prefix.set}/{prefix.split}" if prefix.set else prefix.split
    where = where if prefix.generation == 1 else f"generation {prefix.generation}, {where}"
    part = prefix.rows / prefix.of if prefix.of else 0.0
    yield (
        f"{where}: the first {prefix.rows:,} of {prefix.of:,} ({part:.4g} of the order) have "
        f"{counted(prefix.tokens, 'token')}"
    )
    ordered = sorted(prefix.sources.items(), key=lambda pair: (-pair[1].tokens, pair[0]))
    width = max((len(name) for name, _ in ordered[:_SHOWN]), default=0)
    for name, source in ordered[:_SHOWN]:
        asked = "" if source.asked is None else f"   asked {source.asked:8.4%}"
        yield (
            f"  {name:<{width}}  {source.share:8.4%}{asked}   {counted(source.tokens, 'token')} of "
            f"{counted(source.documents, 'document')}"
        )
    if len(ordered) > _SHOWN:
        yield f"  and {len(ordered) - _SHOWN:,} more sources (--json has all)"
