"""The end of a run: the files of the dataset (shards, tables of documents, lists for people), and dataset.json, which says
it is complete.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from btlm_data.cleaning.signals import NUMBERS
from btlm_data.formats import dataset, ledger, provenance
from btlm_data.formats.input_digest import combine
from btlm_data.formats.sealed_json import NO_CHECKSUM
from btlm_data.formats.shard_formats import get_format
from btlm_data.formats.shard_formats.base import Balance, ShardFormat
from btlm_data.preparation import Preparation, PreparedSet
from btlm_data.redact import without_secrets
from btlm_data.sources.base import Listing
from btlm_data.stages import documents, dropped, shard
from btlm_data.stages.document_rows import Sources
from btlm_data.stages.pack import SampleSet
from btlm_data.stages.stream import StreamIndex, StreamSettings
from btlm_data.task import Artifact, Counts

LIBRARIES = ("isal", "numba", "numpy", "pyarrow", "tokenizers", "zstandard")


def write(p: Preparation) -> dict[str, dataset.Dataset]:
    """Write the files of the dataset and give each set its dataset.json; returns them by folder."""
    tables, beside_shards = _write_files(p)
    steps = [
        provenance.StepTime(
            name,
            p.runner.num_tasks[name],
            round(seconds, 3),
            round(p.runner.task_seconds[name], 3),
            p.runner.written[name],
        )
        for name, seconds in p.runner.seconds.items()
    ]
    made = _provenance(p, steps)
    values: dict[str, dataset.Dataset] = {}
    references: list[dataset.SetReference] = []
    for prepared in p.sets:
        outputs = [
            *beside_shards[prepared.folder],
            tables[f"{prepared.folder}/{dataset.DROPPED}".lstrip("/")],
        ]
        value = _describe(p, prepared, tables, sorted(outputs, key=lambda file: file.name))
        problems = ledger.imbalances(value.ledger)
        assert not problems, "the ledger does not balance: " + "; ".join(problems)
        checksum = p.output.publish(prepared.folder, value, made)
        values[prepared.folder] = value
        if prepared.folder:
            references.append(dataset.SetReference(prepared.folder, checksum))
    if references:
        fingerprint = next(iter(values.values())).fingerprint
        p.output.publish("", dataset.SetList(fingerprint, references), made)
    p.output.finish()
    return values


def _streams_of(p: Preparation, prepared: PreparedSet) -> list[StreamIndex]:
    """The streams whose documents a set has: its own with shares, else the common ones."""
    stream_set = prepared.index if prepared.settings.share is not None else 0
    return [index for index in p.streams.values() if index.stream.set_index == stream_set]


def _write_files(
    p: Preparation,
) -> tuple[dict[str, dataset.StoredFile], dict[str, list[dataset.StoredFile]]]:
    """Write all files but dataset.json, those of one process among the shards. Returns the tables by their names, and what
    people look at by the folder of its set; the shards are in `p.sets`.
    """
    assert p.shards is not None
    parts, lists = _parts_of_tables(p), _lists(p)
    step = shard.with_others(p.shards.step, parts, lists)
    p.output.announce(p.inputs.fingerprint, [name for task in step.tasks for _, name in task.outputs])
    shards: dict[str, list[dataset.ShardFile]] = {}
    tables: dict[str, dataset.StoredFile] = {}
    copied: dict[str, list[dataset.StoredFile]] = {prepared.folder: [] for prepared in p.sets}
    for task, result in zip(step.tasks, p.step(step), strict=True):
        [(_, name)], file = task.outputs, result.counts.extra["file"]
        folder = name.rpartition("/")[0]
        if name in parts:
            tables[name] = dataset.StoredFile(**file)
        elif name in lists:
            copied[folder].append(dataset.StoredFile(**file))
        else:
            shards.setdefault(folder, []).append(dataset.ShardFile(**file))
    for prepared in p.sets:
        for split in prepared.splits.values():
            split.files = shards.get(split.sample_set.folder, [])
    return tables, copied


def _parts_of_tables(p: Preparation) -> dict[str, Sequence[Artifact]]:
    """Of documents.parquet of every split of every set, and of dropped.parquet of every set, by their names."""
    assert p.table is not None
    kept = list(p.settings.source.kept_columns)
    signals = p.inputs.signals.columns
    travelling = [*kept, *(name for name, kind in signals.items() if kind == "text")]
    travelling += [NUMBERS] if signals else []
    sources = Sources(p.blocks, p.scattered, p.copies, travelling, p.run.memory_per_worker, signals)
    parts = documents.run(p.runner, sources, p.streams, p.table)
    parts_by_table: dict[str, Sequence[Artifact]] = {
        f"{prepared.split_folder(index.stream.split)}/{dataset.DOCUMENTS}": parts[index.stream.name]
        for prepared in p.sets
        for index in _streams_of(p, prepared)
    }
    assert p.fates is not None
    leaving = dropped.plan(p.blocks, p.fates, p.mix, StreamSettings(p.settings, p.splits), kept)
    missing = [result.outputs[0] for result in p.step(leaving)]
    return parts_by_table | {
        f"{prepared.folder}/{dataset.DROPPED}".lstrip("/"): missing for prepared in p.sets
    }


def _lists(p: Preparation) -> dict[str, Artifact]:
    """What people look at, by the name that it gets in the folder of each set."""
    sources = {artifact.name.rpartition("/")[2]: artifact for artifact in p.reject_files}
    if p.clusters is not None:
        sources["clusters.parquet"] = p.clusters
    if p.removals is not None:
        sources["removals.parquet"] = p.removals
    if p.contamination is not None:
        sources["contamination.parquet"] = p.contamination
    folders = [prepared.folder for prepared in p.sets]
    return {f"{folder}/{name}".lstrip("/"): sources[name] for folder in folders for name in sources}


def _describe(
    p: Preparation,
    prepared: PreparedSet,
    tables: Mapping[str, dataset.StoredFile],
    outputs: list[dataset.StoredFile],
) -> dataset.Dataset:
    """What one set is."""
    settings, tokenizer = p.settings, p.inputs.tokenizer
    shard_format = get_format(settings.format)
    counts = {name: value for name, value in p.counts.items() if name not in ("shuffle", "pack", "shard")}
    counts |= {"shuffle": Counts(), "pack": Counts(), "shard": Counts()}
    streams = _streams_of(p, prepared)
    stream_set = streams[0].stream.set_index if streams else 0
    for (split, source, cell), amount in p.counts["shuffle"].cells.items():
        number, _, plain = split.partition("/")
        if int(number) == stream_set:
            counts["shuffle"].add(plain, source, cell, *amount)
    splits: dict[Any, dataset.Split] = {}
    for index in streams:
        split = index.stream.split
        done = prepared.splits.get(split)
        files = done.files if done else []
        _count_packing(counts["pack"], index, done.sample_set if done else None, shard_format)
        kept = sum(
            a.tokens for (name, _, cell), a in counts["pack"].cells.items() if (name, cell) == (split, "out")
        )
        counts["shard"].add(split, "*", "in", tokens=kept)
        counts["shard"].add(split, "*", "out", tokens=sum(file.tokens for file in files))
        splits[split] = dataset.Split(
            documents=index.num_documents,
            stream_tokens=index.num_tokens,
            samples=sum(file.n_examples for file in files) if shard_format.planes else None,
            label_tokens=sum(file.tokens for file in files),
            files=files,
            documents_file=tables[f"{prepared.split_folder(split)}/{dataset.DOCUMENTS}"],
            phases=_phases(p, index, done.sample_set if done else None),
        )
    configuration = dataset.without_locations(p.inputs.configuration)
    inputs = [
        dataset.InputFile(
            file.name,
            file.split,
            file.size,
            combine(digests) if (digests := p.input_digests.get((file.split, file.name))) else None,
            file.source,
            file.text_field,
        )
        for file in p.inputs.listing.files
    ]
    other_inputs = _other_inputs(p)
    return dataset.Dataset(
        fingerprint=dataset.fingerprint_of(configuration, inputs, tokenizer.fingerprint, other_inputs),
        configuration=configuration,
        source=dataset.SourceTotals(len(inputs), sum(file.size for file in inputs)),
        inputs=inputs,
        left_out=_left_out(p.inputs.listing),
        other_inputs=other_inputs,
        tokenizer=dataset.Tokenizer(
            name=Path(tokenizer.name).name if Path(tokenizer.name).exists() else tokenizer.name,
            fingerprint=tokenizer.fingerprint,
            eos_id=tokenizer.eos_id,
            vocab_size=tokenizer.vocab_size,
        ),
        seq_len=prepared.settings.seq_len,
        format=settings.format,
        shuffle=settings.shuffle,
        seed=settings.seed,
        dtype="uint16" if tokenizer.dtype.itemsize == 2 else "uint32",
        set=dataset.SetPosition(
            index=prepared.index, names=[s.folder for s in p.sets], share=prepared.settings.share
        ),
        splits=splits,
        ledger=ledger.rows_of(counts),
        dedupe=dict(p.dedupe_summary) if p.dedupe_summary is not None else None,
        outputs=outputs,
    )


def _phases(p: Preparation, index: StreamIndex, sample_set: SampleSet | None) -> list[dataset.MixPhase]:
    """The phases of a split that a budget mixes; of any other none."""
    if not index.phases:
        return []
    rows = [0] * len(index.phases)
    if sample_set is not None:
        assert p.shards is not None
        packed_rows = p.shards.packed_rows[sample_set.folder]
        shard_format, size, packing = get_format(p.settings.format), sample_set.size, sample_set.packing
        ends = shard_format.phase_rows(size, packing, packed_rows)
        rows = np.diff(ends or (shard_format.plan(size, packing, packed_rows).rows,), prepend=0).tolist()
    return [
        dataset.MixPhase(
            name=phase.name,
            documents=sum(amount.documents for amount in amounts.values()),
            tokens=sum(amount.tokens for amount in amounts.values()),
            rows=num_rows,
            sources={name: dataset.MixedSource(*amount) for name, amount in sorted(amounts.items())},
        )
        for phase, amounts, num_rows in zip(p.settings.mix.phases, index.phases, rows, strict=True)
    ]


def _count_packing(
    packing: Counts, index: StreamIndex, sample_set: SampleSet | None, shard_format: ShardFormat
) -> None:
    """Ledger of `pack` for one split, in label positions (tokens, where shards hold the stream itself)."""
    total, split = index.num_tokens, index.stream.split
    balance = Balance(0, {"stream_too_short": total})
    if sample_set is not None:
        balance = shard_format.balance(sample_set.size, sample_set.packing)
    packing.add(split, "*", "in", tokens=total)
    for reason, tokens in balance.dropped.items():
        packing.add(split, "*", f"drop:{reason}", tokens=tokens)
    packing.add(split, "*", "out", tokens=balance.kept)


def _other_inputs(p: Preparation) -> dict[str, str]:
    """Digests of what decides bytes besides settings, source files and the tokenizer."""
    from btlm_data.cleaning.evaluation_ngrams import evaluation_digest
    from btlm_data.fingerprint import digest

    others: dict[str, str] = {}
    if p.inputs.filters.entries:
        others["filters"] = p.inputs.filters.fingerprint
    if p.inputs.signals.entries:
        others["signals"] = p.inputs.signals.fingerprint
    if p.inputs.evaluation:
        others["evaluation"] = evaluation_digest(p.inputs.evaluation)
    if p.settings.dedupe.index is not None:
        others["index"] = digest(p.index_lineage)
    return others


def _left_out(listing: Listing) -> list[dataset.LeftOut]:
    return [dataset.LeftOut(left.reason, left.count, list(left.names)) for left in listing.left_out]


def _provenance(p: Preparation, steps: Sequence[provenance.StepTime]) -> provenance.Provenance:
    return provenance.Provenance(
        dataset=NO_CHECKSUM,
        run=p.inputs.fingerprint,
        program=importlib.metadata.version("btlm-data"),
        libraries={name: importlib.metadata.version(name) for name in LIBRARIES},
        configuration=p.inputs.configuration,
        source=dict(p.inputs.listing.provenance),
        tokenizer=provenance.TokenizerPlace(p.inputs.tokenizer.name, p.inputs.tokenizer.revision),
        inputs=[
            provenance.InputPlace(file.name, file.split, without_secrets(file.url), file.version)
            for file in p.inputs.listing.files
        ],
        steps=list(steps),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        workers=p.run.workers,
        memory=p.run.memory,
    )
