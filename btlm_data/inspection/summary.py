"""Look at a prepared dataset, or at shards that others made: `inspect` returns a typed report.

What dataset.json counts is taken from it (`verify` is what re-reads everything); what it does not say is
measured on a seeded sample, and the report says on how many rows or documents. Anything that cannot be found
out is listed under `unknown`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec
import numpy as np
from msgspec.structs import replace

from btlm_data.errors import ConfigError, DataError, InputError
from btlm_data.formats import dataset, generations, provenance
from btlm_data.formats.arrow import leave_pandas_out
from btlm_data.formats.dataset import FILE_NAME, Dataset
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.formats.generations import Generation
from btlm_data.formats.guarded import reading, require_regular
from btlm_data.formats.ledger import Amounts, Stage
from btlm_data.inspection import examples, lookup, report
from btlm_data.inspection.document_measures import (
    MAX_RANKED,
    DocumentMeasures,
    correlation,
    histogram,
    measure_documents,
)
from btlm_data.inspection.lookup import Rows
from btlm_data.inspection.opening import Opened, open_path, size_of
from btlm_data.inspection.report import GenerationsReport, Report, SetsReport
from btlm_data.inspection.token_measures import GPT2_EOS, SEED, find_tokenizer, measure_tokens, with_texts
from btlm_data.inspection.verdicts import verdicts_on
from btlm_data.task import Amount

if TYPE_CHECKING:
    from btlm_data.tokenizer import Tokenizer


def inspect(
    path: Path, *, sample: Sequence[int] = (), split: str | None = None, num_samples: int = 2
) -> Report | SetsReport | GenerationsReport:
    """Everything that `btlm-data inspect` shows, of all generations of a dataset.

    sample: numbers of samples to show (rows of the split's shards, files by name, through all generations);
    without any, num_samples are drawn of each. split: which split they are from (default: the one the path
    names, else train, else the first). Raises DataError if there is nothing to look at, or no such sample or
    split.
    """
    opened = open_path(path)
    if opened.chosen is not None or not (opened.root / generations.FILE_NAME).exists():
        return inspect_one(path, sample=sample, split=split, num_samples=num_samples)
    present = generations.read(opened.root)
    splits = list(generation_splits(present))
    reports: dict[str, Report | SetsReport] = {}
    for generation in present:
        own, drawn = list[int](), num_samples
        if sample:
            first, count = _range_of(splits, generation.number, split)
            own, drawn = [number - first for number in sample if first <= number < first + count], 0
        one = inspect_one(generation.root, sample=own, split=split, num_samples=drawn)
        if isinstance(one, Report):
            first = _range_of(splits, generation.number, split)[0] if one.samples else 0
            numbered = [msgspec.structs.replace(s, sample=first + s.sample) for s in one.samples]
            one = msgspec.structs.replace(one, samples=numbered)
        reports[str(generation.number)] = one
    if sample and (beyond := max(sample)) >= (total := sum(_range_of(splits, present[-1].number, split))):
        raise ConfigError(
            f"There is no sample {beyond:,}: they go from 0 to {total - 1:,} through all generations. Name another with "
            "--sample."
        )
    return GenerationsReport(str(opened.root), splits, reports, [])


def generation_splits(present: Sequence[Generation]) -> Iterator[report.GenerationSplit]:
    """What each generation has, and where its samples begin."""
    before: dict[tuple[str, str], int] = {}
    for generation in present:
        for name, manifest in dataset.read_sets(generation.root).items():
            for split, entry in manifest.splits.items():
                first = before.get((name, split), 0)
                before[name, split] = first + sum(file.n_examples for file in entry.files)
                yield report.GenerationSplit(
                    generation=generation.number,
                    set=name,
                    split=split,
                    documents=entry.documents,
                    tokens=entry.label_tokens if entry.samples is not None else entry.stream_tokens,
                    samples=entry.samples,
                    first_sample=first if entry.samples is not None else None,
                    bytes=sum(file.bytes for file in entry.files),
                )


def _range_of(
    splits: Sequence[report.GenerationSplit], generation: int, split: str | None
) -> tuple[int, int]:
    """(first, how many) samples of a generation in the split that is shown; (0, 0) in a corpus, whose samples the
    reader cuts.
    """
    name = split or ("train" if any(entry.split == "train" for entry in splits) else splits[0].split)
    for entry in splits:
        if (entry.generation, entry.split) == (generation, name):
            if entry.first_sample is None or entry.samples is None:
                return 0, 0
            return entry.first_sample, entry.samples
    return 0, 0


def inspect_one(
    path: Path, *, sample: Sequence[int] = (), split: str | None = None, num_samples: int = 2
) -> Report | SetsReport:
    """The same of one generation: of the first, where `path` is a dataset that documents were added to."""
    leave_pandas_out()
    opened = open_path(path)
    if opened.sets is None:
        return _inspect_set(opened, sample, split, num_samples)
    sets: dict[str, Report] = {}
    unknown = [opened.problem] if opened.problem is not None else []
    for name in opened.sets.names:
        try:
            sets[name] = _inspect_set(open_path(opened.root / name), sample, split, num_samples)
        except (DataError, InputError) as error:
            unknown.append(f"set {name}: {error}")
    return SetsReport(str(opened.root), sets, unknown)


def _inspect_set(opened: Opened, sample: Sequence[int], split: str | None, num_samples: int) -> Report:
    manifest, unknown = opened.manifest, list[str]()
    if opened.problem is not None and manifest is not None:
        unknown.append(f"{opened.problem} What follows is what it says now.")
    elif opened.problem is not None:
        unknown.append(f"{opened.problem} What follows is measured on the shards.")
    elif opened.preparing is not None:
        unknown.append(opened.preparing)
    elif manifest is None:
        unknown.append(
            "no dataset.json: sources, documents, what was dropped and the order of samples are not known"
        )
    names = [opened.chosen] if opened.chosen is not None else list(opened.splits)
    rows = {name: lookup.rows_of(opened, name) for name in names}
    measured = {name: measure_tokens(opened, name, rows[name], unknown) for name in names}
    largest = max((tokens.max for tokens, _ in filter(None, measured.values())), default=None)
    tokenizer_search = find_tokenizer(opened, largest)
    if tokenizer_search.reason:
        unknown.append(tokenizer_search.reason)
    if tokenizer_search.guess is not None and opened.eos_id is None:
        opened = replace(opened, foreign=opened.foreign | {"eos_id": GPT2_EOS})
        measured = {name: measure_tokens(opened, name, rows[name], []) for name in names}
    tables, documents = _documents(opened, names, rows, unknown)
    made = _provenance(opened, unknown) if manifest is not None else None
    tokens = {name: value[0] for name, value in measured.items() if value is not None}
    partial = Report(
        kind="dataset" if manifest is not None else "shards",
        path=str(opened.root),
        identity=_identity(manifest) if manifest is not None else None,
        foreign=opened.foreign,
        tokenizer_guess=tokenizer_search.guess,
        splits={name: _split(opened, name, rows[name], tokens.get(name)) for name in names},
        tokens={name: with_texts(value, tokenizer_search.tokenizer) for name, value in tokens.items()},
        lengths={name: value.lengths for name, value in documents.items()},
        shuffle={
            name: report.Shuffle(
                documents=documents[name].order if name in documents else None,
                runs=documents[name].runs if name in documents else None,
                samples=_order_of_samples(opened, name, rows[name]),
                neighbours=value[1] if (value := measured[name]) is not None else None,
                mix=documents[name].mix if name in documents else None,
            )
            for name in names
        },
        read=_read(manifest) if manifest is not None else [],
        sources=_sources(manifest, names) if manifest is not None else {},
        ledger=_stages(manifest) if manifest is not None else [],
        duplicates=_duplicates(opened, manifest, unknown) if manifest is not None else None,
        examples=examples.dropped(opened.root, unknown) if manifest is not None else {},
        rejects=examples.rejected(opened.root, unknown) if manifest is not None else {},
        source=made.source if made is not None else None,
        steps=made.steps if made is not None else [],
        program=made.program if made is not None else None,
        libraries=made.libraries if made is not None else {},
        finished=made.finished if made is not None else None,
        disk=_disk(opened, names),
        identical_shards=_identical_shards(manifest) if manifest is not None else {},
        samples=_samples(opened, sample, split, num_samples, rows, tables, tokenizer_search.tokenizer),
        verdicts=[],
        unknown=unknown,
    )
    return msgspec.structs.replace(partial, verdicts=verdicts_on(partial))


def _documents(
    opened: Opened, names: Iterable[str], rows: Mapping[str, Rows], unknown: list[str]
) -> tuple[dict[str, DocumentTable], dict[str, DocumentMeasures]]:
    """The tables of documents that can be read, and what they show."""
    tables: dict[str, DocumentTable] = {}
    measures: dict[str, DocumentMeasures] = {}
    for name in names:
        unknown += rows[name].problems
        if opened.manifest is None:
            continue
        try:
            table = DocumentTable(opened.documents_path(name))
            measures[name] = measure_documents(table, opened.manifest)
            tables[name] = table
        except DataError as error:
            unknown.append(str(error))
    return tables, measures


def _identity(manifest: Dataset) -> report.Identity:
    return report.Identity(
        format_version=manifest.format_version,
        fingerprint=manifest.fingerprint,
        checksum=manifest.checksum,
        format=manifest.format,
        seq_len=manifest.seq_len,
        shuffle=manifest.shuffle,
        seed=manifest.seed,
        tail=manifest.tail,
        tokenizer=manifest.tokenizer,
        set=manifest.set,
        left_out=manifest.left_out,
        configuration=manifest.configuration,
    )


def _provenance(opened: Opened, unknown: list[str]) -> provenance.Provenance | None:
    try:
        return provenance.read(opened.root)
    except DataError as error:
        unknown.append(str(error))
        return None


# Splits, sources, ledger ------------------------------------------------------------------------------------


def _split(opened: Opened, split: str, rows: Rows, measured: report.Tokens | None) -> report.Split:
    """Counts of one split. Packing: real positions of all."""
    layout, manifest = rows.layout, opened.manifest
    entry = manifest.splits.get(split) if manifest else None
    size = sum(map(size_of, rows.files))
    length = lookup.sequence_length(opened, rows)
    corpus = rows.are_tokens
    positions = rows.total if corpus else rows.total * length
    real: float | None = None
    if entry is not None and opened.only is None:
        real = entry.label_tokens
    elif entry is not None:
        real = sum(file.tokens for file in entry.files if opened.only and file.name == opened.only.name)
    elif corpus:
        real = rows.total
    elif measured is not None:
        real = positions * measured.mask_share
    used = positions * measured.used_share if rows.have_parts and measured is not None else real
    exact = entry is not None or corpus
    return report.Split(
        files=len(rows.files),
        samples=lookup.num_sequences(opened, rows),
        seq_len=length,
        documents=entry.documents if entry and opened.only is None else None,
        stream_tokens=entry.stream_tokens if entry and opened.only is None else None,
        label_tokens=None if real is None else round(real),
        label_tokens_measured="all" if exact else f"{measured.rows if measured else 0} rows",
        positions=positions,
        packing_efficiency=used / positions if used is not None and positions else None,
        disk_bytes=size,
        bytes_per_token=size / real if real else None,
        layout=layout.format_name if layout else None,
        dtype=layout.dtype if layout else None,
        shape=list(layout.shape[1:]) if layout else None,
        chunks=list(layout.chunks) if layout and layout.chunks else None,
        compression=layout.compression if layout else None,
        hdf5_shuffle=layout.hdf5_shuffle if layout else None,
    )


def _read(manifest: Dataset) -> list[report.Source]:
    """What each source had when it was read, over all splits: most bytes first."""
    sums: dict[str, Amount] = {}
    for row in manifest.rows("acquire"):
        sums[row.source] = sums.get(row.source, Amount()).plus(row.received.amount)
    return _with_shares(sorted(sums.items(), key=lambda item: (-item[1].bytes, item[0])))


def _sources(manifest: Dataset, splits: Sequence[str]) -> dict[str, list[report.Source]]:
    """What each split's stream is made of, by source: most tokens first."""
    by_split: dict[str, list[report.Source]] = {}
    for split in splits:
        amounts = [
            (row.source, row.out.amount) for row in manifest.rows("shuffle", split) if any(row.out.amount)
        ]
        by_split[split] = _with_shares(sorted(amounts, key=lambda item: (-item[1].tokens, item[0])))
    return by_split


def _with_shares(amounts: Sequence[tuple[str, Amount]]) -> list[report.Source]:
    total = Amount()
    for _, amount in amounts:
        total = total.plus(amount)
    return [
        report.Source(
            source,
            *amount,
            report.Shares(
                *(part / whole if whole else 0.0 for part, whole in zip(amount, total, strict=True))
            ),
        )
        for source, amount in amounts
    ]


def _stages(manifest: Dataset) -> list[report.Stage]:
    """What each stage received, dropped and handed on, over all splits and sources."""
    stages = []
    for stage in get_args(Stage):
        rows = manifest.rows(stage)
        if not rows:
            continue
        received, out = Amount(), Amount()
        added: dict[str, Amount] = {}
        dropped: dict[str, Amount] = {}
        for row in rows:
            received, out = received.plus(row.received.amount), out.plus(row.out.amount)
            for sums, amounts in ((added, row.added), (dropped, row.dropped)):
                for reason, value in amounts.items():
                    sums[reason] = sums.get(reason, Amount()).plus(value.amount)
        stages.append(
            report.Stage(stage, Amounts(*received), _as_amounts(added), _as_amounts(dropped), Amounts(*out))
        )
    return stages


def _as_amounts(sums: Mapping[str, Amount]) -> dict[str, Amounts]:
    """Most documents first."""
    return {
        reason: Amounts(*amount)
        for reason, amount in sorted(sums.items(), key=lambda item: (-item[1].documents, item[0]))
    }


def _duplicates(opened: Opened, manifest: Dataset, unknown: list[str]) -> report.Duplicates | None:
    """Clusters: how many, how large, and what was dropped because of them; None where nothing was
    deduplicated.
    """
    settings = manifest.configuration.get("dedupe")
    method = settings.get("method") if isinstance(settings, dict) else None
    if method == "none":
        return None
    dropped = next((stage.dropped for stage in _stages(manifest) if stage.stage == "dedupe"), {})
    path = opened.root / "clusters.parquet"
    clusters = None
    if path.exists():
        try:
            clusters = _clusters(path)
        except DataError as error:
            unknown.append(str(error))
    similarities: list[report.SimilarityBar] = []
    border: list[report.Removal] = []
    if (removals := opened.root / "removals.parquet").exists():
        try:
            similarities, border = _removals(removals)
        except DataError as error:
            unknown.append(str(error))
    largest = (manifest.dedupe or {}).get("largest_clusters")
    return report.Duplicates(
        method=str(method),
        dropped=dropped,
        clusters=clusters,
        largest_clusters=_large_clusters(largest) if isinstance(largest, list) else [],
        similarities=similarities,
        border=border,
    )


NUM_BORDER = 12
SIMILARITY_STEP = 0.05


def _removals(path: Path) -> tuple[list[report.SimilarityBar], list[report.Removal]]:
    """How alike removed documents are to those kept for them. Raises DataError if the table is damaged."""
    import pyarrow.parquet as pq

    require_regular(path)
    columns = ["reason", "similarity", "file", "line", "kept_file", "kept_line"]
    with reading(path):
        table = pq.read_table(path, columns=columns)
        values = table.column("similarity").to_numpy(zero_copy_only=False).astype(np.float64)
        compared = np.flatnonzero(~np.isnan(values))
        if not len(compared):
            return [], []
        if not (0 <= values[compared].min() <= values[compared].max() <= 1):
            raise DataError(f"{path} has similarities outside the range from 0 to 1. Restore it from a copy.")
        edges = np.round(np.arange(0, 1 + SIMILARITY_STEP, SIMILARITY_STEP), 2)
        counts = np.histogram(values[compared], edges)[0].tolist()
        first = next(k for k, count in enumerate(counts) if count)
        bars = [
            report.SimilarityBar(float(edges[k]), float(edges[k + 1]), counts[k])
            for k in range(first, len(counts))
        ]
        order = compared[np.argsort(values[compared], kind="stable")][:NUM_BORDER]
        return bars, [report.Removal(**row) for row in table.take(order).to_pylist()]


def _large_clusters(values: list[Any]) -> list[report.LargeCluster]:
    fields = report.LargeCluster.__struct_fields__
    rows = [{key: row[key] for key in fields if key in row} for row in values if isinstance(row, dict)]
    try:
        return msgspec.convert(rows, list[report.LargeCluster])
    except msgspec.ValidationError:
        return []


def _clusters(path: Path) -> report.Clusters | None:
    """How many clusters have 2, 3-4, 5-8, ... documents. Raises DataError if the table is damaged."""
    import pyarrow.parquet as pq

    require_regular(path)
    with reading(path), pq.ParquetFile(path) as file:
        column = next((name for name in ("cluster", "cluster_id") if name in file.schema_arrow.names), None)
        if column is None:
            return None
        ids = file.read([column]).column(0).to_numpy()
        _, sizes = np.unique(ids, return_counts=True)
    sizes = sizes[sizes > 1]
    if not len(sizes):
        return report.Clusters(0, 0, 0, [])
    return report.Clusters(len(sizes), int(sizes.sum()), int(sizes.max()), histogram(sizes, [2, 3], 1))


def _identical_shards(manifest: Dataset) -> dict[str, list[str]]:
    """Splits in which several shards have one checksum."""
    identical = {}
    for name, split in manifest.splits.items():
        counts = Counter(file.sha256 for file in split.files)
        if same := [file.name for file in split.files if counts[file.sha256] > 1]:
            identical[name] = same
    return identical


def _disk(opened: Opened, splits: Sequence[str]) -> report.Disk:
    """Of another's shards, only the shards count."""
    shards = sum(
        size_of(path) for split in splits for path in opened.splits[split] if opened.only in (None, path)
    )
    documents = other = 0
    if opened.manifest is not None and opened.only is None:
        documents = sum(map(size_of, map(opened.documents_path, splits)))
        if opened.chosen is None:
            other = size_of(opened.root / FILE_NAME) + sum(file.bytes for file in opened.manifest.outputs)
    return report.Disk(shards, documents, other)


# Order of samples, samples ----------------------------------------------------------------------------------


def _order_of_samples(opened: Opened, split: str, rows: Rows) -> report.Correlation | None:
    """Order of the samples against that of the stream, where they were permuted."""
    manifest = opened.manifest
    entry = manifest.splits.get(split) if manifest else None
    if (
        manifest is None
        or entry is None
        or manifest.shuffle != "samples"
        or manifest.format != "sample"
        or rows.total <= 2
    ):
        return None
    total = sum(file.n_examples for file in entry.files)
    last = min(rows.base + rows.total, total) - 1
    positions = np.linspace(rows.base, last, min(rows.total, MAX_RANKED)).round().astype(np.uint64)
    positions = positions[np.append(True, positions[1:] != positions[:-1])]
    origin = lookup.origins(opened, split, positions, total)
    if origin is None or len(origin) <= 2:
        return None
    rank = np.empty(len(origin), np.float64)
    rank[np.argsort(origin)] = np.arange(len(origin))
    return correlation(rank)


def _samples(
    opened: Opened,
    sample: Sequence[int],
    split: str | None,
    num_samples: int,
    rows: Mapping[str, Rows],
    tables: Mapping[str, DocumentTable],
    tokenizer: Tokenizer | None,
) -> list[report.Sample]:
    """The samples requested, or a few drawn."""
    if split is not None and split not in rows:
        raise ConfigError(
            f"There is no split {split!r} in {opened.path}. It has {', '.join(rows) or 'none'}; name one "
            "with --split."
        )
    chosen = split or ("train" if "train" in rows else next(iter(rows), None))
    if chosen is None:
        return []
    numbers = list(sample)
    total = lookup.num_sequences(opened, rows[chosen])
    if not numbers and total:
        numbers = sorted(
            np.random.default_rng(SEED).choice(total, min(num_samples, total), replace=False).tolist()
        )
    shown = []
    for number in numbers:
        try:
            shown.append(lookup.sample(opened, chosen, number, rows[chosen], tokenizer, tables.get(chosen)))
        except DataError as error:
            if sample:
                raise
            shown.append(report.Sample(chosen, number, note=str(error)))
    return shown
