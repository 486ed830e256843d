"""Another dataset from the tokens of a finished one: the documents that satisfy an expression (where.py), packed
and written anew. No text is read.

Every split is what `prepare` makes of these documents with the same settings and seed, in every generation: documents keep their
order (or have that of another mix: remix.py), samples are cut and shuffled anew. The ledger has the others as dropped by the stage `shuffle`, and
dropped.parquet lists them. The old dataset is not touched; files that do not change are links to its bytes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from btlm_data import mix_plan
from btlm_data.errors import ConfigError, InputError, OutputError
from btlm_data.formats import generations, ledger
from btlm_data.formats.arrow import leave_pandas_out
from btlm_data.formats.dataset import DROPPED, Dataset, StoredFile
from btlm_data.lineage.datasets import SetView, open_dataset
from btlm_data.lineage.masks import Masks
from btlm_data.lineage.remix import remix
from btlm_data.lineage.removing import remove
from btlm_data.lineage.split_view import Extent, SplitView
from btlm_data.lineage.staging import (
    copy,
    publish,
    removed_on_failure,
    require_no_links,
    sync,
    write_generations,
    write_list,
)
from btlm_data.lineage.where import rows_where
from btlm_data.recipe.models import Settings
from btlm_data.recipe.recorded import settings_of
from btlm_data.storage import digest
from btlm_data.storage.base import TEMPORARY_SUFFIX

REASON = "left_out_by_where"  # in the ledger
WHERE = "where"  # among other_inputs in dataset.json
_MAX_EXPRESSION = 4096


class Outcome(msgspec.Struct, frozen=True):
    """What was done. documents, left_out: of all splits and sets; a repeated document counts each time."""

    out: Path
    documents: int
    left_out: int


def reselect(path: Path, where: str | None, out: Path, mix: Mapping[str, Any] | None = None) -> Outcome:
    """Write the documents of a dataset that satisfy an expression to a folder that must not exist. mix: of the train
    split, as in a recipe.

    Raises InputError if none of a split does, or documents were forgotten; ConfigError for what is no
    expression, or a mix that cannot be had; DataError if the dataset is not whole; OutputError if the folder is there.
    """
    if where is None and not mix:
        raise ConfigError("Which documents? Give --where with an expression, or --mix with a mix.")
    if where is not None and len(where) > _MAX_EXPRESSION:
        raise InputError(
            f"--where has {len(where):,} characters; dataset.json records at most {_MAX_EXPRESSION:,}."
        )
    leave_pandas_out()
    sets = open_dataset(path)
    if mix and (count := sets[-1].generation) > 1:
        raise InputError(
            f"{path} has {count} generations, each with the order of its own documents, and --mix puts those of one in another. "
            "Name the folder of a later generation, or give --where alone and let training mix: readers weigh generations."
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
    with removed_on_failure(staging):
        copy(root, staging)
        changed = {"mix": _mixed_settings(sets[0].manifest, mix).mix.model_dump(mode="json")} if mix else {}
        outcomes = [
            _write_set(of_set, staging / of_set.root.relative_to(root), where, changed) for of_set in sets
        ]
        for number in sorted({of_set.generation for of_set in sets}):
            write_list(staging / generations.folder_of(number), changed)
        write_generations(staging)
        sync(staging)
        os.rename(staging, out)
    return Outcome(out, sum(kept for kept, _ in outcomes), sum(gone for _, gone in outcomes))


def _write_set(
    of_set: SetView, folder: Path, where: str | None, changed: Mapping[str, Any]
) -> tuple[int, int]:
    """The splits of one set with fewer documents; returns how many they have, and how many are left out. changed:
    settings, where there is a new mix.
    """
    manifest = of_set.manifest
    settings = _mixed_settings(manifest, changed["mix"]) if changed else None
    if settings is None and any(entry.phases for entry in manifest.splits.values()):
        raise InputError(
            f"{of_set.root} is mixed by a budget, which holds for all of its documents together. Prepare the dataset "
            "without a mix, and give --where and --mix together."
        )
    splits, rows = dict(manifest.splits), list(manifest.ledger)
    gone_of = {name: _left_out(view, where) for name, view in of_set.splits.items()}
    leaving = {name: [(extent.row, REASON) for extent in extents] for name, extents in gone_of.items()}
    for name, view in of_set.splits.items():
        if settings is not None and name == "train":
            share = manifest.set.share
            numbers = [extent.row for extent in gone_of[name]]
            mixed = remix(view, settings, share, numbers, REASON, folder / name, rows)
            change = mixed.change
            leaving[name] = sorted(leaving[name] + [(row, mix_plan.LEFT_OUT) for row in mixed.left_out])
        else:
            change = remove(view, gone_of[name], folder / name, rows, REASON)
        splits[name], rows = change.entry, [row for row in change.rows if row.stage != "forget"]
    outputs = [file for file in manifest.outputs if file.name != DROPPED]
    outputs.append(_write_dropped(of_set, leaving, folder / DROPPED))
    value = msgspec.structs.replace(
        manifest,
        splits=splits,
        ledger=rows,
        configuration={**manifest.configuration, **changed},
        outputs=sorted(outputs, key=lambda file: file.name),
        other_inputs=manifest.other_inputs | _where_after(manifest, where),
    )
    assert not ledger.imbalances(value.ledger)
    publish(folder, msgspec.structs.replace(value, fingerprint=value.expected_fingerprint()), changed)
    return sum(entry.documents for entry in splits.values()), sum(map(len, leaving.values()))


def _where_after(manifest: Dataset, where: str | None) -> dict[str, str]:
    """What other_inputs says of the expressions by which documents were chosen."""
    before = manifest.other_inputs.get(WHERE)
    if where is None:
        return {}
    return {WHERE: where if before is None else f"({before}) AND ({where})"}


def _mixed_settings(manifest: Dataset, mix: Mapping[str, Any]) -> Settings:
    """The settings of a dataset with a mix. Raises InputError if it has one, ConfigError for what is none."""
    if manifest.configuration.get("mix"):
        raise InputError(
            "The dataset has a mix already: documents that it left out are not in the shards, and others are repeated. "
            "--mix needs a dataset that was prepared without one."
        )
    settings = settings_of({**manifest.configuration, "mix": dict(mix)})
    if isinstance(settings, str):
        raise ConfigError(f"--mix: {settings}")
    if not settings.mix.is_used:
        raise ConfigError("--mix names no source, no budget and no schedule (docs/mixing.md).")
    known = {row.source for row in manifest.rows("shuffle", "train")}
    for name in settings.mix.named_sources:
        if name not in known:
            raise ConfigError(
                f"--mix names the source {name!r}, and no document of the train split has it. Sources here: "
                f"{', '.join(sorted(known)[:8])}."
            )
    return settings


def _left_out(view: SplitView, where: str | None) -> list[Extent]:
    """The documents of a split that do not satisfy the expression, in order."""
    if len(Masks.rows_of(view)):
        raise InputError(
            f"Documents of {view.root / view.name} were forgotten and masked. Remove them first: btlm-data forget ... --how remove."
        )
    if where is None:
        return []
    count = view.table.num_rows
    chosen = rows_where(view.table, where)
    if count and not chosen:
        raise InputError(
            f"No document of {view.root / view.name} satisfies --where {where[:200]!r}. Nothing was written."
        )
    is_gone = np.ones(count, bool)
    is_gone[chosen] = False
    return view.extents(np.flatnonzero(is_gone).tolist())


def _write_dropped(of_set: SetView, leaving: dict[str, list[tuple[int, str]]], path: Path) -> StoredFile:
    """dropped.parquet with the documents that are left out behind those that were dropped before. leaving: rows of
    each split's table, ascending, and the reason of each.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    old = of_set.dropped
    assert old is not None
    tables = [_plain(old.arrow(group)) for group in range(old.num_groups)]
    names = tables[0].column_names
    for split, documents in leaving.items():
        table, rows = of_set.splits[split].table, np.array([row for row, _ in documents], np.int64)
        reasons = np.array([reason for _, reason in documents], object)
        why = ("split", "stage", "reason")
        for group in range(table.num_groups):
            first, last = table.group_rows(group)
            is_here = (rows >= first) & (rows < last)
            numbers = rows[is_here] - first
            part = _plain(
                table.arrow(group, [name for name in names if name not in why]).take(pa.array(numbers))
            )
            values = ([split] * len(numbers), ["shuffle"] * len(numbers), reasons[is_here].tolist())
            for name, value in zip(why, values, strict=True):
                part = part.append_column(name, pa.array(value, pa.string()))
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
