"""The stages in order: from a recipe to a verified dataset.

    acquire -> clean -> dedupe -> holdout -> tokenize -> [emit] -> shuffle -> pack -> shard

Each arrow is a barrier; inside a stage tasks run in any order on any engine (engine/). A stage plans its
tasks from what earlier ones handed on (preparation.py), runs them, and sets its own part of it. Tokens are
made in the one pass of `read` (docs/decisions/0001); `tokenize` is where they are counted. dataset.json,
written last, says that the dataset is complete.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from btlm_data import input_checks, output_folder, work_folder
from btlm_data.blocks import make_block, write_table
from btlm_data.engine import published
from btlm_data.engine.base import EngineSettings, is_on_this_machine, open_engine
from btlm_data.engine.runner import Events, Runner
from btlm_data.engine.status import StatusFile
from btlm_data.errors import ConfigError, InputError, NothingNew
from btlm_data.fates import Fate
from btlm_data.fingerprint import digest
from btlm_data.formats import ledger
from btlm_data.formats.dataset import Dataset
from btlm_data.locations import Locations, Stores
from btlm_data.output_folder import OutputFolder
from btlm_data.preparation import Inputs, Preparation, PreparedSet, PreparedSplit
from btlm_data.recipe.models import Recipe, Run
from btlm_data.records.batch import FILE_REASONS
from btlm_data.sources.fetch import Fetcher
from btlm_data.sources.prefetch import Prefetcher
from btlm_data.splits import SPLITS
from btlm_data.stages import (
    block_writer,
    decontaminate,
    dedupe,
    emit,
    emit_folder,
    file_ranges,
    holdout,
    limits,
    members,
    pack,
    read,
    ready,
    rejected,
    shard,
    shuffle,
)
from btlm_data.stages.stream import Stream, StreamSettings
from btlm_data.storage import is_remote, lease, open_store
from btlm_data.task import Artifact, Counts, Step, TaskResult
from btlm_data.task_files import write_list
from btlm_data.wording import counted


class Prepared(msgspec.Struct):
    """What a run ends with. out: where the dataset is, as open_store takes it. datasets: of each prepared set by its folder, once complete. generation: the number that
    it has in the dataset `added_to`, where it was added to one.
    """

    out: str
    work_dir: str
    complete: bool
    stages: dict[str, Counts]
    num_rejects: int = 0
    already_done: bool = False
    warnings: list[str] = msgspec.field(default_factory=list)
    datasets: Mapping[str, Dataset] = msgspec.field(default_factory=dict)
    generation: int | None = None
    added_to: str | None = None


def locations(run: Run, index: str | None = None) -> Locations:
    """Where a run's files are, absolute. index: of deduplication. A remote --out has its work folder beside the current folder by
    default.
    """
    out = open_store(run.out)
    if run.work_dir is not None:
        work = open_store(run.work_dir).url
    elif is_remote(run.out):
        work = open_store(f"{run.out.rstrip('/').rpartition('/')[2]}.work").url
    else:
        work = open_store(f"{run.out}/.work").url
    text, index = (open_store(name).url if name is not None else None for name in (run.emit_text, index))
    return Locations(work, out.url, text, index)


def prepare(
    recipe: Recipe, events: Events, *, inputs: Inputs | None = None, adds_to_index: bool = True
) -> Prepared:
    """Do everything a recipe says, resuming whatever an earlier run finished.

    inputs: of the recipe, where they have been looked up. adds_to_index: whether an index that `dedupe.index` names
    is to know this run too. Raises BtlmError for everything that a user can correct.
    """
    input_checks.check_memory(recipe.run)
    where = locations(recipe.run, recipe.dedupe.index)
    stores = where.open()
    stores.reach()
    if inputs is None:  # before anything is written: most mistakes end here
        inputs = Inputs.look_up(recipe)
    with _held(stores) as leases, open_engine(recipe.run.engine, engine_settings(recipe.run)) as engine:
        work_folder.claim(stores.work)
        output = _output_folder(inputs, stores)
        if is_finished(inputs, stores):
            counts: dict[str, Counts] = {name: Counts() for name in ledger.STAGES}
            datasets = output.datasets()
            output.finish()  # what a run that was killed right after its dataset.json left to do
            published.finish(stores.work)
            return Prepared(
                stores.out.shown, stores.work.shown, True, counts, already_done=True, datasets=datasets
            )
        output.claim(inputs.fingerprint, overwrite=recipe.run.overwrite)
        ready.warm_up(inputs.tokenizer)
        engine.start()
        for held in leases:
            lease.start_heartbeat(held)
        status = StatusFile(stores.work, recipe.run.engine)
        runner = Runner(
            where, stores, engine, events, leases[0], skip_failed=recipe.run.skip_failed, status=status
        )
        with _reported_to(status):
            prepared = _run_stages(Preparation(inputs, runner, output, adds_to_index))
        if prepared.complete:
            published.finish(stores.work)
        return prepared


def is_finished(inputs: Inputs, stores: Stores) -> bool:
    """Whether this very dataset (and its text) is there already.

    Raises OutputError or ConfigError where a folder holds what is not this run's to replace.
    """
    recipe = inputs.recipe
    if stores.text is not None:
        _check_text(recipe)
        emit_folder.check(stores.text, inputs.fingerprint, overwrite=recipe.run.overwrite)
    output = _output_folder(inputs, stores)
    is_done = output.state(inputs.fingerprint, inputs.configuration, overwrite=recipe.run.overwrite)
    return is_done and (stores.text is None or emit_folder.is_complete(stores.text, inputs.fingerprint))


def _output_folder(inputs: Inputs, stores: Stores) -> OutputFolder:
    return OutputFolder(stores.out, inputs.set_folders, inputs.listing.provenance["place"])


@contextlib.contextmanager
def _reported_to(status: StatusFile) -> Iterator[None]:
    """Say in the status how the block ends."""
    try:
        yield
    except BaseException as error:
        status.ended("stopped", str(error) or type(error).__name__)
        raise
    status.ended("complete")


@contextlib.contextmanager
def _held(stores: Stores) -> Iterator[list[lease.Lease]]:
    """Hold the work folder and the dataset folder (and the text folder), without heartbeats yet: workers are
    forked first.
    """
    held = [
        (stores.work, work_folder.LEASE, "The work folder", "--work-dir"),
        (stores.out, output_folder.LEASE, "The output folder", "--out"),
    ]
    if stores.text is not None and stores.text.url != stores.out.url:
        held.append((stores.text, output_folder.LEASE, "The text folder", "--emit-text"))
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                lease.hold(store, name, f"{kind} {store.shown} is", option=option, heartbeat=False)
            )
            for store, name, kind, option in held
        ]


def _run_stages(p: Preparation) -> Prepared:
    datasets: Mapping[str, Dataset] = {}
    for name, stage in STAGES:
        with p.runner.removing_damaged():
            result = stage(p)
        if name == p.run.stop_after and name != "shard":
            break
        if result is not None:
            datasets = result
    return Prepared(
        p.runner.stores.out.shown,
        p.runner.stores.work.shown,
        bool(datasets),
        p.counts,
        p.num_rejects,
        warnings=p.warnings,
        datasets=datasets,
    )


# The stages -------------------------------------------------------------------------------------------------


def _acquire(p: Preparation) -> None:
    """Plan which stretches of which files are read."""
    if p.inputs.evaluation:
        [result] = p.step(decontaminate.plan_ngrams(p.inputs.evaluation))
        p.ngrams = result.outputs[0]
    p.read_step = plan_read(p.inputs, p.runner)


def plan_read(
    inputs: Inputs, runner: Runner, count: Callable[[Step], Sequence[TaskResult]] | None = None
) -> Step:
    """The step `read`. Where there are evaluation sets, it can be proved done only if their n-grams are. count: does the steps
    that count the records for --limit, where the runner is not to.
    """
    ngrams = None
    if inputs.evaluation:
        done = runner.proved(decontaminate.plan_ngrams(inputs.evaluation))
        ngrams = done["all"].outputs[0] if done else Artifact("", 0, "")
    settings = inputs.read_settings(ngrams)

    limit = inputs.settings.source.limit
    if limit is None:
        chosen = [file_ranges.FileRange(file) for file in inputs.listing.files]
    else:
        counting = limits.CountSettings(settings.fetcher, settings.options)
        chosen = limits.first_records(inputs.listing.files, limit, counting, count or runner.run)
    return read.plan(file_ranges.group(chosen, settings.options), settings, ngrams)


def idle_runner(recipe: Recipe) -> Runner:
    """A runner that can tell what is done, and is not used to do anything."""
    where = locations(recipe.run, recipe.dedupe.index)
    stores = where.open()
    stores.reach()
    engine = open_engine("local", EngineSettings(1))
    return Runner(where, stores, engine, _NoEvents(), skip_failed=recipe.run.skip_failed)


def engine_settings(run: Run) -> EngineSettings:
    """What the engine of a run must know."""
    return EngineSettings(run.workers, run.memory_per_worker, run.cluster, run.ray_address)


class _NoEvents:
    """Ignores progress events."""

    def step_started(self, *_: object) -> None: ...

    def step_moved(self, *_: object) -> None: ...

    def step_finished(self, *_: object) -> None: ...


def _clean(p: Preparation) -> None:
    """Read, clean, sketch and tokenize the text."""
    step = p.read_step
    assert step is not None
    with _prefetched(p, step):
        results = p.step(step)
    base, previous, ordinal = 0, "", 0
    for task, result in zip(step.tasks, results, strict=True):
        first = read.ranges_of(task)[0]
        base = base if first.start and first.file.name == previous else 0
        for stem, num_documents in result.counts.extra["blocks"]:
            p.blocks.append(make_block(stem, first.file.split, ordinal, num_documents, base, result.outputs))
            ordinal += num_documents
        base += result.counts.extra["num_lines"]
        previous = first.file.name
        for file_range, digests in zip(read.ranges_of(task), result.counts.extra["digests"], strict=True):
            p.input_digests.setdefault((file_range.file.split, file_range.file.name), []).extend(digests)
    p.table = write_table(p.runner.stores.work, p.blocks)
    listed = rejected.run(p.step, p.blocks, p.settings.clean.rejected_sample)
    if p.run.strict and listed.first_fault is not None:
        raise block_writer.strict_error(*listed.first_fault)
    p.num_rejects, p.reject_files = listed.num_rejects, [listed.rejects, listed.examples]
    p.warnings += input_checks.reject_warnings(listed.tally, input_checks.num_records(p.counts["acquire"]))
    input_checks.check_rejected(
        p.inputs, p.counts["acquire"], _rejected(p), f"{p.runner.stores.work.shown}/{listed.rejects.name}"
    )
    input_checks.check_memory_of_names(p.inputs, p.counts["acquire"])
    input_checks.check_source_names(p.inputs, p.counts["acquire"])
    if ordinal == 0:
        words = _nothing_left(p)
        raise InputError("\n".join([words, *p.warnings]))


def _dedupe(p: Preparation) -> None:
    """Find duplicates over all sources and splits."""
    assert p.table is not None
    assert p.read_step is not None
    parts = members.parts_of(p.read_step, p.blocks)
    read_settings = p.inputs.read_settings(p.ngrams)

    def plan_members(components: Artifact, with_texts: bool) -> Step:
        return members.plan(parts, components, read_settings, with_texts)

    def plan_kept_texts(copies: Artifact) -> Step:
        return members.plan_kept(parts, copies, read_settings)

    result = dedupe.run(
        p.runner,
        p.blocks,
        p.table,
        p.settings.dedupe,
        p.run,
        plan_members,
        plan_kept_texts if p.adds_to_index else None,
    )
    if result is None:
        return
    p.dedupe_fates, p.clusters, p.removals = result.fates, result.clusters, result.removals
    p.copies = result.copies
    p.dedupe_summary, p.index_lineage = result.summary, result.index_lineage
    if p.run.stop_after in (
        "dedupe",
        "holdout",
        "tokenize",
    ):  # later stages count all fates (stages/shuffle.py)
        p.counts["dedupe"].merge(result.counts)


def _holdout(p: Preparation) -> None:
    """Decide each document's split and final fate."""
    settings = p.settings.holdout
    has_own = any(block.split != "train" for block in p.blocks)
    work = holdout.HoldoutWork(
        holdout=settings,
        seed=p.settings.seed,
        draws=not has_own and (settings.fraction > 0 or settings.test_fraction > 0),
        by_sha256=p.settings.dedupe.method == "none" or not p.settings.dedupe.holdout,
        contamination=p.ngrams is not None,
    )
    p.fates = holdout.run(p.step, p.runner, p.blocks, p.dedupe_fates, work)
    if p.ngrams is not None:
        parts = [
            file for r in p.step(decontaminate.plan_report(p.blocks, p.ngrams, p.fates)) for file in r.outputs
        ]
        p.runner.named.add(name := "holdout/report.json")
        listed = write_list(p.runner.stores.work, name, parts)
        [result] = p.step(decontaminate.plan_table(listed))
        p.contamination = result.outputs[0]


def _tokenize(p: Preparation) -> None:
    """Nothing is left to do: tokens were made in the pass over the text, and are counted by `shuffle`."""


def _emit(p: Preparation) -> None:
    """Write the kept text, where it was requested."""
    if p.run.emit_text is None:
        return
    assert p.read_step is not None
    assert p.fates is not None
    settings = p.inputs.read_settings(p.ngrams)
    collecting = emit.plan_collect(p.read_step, p.blocks, p.fates, settings)
    with _prefetched(p, collecting):
        emit.run(p.runner, collecting, p.inputs.fingerprint)


def _shuffle(p: Preparation) -> None:
    """Give every document its place in its stream."""
    assert p.fates is not None
    own = {block.split for block in p.blocks}
    drawn = {"validation"} if p.settings.holdout.fraction > 0 and own == {"train"} else set()
    drawn |= {"test"} if p.settings.holdout.test_fraction > 0 and own == {"train"} else set()
    p.splits = tuple(split for split in SPLITS if split in own | drawn)
    num_bytes = sum(amount.bytes for (_, _, cell), amount in p.counts["clean"].cells.items() if cell == "out")
    p.streams, p.scattered, p.mix = shuffle.run(
        p.step,
        p.runner,
        p.blocks,
        p.fates,
        p.copies,
        StreamSettings(p.settings, p.splits),
        num_bytes,
    )
    if not any(
        cell == "out" and amount.documents for (_, _, cell), amount in p.counts["holdout"].cells.items()
    ):
        raise _all_dropped(p)


def _pack(p: Preparation) -> None:
    """Cut the streams into samples: which samples are in which shard; where they are too many, on disk."""
    divided = any(set_.share is not None for set_ in p.settings.seq_len)
    several = len(p.settings.seq_len) > 1
    tokenizer = p.inputs.tokenizer
    for number, set_ in enumerate(p.settings.seq_len):
        prepared = PreparedSet(number, set_, set_.name if several else "")
        for split in SPLITS:
            index = p.streams.get(Stream(number if divided else 0, split).name)
            if index is not None and index.num_tokens > 1:
                packing = pack.packing_of(
                    p.settings, set_.seq_len, split, tokenizer.dtype.name, tokenizer.eos_id, index.borders
                )
                sample_set = pack.SampleSet(prepared.split_folder(split), index, packing)
                prepared.splits[split] = PreparedSplit(sample_set)
        p.sets.append(prepared)
    tokens = [block.tokens.checksum for block in p.blocks]
    indices = [bucket.content for index in p.streams.values() for bucket in index.buckets]
    source = pack.StreamSource(digest(tokens, indices), p.run.memory_per_worker, p.blocks)
    sample_sets = [split.sample_set for prepared in p.sets for split in prepared.splits.values()]
    p.shards = shard.plan(p.runner, sample_sets, source, pack.FormatSettings.of(p.settings.format))


def _shard(p: Preparation) -> Mapping[str, Dataset]:
    """Write the shards and what is beside them."""
    from btlm_data import finish

    datasets = finish.write(p)
    p.runner.discard_files("pack")
    dedupe.discard_passed(p.runner)
    p.runner.tidy(work_folder.FOLDERS)
    p.runner.stores.work.sweep()  # of workers that died
    Fetcher.of(p.run, p.inputs.listing).release(p.inputs.listing.files)
    return datasets


STAGES: tuple[tuple[str, Callable[[Preparation], Mapping[str, Dataset] | None]], ...] = (
    ("acquire", _acquire),
    ("clean", _clean),
    ("dedupe", _dedupe),
    ("holdout", _holdout),
    ("tokenize", _tokenize),
    ("emit", _emit),
    ("shuffle", _shuffle),
    ("pack", _pack),
    ("shard", _shard),
)


# Their parts ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _prefetched(p: Preparation, step: Step) -> Iterator[None]:
    """Fetch remote files ahead of the tasks of a step that are still to be done, where tasks run on this
    machine.
    """
    if not is_on_this_machine(p.run.engine):
        yield
        return
    done = p.runner.proved(step)
    todo = [task for task in step.tasks if task.id not in done]
    needed = list(dict.fromkeys(r.file for task in todo for r in read.ranges_of(task)))
    with Prefetcher(Fetcher.of(p.run, p.inputs.listing), needed):
        yield


def _rejected(p: Preparation) -> Iterator[dict[str, Any]]:
    """The lines of rejects.jsonl."""
    with p.runner.stores.work.open(p.reject_files[0].name) as file:
        for line in file:
            yield json.loads(line)


def _nothing_left(p: Preparation) -> str:
    files, work = p.inputs.listing.files, p.runner.stores.work.shown
    rejects_name, examples_name = (f"{work}/{file.name}" for file in p.reject_files)
    names = [file.name for file in files[:3]] + ["..."] * (len(files) > 3)
    where = f"{counted(len(files), 'file')} ({', '.join(names)})"
    reasons: dict[str, int] = {}
    advice = []
    for stage, hint in (
        ("acquire", f"Check --text-field; {rejects_name} lists the places"),
        ("clean", f"Check --text-field, clean.min_chars and the filters; {examples_name} has examples"),
    ):
        dropped = [
            (cell[5:], n) for (_, _, cell), n in p.counts[stage].cells.items() if cell.startswith("drop:")
        ]
        for reason, amount in dropped:
            reasons[reason] = reasons.get(reason, 0) + amount.documents
        if any(reason not in FILE_REASONS for reason, _ in dropped):
            advice.append(hint)
    if not reasons:
        return f"No document is left: there is no record at all in {where}."
    listed = ", ".join(f"{n} x {reason}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1]))
    sentences = " ".join(
        f"{line}." for line in (f"No document is left after cleaning: {listed}, in {where}", *advice)
    )
    return "\n".join([sentences, *input_checks.advise_on_empty_texts(p.inputs, p.counts["clean"])])


def _all_dropped(p: Preparation) -> InputError:
    """Why no document is left after deduplication and holdout."""
    reasons: dict[str, int] = {}
    for stage in ("dedupe", "holdout"):
        for (_, _, cell), amount in p.counts[stage].cells.items():
            if cell.startswith("drop:"):
                reasons[cell[5:]] = reasons.get(cell[5:], 0) + amount.documents
    listed = ", ".join(f"{count:,} x {reason}" for reason, count in sorted(reasons.items()))
    words = f"No document is left after deduplication and holdout: {listed}."
    if reasons.keys() == {Fate.IN_INDEX.reason}:
        return NothingNew(
            f"{words} The index {p.settings.dedupe.index} has all of them: there is nothing new to prepare."
        )
    work = p.runner.stores.work.shown
    return InputError(f"{words} Look at {work}/dedupe/table and at the settings of dedupe and holdout.")


def _check_text(recipe: Recipe) -> None:
    """Raises ConfigError where the text would be written into the source, which the next run would then read."""
    to, source = recipe.run.emit_text, recipe.settings.source.name
    assert to is not None
    if is_remote(to) or is_remote(source):
        return
    folder = Path(source.removeprefix("file://"))
    if folder.is_dir() and f"{open_store(to).url}/".startswith(f"{open_store(source).url}/"):
        raise ConfigError(
            f"--emit-text {to!r} is in the source {source!r}, which the text would become a part of. Name another folder."
        )
