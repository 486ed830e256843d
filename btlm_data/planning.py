"""`prepare --plan`: what would be done, the disk and memory it takes, and how long, measured on a few MB of the real input."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from btlm_data import pipeline
from btlm_data.advance import listening
from btlm_data.formats.columns import Columns
from btlm_data.formats.shard_formats.sample import write_samples
from btlm_data.formats.shard_formats.writer import ShardOptions
from btlm_data.places import Stores
from btlm_data.preparation import Inputs
from btlm_data.progress import amount, count, duration
from btlm_data.recipe.models import Recipe
from btlm_data.sources.base import LeftOut
from btlm_data.sources.fetch import Fetcher
from btlm_data.stages import clean
from btlm_data.stages.block_writer import BlockWriter, Part
from btlm_data.storage import Store, is_remote, open_store
from btlm_data.task import Artifact, Step, Task
from btlm_data.task_files import TaskFiles

_SAMPLE_BYTES = 16_000_000  # of text
_WORKER_BYTES = 450_000_000  # what a worker holds while reading, measured on documents of ordinary length


@dataclass(frozen=True)
class Plan:
    """What a run would do. Bytes, seconds, documents and tokens; `measured` says on how much of the input."""

    source: str
    files: dict[str, int]
    stored_bytes: int
    measured_bytes: int
    text_bytes: int
    documents: int
    tokens: int
    read_tasks: int
    read_done: int
    shard_bytes: int
    work_bytes: int
    peak_memory_bytes: int
    seconds: float
    workers: int
    stages: tuple[tuple[str, str], ...]
    split_rules: dict[str, tuple[LeftOut, ...]]  # LeftOut.reason: the rule that put files there
    left_out: tuple[LeftOut, ...]  # what is there and is not read


def measure(recipe: Recipe) -> Plan:
    """Look up what the recipe names, read a few MB of it into a temporary folder, and scale up. Writes nothing else."""
    run, settings = recipe.run, recipe.settings
    inputs = Inputs.look_up(recipe)
    pipeline.warm_up(inputs.tokenizer)
    Fetcher.of(run, inputs.listing).check_room(inputs.listing.files)
    runner = pipeline.idle_runner(recipe)
    cleaning = pipeline.plan_clean(inputs, runner)
    done = len(runner.proved(cleaning))
    stored = sum(task.weight for task in cleaning.tasks)
    with tempfile.TemporaryDirectory(prefix="btlm-plan-") as folder:
        store = open_store(folder)
        measured, tokens_files = _read_sample(cleaning, Stores(store, store))
        writing = _write_sample(store, tokens_files, inputs.tokenizer.eos_id, recipe)
    scale = stored / max(1, measured.stored)
    text, documents, tokens = (int(n * scale) for n in (measured.text, measured.documents, measured.tokens))
    copies = len(settings.seq_len) if all(set_.share is None for set_ in settings.seq_len) else 1
    itemsize = inputs.tokenizer.dtype.itemsize
    is_packed = settings.shuffle == "samples" and settings.format == "sample"
    work_bytes = tokens * itemsize * (1 + copies * is_packed)
    work_bytes += documents * (150 + 8 * settings.dedupe.bands)
    shard_bytes = int(tokens * copies * (writing.bytes_per_token if settings.format != "corpus" else 1.5))
    # With --emit-text the text is read and cleaned once more to be written out.
    passes = 1 - done / max(1, len(cleaning.tasks)) + (run.emit_text is not None)
    seconds = (measured.seconds * scale * passes + writing.seconds_per_token * tokens * copies) / run.workers
    return Plan(
        source=settings.source.name,
        files=dict(Counter(file.split for file in inputs.listing.files)),
        stored_bytes=sum(file.size for file in inputs.listing.files),
        measured_bytes=measured.text,
        text_bytes=text,
        documents=documents,
        tokens=tokens,
        read_tasks=len(cleaning.tasks),
        read_done=done,
        shard_bytes=shard_bytes,
        work_bytes=work_bytes,
        peak_memory_bytes=max(run.workers * _WORKER_BYTES, 16 * documents + 300_000_000),
        seconds=seconds,
        workers=run.workers,
        stages=_stages(recipe, runner.stores.out.shown),
        split_rules=inputs.listing.split_rules(),
        left_out=inputs.listing.left_out,
    )


@dataclass
class _Read:
    stored: int = 0
    text: int = 0
    documents: int = 0
    tokens: int = 0
    seconds: float = 0.0


def _read_sample(cleaning: Step, stores: Stores) -> tuple[_Read, list[Artifact]]:
    """Read from parts spread evenly over the source, up to _SAMPLE_BYTES of text; also returns the files of tokens."""
    measured, tokens_files = _Read(), []
    tasks = cleaning.tasks
    chosen = [tasks[i] for i in np.unique(np.linspace(0, len(tasks) - 1, 4).astype(int))] if tasks else []
    settings = replace(cleaning.settings, strict=False)
    for number, task in enumerate(chosen):
        ranges = clean.ranges_of(task)
        if number and any(is_remote(file_range.file.url) for file_range in ranges):
            break  # one remote file is enough to wait for
        start = perf_counter()
        stored: list[int] = []
        with listening(stored.append):
            block = next(clean.records(ranges, settings, (0, 0), _SAMPLE_BYTES // len(chosen)), None)
        if block is None:
            continue
        wanted = {product: "plan" for product in settings.products if product != "contamination"}
        files = TaskFiles(stores, Task("plan"))
        meta = BlockWriter(files, f"clean/{number}", Part(ranges, settings, wanted)).write(block)
        measured.seconds += perf_counter() - start
        measured.stored += max(1, min(task.weight, sum(stored)))
        by_ending = {artifact.name.rpartition(".")[2]: artifact for artifact in files.written}
        measured.text += int(files.columns(by_ending["docs"])["num_bytes"].sum())
        measured.documents += meta["num_documents"]
        (num_tokens,) = files.columns(by_ending["tokens"]).shape("tokens")
        measured.tokens += num_tokens + meta["num_documents"]
        tokens_files.append(by_ending["tokens"])
    return measured, tokens_files


@dataclass
class _Write:
    seconds_per_token: float
    bytes_per_token: float


def _write_sample(store: Store, tokens_files: Sequence[Artifact], eos_id: int, recipe: Recipe) -> _Write:
    """Write the sample's tokens as one shard and look at time and size."""
    parts = [Columns(store, file)["tokens"] for file in tokens_files]
    tokens = np.concatenate(parts) if parts else np.zeros(1, np.uint16)
    length = max(1, min(recipe.seq_len[0].seq_len, len(tokens) - 1))
    rows = np.lib.stride_tricks.sliding_window_view(np.append(tokens, eos_id), length + 1)[::length]
    settings = recipe.shards
    options = ShardOptions(settings.compression, settings.level, settings.hdf5_shuffle, settings.dtype)
    start = perf_counter()
    with store.create("sample.h5", durable=False) as creating:
        info = write_samples(creating.file, np.ascontiguousarray(rows), None, options)
    num_tokens = max(1, info.num_tokens)
    return _Write((perf_counter() - start) / num_tokens, info.num_bytes / num_tokens)


def _stages(recipe: Recipe, out: str) -> tuple[tuple[str, str], ...]:
    s = recipe.settings
    clean = f"{s.clean.normalize}, at least {s.clean.min_chars} characters" + (
        f", {len(s.clean.filters)} filters" if s.clean.filters else ""
    )
    dedupe = {
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
        ("clean", clean),
        ("dedupe", dedupe),
        ("holdout", f"drawn: {', '.join(drawn)} of the documents" if drawn else "the source's own, if any"),
        ("tokenize", s.tokenizer.name),
        ("shuffle", f"{s.shuffle}, seed {s.seed}"),
        ("pack", f"{s.format} format, sequence length {sets}"),
        ("shard", f"to {out}"),
    )


def render(plan: Plan, console: Console) -> None:
    """Print a plan."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for stage, what in plan.stages:
        table.add_row(Text(stage, style="bold"), what)
    console.print(table)
    splits = ", ".join(f"{number:,} {split}" for split, number in plan.files.items())
    lines = [f"input      {amount(plan.stored_bytes, 'B')} in files: {splits}"]
    for split, rules in plan.split_rules.items():
        lines += [f"           {split}: {rule.words()}" for rule in rules]
    lines += [f"not read   {left_out.words()}" for left_out in plan.left_out]
    lines += [
        f"tasks      {plan.read_tasks:,} to read, {plan.read_done:,} of them done before",
        f"expected   {amount(plan.documents, 'document')}, {amount(plan.text_bytes, 'B')} of text, "
        f"{amount(plan.tokens, 'token')} before deduplication",
        f"shards     up to {amount(plan.shard_bytes, 'B')}",
        f"peak disk  {amount(plan.shard_bytes + plan.work_bytes, 'B')} (work files {amount(plan.work_bytes, 'B')})",
        f"memory     about {amount(plan.peak_memory_bytes, 'B')} with {count(plan.workers, 'worker')}",
        f"time       about {duration(plan.seconds)} with {count(plan.workers, 'worker')}, measured on "
        f"{amount(plan.measured_bytes, 'B')} of the input",
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
