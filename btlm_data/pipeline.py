"""The ordered stages, and what each reads and writes: from a recipe to a verified dataset.

    list files -> read (clean, sketch, tokenize in one pass) -> dedupe -> holdout -> streams (scatter, sort) -> pack -> shard -> finish

Each arrow is a barrier; inside a stage tasks run in any order on any engine (engine/). Work files lie in the work folder,
shards go straight to the dataset folder, and dataset.json, written last, says that the dataset is complete.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from btlm_data.cleaning.filters import plan_filters
from btlm_data.engine.local import LocalEngine
from btlm_data.engine.runner import (
    Engine,
    Events,
    exclusive,
    exclusive_folder,
    is_done,
    run_step,
    task_digest,
)
from btlm_data.errors import ConfigError, DataError, InputError, OutputError
from btlm_data.fingerprint import digest
from btlm_data.formats import atomic, dataset, provenance, rejects
from btlm_data.formats.ledger import STAGES
from btlm_data.recipe.models import Recipe, Run, Settings
from btlm_data.records.base import ReadOptions
from btlm_data.sources.base import Listing, SourceFile
from btlm_data.sources.fetch import Fetcher
from btlm_data.sources.listing import list_files
from btlm_data.sources.prefetch import Prefetcher
from btlm_data.splits import SPLITS
from btlm_data.stages import blocks as block_list
from btlm_data.stages import emit_folder, finish, holdout, pack, read, shard, streams
from btlm_data.stages.blocks import Block
from btlm_data.stages.pack import PackSettings, SampleSet
from btlm_data.stages.streams import Index, Stream, StreamSettings
from btlm_data.task import Counts, Step, Task
from btlm_data.tokenizers import TokenizerSpec, load_tokenizer

PREPARING = "preparing.json"  # stands in the dataset folder while a run owns it


@dataclass
class Prepared:
    """What a run ends with."""

    out: Path
    work_dir: Path
    complete: bool
    stages: dict[str, Counts]
    num_rejects: int = 0
    already_done: bool = False
    warnings: list[str] = field(default_factory=list)


@dataclass
class _Context:
    recipe: Recipe
    out: Path
    work_dir: Path
    engine: Engine
    events: Events
    timings: list[dict[str, Any]] = field(default_factory=list)
    stages: dict[str, Counts] = field(default_factory=lambda: {name: Counts() for name in STAGES})

    @property
    def settings(self) -> Settings:
        return self.recipe.settings

    def step(self, step: Step) -> list[Counts]:
        """Run a step and add its stages' counts to the ledger."""
        start = perf_counter()
        results = run_step(step, self.work_dir, self.engine, self.events)
        self.timings.append(
            {"step": step.name, "tasks": len(step.tasks), "seconds": round(perf_counter() - start, 3)}
        )
        for counts in results:
            for name, value in counts.extra.get("stages", {}).items():
                self.stages[name].merge(Counts.from_json(value))
        return results


def folders(run: Run) -> tuple[Path, Path]:
    """The local dataset folder and the work folder of a run. A remote --out is prepared in a folder beside the work."""
    if "://" in run.out and not run.out.startswith("file://"):
        name = run.out.rstrip("/").rsplit("/", 1)[-1]
        work = Path(run.work_dir or f"{name}.work")
        return work / "dataset", work
    out = Path(run.out.removeprefix("file://"))
    return out, Path(run.work_dir) if run.work_dir else out / ".work"


def prepare(recipe: Recipe, events: Events) -> Prepared:
    """Do everything a recipe says, resuming whatever an earlier run finished. Raises BtlmError for all a user can mend."""
    out, work_dir = folders(recipe.run)
    _check_out(out, work_dir, recipe)
    with exclusive(work_dir), exclusive_folder(out), LocalEngine(recipe.run.workers) as engine:
        context = _Context(recipe, out, work_dir, engine, events)
        prepared = _stages(context)
    if prepared.complete and out != Path(recipe.run.out.removeprefix("file://")):
        from btlm_data.sources.upload import upload_dataset

        upload_dataset(out, recipe.run.out)
    return prepared


def _stages(context: _Context) -> Prepared:
    run, settings = context.recipe.run, context.settings
    listing = list_files(settings.source, run)
    tokenizer = load_tokenizer(
        settings.tokenizer.name,
        eos=settings.tokenizer.eos,
        backend=settings.tokenizer.backend,
        revision=settings.tokenizer.revision,
    )
    options = read.read_options(settings.source, listing.fields)
    identities = [file.identity for file in listing.files]
    functions = read.filters_fingerprint(settings.clean)
    fingerprint = digest(settings, identities, tokenizer.fingerprint, functions, dataset.FORMAT_VERSION)
    if run.emit_text is not None:
        _check_emit(run.emit_text, settings.source.name)
        emit_folder.check(Path(run.emit_text), fingerprint, overwrite=run.overwrite)
    if (finished := _finished(context, fingerprint)) is not None:
        return finished
    _claim(context, fingerprint)
    warm_up(tokenizer)
    if isinstance(context.engine, LocalEngine):
        context.engine.start()
    if run.stop_after == "acquire":
        return Prepared(context.out, context.work_dir, False, context.stages)

    blocks, lines, lineage, num_rejects, parts, reading = _read(context, listing, tokenizer.spec, options)
    if run.stop_after == "clean":
        return Prepared(context.out, context.work_dir, False, context.stages, num_rejects)
    fates, clusters, lineage = _dedupe(context, blocks, lineage)
    if run.stop_after == "dedupe":
        return Prepared(context.out, context.work_dir, False, context.stages, num_rejects)
    lineage = _holdout(context, blocks, fates, lineage)
    if run.stop_after in ("holdout", "tokenize"):
        return Prepared(context.out, context.work_dir, False, context.stages, num_rejects)
    if run.emit_text is not None:
        _emit(context, parts, blocks, reading, lineage, Path(run.emit_text), fingerprint)
    indices, lineage = _streams(context, blocks, lineage)
    if run.stop_after == "shuffle":
        return Prepared(context.out, context.work_dir, False, context.stages, num_rejects)
    sets = _shards(context, indices, lineage, tokenizer, stop=run.stop_after == "pack")
    if run.stop_after == "pack":
        return Prepared(context.out, context.work_dir, False, context.stages, num_rejects)
    finish.write_places(context.work_dir, blocks, lines)
    step = Step(
        "documents",
        finish.VERSION,
        finish.documents,
        finish.plan_documents(indices, blocks, lineage),
        None,
        "",
        "doc",
    )
    context.step(step)
    finished_run = finish.Finished(
        out=context.out,
        work_dir=context.work_dir,
        settings=settings,
        listing=listing,
        tokenizer=tokenizer,
        indices=indices,
        sets=sets,
        stages=context.stages,
        run_fingerprint=fingerprint,
        other_inputs={"filters": functions} if functions else {},
        dedupe=clusters,
        clusters=context.work_dir / "dedupe/clusters.parquet" if clusters is not None else None,
        contamination=_contamination(context, blocks),
        timings=context.timings,
        version=package_version(),
    )
    finish.write(finished_run)
    for passing in ("pack", "emit"):  # large, and only needed until the shards and the text stand
        shutil.rmtree(context.work_dir / passing, ignore_errors=True)
    Fetcher.of(run, listing).release(listing.files)
    (context.out / PREPARING).unlink(missing_ok=True)
    return Prepared(context.out, context.work_dir, True, context.stages, num_rejects)


def warm_up(tokenizer: Any) -> None:
    """Load (the first time: compile) every kernel here, so that forked workers have them and none is compiled twice."""
    import numpy as np

    from btlm_data.kernels import minhash, packing

    texts = ["A first, short TEXT; with enough characters for one n-gram. Καλημέρα"]
    utf8 = texts[0].encode()
    normalised = minhash.normalise(texts, np.frombuffer(utf8, np.uint8), np.array([0, len(utf8)]))
    minhash.band_keys(minhash.signatures(normalised), 9, 13)
    minhash.exact_hashes(normalised)
    ids, offsets = tokenizer.encode_batch(texts)
    out = np.empty(len(ids) + 1, tokenizer.dtype)
    packing.place_documents(ids, offsets[:1], np.diff(offsets), np.zeros(1, np.int64), out, tokenizer.eos_id)
    packing.permute_index(np.zeros(1, np.uint64), 5, 1)


# The dataset folder -------------------------------------------------------------------------------------------------


def _check_out(out: Path, work_dir: Path, recipe: Recipe) -> None:
    """Raise OutputError if the folder holds something that is not this run's to replace."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"The output {out} is a file. Choose another --out.")
    if (
        recipe.run.overwrite
        or (out / dataset.FILE_NAME).exists()
        or (out / PREPARING).exists()
        or not out.exists()
    ):
        return
    foreign = sorted(
        path.relative_to(out).as_posix() for path in out.rglob("*.h5") if work_dir not in path.parents
    )[:3]
    if foreign:
        raise OutputError(
            f"The output folder {out} holds shards that btlm-data did not make ({', '.join(foreign)}). They would be mixed with new ones. "
            "Choose another --out, or pass --overwrite to replace them."
        )


def _finished(context: _Context, fingerprint: str) -> Prepared | None:
    """What is already there: this very dataset (done), another one (OutputError unless --overwrite), or nothing."""
    path = context.out / dataset.FILE_NAME
    if not path.exists() or context.recipe.run.overwrite:
        return None
    try:
        dataset.read(context.out)
        earlier = provenance.read(context.out)
    except DataError as error:
        raise OutputError(
            f"The output folder {context.out} holds a dataset.json that this program cannot use: {error}\n"
            "Choose another --out, or pass --overwrite to replace it."
        ) from None
    emit = context.recipe.run.emit_text
    same = earlier is not None and earlier.run == fingerprint
    if emit is not None and same and not emit_folder.is_complete(Path(emit), fingerprint):
        return None  # the shards are proved done by their receipts; only the text is made
    if same and finish.is_whole(context.out):
        return Prepared(context.out, context.work_dir, True, context.stages, already_done=True)
    if not same:
        there = earlier.configuration if earlier is not None else {}
        differences = _differences(there, context.settings.model_dump(mode="json")) if there else []
        what = "; ".join(differences[:5]) or "other input files or another tokenizer"
        raise OutputError(
            f"The output folder {context.out} holds another dataset. It differs in: {what}. "
            "Choose another --out, or pass --overwrite to replace it (work that both share is kept)."
        )
    return None


def _differences(there: Any, here: Any, prefix: str = "") -> list[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        found = []
        for key in sorted({*there, *here}):
            found += _differences(there.get(key), here.get(key), f"{prefix}{key}.")
        return found
    return [] if there == here else [f"{prefix[:-1]} is {json.dumps(there)} there, {json.dumps(here)} now"]


def _claim(context: _Context, fingerprint: str) -> None:
    """Mark the folder as being prepared; from here on it holds no complete dataset."""
    atomic.write_json(
        context.out / PREPARING,
        {"fingerprint": fingerprint, "work_dir": os.path.relpath(context.work_dir, context.out)},
    )
    for path in [context.out / dataset.FILE_NAME, *context.out.glob(f"msl*/{dataset.FILE_NAME}")]:
        path.unlink(missing_ok=True)
    atomic.sweep(context.out)


# The stages ---------------------------------------------------------------------------------------------------------


def read_settings(
    context_run: Run,
    listing: Listing,
    settings: Settings,
    options: ReadOptions,
    tokenizer: TokenizerSpec,
    evaluation: tuple[str, str] | None,
) -> read.ReadSettings:
    """What the read step needs. evaluation: (file relative to the work folder, digest) of the evaluation sets' n-grams."""
    keep_signatures = settings.dedupe.method == "minhash" and (
        settings.dedupe.verify or settings.dedupe.index is not None
    )
    need_sha256 = settings.dedupe.method == "none" or not settings.dedupe.holdout
    filters = plan_filters(settings.clean.filters)
    products = read.product_digests(
        settings,
        filters,
        options,
        tokenizer,
        evaluation[1] if evaluation else None,
        keep_signatures,
        need_sha256,
    )
    return read.ReadSettings(
        settings=settings,
        options=options,
        tokenizer=tokenizer,
        fetcher=Fetcher.of(context_run, listing),
        filters=filters,
        products=products,
        strict=context_run.strict,
        eval_ngrams=evaluation[0] if evaluation else None,
        keep_signatures=keep_signatures,
        need_sha256=need_sha256,
    )


def _read(
    context: _Context, listing: Listing, tokenizer: TokenizerSpec, options: ReadOptions
) -> tuple[list[Block], dict[str, int], str, int, list[Task], read.ReadSettings]:
    """Blocks; the line each block's part begins at in its file; lineage; number of rejects; the parts and how they were read."""
    run, settings = context.recipe.run, context.settings
    evaluation = None
    if settings.holdout.decontaminate:
        from btlm_data.stages.decontaminate import prepare_ngrams

        evaluation = prepare_ngrams(settings.holdout.decontaminate, context.work_dir)
    reading = read_settings(run, listing, settings, options, tokenizer, evaluation)
    tasks = read.plan(listing.files, reading)
    step = Step("read", read.VERSION, read.work, tasks, reading, "")
    todo = [task for task in tasks if not is_done(step, task, context.work_dir)]
    needed = list(
        dict.fromkeys(read.Segment.from_json(s).file for task in todo for s in task.args["segments"])
    )
    with Prefetcher(reading.fetcher, needed):
        results = context.step(step)
    stems: list[tuple[str, str, int]] = []
    lines: dict[str, int] = {}
    base, previous = 0, ""
    for task, counts in zip(tasks, results, strict=True):
        segment = read.Segment.from_json(task.args["segments"][0])
        base = base if segment.start and segment.file.name == previous else 0
        for stem, number in counts.extra["blocks"]:
            stems.append((stem, segment.file.split, number))
            lines[stem] = base
        base += counts.extra["num_lines"]
        previous = segment.file.name
    num_rejects = _write_rejects(context, tasks, results, lines)
    if sum(number for _, _, number in stems) == 0:
        raise InputError(_nothing_left(context.stages, listing.files))
    return (
        block_list.number(stems),
        lines,
        digest([task_digest(step, task) for task in tasks]),
        num_rejects,
        tasks,
        reading,
    )


def _write_rejects(
    context: _Context, tasks: Sequence[Task], results: Sequence[Counts], lines: Mapping[str, int]
) -> int:
    """Put all blocks' rejects into rejects.jsonl (lines counted from 1) and their examples into examples.jsonl; --strict stops here."""
    examples = rejects.Examples(context.settings.clean.rejected_sample)
    count = 0
    with (
        atomic.replacing(context.work_dir / "rejects.jsonl") as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for counts in results:
            for output in counts.extra["outputs"]:
                if not output.endswith(".rejects"):
                    continue
                stem = output.removesuffix(".rejects")
                for value in rejects.read_block(context.work_dir / output):
                    if "hash" in value:
                        examples.add(
                            value["reason"],
                            value["hash"],
                            {k: v for k, v in value.items() if k not in ("reason", "hash")},
                        )
                        continue
                    value["line"] += lines[stem]
                    if context.recipe.run.strict:
                        raise read.strict_error(
                            value["file"], value["line"], value["reason"], value["detail"]
                        )
                    value["line"] += 1
                    file.write(json.dumps(value, ensure_ascii=False, sort_keys=True) + "\n")
                    count += 1
    text = "".join(line + "\n" for line in examples.lines())
    atomic.write_bytes(context.work_dir / "examples.jsonl", text.encode())
    return count


def _nothing_left(stages: Mapping[str, Counts], files: Iterable[SourceFile]) -> str:
    reasons: dict[str, int] = {}
    for name in ("acquire", "clean"):
        for (_, _, what), amount in stages[name].cells.items():
            if what.startswith("drop:"):
                reasons[what[5:]] = reasons.get(what[5:], 0) + amount.documents
    listed = (
        ", ".join(f"{n} x {reason}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1]))
        or "no records at all"
    )
    names = [file.name for file in files]
    return (
        f"No document is left after cleaning: {listed}, in {len(names)} files ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}). "
        "Check --set source.text_field and clean.min_chars; rejects.jsonl in the work folder has the places."
    )


def _dedupe(
    context: _Context, blocks: list[Block], lineage: str
) -> tuple[str | None, dict[str, Any] | None, str]:
    """Fates file, clusters (None without deduplication), lineage. Fills the ledger only where no later stage will (streams.py counts all fates)."""
    settings, run = context.settings, context.recipe.run
    if settings.dedupe.method == "none":
        return None, None, lineage
    from btlm_data.stages import dedupe

    fates, clusters, lineage, counts = dedupe.run(context, blocks, lineage, settings.dedupe, run)
    if run.stop_after in ("dedupe", "holdout", "tokenize"):
        context.stages["dedupe"].merge(counts)
    return fates, clusters, lineage


def _holdout(context: _Context, blocks: list[Block], fates: str | None, lineage: str) -> str:
    settings = context.settings
    h = settings.holdout
    own = any(block.split != "train" for block in blocks)
    draws = not own and (h.fraction > 0 or h.test_fraction > 0)
    work = holdout.HoldoutWork(
        holdout=h,
        seed=settings.seed,
        draws=draws,
        dedupe_fates=fates,
        by_sha256=settings.dedupe.method == "none" or not settings.dedupe.holdout,
        contamination=bool(h.decontaminate),
    )
    step = Step(
        "holdout", holdout.VERSION, holdout.work, holdout.plan(blocks, lineage), work, work.digest, "doc"
    )
    context.step(step)
    return task_digest(step, step.tasks[0])


def _contamination(context: _Context, blocks: list[Block]) -> Path | None:
    """The report of a decontamination, if there was one."""
    if not context.settings.holdout.decontaminate:
        return None
    from btlm_data.stages.decontaminate import write_report

    return write_report(blocks, context.work_dir, context.work_dir / streams.FATES)


def _check_emit(to: str, source: str) -> None:
    """Raises ConfigError where text cannot be written: to a URL, or into the source, which the next run would then read."""
    if "://" in to:
        raise ConfigError(
            f"--emit-text {to!r} is a URL. Text is written to a local folder: name one, and copy it from there."
        )
    inside, folder = Path(to).resolve(), Path(source.removeprefix("file://")).resolve()
    if "://" not in source.removeprefix("file://") and folder.is_dir() and inside.is_relative_to(folder):
        raise ConfigError(
            f"--emit-text {to!r} lies in the source {source!r}, which the text would become a part of. Name another folder."
        )


def _emit(
    context: _Context,
    parts: list[Task],
    blocks: list[Block],
    reading: read.ReadSettings,
    lineage: str,
    to: Path,
    fingerprint: str,
) -> None:
    from btlm_data.stages import emit

    settings_digest = emit.settings_digest(reading.products)
    step = Step(
        "collect text",
        emit.VERSION,
        emit.collect,
        emit.plan_collect(parts, blocks, lineage),
        reading,
        settings_digest,
    )
    todo = [task for task in step.tasks if not is_done(step, task, context.work_dir)]
    needed = list(
        dict.fromkeys(read.Segment.from_json(s).file for task in todo for s in task.args["segments"])
    )
    with Prefetcher(reading.fetcher, needed):
        results = context.step(step)
    lineage = digest([task_digest(step, task) for task in step.tasks])
    tasks = emit.plan_write(step.tasks, results, os.path.relpath(to, context.work_dir), lineage)
    write = Step("emit text", emit.VERSION, emit.write, tasks, None, settings_digest, "doc")
    held = (
        nullcontext() if to.resolve() == context.out.resolve() else exclusive_folder(to)
    )  # the dataset's own folder is held already
    with held:
        emit_folder.begin(to, fingerprint, [task.args["name"] for task in tasks])
        emit_folder.finish(to, fingerprint, emit.summary(context.step(write)))


def _streams(context: _Context, blocks: list[Block], lineage: str) -> tuple[dict[str, Index], str]:
    settings = context.settings
    own = {block.split for block in blocks}
    drawn = {"validation"} if settings.holdout.fraction > 0 and own == {"train"} else set()
    drawn |= {"test"} if settings.holdout.test_fraction > 0 and own == {"train"} else set()
    stream_settings = StreamSettings(settings, tuple(split for split in SPLITS if split in own | drawn))
    atomic.write_bytes(
        context.work_dir / streams.BLOCK_LIST, json.dumps([block.stem for block in blocks]).encode()
    )
    total = sum(
        amount.bytes for (_, _, what), amount in context.stages["clean"].cells.items() if what == "out"
    )
    num_buckets = max(1, -(-total // streams.BUCKET_BYTES))
    groups = streams.plan_scatter(blocks, num_buckets, lineage)
    step = Step(
        "scatter", streams.VERSION, streams.scatter, groups, stream_settings, stream_settings.digest, "doc"
    )
    context.step(step)
    lineage = digest([task_digest(step, task) for task in groups])
    tasks = streams.plan_sort(stream_settings.streams, num_buckets, groups, lineage)
    step = Step("sort", streams.VERSION, streams.sort, tasks, stream_settings, stream_settings.digest, "task")
    results = context.step(step)
    indices: dict[str, Index] = {}
    for number, stream in enumerate(stream_settings.streams):
        mine = results[number * num_buckets : (number + 1) * num_buckets]
        tokens = tuple(counts.extra["num_tokens"] for counts in mine)
        indices[stream.name] = Index(stream, tokens, tuple(counts.extra["num_documents"] for counts in mine))
    return indices, digest(lineage, stream_settings.digest)


def _shards(
    context: _Context, indices: Mapping[str, Index], lineage: str, tokenizer: Any, *, stop: bool
) -> list[finish.PreparedSet]:
    settings, run = context.settings, context.recipe.run
    several = len(settings.seq_len) > 1
    pack_settings = PackSettings(settings, tokenizer.dtype.name, tokenizer.eos_id)
    write = shard.WriteSettings(
        pack_settings, settings.shards, os.path.relpath(context.out, context.work_dir)
    )
    divided = any(part.share is not None for part in settings.seq_len)
    prepared: list[finish.PreparedSet] = []
    sample_sets: list[SampleSet] = []
    for set_index, part in enumerate(settings.seq_len):
        folder = part.name if several else ""
        prepared.append(finish.PreparedSet(set_index, part, folder, {}))
        for split in SPLITS:
            index = indices.get(Stream(set_index if divided else 0, split).name)
            if index is not None and index.num_tokens > 1:
                per_file = pack.samples_per_file(settings, part.seq_len)
                place = f"{folder}/{split}" if folder else split
                sample_set = SampleSet(place, split, index, part.seq_len, per_file, settings.tail)
                prepared[-1].splits[split] = finish.PreparedSplit(sample_set, [])
                sample_sets.append(sample_set)
    if settings.format == "vsl":
        from btlm_data.stages import vsl

        plans = {s.folder: vsl.plan_windows(s, lineage) for s in sample_sets}
        planning = [task for folder in plans.values() for task in folder]
        results = iter(
            context.step(
                Step("pack", vsl.VERSION, vsl.plan, planning, pack_settings, pack_settings.digest, "token")
            )
        )
        tasks = {}
        for s in sample_sets:
            windows = [vsl.Window(task.outputs[0], next(results).extra["rows"]) for task in plans[s.folder]]
            tasks[s.folder] = vsl.plan_shards(s, windows, lineage, write)
        files = _write(context, tasks, vsl.write_shard, write) if not stop else {}
    elif settings.format == "corpus":
        tasks = {s.folder: shard.plan_corpus(s, lineage, write) for s in sample_sets}
        files = _write(context, tasks, shard.write_corpus, write) if not stop else {}
    else:
        ranges: dict[str, list[Task]] = {s.folder: [] for s in sample_sets}
        if settings.shuffle == "samples":
            large = [s for s in sample_sets if not _fits_memory(s, tokenizer.dtype.itemsize)]
            ranges |= {s.folder: pack.plan(s, lineage, run.memory_per_worker) for s in large}
            packing = [
                task
                for s in large
                if not _written(context, s, ranges, lineage, write)
                for task in ranges[s.folder]
            ]
            context.step(
                Step("pack", pack.VERSION, pack.work, packing, pack_settings, pack_settings.digest, "token")
            )
        tasks = {s.folder: shard.plan_samples(s, ranges[s.folder], lineage, write) for s in sample_sets}
        files = _write(context, tasks, shard.write_samples, write) if not stop else {}
    for prepared_set in prepared:
        for done in prepared_set.splits.values():
            done.files.extend(files.get(done.sample_set.folder, []))
    return prepared


def _written(
    context: _Context,
    sample_set: SampleSet,
    ranges: Mapping[str, list[Task]],
    lineage: str,
    write: shard.WriteSettings,
) -> bool:
    """Whether every shard of the set is proved done, so that the packed samples, which a finished run deletes, are not needed."""
    tasks = shard.plan_samples(sample_set, ranges[sample_set.folder], lineage, write)
    step = Step("shard", shard.VERSION, shard.write_samples, tasks, write, write.digest, "token")
    return all(is_done(step, task, context.work_dir) for task in tasks)


def _fits_memory(sample_set: SampleSet, itemsize: int) -> bool:
    """Whether a stream's tokens can stay in the page cache while its samples are fetched in any order."""
    if "BTLM_SCATTER" in os.environ:  # tests make both ways run on small data; the bytes are the same
        return False
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sample_set.index.num_tokens * itemsize <= min(installed // 4, 8 * 2**30)


def _write(
    context: _Context, tasks: Mapping[str, list[Task]], work: Any, write: shard.WriteSettings
) -> dict[str, list[dict[str, Any]]]:
    """Write all shards; returns each folder's files in order."""
    step = Step(
        "shard",
        shard.VERSION,
        work,
        [task for folder in tasks.values() for task in folder],
        write,
        write.digest,
        "token",
    )
    results = iter(context.step(step))
    return {
        folder: [next(results).extra["file"] for _ in folder_tasks] for folder, folder_tasks in tasks.items()
    }


def package_version() -> str:
    """Version of this package."""
    return importlib.metadata.version("btlm-data")
