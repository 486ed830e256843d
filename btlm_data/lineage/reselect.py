"""Another dataset from the tokens of a finished one: the documents that satisfy an expression (where.py), packed
and written anew. No text is read.

Every split is what `prepare` makes of these documents with the same settings and seed: documents keep their
order, samples are cut and shuffled anew. The ledger has the others as dropped by the stage `shuffle`, and
dropped.parquet lists them. The old dataset is not touched; files that do not change are links to its bytes.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from btlm_data.errors import BtlmError, InputError, OutputError
from btlm_data.formats import ledger
from btlm_data.formats.dataset import DROPPED, StoredFile
from btlm_data.lineage.datasets import SetView, open_dataset
from btlm_data.lineage.masks import Masks
from btlm_data.lineage.removing import remove
from btlm_data.lineage.split_view import Extent, SplitView
from btlm_data.lineage.staging import copy, publish, require_no_links, sync, write_list
from btlm_data.lineage.where import rows_where
from btlm_data.storage import digest
from btlm_data.storage.base import TEMPORARY_SUFFIX

REASON = "left_out_by_where"  # in the ledger
WHERE = "where"  # among other_inputs in dataset.json
_MAX_EXPRESSION = 4096


@dataclass(frozen=True)
class Outcome:
    """What was done. documents, left_out: of all splits and sets; a repeated document counts each time."""

    out: Path
    documents: int
    left_out: int


def reselect(path: Path, where: str, out: Path) -> Outcome:
    """Write the documents of a dataset that satisfy an expression to a folder that must not exist.

    Raises InputError if none of a split does, or documents were forgotten; ConfigError for what is no
    expression; DataError if the dataset is not whole; OutputError if the folder is there.
    """
    if len(where) > _MAX_EXPRESSION:
        raise InputError(
            f"--where has {len(where):,} characters; dataset.json records at most {_MAX_EXPRESSION:,}."
        )
    sets = open_dataset(path)
    if (count := max(of_set.generation for of_set in sets)) > 1:
        raise InputError(
            f"{path} has {count} generations, and a dataset is made of one. Name the folder of a later one, or prepare "
            "the sources together."
        )
    root = sets[0].root if not sets[0].name else sets[0].root.parent
    out = out.absolute()
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out} is there already. Name another folder with --out, or remove it.")
    if out.is_relative_to(root.absolute()):
        raise OutputError(f"{out} is inside the dataset {root}. Name a folder outside of it with --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.reselect{TEMPORARY_SUFFIX}")
    if staging.is_symlink() or staging.is_file():
        raise OutputError(f"{staging} is in the way: it is not a folder that btlm-data made. Remove it.")
    if staging.exists():  # a killed call left it
        shutil.rmtree(staging)
    require_no_links(root, sets)
    try:
        copy(root, staging)
        outcomes = [_write_set(of_set, staging / of_set.name, where) for of_set in sets]
        write_list(staging)
        sync(staging)
        os.rename(staging, out)
    except BtlmError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return Outcome(out, sum(kept for kept, _ in outcomes), sum(gone for _, gone in outcomes))


def _write_set(of_set: SetView, folder: Path, where: str) -> tuple[int, int]:
    """The splits of one set with fewer documents; returns how many they have, and how many are left out."""
    manifest = of_set.manifest
    splits, rows = dict(manifest.splits), list(manifest.ledger)
    gone_of = {name: _left_out(view, where) for name, view in of_set.splits.items()}
    for name, view in of_set.splits.items():
        change = remove(view, gone_of[name], folder / name, rows, REASON)
        splits[name], rows = change.entry, [row for row in change.rows if row.stage != "forget"]
    outputs = [file for file in manifest.outputs if file.name != DROPPED]
    outputs.append(_write_dropped(of_set, gone_of, folder / DROPPED))
    before = manifest.other_inputs.get(WHERE)
    value = msgspec.structs.replace(
        manifest,
        splits=splits,
        ledger=rows,
        outputs=sorted(outputs, key=lambda file: file.name),
        other_inputs=manifest.other_inputs
        | {WHERE: where if before is None else f"({before}) AND ({where})"},
    )
    assert not ledger.imbalances(value.ledger)
    publish(folder, msgspec.structs.replace(value, fingerprint=value.expected_fingerprint()))
    return sum(entry.documents for entry in splits.values()), sum(map(len, gone_of.values()))


def _left_out(view: SplitView, where: str) -> list[Extent]:
    """The documents of a split that do not satisfy the expression, in order."""
    if len(Masks.rows_of(view)):
        raise InputError(
            f"Documents of {view.root / view.name} were forgotten and masked. Remove them first: btlm-data forget ... --how remove."
        )
    count = view.table.num_rows
    chosen = rows_where(view.table, where)
    if count and not chosen:
        raise InputError(
            f"No document of the split {view.name} satisfies --where {where[:200]!r}. Nothing was written."
        )
    is_gone = np.ones(count, bool)
    is_gone[chosen] = False
    return view.extents(np.flatnonzero(is_gone).tolist())


def _write_dropped(of_set: SetView, gone_of: dict[str, list[Extent]], path: Path) -> StoredFile:
    """dropped.parquet with the documents that are left out behind those that were dropped before."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    old = of_set.dropped
    assert old is not None
    tables = [_plain(old.arrow(group)) for group in range(old.num_groups)]
    names = tables[0].column_names
    for split, extents in gone_of.items():
        table, rows = of_set.splits[split].table, np.array([extent.row for extent in extents], np.int64)
        why = {"split": split, "stage": "shuffle", "reason": REASON}
        for group in range(table.num_groups):
            first, last = table.group_rows(group)
            numbers = rows[(rows >= first) & (rows < last)] - first
            part = _plain(
                table.arrow(group, [name for name in names if name not in why]).take(pa.array(numbers))
            )
            for name, value in why.items():
                part = part.append_column(name, pa.array([value] * len(numbers), pa.string()))
            tables.append(part.select(names))
    path.unlink()  # a link to the old bytes
    whole = pa.concat_tables(tables)
    for number, name in enumerate(names):
        if name in ("file", "source", "split", "stage", "reason"):
            whole = whole.set_column(number, name, whole.column(name).dictionary_encode())
    with path.open("w+b") as file:
        pq.write_table(whole.unify_dictionaries(), file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
        file.seek(0)
        return StoredFile(DROPPED, size, digest.sha256_stream(file))


def _plain(table: Any) -> Any:
    """Names as text, not by dictionaries of their own."""
    import pyarrow as pa

    for number, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(number, field.name, table.column(number).cast(field.type.value_type))
    return table
