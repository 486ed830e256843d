"""Take documents out of a finished dataset: masked, so that every other sample stays as it is and where it is
(masking.py), or removed, so that the streams close up behind them (removing.py).

A new dataset is built beside the old one (files that do not change are links to the same bytes), complete
with dataset.json and a certificate; then the two folders change places in one step of the file system, and
the old one is deleted. A kill at any moment leaves the old dataset or the new one; the next call removes what
a killed one left.
"""

from __future__ import annotations

import getpass
import glob
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from btlm_data.errors import DataError, InputError, OutputError, SafetyStop
from btlm_data.formats import dataset, forgotten, generations, key_index, pages, provenance, text_index
from btlm_data.formats.arrow import leave_pandas_out
from btlm_data.formats.dataset import DOCUMENTS, FILE_NAME, SetList, StoredFile
from btlm_data.formats.forgotten import (
    Certificate,
    ChangedShard,
    Forgotten,
    ForgottenDocument,
    How,
    SeenBy,
)
from btlm_data.lineage import search
from btlm_data.lineage.datasets import SetView, open_dataset
from btlm_data.lineage.key_index import groups_by_key
from btlm_data.lineage.masking import mask
from btlm_data.lineage.masks import Masks
from btlm_data.lineage.queries import Query
from btlm_data.lineage.runs import Run, open_run
from btlm_data.lineage.split_view import Extent
from btlm_data.lineage.staging import (
    WORK_FOLDER,
    copy,
    is_ours,
    lock_of,
    publish,
    removed_on_failure,
    replace,
    require_no_links,
    sync,
    write_generations,
    write_list,
)
from btlm_data.storage import open_store
from btlm_data.storage.base import TEMPORARY_SUFFIX
from btlm_data.storage.exchange import exchange
from btlm_data.storage.lease import hold

PREPARING = "preparing.json"  # what a run leaves in a folder that it owns (inspection/opening.py)
_FIRST_STEPS = 1000
MOST = 0.5  # of a split's documents: expressions that name more are asked about
FEW = 10  # documents: fewer are not
_EXTENT = (
    "stream_offset",
    "tokens",
    "forgotten",
)  # columns that say where a document is, and whether it still is


class NamedDocument(msgspec.Struct, frozen=True):
    """A document that a plan names. document: its row in documents.parquet; line: from 1; tokens: without EOS."""

    set: str
    generation: int
    split: str
    document: int
    id: str
    file: str
    line: int
    tokens: int


class Outcome(msgspec.Struct):
    """What was done. documents: taken out, over all sets; masked: label positions; nothing: questions that no
    document answers (in words); done: those that an earlier certificate answers; named: the documents, of a plan
    alone; certificate: where it is;
    pages: those beside the dataset that were about the old one, and are gone; indexes: whether there were any of
    keys or text, which are gone; unfinished: the folder that an unfinished `add` left, which is gone.
    """

    how: How = "mask"
    documents: int = 0
    shards: int = 0
    masked: int = 0
    nothing: list[str] = msgspec.field(default_factory=list)
    done: list[str] = msgspec.field(default_factory=list)
    named: list[NamedDocument] = msgspec.field(default_factory=list)
    still_held: list[str] = msgspec.field(default_factory=list)
    seen_by: list[SeenBy] = msgspec.field(default_factory=list)
    certificate: Path | None = None
    pages: list[str] = msgspec.field(default_factory=list)
    indexes: bool = False
    unfinished: str | None = None


class _Plan(msgspec.Struct):
    """What is forgotten of one set: documents of each split, and the questions that requested them."""

    of_set: SetView
    extents: dict[str, list[Extent]] = msgspec.field(default_factory=dict)


def forget(
    path: Path,
    queries: Sequence[Query],
    *,
    how: How = "mask",
    reason: str = "",
    runs: Sequence[Path] = (),
    sign: Callable[[Path], None] | None = None,
    accept_most: bool = False,
) -> Outcome:
    """Take every document that answers a question out of the shards. how: mask it (masking.py), or remove it
    (removing.py). runs: training runs, whose steps that saw them the certificate names. sign: signs the new
    dataset in a folder, before it is there for others. accept_most: also where expressions name more than half
    of the documents of a split.

    Raises SafetyStop where they do and that is not accepted, InputError if no document answers any, DataError if the dataset is not whole, OutputError if it
    cannot be written.
    """
    leave_pandas_out()
    root = _whole_dataset(path)
    parent = open_store(root.parent)
    lock = lock_of(root)
    with hold(parent, lock, f"The dataset {root} is", option="folder"):
        staging = root.parent / f".{root.name}.forget{TEMPORARY_SUFFIX}"
        if staging.is_symlink() or staging.is_file():
            raise OutputError(f"{staging} is in the way: it is not a folder that btlm-data made. Remove it.")
        if staging.exists():  # a killed call left it: a half-built new dataset, or the old one
            shutil.rmtree(staging)
        if (root / PREPARING).exists():
            raise DataError(
                f"{root} is being prepared, or its run was stopped. Finish it first: run the same command again."
            )
        open_store(root).sweep()  # of a call that was killed while it wrote the pages
        for left in root.parent.glob(
            f".{glob.escape(lock)}.*{TEMPORARY_SUFFIX}"
        ):  # or while it took the lease
            left.unlink(missing_ok=True)
        with removed_on_failure(staging):
            return _forget(root, staging, queries, how, reason, runs, sign, accept_most)


def plan(
    path: Path,
    queries: Sequence[Query],
    *,
    how: How = "mask",
    runs: Sequence[Path] = (),
    accept_most: bool = False,
) -> Outcome:
    """What `forget` would take out, with nothing changed: an Outcome with `named`. Raises as it does."""
    leave_pandas_out()
    root = _whole_dataset(path)
    sets, plans, outcome = _chosen(root, queries, how, accept_most)
    opened = [(str(run), open_run(run)) for run in runs]
    changed = {each.of_set.generation for each in plans if each.extents}
    for each in plans:
        of_set = each.of_set
        for name, view in of_set.splits.items():
            extents: Sequence[Extent] = each.extents.get(name, [])
            if how == "remove" and of_set.generation in changed:
                from btlm_data.lineage.removing import leaving

                extents = leaving(view, extents)
            rows = view.table.described([extent.row for extent in extents])
            outcome.named += [
                NamedDocument(
                    set=of_set.name, generation=of_set.generation, split=name, document=row["row"], id=search.document_name(row),
                    file=row["file"], line=row["line"] + 1, tokens=row["tokens"],
                )
                for row in rows
            ]  # fmt: skip
        if each.extents:
            outcome.seen_by += [SeenBy(name, *_seen(run, each)) for name, run in opened]
    outcome.documents = len(outcome.named)
    outcome.still_held = _still_held(root, sets) if outcome.named else []
    return outcome


def _whole_dataset(path: Path) -> Path:
    """The folder of a dataset, whole. Raises InputError where `path` is a part of one, or a link."""
    root = (path.parent if path.name == FILE_NAME else path).absolute()
    if not (root / FILE_NAME).is_file():
        dataset.read(root)  # which says what is missing
    if (whole := generations.whole_of(root)) is not None:
        raise InputError(f"{root} is a generation of {whole}. Name that folder.")
    above = dataset.read(root.parent) if (root.parent / FILE_NAME).is_file() else None
    if isinstance(above, SetList) and root.name in [reference.name for reference in above.sets]:
        raise InputError(
            f"{root} is one of the sets of {root.parent}, which have the same documents. Name that folder."
        )
    if root.is_symlink():
        raise InputError(f"{root} is a link. Name the folder that it leads to: {root.resolve()}.")
    return root


def _forget(
    root: Path,
    staging: Path,
    queries: Sequence[Query],
    how: How,
    reason: str,
    runs: Sequence[Path],
    sign: Callable[[Path], None] | None,
    accept_most: bool,
) -> Outcome:
    sets, plans, outcome = _chosen(root, queries, how, accept_most)
    if not any(plan.extents for plan in plans):
        return outcome
    require_no_links(root, sets)
    outcome.still_held = _still_held(root, sets)
    folders = list(dict.fromkeys(_generation_folder(root, of_set) for of_set in sets))
    outcome.pages = [
        (folder / name).relative_to(root).as_posix()
        for folder in folders
        for name in pages.PAGES
        if is_ours(folder / name)
    ]
    outcome.indexes = any(
        (of_set.root / folder).exists() for of_set in sets for folder in (key_index.FOLDER, text_index.FOLDER)
    )
    if (unfinished := generations.unfinished(root)) is not None:
        outcome.unfinished = unfinished.name
    opened = [(str(run), open_run(run)) for run in runs]
    copy(root, staging)
    changed = {plan.of_set.generation for plan in plans if plan.extents}
    for plan in plans:
        if plan.of_set.generation in changed:
            folder = staging / plan.of_set.root.relative_to(root)
            _write_set(plan, folder, queries, how, reason, opened, outcome)
    for folder in folders:
        write_list(staging / folder.relative_to(root))
    write_generations(staging)
    if sign is not None:
        sign(staging)
    sync(staging)
    exchange(root, staging)
    shutil.rmtree(staging)
    first = next(plan.of_set for plan in plans if plan.of_set.generation in changed)
    outcome.certificate = first.root / forgotten.FILE_NAME
    return outcome


def _chosen(
    root: Path, queries: Sequence[Query], how: How, accept_most: bool
) -> tuple[Sequence[SetView], list[_Plan], Outcome]:
    """The sets of a dataset, what is to be taken out of each, and an outcome that says which questions gave nothing."""
    sets = open_dataset(root)
    outcome = Outcome(how=how)
    plans, answered, masked = _find(sets, queries, how)
    asked_before = {
        asked
        for of_set in sets
        for certificate in forgotten.read(of_set.root).certificates
        for asked in certificate.asked
    }
    for number, query in enumerate(queries):
        if number not in answered:
            known = number in masked or forgotten.question(query.kind, query.value) in asked_before
            (outcome.done if known else outcome.nothing).append(f"{query.kind} {query.value}")
    if not outcome.done and not any(plan.extents for plan in plans):
        raise InputError(
            f"No document of {root} answers {'the question' if len(queries) == 1 else 'any of the questions'}: "
            f"{', '.join(outcome.nothing[:3])}. `btlm-data trace` says whether it was dropped, or never there."
        )
    if not accept_most and any(query.kind == "where" for query in queries):
        _refuse_most(plans)
    return sets, plans, outcome


def _generation_folder(root: Path, of_set: SetView) -> Path:
    """The folder of the generation that a set belongs to."""
    return root / generations.folder_of(of_set.generation)


# What is forgotten ------------------------------------------------------------------------------------------


def _find(
    sets: Sequence[SetView], queries: Sequence[Query], how: How
) -> tuple[list[_Plan], set[int], set[int]]:
    """The documents that answer, by set; the numbers of the questions that have any; and of those that have one that is
    masked. Of what is masked, `remove` takes what answers, or what was masked for one of these questions.
    """
    wanted, plans = search.Wanted.of(queries), []
    answered, masked = set[int](), set[int]()
    passages, expressions = (
        [number for number, query in enumerate(queries) if query.kind == kind] for kind in ("text", "where")
    )
    if expressions:
        from btlm_data.lineage.where import rows_where
    if passages:
        from btlm_data.lineage.passages import find_passages, passage_of
    for of_set in sets:
        plan = _Plan(of_set)
        extents: dict[str, dict[int, Extent]] = {}
        groups_of = groups_by_key(of_set)
        for name, view in of_set.splits.items():
            documents = search.in_table(view.table, wanted, f"{name}/{DOCUMENTS}", groups_of, _EXTENT)
            for number in expressions:
                rows = rows_where(view.table, queries[number].value)
                documents += [(document, [number]) for document in view.table.described(rows, _EXTENT)]
            for document, numbers in documents:
                if document.get("forgotten") and how == "mask":
                    masked.update(numbers)
                    continue
                extent = Extent(document["row"], document["stream_offset"], document["tokens"])
                extents.setdefault(name, {})[extent.row] = extent
                answered.update(numbers)
        if passages:
            texts = [passage_of(queries[number].value, of_set) for number in passages]
            for name, hits in find_passages(of_set, list(of_set.splits), texts).items():
                for hit in hits:
                    extents.setdefault(name, {})[hit.document.row] = hit.document
                    answered.add(passages[hit.query])
        if how == "remove" and (known := _masked_for(of_set, queries)):
            answered |= known
            for name, view in of_set.splits.items():
                extents.setdefault(name, {}).update(
                    (extent.row, extent) for extent in view.extents(Masks.rows_of(view))
                )
        plan.extents = {
            name: [chosen[row] for row in sorted(chosen)] for name, chosen in extents.items() if chosen
        }
        plans.append(plan)
    return plans, answered, masked


def _masked_for(of_set: SetView, queries: Sequence[Query]) -> set[int]:
    """The numbers of the questions for which documents of a set are masked; their ids and fields are gone."""
    asked = {asked for made in forgotten.read(of_set.root).masking for asked in made.asked}
    return {n for n, query in enumerate(queries) if forgotten.question(query.kind, query.value) in asked}


def _refuse_most(plans: Sequence[_Plan]) -> None:
    """Raise SafetyStop where more than MOST of a split would go: an expression that was meant the other way round names
    nearly everything.
    """
    for plan in plans:
        for name, extents in plan.extents.items():
            total = plan.of_set.splits[name].table.num_rows
            if len(extents) >= FEW and len(extents) > MOST * total:
                raise SafetyStop(
                    f"The expression names {len(extents):,} of the {total:,} documents of {name} in {plan.of_set.root}. If "
                    "they are all to be forgotten, add --accept-most; nothing was changed."
                )


def _still_held(root: Path, sets: Sequence[SetView]) -> list[str]:
    """Locations that hold the documents' text and are not this command's to change."""
    locations = []
    for folder in dict.fromkeys(_generation_folder(root, of_set) for of_set in sets):
        locations += _held_since_prepared(root, folder)
        if not (folder / WORK_FOLDER).is_dir():
            locations.append("the work folder, where --work-dir named one")
        locations += [
            f"{(folder / name).relative_to(root)}, which is not as this program wrote it"
            for name in pages.PAGES
            if (folder / name).exists() and not is_ours(folder / name)
        ]
    locations.append("the models that were trained on it, and their checkpoints")
    return list(dict.fromkeys(locations))


def _held_since_prepared(root: Path, folder: Path) -> list[str]:
    """What the run that prepared a generation read, and wrote beside it."""
    made = provenance.read(folder)
    if made is None:
        return ["the source that the dataset was prepared from"]
    source = made.source.get("name")
    locations = [f"the source that the dataset was prepared from{f' ({source})' if source else ''}"]
    run, dedupe = made.configuration.get("run", {}), made.configuration.get("dedupe", {})
    if isinstance(run, dict):
        locations += [
            f"{words} {run[key]}"
            for key, words in (
                ("emit_text", "the emitted text"),
                ("work_dir", "the work folder"),
                ("cache_dir", "the folder of downloads"),
            )
            if run.get(key)
        ]
    index = dedupe.get("index") if isinstance(dedupe, dict) else None
    if index and Path(index) != root / generations.INDEX_FOLDER:  # which is removed
        locations.append(f"the index of deduplication {index}, which keeps normalised texts")
    return locations


# The new dataset --------------------------------------------------------------------------------------------


def _write_set(
    plan: _Plan,
    folder: Path,
    queries: Sequence[Query],
    how: How,
    reason: str,
    runs: Sequence[tuple[str, Run]],
    outcome: Outcome,
) -> None:
    """The changed files of one set, and its certificate. folder: the set's, in the new dataset."""
    of_set = plan.of_set
    changed: list[ChangedShard] = []
    documents: list[ForgottenDocument] = []
    splits, rows = dict(of_set.manifest.splits), list(of_set.manifest.ledger)
    seen = [SeenBy(name, *_seen(run, plan)) for name, run in runs]
    take_out = mask
    if how == "remove":
        from btlm_data.lineage.removing import remove as take_out
    for name, view in of_set.splits.items():
        change = take_out(view, plan.extents.get(name, []), folder / name, rows)
        hashes = view.table.described([extent.row for extent in change.documents], ("hash",))
        for extent, described, masked in zip(change.documents, hashes, change.masked_labels, strict=True):
            value = described.get("hash")
            document = ForgottenDocument(
                name, extent.row, value.hex() if value else None, extent.tokens, masked
            )
            documents.append(document)
        splits[name], rows = change.entry, change.rows
        changed += change.shards
        outcome.masked += change.masked
    chain = forgotten.read(of_set.root)
    certificate = Certificate(
        previous=chain.last,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        who=getpass.getuser(),
        reason=reason,
        how=how,
        fingerprint=of_set.manifest.fingerprint,
        asked=[forgotten.question(query.kind, query.value) for query in queries],
        documents=documents,
        shards=changed,
        seen_by=seen,
        still_held=outcome.still_held,
    )
    chain = Forgotten([*chain.certificates, certificate])
    data = forgotten.encode(chain)
    replace(folder / forgotten.FILE_NAME, data)
    file = StoredFile(forgotten.FILE_NAME, len(data), hashlib.sha256(data).hexdigest())
    outputs = [*(o for o in of_set.manifest.outputs if o.name != forgotten.FILE_NAME), file]
    others = of_set.manifest.other_inputs | {"forgotten": chain.questions}
    value = msgspec.structs.replace(
        of_set.manifest,
        splits=splits,
        ledger=rows,
        outputs=sorted(outputs, key=lambda output: output.name),
        other_inputs=others,
    )
    publish(folder, msgspec.structs.replace(value, fingerprint=value.expected_fingerprint()))
    outcome.documents += len(documents)
    outcome.shards += len(changed)
    outcome.seen_by += seen


def _seen(run: Run, plan: _Plan) -> tuple[int, list[int], int]:
    """(steps of a run that have seen the documents, the first of them, steps that will)."""
    asked = []
    for name, extents in plan.extents.items():
        view = plan.of_set.splits[name]
        for extent in extents:
            for span in view.spans(extent):
                number, row = view.shard_of(span.row)
                rows = span.positions if view.is_corpus else (row, row + 1)
                asked.append(
                    (os.fspath(view.path(number).absolute()), view.entry.files[number].sha256, *rows)
                )
    done = run.steps_done
    steps = {sighting.step for sighting in run.seen(asked)}
    seen = sorted(step for step in steps if step < done)
    return len(seen), seen[:_FIRST_STEPS], len(steps) - len(seen)
