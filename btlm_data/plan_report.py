"""`prepare --plan`: what would be done, the disk and memory it takes, and how long, measured on a few MB of the real input."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from btlm_data import pipeline
from btlm_data.advance import listen
from btlm_data.engine.runner import is_done
from btlm_data.formats import columns
from btlm_data.formats.shard_formats import writer as shards
from btlm_data.progress import amount, duration
from btlm_data.recipe.models import Recipe
from btlm_data.sources.fetch import Fetcher
from btlm_data.sources.listing import list_files
from btlm_data.stages import read
from btlm_data.task import Step, Task
from btlm_data.tokenizers import load_tokenizer

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


def measure(recipe: Recipe) -> Plan:
    """List the source, read a few MB of it into a temporary folder, and scale up. Writes nothing else."""
    run, settings = recipe.run, recipe.settings
    listing = list_files(settings.source, run)
    tokenizer = load_tokenizer(
        settings.tokenizer.name,
        eos=settings.tokenizer.eos,
        backend=settings.tokenizer.backend,
        revision=settings.tokenizer.revision,
    )
    options = read.read_options(settings.source, listing.fields)
    pipeline.warm_up(tokenizer)
    Fetcher.of(run).check_room(listing.files)
    reading = pipeline.read_settings(run, listing, settings, options, tokenizer.spec, None)
    out, work_dir = pipeline.folders(run)
    tasks = read.plan(listing.files, reading)
    step = Step("read", read.VERSION, read.work, tasks, reading, "")
    done = sum(is_done(step, task, work_dir) for task in tasks)
    stored = sum(task.weight for task in tasks)
    with tempfile.TemporaryDirectory(prefix="btlm-plan-") as folder:
        measured = _read_sample(tasks, reading, folder)
        writing = _write_sample(folder, settings.seq_len[0].seq_len, tokenizer.eos_id, recipe)
    scale = stored / max(1, measured.stored)
    text, documents, tokens = (
        int(measured.text * scale),
        int(measured.documents * scale),
        int(measured.tokens * scale),
    )
    copies = len(settings.seq_len) if all(part.share is None for part in settings.seq_len) else 1
    itemsize = tokenizer.dtype.itemsize
    packed = (
        tokens * itemsize * copies if settings.shuffle == "samples" and settings.format == "sample" else 0
    )
    work_bytes = tokens * itemsize + packed + documents * (150 + 8 * settings.dedupe.bands)
    shard_bytes = int(tokens * copies * (writing.bytes_per_token if settings.format != "corpus" else 1.5))
    passes = (
        1 - done / max(1, len(tasks)) + (run.emit_text is not None)
    )  # the text is read and cleaned once more to be written out
    seconds = (measured.seconds * scale * passes + writing.seconds_per_token * tokens * copies) / run.workers
    return Plan(
        source=settings.source.name,
        files=dict(Counter(file.split for file in listing.files)),
        stored_bytes=sum(file.size for file in listing.files),
        measured_bytes=measured.text,
        text_bytes=text,
        documents=documents,
        tokens=tokens,
        read_tasks=len(tasks),
        read_done=done,
        shard_bytes=shard_bytes,
        work_bytes=work_bytes,
        peak_memory_bytes=max(run.workers * _WORKER_BYTES, 16 * documents + 300_000_000),
        seconds=seconds,
        workers=run.workers,
        stages=_stages(recipe, out),
    )


@dataclass
class _Read:
    stored: int = 0
    text: int = 0
    documents: int = 0
    tokens: int = 0
    seconds: float = 0.0


def _read_sample(tasks: list[Task], reading: read.ReadSettings, folder: str) -> _Read:
    """Read from parts spread evenly over the source, up to _SAMPLE_BYTES of text."""
    measured = _Read()
    (Path(folder) / "read").mkdir()
    chosen = [tasks[i] for i in np.unique(np.linspace(0, len(tasks) - 1, 4).astype(int))] if tasks else []
    for number, task in enumerate(chosen):
        segments = [read.Segment.from_json(value) for value in task.args["segments"]]
        if number and any(
            segment.file.url.startswith(("hf://", "s3://", "https://", "gs://")) for segment in segments
        ):
            break  # one remote file is enough to wait for
        start = perf_counter()
        stored: list[int] = []
        listen(stored.append)
        records = next(iter(read.records(segments, reading, (0, 0), _SAMPLE_BYTES // len(chosen))), None)
        listen(None)
        if records is None:
            continue
        wanted = dict.fromkeys(reading.products, "plan")
        meta = read.BlockWriter(
            Path(folder), f"read/{number}", segments, replace(reading, strict=False), wanted
        ).write(records)
        measured.seconds += perf_counter() - start
        measured.stored += max(1, min(task.weight, sum(stored)))
        docs = columns.read(Path(folder) / f"read/{number}.docs", ["num_bytes"])
        measured.text += int(docs["num_bytes"].sum())
        measured.documents += meta["num_documents"]
        measured.tokens += (
            len(columns.read(Path(folder) / f"read/{number}.tokens", ["tokens"])["tokens"])
            + meta["num_documents"]
        )
    return measured


@dataclass
class _Write:
    seconds_per_token: float
    bytes_per_token: float


def _write_sample(folder: str, seq_len: int, eos_id: int, recipe: Recipe) -> _Write:
    """Write the sample's tokens as one shard and look at time and size."""
    parts = [
        columns.read(path, ["tokens"])["tokens"] for path in sorted((Path(folder) / "read").glob("*.tokens"))
    ]
    tokens = np.concatenate(parts) if parts else np.zeros(1, np.uint16)
    length = max(1, min(seq_len, len(tokens) - 1))
    rows = np.lib.stride_tricks.sliding_window_view(np.append(tokens, eos_id), length + 1)[::length]
    settings = recipe.shards
    options = shards.ShardOptions(settings.compression, settings.level, settings.hdf5_shuffle, settings.dtype)
    start = perf_counter()
    info = shards.write_samples(Path(folder) / "sample.h5", np.ascontiguousarray(rows), None, options)
    return _Write(
        (perf_counter() - start) / max(1, info.num_tokens), info.num_bytes / max(1, info.num_tokens)
    )


def _stages(recipe: Recipe, out: Path) -> tuple[tuple[str, str], ...]:
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
    splits = ", ".join(f"{count:,} {split}" for split, count in plan.files.items())
    lines = [
        f"input      {amount(plan.stored_bytes, 'B')} in files: {splits}",
        f"tasks      {plan.read_tasks:,} to read, {plan.read_done:,} of them done before",
        f"expected   {amount(plan.documents, 'document')}, {amount(plan.text_bytes, 'B')} of text, {amount(plan.tokens, 'token')} before deduplication",
        f"shards     up to {amount(plan.shard_bytes, 'B')}",
        f"peak disk  {amount(plan.shard_bytes + plan.work_bytes, 'B')} (work files {amount(plan.work_bytes, 'B')})",
        f"memory     about {amount(plan.peak_memory_bytes, 'B')} with {plan.workers} workers",
        f"time       about {duration(plan.seconds)} with {plan.workers} workers, measured on {amount(plan.measured_bytes, 'B')} of the input",
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
