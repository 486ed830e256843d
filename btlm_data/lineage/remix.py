"""A split mixed anew: its documents in another order, some repeated and some left out, out of the tokens of its
shards. No text is read.

The split is what `prepare` makes with the same mix of the same documents, byte for byte: how often a document is
seen, in which phase and where follows from its key, its source, its copies and the seed (mix_plan.py), and all of
these are in documents.parquet.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from btlm_data import mix_plan, seeding
from btlm_data.errors import InputError
from btlm_data.formats import ledger
from btlm_data.formats.dataset import DOCUMENTS, MixedSource, MixPhase, Split, StoredFile
from btlm_data.lineage.changes import SplitChange
from btlm_data.lineage.masking import rewrite_whole, with_masked
from btlm_data.lineage.removing import packed, with_rows, write_shards
from btlm_data.lineage.restream import Repacking, StoredStream, placed, read_stream
from btlm_data.lineage.split_view import SplitView
from btlm_data.mix_plan import Borders, Mixing
from btlm_data.recipe.models import Settings
from btlm_data.task import Amount

Int64Array = npt.NDArray[np.int64]
_COLUMNS = ("stream_offset", "tokens", "file", "offset", "source", "bytes")


class Remix(msgspec.Struct, frozen=True):
    """A split that was mixed anew. change: of the split; left_out: rows of its old table that the mix leaves out."""

    change: SplitChange
    left_out: list[int]


class _Documents(msgspec.Struct, frozen=True):
    """The documents that may be taken, (n,) each, in the order of the table. codes: of `sources`."""

    rows: Int64Array
    begin: Int64Array
    tokens: Int64Array
    bytes: Int64Array
    keys: npt.NDArray[np.uint64]
    codes: Int64Array
    sources: list[str]
    copies: npt.NDArray[Any] | None


def remix(
    view: SplitView,
    settings: Settings,
    share: float | None,
    gone: Sequence[int],
    reason: str,
    folder: Path,
    rows: list[ledger.Row],
) -> Remix:
    """Mix the train split of a dataset that was prepared without a mix.

    settings: with the mix. share: of the set. gone: rows of the table that are not to be taken, ascending, and what
    the ledger calls them (reason). folder: the copy, whose files are links to those of `view`. Raises ConfigError
    where the mix cannot be had, InputError if no document is left, DataError for a shard that is not the one
    dataset.json names.
    """
    documents = _read(view, gone, with_copies=bool(settings.mix.by_copies))
    by_phase, borders_asked, mixing = _copies(documents, settings, share)
    chosen = np.repeat(np.arange(len(documents.rows)), by_phase.sum(axis=1))
    if not len(chosen):
        raise InputError(
            f"The mix leaves no document of the split {view.root / view.name}. Nothing was written."
        )
    phase = mix_plan.phases_of(by_phase)
    order = _order(documents, by_phase, chosen, phase, settings)
    chosen, phase = chosen[order], phase[order]
    length = documents.tokens[chosen]
    begin = np.cumsum(length + 1) - length - 1
    old_begin = documents.begin[chosen]
    old = read_stream(view, folder / ".stream", old_begin, old_begin + length + 1)
    tokens = placed(old, old_begin, length, folder / ".mixed", view.manifest.tokenizer.eos_id)
    total = len(tokens)
    phases = _phases(documents, chosen, phase, settings, borders_asked)
    ends = tuple(accumulate(each.tokens for each in phases))
    repacking = Repacking.of(
        StoredStream(tokens, begin, length), view.manifest, view.name, ends if len(phases) > 1 else ()
    )
    files, changed = write_shards(view, repacking, 0, folder)
    table = _write_table(view, documents.rows[chosen], begin, folder / DOCUMENTS)
    kept = repacking.shard_format.balance(repacking.stream.size, repacking.packing)
    rows = _counted(rows, view, documents, by_phase, gone, reason, mixing)
    rows = packed(rows, view.name, total, kept.kept, dict(kept.dropped))
    for name in {entry.name for entry in view.entry.files} - {file.name for file in files}:
        (folder / name).unlink()
    renewed = Split(
        documents=len(chosen),
        stream_tokens=total,
        samples=None if view.is_corpus else sum(file.n_examples for file in files),
        label_tokens=sum(file.tokens for file in files),
        files=files,
        documents_file=table,
        phases=with_rows(phases, repacking.phase_rows),
    )
    left_out = documents.rows[by_phase.sum(axis=1) == 0].tolist()
    return Remix(SplitChange(renewed, with_masked(rows, view.name, 0), changed, [], []), left_out)


def _read(view: SplitView, gone: Sequence[int], *, with_copies: bool) -> _Documents:
    names: dict[str, int] = {}
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    for _, columns in view.table.batches((*_COLUMNS, "copies") if with_copies else _COLUMNS):
        file, files = columns["file"]
        offset = columns["offset"].astype(np.uint64)
        keys = np.empty(len(file), np.uint64)
        for code in np.unique(file).tolist():
            keys[file == code] = seeding.document_keys(files[code], offset[file == code])
        source, sources = columns["source"]
        codes = np.array([names.setdefault(name, len(names)) for name in sources], np.int64)
        values = {"keys": keys, "codes": codes[source]}
        values |= {
            name: columns[name] for name in ("stream_offset", "tokens", "bytes", *(["copies"] * with_copies))
        }
        for name, value in values.items():
            parts.setdefault(name, []).append(value)
    whole = {name: np.concatenate(each) for name, each in parts.items()}
    is_kept = np.ones(view.table.num_rows, bool)
    is_kept[np.array(gone, np.int64)] = False
    begin, tokens, num_bytes = (
        whole[name][is_kept].astype(np.int64) for name in ("stream_offset", "tokens", "bytes")
    )
    return _Documents(
        rows=np.flatnonzero(is_kept),
        begin=begin,
        tokens=tokens,
        bytes=num_bytes,
        keys=whole["keys"][is_kept],
        codes=whole["codes"][is_kept],
        sources=list(names),
        copies=whole["copies"][is_kept] if with_copies else None,
    )


def _copies(
    documents: _Documents, settings: Settings, share: float | None
) -> tuple[Int64Array, Int64Array | None, Mixing]:
    """How often each document is in each phase; the tokens that a budget asks for; and the mix."""
    mix, borders, asked = settings.mix, None, None
    if mix.is_budget:
        hashed = mix_plan.hashes(documents.keys, settings.seed)
        weights = mix_plan.weigh(documents.codes, hashed, documents.tokens + 1)
        borders, asked = Borders.of(mix, documents.sources, weights, 1.0 if share is None else share)
    mixing = Mixing(mix, documents.sources, documents.copies, borders)
    numbers = np.arange(len(documents.rows))
    return mixing.copies(numbers, documents.codes, documents.keys, settings.seed), asked, mixing


def _order(
    documents: _Documents, by_phase: Int64Array, chosen: Int64Array, phase: Int64Array, settings: Settings
) -> Int64Array:
    """The places of the copies in their new order."""
    if settings.shuffle == "none":  # the table has the documents in the order of the source
        return np.lexsort((chosen, phase))
    keys = mix_plan.order_keys(
        documents.keys[chosen], by_phase.sum(axis=1), phase, settings.mix.ends, settings.seed
    )
    return np.argsort(keys, kind="stable")


def _phases(
    documents: _Documents, chosen: Int64Array, phase: Int64Array, settings: Settings, asked: Int64Array | None
) -> list[MixPhase]:
    """Of a mix by budget; their rows are not known yet."""
    if asked is None:
        return []
    phases = []
    for number, described in enumerate(settings.mix.phases):
        members = chosen[phase == number]
        count = np.bincount(documents.codes[members], minlength=len(documents.sources)).tolist()
        sizes = documents.tokens[members] + 1
        tokens = (
            np.bincount(documents.codes[members], sizes, len(documents.sources)).astype(np.int64).tolist()
        )
        sources = {
            name: MixedSource(count[code], tokens[code], int(asked[code, number]))
            for name, code in sorted((name, code) for code, name in enumerate(documents.sources))
            if count[code] or asked[code, number]
        }
        phases.append(MixPhase(described.name, sum(count), sum(tokens), 0, sources))
    return phases


def _write_table(view: SplitView, rows: Int64Array, begin: Int64Array, path: Path) -> StoredFile:
    """documents.parquet with these rows of the old one, which may repeat, in this order."""
    import pyarrow as pa

    parts = [view.table.arrow(group) for group in range(view.table.num_groups)]
    whole = pa.concat_tables(parts).unify_dictionaries().combine_chunks().take(pa.array(rows))
    column = whole.column_names.index("stream_offset")
    kind = whole.schema.field(column).type
    whole = whole.set_column(column, "stream_offset", pa.array(begin, pa.int64()).cast(kind))
    return rewrite_whole(whole, path)


def _counted(
    rows: list[ledger.Row],
    view: SplitView,
    documents: _Documents,
    by_phase: Int64Array,
    gone: Sequence[int],
    reason: str,
    mixing: Mixing,
) -> list[ledger.Row]:
    """The ledger whose stage `shuffle` leaves out and repeats documents."""
    copies = by_phase.sum(axis=1)
    dropped: dict[tuple[str, str], Amount] = {}
    added: dict[tuple[str, str], Amount] = {}

    def count(cells: dict[tuple[str, str], Amount], name: str, times: Int64Array) -> None:
        for code, source in enumerate(documents.sources):
            own = np.flatnonzero((documents.codes == code) & (times > 0))
            if len(own):
                sums = (times[own] * values[own] for values in (documents.bytes, documents.tokens + 1))
                cells[source, name] = Amount(int(times[own].sum()), *(int(each.sum()) for each in sums))

    count(dropped, mix_plan.LEFT_OUT, (copies == 0).astype(np.int64))
    ranges = mixing.range_of(np.arange(len(copies)))
    for number, name in enumerate(mixing.reasons):
        count(added, name, np.where(ranges == number, np.maximum(copies - 1, 0), 0))
    for document in view.table.rows(gone, ("source", "bytes", "tokens")):
        key = (document["source"], reason)
        size = Amount(1, document["bytes"], document["tokens"] + 1)
        dropped[key] = dropped.get(key, Amount()).plus(size)
    changed = []
    for row in rows:
        if (row.stage, row.split) == ("shuffle", view.name):
            out = row.out.amount
            more, less = dict(row.added), dict(row.dropped)
            for (source, name), amount in dropped.items():
                if source == row.source:
                    less[name], out = ledger.Amounts(*amount), out.minus(amount)
            for (source, name), amount in added.items():
                if source == row.source:
                    more[name], out = ledger.Amounts(*amount), out.plus(amount)
            row = msgspec.structs.replace(
                row,
                added=dict(sorted(more.items())),
                dropped=dict(sorted(less.items())),
                out=ledger.Amounts(*out),
            )
        changed.append(row)
    return changed
