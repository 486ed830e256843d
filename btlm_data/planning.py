"""`prepare --plan`: what would be done, the disk and memory it takes, and how long, measured on a few MB of
the real input.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from btlm_data import input_checks, pipeline, plan_checks
from btlm_data.advance import listening
from btlm_data.estimate import RATES, Estimate, Volume, Workload, by_stage, peak_work_bytes
from btlm_data.formats.columns import Columns
from btlm_data.formats.rejects import read_block
from btlm_data.formats.shard_formats import get_format
from btlm_data.formats.shard_formats.base import RowPlan, Shard, StreamSize
from btlm_data.formats.shard_formats.in_memory import PackedColumns, SampleStream
from btlm_data.locations import Stores
from btlm_data.plan_checks import Looked, Stop
from btlm_data.preparation import Inputs
from btlm_data.recipe.mix import MixSettings
from btlm_data.recipe.models import Recipe
from btlm_data.sources.base import LeftOut
from btlm_data.sources.fetch import Fetcher
from btlm_data.stages import (
    decontaminate,
    dedupe,
    emit,
    file_ranges,
    holdout,
    limits,
    pack,
    pieces,
    read,
    ready,
    rejected,
    shard,
    shuffle,
    tokenize,
)
from btlm_data.stages.block_writer import BlockWriter, Part
from btlm_data.storage import Store, is_remote, open_store
from btlm_data.task import Artifact, Counts, Step, Task
from btlm_data.task_files import TaskFiles
from btlm_data.wording import amount, counted, duration

_SAMPLE_BYTES = 16_000_000  # of text


class Plan(msgspec.Struct, frozen=True):
    """What a run would do. Bytes, seconds, documents and tokens; `measured_bytes` of text were looked at.

    steps: what each is expected to take, in order (estimate.py); stages: their sums, by stage. work_bytes,
    out_bytes: the most that is in the work folder at once, and what is written to the dataset's. index_bytes: of an
    index of these documents (dedupe/index.py), whoever makes it.
    memory_bytes: of all processes together. seconds: by the clock, without what is done already and without
    waiting for downloads.
    """

    source: str
    files: dict[str, int]
    stored_bytes: int
    measured_bytes: int
    text_bytes: int
    documents: int
    tokens: int
    read_tasks: int
    read_done: int
    out_bytes: int
    work_bytes: int
    index_bytes: int
    memory_bytes: int
    cpu_seconds: float
    seconds: float
    workers: int
    descriptions: tuple[tuple[str, str], ...]  # stage, what it does in this run
    stages: tuple[Estimate, ...]
    steps: tuple[Estimate, ...]
    split_rules: dict[str, tuple[LeftOut, ...]]  # LeftOut.reason: the rule that put files there
    left_out: tuple[LeftOut, ...]  # what is there and is not read
    finished: bool  # this very dataset is there: the run has nothing to do
    stops: tuple[Stop, ...]  # what the run would stop at
    remarks: tuple[str, ...]  # what may be a mistake, as far as the sample shows


def estimates(workload: Workload) -> tuple[Estimate, ...]:
    """What every step takes, in the order in which they run."""
    return (
        *file_ranges.estimate(workload),
        *decontaminate.estimate_ngrams(workload),
        *read.estimate(workload),
        *rejected.estimate(workload),
        *dedupe.estimate(workload),
        *holdout.estimate(workload),
        *tokenize.estimate(workload),
        *emit.estimate(workload),
        *shuffle.estimate(workload),
        *pack.estimate(workload),
        *pieces.estimate(workload),
        *shard.estimate(workload),
    )


def measure(recipe: Recipe) -> Plan:
    """Look up what the recipe names, read a few MB of it into a temporary folder, and scale up. Writes
    nothing else.
    """
    run, settings = recipe.run, recipe.settings
    input_checks.check_memory(run)
    inputs = Inputs.look_up(recipe)
    ready.warm_up(inputs.tokenizer)
    Fetcher.of(run, inputs.listing).check_room(inputs.listing.files)
    runner = pipeline.idle_runner(recipe)
    cleaning = pipeline.plan_read(inputs, runner, limits.count_here)
    done = len(runner.proved(cleaning))
    workload, sample = measure_workload(inputs, cleaning)
    steps = estimates(workload)
    # The driver holds what a process holds, and a step's tasks run in as many others.
    memory = max(step.memory_bytes * max(1, min(run.workers, step.tasks)) for step in steps)
    left = 1 - done / max(1, len(cleaning.tasks))
    out_bytes, work_bytes = sum(step.out_bytes for step in steps), peak_work_bytes(steps)
    sample.looked.scale = workload.volume.tokens / max(1, sample.volume.tokens)
    findings = plan_checks.look(inputs, runner.stores, sample.looked, out_bytes, work_bytes)
    return Plan(
        source=settings.source.name,
        files=dict(Counter(file.split for file in inputs.listing.files)),
        stored_bytes=sum(file.size for file in inputs.listing.files),
        measured_bytes=sample.volume.text_bytes,
        text_bytes=workload.volume.text_bytes,
        documents=workload.volume.documents,
        tokens=workload.volume.tokens,
        read_tasks=len(cleaning.tasks),
        read_done=done,
        out_bytes=out_bytes,
        work_bytes=work_bytes,
        index_bytes=dedupe.index_bytes(workload),
        memory_bytes=memory + (workload.rates.process_bytes if run.workers > 1 else 0),
        cpu_seconds=sum(step.cpu_seconds for step in steps),
        seconds=sum(step.seconds(run.workers) * (left if step.step == read.NAME else 1) for step in steps),
        workers=run.workers,
        descriptions=_describe(recipe, runner.stores.out.shown),
        stages=tuple(by_stage(steps).values()),
        steps=steps,
        split_rules=inputs.listing.split_rules(),
        left_out=inputs.listing.left_out,
        finished=findings.finished,
        stops=findings.stops,
        remarks=findings.remarks,
    )


def measure_workload(inputs: Inputs, cleaning: Step) -> tuple[Workload, _Read]:
    """How much there is, scaled up from a sample of it; and the sample. cleaning: the step `read`.

    The rates that depend most on texts and settings are measured on the sample. Downloads are waited for, and
    not counted.
    """
    with tempfile.TemporaryDirectory(prefix="btlm-plan-") as folder:
        store = open_store(folder)
        sample = _read_sample(cleaning, Stores(store, store), inputs.settings.mix)
        writing = _write_sample(store, sample.tokens_files, inputs)
    files = inputs.listing.files
    stored = sum(task.weight for task in cleaning.tasks)
    volume = replace(
        sample.volume.scaled(stored / max(1, sample.volume.stored_bytes)),
        files=len(files),
        parts=len(cleaning.tasks),
        stored_bytes=stored,
    )
    rates = replace(
        RATES,
        clean_byte=sample.seconds / max(1, sample.volume.text_bytes),
        shard_token=writing.seconds,
        shard_token_bytes=writing.num_bytes,
    )
    settings = inputs.settings
    own = {file.split for file in files}
    drawn = (settings.holdout.fraction > 0) + (settings.holdout.test_fraction > 0) if own == {"train"} else 0
    workload = Workload(
        volume,
        settings,
        inputs.run,
        rates,
        repeats=settings.mix.tokens / max(1, volume.tokens) if settings.mix.tokens else sample.repeats,
        token_bytes=inputs.tokenizer.dtype.itemsize,
        eos_id=inputs.tokenizer.eos_id,
        splits=max(1, len(own) + drawn),
        evaluation_bytes=sum(Path(file.name).stat().st_size for file in inputs.evaluation),
    )
    return workload, sample


class _Read(msgspec.Struct):
    """What a sample showed. seconds: CPU. repeats: of the average token, by the mix. looked: its records."""

    volume: Volume = msgspec.field(default_factory=lambda: Volume(0, 0, 0, 0, 0, 0))
    seconds: float = 0.0
    repeated_tokens: float = 0.0
    tokens_files: list[Artifact] = msgspec.field(default_factory=list)
    looked: Looked = msgspec.field(default_factory=Looked)

    @property
    def repeats(self) -> float:
        """How often the average token is in the streams."""
        return self.repeated_tokens / self.volume.tokens if self.volume.tokens else 1.0


def _read_sample(cleaning: Step, stores: Stores, mix: MixSettings) -> _Read:
    """Read from parts spread evenly over the source, up to _SAMPLE_BYTES of text."""
    sample = _Read()
    tasks = cleaning.tasks
    chosen = [tasks[i] for i in np.unique(np.linspace(0, len(tasks) - 1, 4).astype(int))] if tasks else []
    settings = replace(cleaning.settings, strict=False)
    wanted = {product: "plan" for product in settings.products if product != "contamination"}
    parts_read = 0
    for number, task in enumerate(chosen):
        ranges = read.ranges_of(task)
        if number and any(is_remote(file_range.file.url) for file_range in ranges):
            break  # one remote file is enough to wait for
        start = process_time()
        stored: list[int] = []
        with listening(stored.append):
            blocks = read.records(ranges, settings, (0, 0), _SAMPLE_BYTES // len(chosen))
            block = next(blocks, None)
            # Bytes are reported a little before their records are given.
            parts_read += sum(stored) >= task.weight and next(blocks, None) is None
        if block is None:
            continue
        files = TaskFiles(stores, Task("plan"))
        meta = BlockWriter(files, f"read/{number}", Part(ranges, settings, wanted)).write(block)
        sample.seconds += process_time() - start
        by_ending = {artifact.name.rpartition(".")[2]: artifact for artifact in files.written}
        docs, lengths = files.columns(by_ending["docs"]), files.columns(by_ending["tokens"])["lengths"]
        tokens = lengths.astype(np.int64) + 1
        # Which documents stand for others is not known yet: as if all had the most that by_copies can give.
        epochs = mix.most_by_copies * np.array([mix.epochs.get(name, 1.0) for name in docs.meta["sources"]])
        before = sample.volume
        sample.volume = Volume(
            before.files + 1,
            before.parts + 1,
            before.stored_bytes + max(1, min(task.weight, sum(stored))),
            before.documents + len(tokens),
            before.text_bytes + int(docs["num_bytes"].sum()),
            before.tokens + int(tokens.sum()),
        )
        by_source = np.bincount(docs["source"], tokens, len(epochs)).astype(np.int64).tolist()
        sample.looked.tokens.update(dict(zip(docs.meta["sources"], by_source, strict=True)))
        sample.repeated_tokens += float((tokens * epochs[docs["source"]]).sum()) if len(tokens) else 0.0
        sample.tokens_files.append(by_ending["tokens"])
        _take_note(sample.looked, meta, stores.work, knows_lines=ranges[0].start == 0)
    sample.looked.whole = parts_read == len(tasks)
    return sample


def _take_note(looked: Looked, meta: Mapping[str, Any], store: Store, *, knows_lines: bool) -> None:
    """Add what a block came to. meta: of its .docs."""
    looked.acquire.merge(Counts.from_json(meta["stages"]["acquire"]))
    looked.clean.merge(Counts.from_json(meta["stages"]["clean"]))
    if meta["rejects"] is None:
        return
    name = meta["rejects"][0]
    for value in read_block(store.read(name), name):
        if "hash" not in value:  # else an example of a dropped document
            looked.rejects.append(value | {"line": value["line"] + 1 if knows_lines else None})


class _Write(NamedTuple):
    """CPU seconds and bytes of a shard, for each token."""

    seconds: float
    num_bytes: float


def _write_sample(store: Store, tokens_files: Sequence[Artifact], inputs: Inputs) -> _Write:
    """Write the sample's documents as one shard of the format requested, and look at time and size."""
    settings, tokenizer = inputs.settings, inputs.tokenizer
    stream = SampleStream.of([Columns(store, file) for file in tokens_files], tokenizer.eos_id)
    size = StreamSize(len(stream.tokens), len(stream.starts))
    if size.tokens < 2:
        return _Write(RATES.shard_token, RATES.shard_token_bytes)
    shard_format = get_format(settings.format)
    length = min(settings.seq_len[0].seq_len, size.tokens - 1)
    packing = pack.packing_of(settings, length, "train", stream.tokens.dtype.name, tokenizer.eos_id)
    packed = [
        shard_format.pack(stretch, size, packing, stream)
        for stretch in shard_format.stretches(size, packing, inputs.run.memory_per_worker)
    ]
    packed_rows = tuple(part.rows for part in packed)
    rows = shard_format.plan(size, packing, packed_rows)
    whole = Shard(0, RowPlan(rows.rows, max(1, rows.rows)), size, packing, packed_rows)
    for _ in range(2):  # the first time also loads the format's kernels
        with store.create("sample.h5", durable=False) as creating:
            start = process_time()
            columns = [PackedColumns(part.columns) for part in packed]
            info = shard_format.write(creating.file, whole, stream, columns)
            seconds = process_time() - start
    return _Write(seconds / size.tokens, info.num_bytes / size.tokens)


def _describe(recipe: Recipe, out: str) -> tuple[tuple[str, str], ...]:
    s = recipe.settings
    cleaning = f"{s.clean.normalize}, at least {s.clean.min_chars} characters" + (
        f", {len(s.clean.filters)} filters" if s.clean.filters else ""
    )
    duplicates = {
        "none": "none",
        "exact": "exact",
        "minhash": f"exact, then MinHash ({s.dedupe.bands} bands x {s.dedupe.rows} rows, {s.dedupe.scheme})",
    }[s.dedupe.method]
    shares = {"validation": s.holdout.fraction, "test": s.holdout.test_fraction}
    drawn = [f"{split} {share:.3%}" for split, share in shares.items() if share]
    sets = ", ".join(
        f"{part.seq_len}" + (f" ({part.share:.0%} of the documents)" if part.share else "")
        for part in s.seq_len
    )
    return (
        ("acquire", s.source.name),
        ("clean", cleaning),
        ("dedupe", duplicates),
        ("holdout", f"drawn: {', '.join(drawn)} of the documents" if drawn else "the source's own, if any"),
        ("tokenize", s.tokenizer.name),
        ("shuffle", f"{s.shuffle}, seed {s.seed}"),
        ("pack", f"{s.format} format, sequence length {sets}"),
        ("shard", f"to {out}"),
    )


def render(plan: Plan, index: str, console: Console) -> None:
    """Print a plan. index: of deduplication, in words."""
    described = Table(box=None, show_header=False, pad_edge=False)
    described.add_column(no_wrap=True, style="bold")
    described.add_column(overflow="fold")  # a long path is shown whole
    for stage, description in plan.descriptions:
        described.add_row(stage, description)
    console.print(described)
    console.print()
    costs = Table(box=None, pad_edge=False, header_style="bold")
    costs.add_column("stage", no_wrap=True, style="bold")
    for column in ("tasks", "CPU", "reads", "work files", "writes", "memory"):
        costs.add_column(column, justify="right", no_wrap=True)
    for estimate in plan.stages:
        if estimate.tasks:
            costs.add_row(estimate.stage, *_cells(estimate))
    console.print(costs)
    console.print()
    splits = ", ".join(f"{number:,} {split}" for split, number in plan.files.items())
    lines = [f"input      {amount(plan.stored_bytes, 'B')} in files: {splits}"]
    for split, rules in plan.split_rules.items():
        lines += [f"           {split}: {rule.words()}" for rule in rules]
    lines += [f"not read   {left_out.words()}" for left_out in plan.left_out]
    workers = counted(plan.workers, "worker")
    lines += [
        f"tasks      {plan.read_tasks:,} to read, {plan.read_done:,} of them done before",
        f"expected   {amount(plan.documents, 'document')}, {amount(plan.text_bytes, 'B')} of text, "
        f"{amount(plan.tokens, 'token')} before deduplication",
        f"dataset    up to {amount(plan.out_bytes, 'B')}",
        f"index      {index}",
        f"peak disk  {amount(plan.out_bytes + plan.work_bytes, 'B')} (work files {amount(plan.work_bytes, 'B')})",
        f"memory     about {amount(plan.memory_bytes, 'B')} with {workers}",
        f"time       about {duration(plan.seconds)} with {workers}, measured on "
        f"{amount(plan.measured_bytes, 'B')} of the input",
    ]
    if plan.finished:
        lines.append("finished   this very dataset is there already; the run has nothing to do")
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
    for remark in plan.remarks:
        console.print(f"\n{remark}", style="yellow", highlight=False, soft_wrap=True)
    for stop in plan.stops:
        console.print(
            f"\nThe run would stop (exit code {stop.exit_code}).", style="bold red", highlight=False
        )
        console.print(stop.message, highlight=False, soft_wrap=True)


def _cells(estimate: Estimate) -> list[str]:
    """One stage's row: nothing for what it does not do."""
    sizes = (
        estimate.source_bytes + estimate.read_bytes,
        estimate.work_bytes,
        estimate.out_bytes,
        estimate.memory_bytes,
    )
    return [
        f"{estimate.tasks:,}",
        duration(estimate.cpu_seconds),
        *(amount(size, "B") if size else "" for size in sizes),
    ]
